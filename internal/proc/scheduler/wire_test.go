package scheduler

import (
	"context"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

// bound ends every wait of these tests.
const bound = 20 * time.Second

// rig is the process with links to a queue and a control that are the test.
type rig struct {
	t              *testing.T
	queue, control *ipc.Link // the test's ends
	mine           Peers
	heard          chan imsg.Msg
	done           chan error
	cancel         context.CancelFunc
}

func start(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, heard: make(chan imsg.Msg, 10000), done: make(chan error, 1),
		queue:   ipc.NewLink(imsg.Queue, imsg.Scheduler),
		control: ipc.NewLink(imsg.Control, imsg.Scheduler),
		mine: Peers{Queue: ipc.NewLink(imsg.Scheduler, imsg.Queue),
			Control: ipc.NewLink(imsg.Scheduler, imsg.Control)},
	}
	configs, switches := make(chan *config.Config, 1), make(chan *imsg.Switches, 1)
	configs <- testConfig()
	switches <- &imsg.Switches{}
	ready := make(chan struct{})
	env := &privsep.Env{Role: imsg.Scheduler, Log: log.Discard(), Stat: &stat.Set{}, Now: time.Now,
		Config: configs, Switches: switches, Ready: func() { close(ready) }}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.done <- Run(ctx, env, r.mine) }()
	t.Cleanup(r.stop)
	r.queue.Serve(func(m *ipc.Request) { r.heard <- m.Msg }, nil, nil)
	r.control.Serve(func(*ipc.Request) {}, nil, nil)
	select {
	case <-ready:
	case <-time.After(bound):
		t.Fatal("not ready")
	}
	r.join(r.control, r.mine.Control)
	r.join(r.queue, r.mine.Queue)
	return r
}

func (r *rig) join(a, b *ipc.Link) {
	r.t.Helper()
	if err := ipc.Connect(a, b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) stop() {
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
		r.done <- nil
	case <-time.After(bound):
		r.t.Error("Run did not end")
	}
	for _, l := range []*ipc.Link{r.queue, r.control, r.mine.Queue, r.mine.Control} {
		l.Close()
	}
}

func (r *rig) expect(want string) {
	r.t.Helper()
	select {
	case m := <-r.heard:
		if got := show([]imsg.Msg{m}); got != want {
			r.t.Fatalf("the queue was told %q; want %q", got, want)
		}
	case <-time.After(bound):
		r.t.Fatalf("the queue was told nothing; want %q", want)
	}
}

func (r *rig) say(m imsg.Msg) {
	r.t.Helper()
	if err := r.queue.Send(m, nil); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) count(m imsg.SchedCommand) int64 {
	r.t.Helper()
	a, err := ipc.Ask[*imsg.Count](r.t.Context(), r.control, &m)
	if err != nil {
		r.t.Fatal(err)
	}
	return a.N
}

func TestOverTheWire(t *testing.T) {
	r := start(t)
	r.expect("LoadAll; ")
	e := sched(1, 1, mail.KindMDA)
	r.say(scheduled(e, sched(1, 2, mail.KindMDA)))
	r.say(&imsg.Scheduled{Loaded: true})
	r.expect("Attempt 1.1 1.2; ")
	r.say(goneFor(mail.GoneDelivered, e.ID))
	if n := r.count(imsg.SchedCommand{Op: imsg.OpPause, All: true}); n < 1 {
		t.Fatalf("pause: %d", n)
	}
	s, err := ipc.Ask[*imsg.SchedStates](t.Context(), r.control, &imsg.SchedGet{IDs: []mail.EnvelopeID{99, 100}})
	if err != nil || len(s.States) != 2 || s.States[0].Known {
		t.Fatalf("states: %+v, %v", s, err)
	}
	st, err := ipc.Ask[*imsg.Stats](t.Context(), r.control, &imsg.StatsGet{})
	if err != nil || len(st.Values) == 0 {
		t.Fatalf("stats: %+v, %v", st, err)
	}
}

// Retry hurries what waits for its next attempt, and nothing else.
func TestRetry(t *testing.T) {
	r := start(t)
	r.expect("LoadAll; ")
	waits, paused, held := sched(1, 1, mail.KindMTA), sched(2, 1, mail.KindMTA), sched(3, 1, mail.KindMTA)
	for _, e := range []*imsg.Sched{&waits, &paused, &held} {
		e.Retry, e.LastTry = 5, time.Now()
	}
	paused.Flags, held.Flags = mail.FlagSuspended, mail.FlagHold
	r.say(scheduled(waits, paused, held))
	r.say(&imsg.Scheduled{Loaded: true})
	r.say(&imsg.Retry{IDs: []mail.EnvelopeID{held.ID, paused.ID, 99, waits.ID}})
	r.expect("Attempt 1.1; ")
	// It is under way: not a second time.
	r.say(&imsg.Retry{IDs: []mail.EnvelopeID{waits.ID}})
	r.say(scheduled(sched(4, 1, mail.KindMTA)))
	r.expect("Attempt 4.1; ")
}

// The queue dies and is replaced while the scheduler goes on.
func TestQueueDies(t *testing.T) {
	r := start(t)
	r.expect("LoadAll; ")
	for m := mail.MessageID(1); m < 20; m++ {
		r.say(scheduled(sched(m, 1, mail.KindMDA)))
		r.queue.Close()
		for len(r.heard) > 0 {
			<-r.heard
		}
		r.join(r.queue, r.mine.Queue)
		for m := range r.heard {
			if _, ok := m.(*imsg.LoadAll); ok {
				break
			}
		}
		r.say(&imsg.Scheduled{Envelopes: []imsg.Sched{sched(m+100, 7, mail.KindMTA)}, Loaded: true})
		for got := range r.heard {
			if show([]imsg.Msg{got}) == show([]imsg.Msg{&imsg.Attempt{IDs: []mail.EnvelopeID{(m + 100).Envelope(7)}}}) {
				break
			}
		}
	}
}

func TestEndsWithoutConfiguration(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := ipc.NewLink(imsg.Scheduler, imsg.Queue)
	env := &privsep.Env{Log: log.Discard(), Stat: &stat.Set{}, Now: time.Now}
	if err := Run(ctx, env, Peers{Queue: l, Control: l}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkFresh is the way of a new message through the scheduler: told of it,
// has it tried, told of its end.
func BenchmarkFresh(b *testing.B) {
	q := ipc.NewLink(imsg.Queue, imsg.Scheduler)
	s := newState(ipc.NewLink(imsg.Scheduler, imsg.Queue), time.Now, &stat.Set{}, log.Discard())
	s.configure(testConfig())
	link := s.queue.(*ipc.Link)
	attempts := make(chan mail.EnvelopeID, 10000)
	q.Serve(func(r *ipc.Request) {
		if a, ok := r.Msg.(*imsg.Attempt); ok {
			for _, id := range a.IDs {
				attempts <- id
			}
		}
	}, nil, nil)
	link.Serve(s.fromQueue, s.attached, s.lost)
	if err := ipc.Connect(q, link); err != nil {
		b.Fatal(err)
	}
	defer link.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.run(ctx, nil, nil, nil); close(done) }()
	defer func() { cancel(); <-done }()
	b.ReportAllocs()
	sent, got := 0, 0
	for b.Loop() {
		sent++
		if err := q.Send(scheduled(sched(mail.MessageID(sent), 1, mail.KindMDA)), nil); err != nil {
			b.Fatal(err)
		}
		for sent-got > 1000 || len(attempts) > 0 {
			id := <-attempts
			got++
			if err := q.Send(goneFor(mail.GoneDelivered, id), nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}
