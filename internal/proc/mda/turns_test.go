package mda

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

// What things cost in the model, which has two cores.
const (
	modelCores = 2
	modelStart = 5 * time.Millisecond
	modelMail  = 300 * time.Microsecond
)

// model is a pool whose workers take time and do nothing.
type model struct {
	*pool
	cores chan struct{}

	idle   map[uint32]time.Duration // how long deliveries for these users take, without work
	mu     sync.Mutex
	starts map[uint32]int
	most   int // workers at a time
	now    int
	late   []time.Duration // from submit to the end, of each delivery
	order  []uint32        // users in the order in which their deliveries ended
	left   sync.WaitGroup
}

// runModel plays with a pool of so many places.
func runModel(t *testing.T, places int, play func(m *model)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &model{cores: make(chan struct{}, modelCores), starts: map[uint32]int{}}
		m.pool = newPool(&privsep.Env{Now: time.Now, Log: log.Discard(), Stat: &stat.Set{}})
		m.setLimits(config.MDA{MaxSession: places, MaxSessionPerUser: 7})
		m.spawn, m.maxFresh = m.begin, freshPerCPU*modelCores
		m.finished = func(j *job, r *imsg.DeliverResult) {
			if j.answer != nil {
				j.answer(r)
			}
			if !r.Status.OK() {
				t.Errorf("%s: %s", j.user.Name, r.Line)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.late = append(m.late, time.Since(j.env.Created))
			m.order = append(m.order, j.user.UID)
			m.left.Done()
		}
		play(m)
		m.left.Wait()
		m.stop(time.Second)
		if m.most > places {
			t.Errorf("%d workers at a time; want %d at most", m.most, places)
		}
	})
}

// work takes one of the cores for a while.
func (m *model) work(d time.Duration) {
	m.cores <- struct{}{}
	time.Sleep(d)
	<-m.cores
}

func (m *model) begin(l *lane, u imsg.UserInfo) (*worker, error) {
	m.mu.Lock()
	m.starts[u.UID]++
	m.now++
	m.most = max(m.most, m.now)
	m.mu.Unlock()
	m.work(modelStart)
	return m.worker(&modelWorker{m: m, idle: m.idle[u.UID]}), nil
}

type modelWorker struct {
	m    *model
	idle time.Duration
	lost func(error)
	once sync.Once
}

func (w *modelWorker) Serve(_ ipc.Handler, _ func(), lost func(error)) { w.lost = lost }

func (w *modelWorker) Call(context.Context, imsg.Msg, *os.File) (imsg.Msg, *os.File, error) {
	if time.Sleep(w.idle); w.idle == 0 {
		w.m.work(modelMail)
	}
	return &imsg.DeliverResult{Status: mail.Status{Code: 250}}, nil, nil
}

func (w *modelWorker) Close() {
	w.once.Do(func() {
		w.m.mu.Lock()
		w.m.now--
		w.m.mu.Unlock()
		w.lost(nil)
	})
}

// send has a mail come for a user.
func (m *model) send(user uint32) { m.put(user, nil) }

// put does, or has a client ask about the user.
func (m *model) put(user uint32, answer func(*imsg.DeliverResult)) {
	m.left.Add(1)
	u := imsg.UserInfo{Name: fmt.Sprint(user), UID: user}
	b := &body{asked: true, budget: &budget{}}
	b.refs.Store(1)
	m.submit(&job{env: &mail.Envelope{Created: time.Now()}, user: u, as: u, body: b, answer: answer})
}

func (m *model) sum() int {
	n := 0
	for _, k := range m.starts {
		n += k
	}
	return n
}

// TestModelStream: mail goes on coming for more users than there are places.
// Workers are not started in vain, nobody waits long, and no time is lost.
func TestModelStream(t *testing.T) {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, 999)
	tests := map[string]struct {
		mails  int
		gap    time.Duration
		user   func(i int) uint32
		starts int           // at most
		wait   time.Duration // at most
		took   time.Duration // at most
	}{
		"100 users in turn, as in bench C":  {600, time.Millisecond, func(i int) uint32 { return uint32(i % 100) }, 100, time.Second, time.Second},
		"the same for long":                 {6000, time.Millisecond, func(i int) uint32 { return uint32(i % 100) }, 400, 1200 * time.Millisecond, 6300 * time.Millisecond},
		"200 users":                         {5000, time.Millisecond, func(i int) uint32 { return uint32(i % 200) }, 1000, 1500 * time.Millisecond, 5500 * time.Millisecond},
		"a few users get most":              {4000, time.Millisecond, func(int) uint32 { return uint32(zipf.Uint64()) }, 1100, 1500 * time.Millisecond, 4700 * time.Millisecond},
		"one gets half":                     {4000, time.Millisecond, func(i int) uint32 { return uint32(i % 2 * (i / 2 % 100)) }, 350, 1200 * time.Millisecond, 4300 * time.Millisecond},
		"1,000 users, a mail each, at once": {1000, 0, func(i int) uint32 { return uint32(i) }, 1000, 3 * time.Second, 3 * time.Second},
		"bursts":                            {2000, 0, func(i int) uint32 { return uint32(i / 20) }, 100, 1000 * time.Millisecond, 1000 * time.Millisecond},
		"slowly":                            {500, 30 * time.Millisecond, func(i int) uint32 { return uint32(i * 7 % 100) }, 500, 50 * time.Millisecond, 16 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			runModel(t, 50, func(m *model) {
				begin := time.Now()
				for i := range tt.mails {
					m.send(1000 + tt.user(i))
					time.Sleep(tt.gap)
				}
				m.left.Wait()
				took := time.Since(begin)
				slices.Sort(m.late)
				starts, wait := m.sum(), m.late[len(m.late)-1]
				t.Logf("%d workers started, waits up to %v, half up to %v, took %v", starts, wait, m.late[len(m.late)/2], took)
				if starts > tt.starts || wait > tt.wait || took > tt.took {
					t.Errorf("want at most %d, %v, %v", tt.starts, tt.wait, tt.took)
				}
			})
		})
	}
}

// TestModelAlone: a mail that comes alone has a worker at once, though all places
// are taken by idle ones; the one without work for longest has to go.
func TestModelAlone(t *testing.T) {
	runModel(t, 50, func(m *model) {
		for i := range uint32(50) {
			m.send(i)
			time.Sleep(time.Millisecond)
		}
		m.left.Wait()
		m.send(0)
		time.Sleep(flowTime + turnCheck)
		m.mu.Lock()
		m.late = nil
		m.mu.Unlock()
		m.send(50)
		m.left.Wait()
		if most := flowTime + turnCheck + modelStart + modelMail; m.late[0] > most {
			t.Errorf("waited %v; want %v at most", m.late[0], most)
		}
		m.send(0)
		m.send(49)
		m.left.Wait()
		if n := m.sum(); n != 51 {
			t.Errorf("%d workers; want 51", n)
		}
	})
}

// TestModelClient: while mail goes on coming for others, a question that a client
// waits for has a worker at once.
func TestModelClient(t *testing.T) {
	runModel(t, 50, func(m *model) {
		var took time.Duration
		for i := range 900 {
			if m.send(uint32(i % 60)); i == 300 {
				asked := time.Now()
				m.put(100, func(*imsg.DeliverResult) { took = time.Since(asked) })
			}
			time.Sleep(time.Millisecond)
		}
		m.left.Wait()
		if most := 3 * modelStart; took == 0 || took > most {
			t.Errorf("waited %v; want %v at most", took, most)
		}
	})
}

// TestModelOrder: of those who wait the one with most mail comes first, but who
// has waited a second before all others.
func TestModelOrder(t *testing.T) {
	runModel(t, 1, func(m *model) {
		begin := time.Now()
		for i := 0; time.Since(begin) < turnWait+2*modelStart; i++ {
			m.send(1) // keeps its worker
			switch i {
			case 10:
				m.send(2)
			case 1005:
				m.send(3)
				for range 5 {
					m.send(4)
				}
			}
			time.Sleep(time.Millisecond)
		}
		m.left.Wait()
		others := slices.DeleteFunc(slices.Compact(m.order), func(u uint32) bool { return u == 1 })
		if want := []uint32{2, 4, 3}; !slices.Equal(others, want) {
			t.Errorf("came in the order %v; want %v", others, want)
		}
	})
}

// TestModelHangs: a worker that is to go and hangs keeps nobody from the places of
// others.
func TestModelHangs(t *testing.T) {
	for range 10 { // it is the one to go in some of them
		runModel(t, 2, func(m *model) {
			m.idle = map[uint32]time.Duration{1: time.Minute, 2: 50 * time.Millisecond}
			m.send(1)
			for range 5 * time.Second / m.idle[2] * maxPlain {
				m.send(2)
			}
			time.Sleep(turnTime)
			begin := time.Now()
			var took time.Duration
			m.put(3, func(*imsg.DeliverResult) { took = time.Since(begin) })
			m.left.Wait()
			if most := turnWait + 4*m.idle[2]; took > most {
				t.Errorf("waited %v; want %v at most", took, most)
			}
		})
	}
}
