package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/proc/scheduler"
	"smtpd/internal/stat"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// world is a simulation: the real queue and the real scheduler with models of
// their neighbours, joined in memory, on the clock of testing/synctest. Any of
// them may die at any moment and is replaced.
type world struct {
	disk  *queuetest.Memory // what survives
	start time.Time

	mu      sync.Mutex
	rng     *rand.Rand
	actors  map[imsg.Role]*actor
	full    bool // the disk refuses changes
	quiet   bool // no more faults
	paused  imsg.Switches
	fates   map[mail.EnvelopeID]*fate
	errs    []string
	stopped sync.WaitGroup // what was killed
	tried   int            // attempts handed out
}

// fate is what is known of one envelope of a message that smtp committed.
type fate struct {
	id       mail.EnvelopeID
	kind     mail.Kind
	expires  time.Time
	acked    bool      // smtp has its 250
	ends     int       // deliveries, and refusals for good
	doubtful int       // of them, those whose agent died before the queue knew
	gone     bool      // deleted
	why      string    // of that
	removed  bool      // an operator's remove was confirmed
	retry    uint16    // attempts that the queue knows of
	earliest time.Time // of the next attempt
}

// actor is one process.
type actor struct {
	role   imsg.Role
	links  map[imsg.Role]*ipc.Link
	cancel context.CancelFunc
	died   chan struct{} // closed at its death
	done   chan struct{} // closed when its goroutines have ended
	env    *privsep.Env
	config chan *config.Config
	pauses chan *imsg.Switches
	store  *flaky
}

// talks are the edges of this world.
var talks = map[imsg.Role][]imsg.Role{
	imsg.Queue:     {imsg.SMTP, imsg.Scheduler, imsg.MTA, imsg.MDA, imsg.Control},
	imsg.Scheduler: {imsg.Queue, imsg.Control},
	imsg.SMTP:      {imsg.Queue}, imsg.MTA: {imsg.Queue}, imsg.MDA: {imsg.Queue},
	imsg.Control: {imsg.Queue, imsg.Scheduler},
}

func newWorld(seed uint64, dir string) *world {
	return &world{disk: queuetest.NewMemory(dir, time.Now), start: time.Now(),
		rng: rand.New(rand.NewPCG(seed, 7)), actors: map[imsg.Role]*actor{}, fates: map[mail.EnvelopeID]*fate{}}
}

// fail notes a broken promise.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken(format, args...)
}

// broken is fail with the lock held.
func (w *world) broken(format string, args ...any) {
	if len(w.errs) < 10 {
		w.errs = append(w.errs, fmt.Sprintf("at %v: ", time.Since(w.start))+fmt.Sprintf(format, args...))
	}
}

// draw is a random number below n.
func (w *world) draw(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// wait sleeps a random time below d; false: the actor died meanwhile.
func (a *actor) wait(w *world, d time.Duration) bool {
	t := time.NewTimer(time.Duration(w.draw(int(d)) + 1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.died:
		return false
	}
}

func simConfig() *config.Config {
	c := config.Defaults()
	c.ServerName = "mx.example.org"
	c.Queue.TTL = time.Hour
	c.Warn = []time.Duration{5 * time.Minute}
	c.Scheduler.MaxInflight, c.Scheduler.MaxEvpBatchSize = 20, 3
	for _, name := range []string{"in", "out"} {
		c.Actions[name] = &config.Action{Name: name}
	}
	return c
}

// boot starts a role and joins it with the neighbours that live.
func (w *world) boot(role imsg.Role) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &actor{role: role, links: map[imsg.Role]*ipc.Link{}, cancel: cancel, died: make(chan struct{}), done: make(chan struct{}),
		config: make(chan *config.Config, 1), pauses: make(chan *imsg.Switches, 1)}
	for _, peer := range talks[role] {
		l := ipc.NewLink(role, peer)
		l.Violation = func(err error) { w.fail("%v says that %v broke the protocol: %v", role, peer, err) }
		a.links[peer] = l
	}
	parent := ipc.NewLink(role, imsg.Parent)
	a.env = &privsep.Env{Role: role, Log: log.Discard(), Stat: &stat.Set{}, Now: time.Now, Config: a.config,
		Switches: a.pauses, Parent: parent, Ready: func() {}}
	a.config <- simConfig()
	w.mu.Lock()
	paused := w.paused
	a.pauses <- &paused
	w.actors[role] = a
	w.mu.Unlock()
	ready := make(chan struct{})
	go func() {
		defer close(a.done)
		w.live(ctx, a, ready)
	}()
	<-ready
	for _, peer := range talks[role] {
		w.mu.Lock()
		p := w.actors[peer]
		w.mu.Unlock()
		if p != nil {
			ipc.ConnectMemory(a.links[peer], p.links[role])
		}
	}
}

// live is the life of a process; ready is closed when it listens.
func (w *world) live(ctx context.Context, a *actor, ready chan struct{}) {
	var err error
	a.env.Ready = func() { close(ready) }
	switch a.role {
	case imsg.Queue:
		a.store = &flaky{Store: w.disk, w: w, a: a}
		err = run(ctx, a.env, Peers{SMTP: a.links[imsg.SMTP], Scheduler: a.links[imsg.Scheduler], MTA: a.links[imsg.MTA],
			MDA: a.links[imsg.MDA], Control: a.links[imsg.Control]},
			"", func(queue.Options) (queue.Store, error) { return a.store, nil }, gatherTime)
	case imsg.Scheduler:
		err = scheduler.Run(ctx, a.env, scheduler.Peers{Queue: a.links[imsg.Queue], Control: a.links[imsg.Control]})
	case imsg.MTA, imsg.MDA:
		newCarrier(w, a).live(ctx)
	case imsg.SMTP:
		(&entry{w: w, a: a}).live(ctx)
	case imsg.Control:
		for _, l := range a.links {
			l.Serve(func(*ipc.Request) {}, nil, nil)
		}
		a.env.Ready()
		<-ctx.Done()
	}
	if err != nil {
		w.fail("%v ended: %v", a.role, err)
	}
}

// kill ends a process at once: nothing it does from now on has an effect.
func (w *world) kill(role imsg.Role) {
	w.mu.Lock()
	a := w.actors[role]
	delete(w.actors, role)
	w.mu.Unlock()
	close(a.died)
	for _, l := range a.links {
		l.Close()
	}
	a.cancel()
	w.stopped.Go(func() { <-a.done })
}

// flaky is the store as one life of the queue process sees it: slow, now and
// then refusing, with leases that end with it.
type flaky struct {
	queue.Store
	w      *world
	a      *actor
	leases queue.LeaseTable
}

// delay is the disk at work; an error: nothing is changed.
func (f *flaky) delay() error {
	if !f.a.wait(f.w, 100*time.Millisecond) {
		return mail.LocalError()
	}
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if f.w.full {
		return mail.NewStatus(452, [3]uint8{4, 3, 1}, "Insufficient system storage")
	}
	return nil
}

func (f *flaky) Reserve(ctx context.Context, n int) (mail.MessageID, error) {
	if err := f.delay(); err != nil {
		return 0, err
	}
	return f.Store.Reserve(ctx, n)
}

func (f *flaky) Accept(ctx context.Context, m *queue.Message) error {
	if err := f.delay(); err != nil {
		return err
	}
	err := f.Store.Accept(ctx, m)
	f.a.wait(f.w, 100*time.Millisecond) // it may die before it can say so
	return err
}

func (f *flaky) Apply(ctx context.Context, changes []queue.Change) ([]queue.Outcome, error) {
	if err := f.delay(); err != nil {
		return nil, err
	}
	out, err := f.Store.Apply(ctx, changes)
	for i := range out {
		if out[i].Err == nil {
			f.w.changed(&out[i])
		}
		if out[i].Deleted {
			f.leases.Drop(out[i].Envelope.ID)
		}
	}
	f.a.wait(f.w, 100*time.Millisecond)
	return out, err
}

func (f *flaky) Lease(_ context.Context, owner string, until time.Time, ids []mail.EnvelopeID) ([]mail.Envelope, error) {
	var l []mail.Envelope
	for _, id := range ids {
		e, err := f.Load(id)
		if err == nil && f.leases.Take(id, queue.Lease{Owner: owner, Until: until, Attempt: e.Retry}, time.Now()) {
			l = append(l, e)
		}
	}
	return l, nil
}

func (f *flaky) LeaseOf(id mail.EnvelopeID) (queue.Lease, bool) { return f.leases.Get(id, time.Now()) }

func (f *flaky) EndLeases(owner string, ids []mail.EnvelopeID) []mail.EnvelopeID {
	return f.leases.End(owner, ids)
}

func (f *flaky) Leases(owner string) []mail.EnvelopeID { return f.leases.Of(owner) }

func (*flaky) Close() error { return nil }

// changed looks at every change that became durable.
func (w *world) changed(o *queue.Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &o.Envelope
	f := w.fates[e.ID]
	if f == nil {
		return // a notice, or of a commit whose answer smtp did not live to see
	}
	if !o.Deleted {
		if e.Retry != f.retry {
			f.retry, f.earliest = e.Retry, formula(e)
		}
		return
	}
	f.gone = true
	switch now := time.Now(); {
	case o.Added != nil && o.Added.LastError == expired:
		f.why = "expired"
		if now.Before(f.expires) {
			w.broken("%v expired %v early", e.ID, f.expires.Sub(now))
		}
		if w.quiet && now.Sub(f.expires) > time.Hour {
			w.broken("%v expired %v late", e.ID, now.Sub(f.expires))
		}
	case f.ends > 0:
		f.why = "tried"
	default:
		f.why = "removed" // confirmed later, or the order's sender died
	}
}

// formula is when an envelope is next tried, by the specification.
func formula(e *mail.Envelope) time.Time {
	base := 10 * time.Second
	if e.Kind == mail.KindMTA {
		base = 400 * time.Second
	}
	step := time.Duration(e.Retry)
	for !e.Created.Add(base * step * step).After(e.LastTry) {
		step++
	}
	return e.Created.Add(base * step * step)
}
