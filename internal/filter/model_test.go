package filter

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// wild is a filter program that breaks every rule, at random: it answers late,
// twice, never, for the wrong session, with a token that is not its own, in
// another order, says nonsense, or ends.
type wild struct {
	far  net.Conn
	near net.Conn
	rng  *rand.Rand
	rate float64 // of bad behaviour
	wg   sync.WaitGroup
}

// socketPair are two ends of a socket, as a program has them.
func socketPair(t testing.TB) (far, near net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if c[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return c[0], c[1]
}

// Conn implements Process.
func (w *wild) Conn() net.Conn { return w.near }

// End implements Process.
func (w *wild) End() {
	w.near.Close()
	w.far.Close()
	w.wg.Wait()
}

// question is one that was not answered yet.
type question struct{ session, token, param string }

func (w *wild) serve() {
	defer w.far.Close()
	in := make([]byte, 1)
	var line []byte
	read := func() (string, bool) {
		line = line[:0]
		for {
			if _, err := w.far.Read(in); err != nil {
				return "", false
			}
			if in[0] == '\n' {
				return string(line), true
			}
			line = append(line, in[0])
		}
	}
	for {
		l, ok := read()
		if !ok {
			return
		}
		if l == "config|ready" {
			break
		}
	}
	fmt.Fprintf(w.far, "register|report|smtp-in|*\nregister|filter|smtp-in|mail-from\nregister|filter|smtp-in|rcpt-to\n"+
		"register|filter|smtp-in|data-line\nregister|filter|smtp-in|commit\nregister|ready\n")
	var late []question
	for {
		l, ok := read()
		if !ok {
			return
		}
		f := strings.SplitN(l, "|", 8)
		if f[0] != "filter" {
			continue
		}
		q := question{f[5], f[6], f[7]}
		if f[4] == "data-line" {
			if w.rng.Float64() < w.rate/20 {
				if w.line(q) {
					return
				}
				continue
			}
			fmt.Fprintf(w.far, "filter-dataline|%s|%s|%s\n", q.session, q.token, q.param)
			continue
		}
		if w.rng.Float64() < w.rate {
			if w.misbehave(q, &late) {
				return
			}
			continue
		}
		w.answer(q)
		if len(late) > 0 && w.rng.IntN(3) == 0 { // in another order than they came
			w.answer(late[0])
			late = late[1:]
		}
	}
}

// answer repeats the parameter, by which the asker knows his own answer.
func (w *wild) answer(q question) {
	fmt.Fprintf(w.far, "filter-result|%s|%s|rewrite|%s\n", q.session, q.token, q.param)
}

// misbehave reports whether the program has ended itself.
func (w *wild) misbehave(q question, late *[]question) bool {
	switch w.rng.IntN(9) {
	case 0, 1:
		*late = append(*late, q)
	case 2: // never
	case 3:
		w.answer(q)
		w.answer(q)
	case 4:
		w.answer(question{q.session, fmt.Sprintf("%016x", w.rng.Uint64()), q.param})
	case 5:
		w.answer(question{fmt.Sprintf("%016x", w.rng.Uint64()), q.token, q.param})
	case 6: // the answers of two are mixed up
		if len(*late) > 0 {
			w.answer(question{(*late)[0].session, q.token, q.param})
			w.answer(question{q.session, (*late)[0].token, q.param})
		}
	case 7:
		fmt.Fprintf(w.far, "nonsense\n")
	case 8:
		return true
	}
	return false
}

// line treats a line of a message badly.
func (w *wild) line(q question) bool {
	switch w.rng.IntN(4) {
	case 0: // for another message
		fmt.Fprintf(w.far, "filter-dataline|%s|%016x|%s\n", q.session, w.rng.Uint64(), q.param)
	case 1: // ends it, and goes on
		fmt.Fprintf(w.far, "filter-dataline|%s|%s|.\nfilter-dataline|%s|%s|x\n", q.session, q.token, q.session, q.token)
	case 2: // a result in the middle
		w.answer(q)
	case 3:
		return true
	}
	return false
}

// newWild supervises a wild program.
func newWild(t *testing.T, seed uint64, rate float64) *Supervisor {
	var lives atomic.Uint64
	o := Options{Name: "wild", Software: "x", SessionTimeout: time.Minute, In: true, Timeout: 60 * time.Millisecond,
		MaxLine: 1000, Now: time.Now, pause: 5 * time.Millisecond}
	return Supervise(o, func(context.Context) (Process, error) {
		far, near := socketPair(t)
		w := &wild{far: far, near: near, rng: rand.New(rand.NewPCG(seed, lives.Add(1))), rate: rate}
		w.wg.Go(w.serve)
		return w, nil
	}, func(string) {})
}

// walker is a client's session: it asks the phases of some mails, sends their
// lines, and leaves at some step, with or without waiting for the answer.
type walker struct {
	t     *testing.T
	sups  []*Supervisor
	rng   *rand.Rand
	id    mail.SessionID
	tally *tally
}

type tally struct{ decided, failed, whole, broken, left atomic.Int64 }

func (w *walker) run() {
	members := make([]Member, len(w.sups))
	for i, sup := range w.sups {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		members[i] = Member{Name: fmt.Sprint("f", i), Program: sup.Program(ctx)}
		cancel()
	}
	s, ok := Enter(w.id, In, members)
	defer s.Close()
	if !ok {
		w.tally.failed.Add(1)
		return
	}
	for n := range 3 {
		for _, ph := range []Phase{MailFrom, RcptTo, DataLine, Commit} {
			if w.rng.IntN(12) == 0 {
				w.tally.left.Add(1)
				w.leave(s, n)
				return
			}
			s.Tell([]Note{{ProtocolClient, time.Now(), "x"}})
			if ph == DataLine {
				if !w.message(s, n) {
					return
				}
				continue
			}
			if !w.ask(s, ph, fmt.Sprintf("%s-%d-%s", w.id, n, ph)) {
				return
			}
		}
	}
}

// leave goes away in the middle of a question or of a message.
func (w *walker) leave(s *Session, n int) {
	if w.rng.IntN(2) == 0 {
		s.Ask([]int{0, 1}, MailFrom, "left", nil, func(Verdict) {})
		return
	}
	if st := s.Stream([]int{0, 1}, nil, &bytes.Buffer{}); st != nil {
		fmt.Fprintf(st, "%s-%d\n", w.id, n)
		if w.rng.IntN(2) == 0 {
			st.Close(false)
		}
	}
}

// ask puts a question to one of the programs; the answer is its own or none.
func (w *walker) ask(s *Session, ph Phase, param string) bool {
	got := make(chan Verdict, 2)
	s.Ask([]int{w.rng.IntN(len(w.sups))}, ph, param, nil, func(v Verdict) { got <- v })
	var v Verdict
	select {
	case v = <-got:
	case <-time.After(20 * time.Second):
		w.t.Errorf("%s: no answer at all", param)
		return false
	}
	switch {
	case v.Action == Failed:
		w.tally.failed.Add(1)
		return false
	case v.Action != Rewrite || v.Text != param:
		w.t.Errorf("%s: got %v", param, v)
		return false
	}
	w.tally.decided.Add(1)
	select {
	case v := <-got:
		w.t.Errorf("%s: a second answer %v", param, v)
	default:
	}
	return true
}

// message sends lines through both programs: all come out as they went in, or
// an error does.
func (w *walker) message(s *Session, n int) bool {
	var in, out bytes.Buffer
	for i := range 1 + w.rng.IntN(20) {
		fmt.Fprintf(&in, "%s mail %d line %d\n", w.id, n, i)
	}
	st := s.Stream([]int{0, 1}, nil, &out)
	if st == nil {
		w.tally.broken.Add(1)
		return false
	}
	st.All(in.Bytes())
	if err := st.Wait(context.Background()); err != nil {
		w.tally.broken.Add(1)
		return false
	}
	if got := out.String(); got != in.String() && !strings.HasPrefix(in.String(), got) {
		w.t.Errorf("mail of %s: got %q, want %q", w.id, got, in.String())
	} else if got == in.String() {
		w.tally.whole.Add(1)
	}
	return true
}

// Whatever clients and programs do to each other: no answer is ever taken for
// that to another question, no line comes into another mail, and nothing is
// left behind.
func TestModel(t *testing.T) {
	before := runtime.NumGoroutine()
	for seed := range uint64(4) {
		var tl tally
		sups := []*Supervisor{newWild(t, seed, 0.05), newWild(t, seed+100, 0.02)}
		var wg sync.WaitGroup
		room := make(chan struct{}, 16)
		for i := range 150 {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				w := &walker{t: t, sups: sups, rng: rand.New(rand.NewPCG(seed, uint64(i))), tally: &tl,
					id: mail.SessionID(seed<<32 + uint64(i) + 1)}
				w.run()
			})
		}
		wg.Wait()
		for i, sup := range sups {
			leftBehind(t, sup)
			st := sup.State()
			t.Logf("seed %d: program %d: %d restarts, %d answers", seed, i, st.Restarts, st.Requests)
			sup.Close()
		}
		t.Logf("decided %d, failed %d, whole %d, broken %d, left %d", tl.decided.Load(), tl.failed.Load(),
			tl.whole.Load(), tl.broken.Load(), tl.left.Load())
		if tl.decided.Load() == 0 || tl.whole.Load() == 0 || tl.failed.Load() == 0 || tl.left.Load() == 0 {
			t.Error("not everything has happened")
		}
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if runtime.NumGoroutine() <= before+2 {
			return
		}
	}
	buf := make([]byte, 1<<16)
	t.Errorf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
}

// leftBehind looks for what a program still keeps of sessions that have gone.
func leftBehind(t *testing.T, sup *Supervisor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p := sup.Program(ctx)
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.sessions)+len(p.requests)+len(p.streams) > 0 {
		t.Errorf("%d sessions, %d requests, %d streams are left", len(p.sessions), len(p.requests), len(p.streams))
	}
}
