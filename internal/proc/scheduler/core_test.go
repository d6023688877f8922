package scheduler

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/stat"
)

// recorder is a queue that writes down what it is told.
type recorder struct {
	mu   sync.Mutex
	down bool
	got  []imsg.Msg
}

func (q *recorder) Send(m imsg.Msg, _ *os.File) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.down {
		return ipc.ErrDown
	}
	q.got = append(q.got, m)
	return nil
}

func (q *recorder) Up() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.down
}

func (q *recorder) setDown(down bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.down = down
}

func (q *recorder) take() []imsg.Msg {
	q.mu.Lock()
	defer q.mu.Unlock()
	got := q.got
	q.got = nil
	return got
}

// bench is a scheduler without channels, on the clock of synctest.
type bench struct {
	*state
	t        *testing.T
	q        *recorder
	configs  chan *config.Config
	switches chan *imsg.Switches
	offset   atomic.Int64 // what the wall clock was set forward by
}

func (b *bench) clock() time.Time { return time.Now().Add(time.Duration(b.offset.Load())) }

// withCore runs a test in a bubble; the queue has been greeted and had nothing.
func withCore(t *testing.T, f func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, q: &recorder{}, configs: make(chan *config.Config), switches: make(chan *imsg.Switches)}
		b.state = newState(b.q, b.clock, &stat.Set{}, log.Discard())
		b.configure(testConfig())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.run(ctx, b.configs, b.switches, func(*config.Config) {}); close(done) }()
		b.attached()
		b.expect("LoadAll; ")
		b.hear(&imsg.Scheduled{Loaded: true})
		f(b)
		cancel()
		<-done
	})
}

func testConfig() *config.Config {
	c := config.Defaults()
	c.Actions = map[string]*config.Action{"in": {Name: "in"}, "out": {Name: "out"}}
	c.Warn = nil
	return c
}

// expect waits until nothing moves and compares what the queue was told.
func (b *bench) expect(want string) {
	b.t.Helper()
	synctest.Wait()
	if got := show(b.q.take()); got != want {
		b.t.Fatalf("the queue was told %q; want %q", got, want)
	}
}

func show(ms []imsg.Msg) string {
	var s strings.Builder
	for _, m := range ms {
		v := reflect.ValueOf(m).Elem()
		s.WriteString(v.Type().Name())
		if f := v.FieldByName("IDs"); f.IsValid() {
			for _, id := range f.Interface().([]mail.EnvelopeID) {
				fmt.Fprintf(&s, " %d.%d", id.Message(), uint32(id))
			}
		}
		switch m := m.(type) {
		case *imsg.Suspend:
			fmt.Fprintf(&s, " %v", m.On)
		case *imsg.Delayed:
			fmt.Fprintf(&s, " %d.%d %v %d", m.ID.Message(), uint32(m.ID), m.Interval, m.Number)
		}
		s.WriteString("; ")
	}
	return s.String()
}

func sched(msg mail.MessageID, n uint32, k mail.Kind) imsg.Sched {
	name := map[mail.Kind]string{mail.KindMDA: "in", mail.KindMTA: "out", mail.KindBounce: "gone since"}[k]
	return imsg.Sched{ID: msg.Envelope(n), Kind: k, Dispatcher: name, Created: time.Now(), TTL: 96 * time.Hour}
}

func scheduled(es ...imsg.Sched) *imsg.Scheduled { return &imsg.Scheduled{Envelopes: es} }

func goneFor(why mail.GoneReason, ids ...mail.EnvelopeID) *imsg.Gone {
	return &imsg.Gone{IDs: ids, Why: why}
}

// do carries a command out and gives its count.
func (b *bench) do(m *imsg.SchedCommand) int64 {
	b.t.Helper()
	n := int64(-1)
	b.fromControl(m, func(a imsg.Msg) { n = a.(*imsg.Count).N })
	return n
}

func (b *bench) count(m *imsg.SchedCommand, want int64) {
	b.t.Helper()
	if got := b.do(m); got != want {
		b.t.Fatalf("%+v: count %d; want %d", *m, got, want)
	}
}

// remove gives a remove command that is answered only once the queue has said
// that all of the envelopes are gone.
func (b *bench) remove(m *imsg.SchedCommand, told string, ids ...mail.EnvelopeID) {
	b.t.Helper()
	n := int64(-1)
	b.fromControl(m, func(r imsg.Msg) { n = r.(*imsg.Count).N })
	b.expect(told)
	for i, id := range ids {
		if n != -1 {
			b.t.Errorf("%+v: answered with %d envelopes left", *m, len(ids)-i)
		}
		b.hear(goneFor(mail.GoneRemoved, id))
	}
	if n != int64(len(ids)) {
		b.t.Errorf("%+v: count %d; want %d", *m, n, len(ids))
	}
}

func TestFreshEnvelopesGoAtOnce(t *testing.T) {
	withCore(t, func(b *bench) {
		start := time.Now()
		b.hear(scheduled(sched(1, 1, mail.KindMDA), sched(1, 2, mail.KindMDA), sched(1, 3, mail.KindMTA)))
		b.expect("Attempt 1.1 1.2; Attempt 1.3; ")
		if d := time.Since(start); d != 0 {
			t.Fatalf("after %v", d)
		}
	})
}

func TestRetries(t *testing.T) {
	withCore(t, func(b *bench) {
		start := time.Now()
		e := sched(1, 1, mail.KindMTA)
		b.hear(scheduled(e))
		b.expect("Attempt 1.1; ")
		for _, want := range []time.Duration{400, 1600, 3600, 6400, 10000} {
			time.Sleep(2 * time.Second)
			e.Retry++
			e.LastTry = time.Now()
			b.hear(scheduled(e))
			b.expect("")
			time.Sleep(time.Until(start.Add(want*time.Second - time.Millisecond)))
			b.expect("")
			time.Sleep(time.Millisecond)
			b.expect("Attempt 1.1; ")
		}
		b.hear(goneFor(mail.GoneDelivered, e.ID))
		time.Sleep(200 * time.Hour)
		b.expect("")
	})
}

func TestBackoff(t *testing.T) {
	c := testConfig()
	minute, hour := config.Retry{Base: time.Minute}, config.Retry{Delays: []time.Duration{time.Hour}}
	c.Queue.RetryMTA = minute
	c.Actions["slow"] = &config.Action{Name: "slow", Retry: hour}
	tests := []struct {
		k    mail.Kind
		name string
		want config.Retry
	}{
		{mail.KindMTA, "out", minute}, {mail.KindMDA, "in", config.Retry{}}, {mail.KindMTA, "slow", hour},
		{mail.KindMDA, "slow", hour}, {mail.KindBounce, "slow", config.Retry{}}, {mail.KindMTA, "gone", minute},
	}
	for _, tt := range tests {
		if got := backoff(c, tt.k, tt.name); !reflect.DeepEqual(config.Retry(got), tt.want) {
			t.Errorf("%v %s: got %+v; want %+v", tt.k, tt.name, got, tt.want)
		}
	}
	withCore(t, func(b *bench) {
		b.configs <- c
		e := sched(1, 1, mail.KindMTA)
		e.Dispatcher = "slow"
		b.hear(scheduled(e))
		b.expect("Attempt 1.1; ")
		e.Retry = 1
		b.hear(scheduled(e))
		time.Sleep(time.Hour - 1)
		b.expect("")
		time.Sleep(time.Nanosecond)
		b.expect("Attempt 1.1; ")
	})
}

func TestExpiryAndNotices(t *testing.T) {
	tests := map[string]struct {
		change func(*imsg.Sched)
		warned string
	}{
		"both":                    {func(*imsg.Sched) {}, "Delayed 1.1 1m0s 1; "},
		"NOTIFY with DELAY":       {func(e *imsg.Sched) { e.Notify = mail.NotifyFailure | mail.NotifyDelay }, "Delayed 1.1 1m0s 1; "},
		"NOTIFY without DELAY":    {func(e *imsg.Sched) { e.Notify = mail.NotifyFailure }, ""},
		"NOTIFY=NEVER":            {func(e *imsg.Sched) { e.Notify = mail.NotifyNever }, ""},
		"the message is a notice": {func(e *imsg.Sched) { e.Flags = mail.FlagBounce }, ""},
		"the queue's ttl counts":  {func(e *imsg.Sched) { e.TTL = 0 }, "Delayed 1.1 1m0s 1; "},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			withCore(t, func(b *bench) {
				c := testConfig()
				c.Warn, c.Queue.TTL = []time.Duration{time.Minute}, 5*time.Minute
				b.configs <- c
				e := sched(1, 1, mail.KindMTA)
				e.TTL = 5 * time.Minute
				tt.change(&e)
				b.hear(scheduled(e))
				b.expect("Attempt 1.1; ")
				e.Retry = 1
				b.hear(scheduled(e))
				b.expect(tt.warned)
				time.Sleep(5*time.Minute - 1)
				b.expect("")
				time.Sleep(time.Nanosecond)
				b.expect("Expire 1.1; ")
				b.hear(goneFor(mail.GoneExpired, e.ID))
				b.expect("")
			})
		})
	}
}

func TestQueueIsReplaced(t *testing.T) {
	withCore(t, func(b *bench) {
		e, f := sched(1, 1, mail.KindMTA), sched(2, 1, mail.KindMTA)
		b.hear(scheduled(e, f))
		b.expect("Attempt 1.1; Attempt 2.1; ")
		b.q.setDown(true)
		b.lost(nil)
		b.count(&imsg.SchedCommand{Op: imsg.OpRemove, All: true}, 0)
		b.hear(scheduled(sched(3, 1, mail.KindMDA))) // the last words of the old one
		b.expect("")
		b.q.setDown(false)
		b.attached()
		b.expect("LoadAll; ")
		f.Inflight = true
		b.hear(scheduled(e))
		b.hear(&imsg.Scheduled{Envelopes: []imsg.Sched{f}, Loaded: true})
		b.expect("Attempt 1.1; ")
		b.states1(t, f.ID, imsg.SchedState{Known: true, Inflight: true})
		b.states1(t, mail.MessageID(3).Envelope(1), imsg.SchedState{})
	})
}

// states1 compares what SchedGet says of one envelope, times aside.
func (b *bench) states1(t *testing.T, id mail.EnvelopeID, want imsg.SchedState) imsg.SchedState {
	t.Helper()
	a := b.states(&imsg.SchedGet{IDs: []mail.EnvelopeID{id}})
	got := a.States[0]
	want.Since = got.Since
	if len(a.States) != 1 || got != want {
		t.Fatalf("state of %v: got %+v; want %+v", id, got, want)
	}
	return got
}

func TestStates(t *testing.T) {
	withCore(t, func(b *bench) {
		start := time.Now()
		pend, held, susp, fly := sched(1, 1, mail.KindMTA), sched(2, 1, mail.KindMTA), sched(3, 1, mail.KindMTA), sched(4, 1, mail.KindMTA)
		pend.Retry, pend.LastTry = 1, start
		susp.Flags, fly.Inflight = mail.FlagSuspended, true
		b.hear(scheduled(pend, held, susp, fly))
		b.expect("Attempt 2.1; ")
		b.hear(&imsg.Held{IDs: []mail.EnvelopeID{held.ID}, Key: 5})
		if s := b.states1(t, pend.ID, imsg.SchedState{Known: true}); !s.Since.Equal(start.Add(400 * time.Second)) {
			t.Errorf("next try: %v", s.Since.Sub(start))
		}
		b.states1(t, held.ID, imsg.SchedState{Known: true, Wait: mail.WaitRelay})
		b.states1(t, susp.ID, imsg.SchedState{Known: true, Suspend: true})
		if s := b.states1(t, fly.ID, imsg.SchedState{Known: true, Inflight: true}); !s.Since.Equal(start) {
			t.Errorf("in flight since: %v", s.Since.Sub(start))
		}
		b.states1(t, 77, imsg.SchedState{})
		b.hear(&imsg.Released{Key: 5})
		b.expect("Attempt 2.1; ")
		b.hear(&imsg.Held{IDs: []mail.EnvelopeID{held.ID}, Key: 6})
		b.hear(&imsg.Released{Key: 5, Count: 1})
		b.hear(&imsg.Released{Count: 1})
		b.expect("")
		b.hear(&imsg.Released{}) // mta has gone
		b.expect("Attempt 2.1; ")
	})
}

func TestCommands(t *testing.T) {
	id := func(n uint32) mail.EnvelopeID { return mail.MessageID(1).Envelope(n) }
	withCore(t, func(b *bench) {
		var es []imsg.Sched
		for n := uint32(1); n <= 3; n++ {
			e := sched(1, n, mail.KindMTA)
			e.Retry, e.LastTry = 1, time.Now()
			es = append(es, e)
		}
		fly := sched(2, 1, mail.KindMDA)
		b.hear(scheduled(append(es, fly)...))
		b.expect("Attempt 2.1; ")

		b.count(&imsg.SchedCommand{Op: imsg.OpPause, Envelope: id(2)}, 1)
		b.expect("Suspend 1.2 true; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpPause, Envelope: id(2)}, 0)
		b.expect("")
		b.count(&imsg.SchedCommand{Op: imsg.OpPause, All: true}, 3)
		b.expect("Suspend 1.1 1.3 2.1 true; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpSchedule, All: true}, 0)
		b.count(&imsg.SchedCommand{Op: imsg.OpResume, Message: 1}, 3)
		b.expect("Suspend 1.1 1.2 1.3 false; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpResume, All: true}, 1)
		b.expect("Suspend 2.1 false; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpSchedule, Envelope: id(3)}, 1)
		b.expect("Attempt 1.3; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpSchedule, Message: 1}, 2)
		b.expect("Attempt 1.1 1.2; ")
		b.count(&imsg.SchedCommand{Op: imsg.OpSchedule, Message: 0xdeadbeef}, 0)
		b.remove(&imsg.SchedCommand{Op: imsg.OpRemove, Envelope: fly.ID}, "Remove 2.1; ", fly.ID)
		b.count(&imsg.SchedCommand{Op: imsg.OpRemove, Envelope: fly.ID}, 0)
		b.remove(&imsg.SchedCommand{Op: imsg.OpRemove, All: true}, "Remove 1.1 1.2 1.3; ", id(2), id(1), id(3))
		b.count(&imsg.SchedCommand{Op: 77, All: true}, 0)
	})
}

func TestDiscover(t *testing.T) {
	withCore(t, func(b *bench) {
		known, lost := sched(1, 1, mail.KindMTA), sched(2, 1, mail.KindMTA)
		b.hear(scheduled(known))
		b.expect("Attempt 1.1; ")
		known.Inflight = true
		got := int64(-1)
		discover := func(m imsg.SchedCommand, want int64, answer ...imsg.Sched) {
			t.Helper()
			m.Op, got = imsg.OpDiscover, -1
			b.fromControl(&m, func(a imsg.Msg) { got = a.(*imsg.Count).N })
			synctest.Wait()
			if ms := show(b.q.take()); ms != "LoadAll; " || got != -1 {
				t.Fatalf("discover: %q, answered %d", ms, got)
			}
			b.hear(scheduled(answer...))
			b.hear(&imsg.Scheduled{Loaded: true})
			if got != want {
				t.Fatalf("discover %+v: got %d; want %d", m, got, want)
			}
			synctest.Wait()
		}
		discover(imsg.SchedCommand{Envelope: lost.ID}, 0, known)
		discover(imsg.SchedCommand{Envelope: known.ID}, 1, known, lost) // known or not: it is there
		b.expect("Attempt 2.1; ")
		discover(imsg.SchedCommand{Message: 3}, 2, known, sched(3, 1, mail.KindMTA), sched(3, 2, mail.KindMTA))
		b.expect("Attempt 3.1 3.2; ")
		discover(imsg.SchedCommand{All: true}, 3, known, sched(4, 1, mail.KindMTA), lost)
		b.expect("Attempt 4.1; ")

		b.fromControl(&imsg.SchedCommand{Op: imsg.OpDiscover, Message: 9}, func(a imsg.Msg) { got = a.(*imsg.Count).N })
		got = -1
		b.q.setDown(true)
		b.lost(nil)
		if got != 0 {
			t.Fatalf("the queue was lost: got %d; want 0", got)
		}
		b.q.setDown(false)
		b.attached()
		got = -1 // while all is coming anyway
		b.fromControl(&imsg.SchedCommand{Op: imsg.OpDiscover, Message: 9}, func(a imsg.Msg) { got = a.(*imsg.Count).N })
		for range 2 {
			if got != -1 {
				t.Fatal("answered before all was there")
			}
			b.hear(scheduled(sched(9, 1, mail.KindMTA)))
			b.hear(&imsg.Scheduled{Loaded: true})
		}
		if got != 1 {
			t.Fatalf("got %d; want 1", got)
		}
	})
}

func TestPausedKinds(t *testing.T) {
	withCore(t, func(b *bench) {
		b.switches <- &imsg.Switches{PauseMTA: true}
		b.hear(scheduled(sched(1, 1, mail.KindMTA), sched(1, 2, mail.KindMDA), sched(1, 3, mail.KindBounce)))
		b.expect("Attempt 1.3; Attempt 1.2; ")
		b.switches <- &imsg.Switches{PauseMDA: true}
		b.expect("Attempt 1.1; ")
		b.hear(scheduled(sched(2, 1, mail.KindMDA)))
		b.expect("")
		b.switches <- &imsg.Switches{}
		b.expect("Attempt 2.1; ")
	})
}

func TestDispatcherThatIsGone(t *testing.T) {
	withCore(t, func(b *bench) {
		e := sched(1, 1, mail.KindMTA)
		e.Dispatcher = "renamed"
		b.hear(scheduled(e, sched(1, 2, mail.KindBounce)))
		b.expect("Attempt 1.2; ")
		b.states1(t, e.ID, imsg.SchedState{Known: true, Wait: mail.WaitAction})
		c := testConfig()
		c.Actions["renamed"] = &config.Action{Name: "renamed"}
		b.configs <- c
		b.expect("Attempt 1.1; ")
	})
}

func TestLimitsFollowTheConfiguration(t *testing.T) {
	withCore(t, func(b *bench) {
		c := testConfig()
		c.Scheduler = config.Scheduler{MaxInflight: 5, MaxEvpBatchSize: 3, MaxMsgBatchSize: 2, MaxSchedule: 1}
		b.configs <- c
		var es []imsg.Sched
		for n := uint32(1); n <= 7; n++ {
			es = append(es, sched(1, n, mail.KindMTA))
		}
		b.hear(scheduled(es...))
		b.expect("Attempt 1.1 1.2 1.3; Attempt 1.4 1.5; ")
		var ids []mail.EnvelopeID
		for _, e := range es {
			ids = append(ids, e.ID)
		}
		b.remove(&imsg.SchedCommand{Op: imsg.OpRemove, Message: 1}, "Remove 1.1 1.2; Remove 1.3 1.4; Remove 1.5 1.6; Remove 1.7; ", ids...)
		b.configs <- testConfig()
		es = nil
		for n := uint32(1); n <= 10_000; n++ {
			es = append(es, sched(2, n, mail.KindMTA))
		}
		for i := 0; i < len(es); i += 2000 {
			b.hear(scheduled(es[i : i+2000]...))
		}
		synctest.Wait()
		got, n := b.q.take(), 0
		for _, m := range got {
			n += len(m.(*imsg.Attempt).IDs)
		}
		if n != 4000 || len(got) > 4000/256+5 { // a fifth of 5000 is kept for the other kinds
			t.Fatalf("%d envelopes in %d imsgs", n, len(got))
		}
	})
}

func TestStats(t *testing.T) {
	withCore(t, func(b *bench) {
		b.gauges()
		if all := b.stat.All(); len(all) != 0 {
			t.Fatalf("idle: %v", all)
		}
		var es []imsg.Sched
		for n := uint32(1); n <= 8; n++ {
			es = append(es, sched(1, n, mail.KindMTA))
		}
		b.hear(scheduled(es...))
		b.expect("Attempt 1.1 1.2 1.3 1.4 1.5 1.6 1.7 1.8; ")
		for i, why := range []mail.GoneReason{mail.GoneDelivered, mail.GoneFailed, mail.GoneLoop, mail.GoneExpired, mail.GoneRemoved} {
			b.hear(goneFor(why, es[i].ID, 99))
		}
		b.hear(goneFor(mail.GoneCorrupt, 99))
		es[5].Retry = 1
		b.hear(scheduled(es[5]))
		b.hear(&imsg.Held{IDs: []mail.EnvelopeID{es[6].ID}, Key: 1})
		b.gauges()
		want := map[string]int64{
			"scheduler.delivery.ok": 1, "scheduler.delivery.permfail": 1, "scheduler.delivery.loop": 1,
			"scheduler.delivery.tempfail": 1, "scheduler.envelope": 3, "scheduler.envelope.expired": 1,
			"scheduler.envelope.incoming": 0, "scheduler.envelope.inflight": 1, "scheduler.envelope.removed": 1,
			"scheduler.envelope.updated": 1, "scheduler.ramqueue.envelope": 3, "scheduler.ramqueue.hold": 1,
			"scheduler.ramqueue.holdq": 1, "scheduler.ramqueue.message": 1, "scheduler.ramqueue.update": 0,
		}
		if got := b.stat.All(); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v; want %v", got, want)
		}
	})
}

func TestHoldOverflowIsCounted(t *testing.T) {
	withCore(t, func(b *bench) {
		var es []imsg.Sched
		held := &imsg.Held{Key: 1}
		for n := uint32(1); n <= 1002; n++ {
			es = append(es, sched(1, n, mail.KindMTA))
			held.IDs = append(held.IDs, es[n-1].ID)
		}
		b.hear(scheduled(es...))
		synctest.Wait()
		b.hear(held)
		if got := b.stat.All()["scheduler.ramqueue.hold-overflow"]; got != 2 {
			t.Fatalf("got %d; want 2", got)
		}
	})
}

func TestOddEnvelopesAreRefused(t *testing.T) {
	withCore(t, func(b *bench) {
		b.hear(scheduled(sched(1, 1, 0), sched(1, 2, 9), imsg.Sched{Kind: mail.KindMDA}))
		time.Sleep(300 * time.Hour)
		b.expect("")
	})
}

// The wall clock is set forward while everything sleeps.
func TestClockIsSet(t *testing.T) {
	withCore(t, func(b *bench) {
		e := sched(1, 1, mail.KindMTA)
		e.Retry, e.LastTry = 3, time.Now()
		b.hear(scheduled(e))
		b.expect("")
		b.offset.Store(int64(2 * time.Hour))
		time.Sleep(maxSleep)
		b.expect("Attempt 1.1; ")
	})
}

// holding is a configuration whose action dial holds mail, but for windows.
func holding(t *testing.T, windows ...string) *config.Config {
	t.Helper()
	h := &config.Hold{}
	for _, s := range windows {
		w, err := config.ParseWindow(s)
		if err != nil {
			t.Fatal(err)
		}
		h.Windows = append(h.Windows, w)
	}
	c := testConfig()
	c.Actions["dial"] = &config.Action{Name: "dial", Method: config.MethodRelay, Relay: &config.Relay{Hold: h}}
	return c
}

func held(n uint32, domain string) imsg.Sched {
	e := sched(mail.MessageID(n), 1, mail.KindMTA)
	e.Dispatcher, e.Domain = "dial", domain
	return e
}

// Held mail leaves when an operator says so, once for each attempt; for a time
// when its domain is released; and for good when the configuration holds it no
// longer.
func TestHold(t *testing.T) {
	withCore(t, func(b *bench) {
		b.configs <- holding(t)
		b.expect("")
		b.hear(scheduled(held(1, "a.test"), held(2, "b.test"), sched(3, 1, mail.KindMTA)))
		b.expect("Attempt 3.1; ")
		b.states1(t, held(1, "").ID, imsg.SchedState{Known: true, Wait: mail.WaitRelease})
		if n := b.do(&imsg.SchedCommand{Op: imsg.OpSchedule, Envelope: held(1, "").ID}); n != 1 {
			t.Errorf("scheduled %d", n)
		}
		b.expect("Attempt 1.1; ")
		e := held(1, "a.test")
		e.Retry, e.LastTry = 1, time.Now()
		b.hear(scheduled(e)) // failed
		time.Sleep(time.Hour)
		b.expect("")

		b.release(&imsg.SchedCommand{Op: imsg.OpRelease, Domain: "*.test", Time: 30 * time.Minute})
		b.hear(scheduled(held(4, "c.test"), held(5, "c.example")))
		b.expect("Attempt 4.1; ")
		e = held(4, "c.test")
		e.Retry, e.LastTry = 1, time.Now()
		b.hear(scheduled(e))
		time.Sleep(7 * time.Minute)
		b.expect("Attempt 4.1; ") // again, while it is released
		time.Sleep(25 * time.Minute)
		b.hear(scheduled(held(6, "c.test")))
		b.expect("")

		c := testConfig()
		c.Actions["dial"] = &config.Action{Name: "dial", Method: config.MethodRelay, Relay: &config.Relay{}}
		b.configs <- c
		b.expect("Attempt 2.1; Attempt 1.1; Attempt 5.1; Attempt 6.1; ")
	})
}

// release gives a release command that is answered only once the queue has kept
// it, and gives what that was.
func (b *bench) release(m *imsg.SchedCommand) *imsg.Releases {
	b.t.Helper()
	n := int64(-1)
	b.fromControl(m, func(r imsg.Msg) { n = r.(*imsg.Count).N })
	synctest.Wait()
	told := b.q.take()
	if len(told) != 1 || n != -1 {
		b.t.Fatalf("%+v: told %s, answered %d", *m, show(told), n)
	}
	kept := told[0].(*imsg.Releases)
	b.hear(kept)
	if n != 1 {
		b.t.Fatalf("%+v: answered %d once it was kept", *m, n)
	}
	return kept
}

// Released domains outlive the scheduler, and count only once they are durable.
func TestReleasesAreKept(t *testing.T) {
	withCore(t, func(b *bench) {
		b.configs <- holding(t)
		b.expect("")
		one := &imsg.SchedCommand{Op: imsg.OpRelease, Domain: "a.test", Time: time.Hour}
		b.release(one)
		kept := b.release(&imsg.SchedCommand{Op: imsg.OpRelease, Domain: "b.test", Time: time.Hour})
		if len(kept.List) != 2 {
			t.Errorf("kept %+v", kept.List)
		}
		// A queue that goes before it has said that it kept one.
		n := int64(-1)
		b.fromControl(&imsg.SchedCommand{Op: imsg.OpRelease, Domain: "c.test", Time: time.Hour}, func(r imsg.Msg) { n = r.(*imsg.Count).N })
		b.expect("Releases; ")
		b.attached()
		if n != 0 {
			t.Errorf("not kept: answered %d", n)
		}
		b.expect("LoadAll; ")
		b.count(one, 0)                      // not before it has told what it kept
		b.hear(scheduled(held(3, "b.test"))) // came while the queue reads what it kept
		b.expect("")
		b.hear(&imsg.Releases{List: kept.List})
		b.hear(scheduled(held(1, "a.test"), held(2, "c.test"), held(3, "b.test")))
		b.hear(&imsg.Scheduled{Loaded: true})
		b.expect("Attempt 1.1; Attempt 3.1; ")
		if kept := b.release(&imsg.SchedCommand{Op: imsg.OpRelease, Domain: "a.test"}); len(kept.List) != 1 || kept.List[0].Domain != "b.test" {
			t.Errorf("kept %+v", kept.List)
		}
		b.hear(scheduled(held(4, "a.test"), held(5, "b.test")))
		b.expect("Attempt 5.1; ")
	})
}

// The clock of synctest begins at midnight UTC of a Saturday.
func TestHoldWindow(t *testing.T) {
	withCore(t, func(b *bench) {
		midnight := time.Now()
		from := midnight.Add(2 * time.Hour).Local()
		b.configs <- holding(t, from.Format("15:04")+"-"+from.Add(time.Hour).Format("15:04"))
		b.hear(scheduled(held(1, "a.test")))
		b.expect("")
		if s := b.states1(t, held(1, "").ID, imsg.SchedState{Known: true, Wait: mail.WaitWindow}); !s.Since.Equal(from) {
			t.Errorf("since %v; want %v", s.Since, from)
		}
		time.Sleep(2*time.Hour - time.Second)
		b.expect("")
		time.Sleep(time.Second)
		b.expect("Attempt 1.1; ")
		e := held(1, "a.test")
		e.Retry, e.LastTry = 1, time.Now()
		b.hear(scheduled(e, held(2, "a.test")))
		b.expect("Attempt 2.1; ")
		time.Sleep(59*time.Minute + 59*time.Second)
		b.expect("Attempt 1.1; ")
		e.Retry++
		e.LastTry = time.Now()
		b.hear(scheduled(e))
		time.Sleep(22 * time.Hour)
		b.expect("")
		time.Sleep(time.Hour + time.Second)
		b.expect("Attempt 1.1; ")
	})
}
