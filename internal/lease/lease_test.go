package lease

import (
	"context"
	"slices"
	"testing"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// limit bounds a wait of these tests.
const limit = 20 * time.Second

// model is a queue that takes results, or does not.
type model struct {
	link   *ipc.Link
	heard  chan imsg.Msg
	refuse bool
}

func newModel() *model {
	m := &model{link: ipc.NewLink(imsg.Queue, imsg.MDA), heard: make(chan imsg.Msg, 100)}
	m.link.Serve(func(r *ipc.Request) {
		m.heard <- r.Msg
		if _, ok := r.Msg.(*imsg.Results); ok {
			r.Reply(&imsg.Done{OK: !m.refuse}, nil)
		}
	}, nil, nil)
	return m
}

// next is what the queue hears next.
func next[M imsg.Msg](t *testing.T, m *model) M {
	t.Helper()
	select {
	case got := <-m.heard:
		if want, ok := got.(M); ok {
			return want
		}
		t.Fatalf("heard %T %+v", got, got)
	case <-time.After(limit):
		t.Fatal("nothing is heard")
	}
	panic("not reached")
}

// TestNewQueue brings results to a queue that refuses them, one that goes, and one
// that takes them: each hears first what is held, and the results are repeated
// until they are taken.
func TestNewQueue(t *testing.T) {
	link := ipc.NewLink(imsg.MDA, imsg.Queue)
	held := make([]mail.EnvelopeID, imsg.MaxItems+1)
	for i := range held {
		held[i] = mail.EnvelopeID(i + 1)
	}
	settled := make(chan []imsg.Result, 1)
	r := New(link, func() []mail.EnvelopeID { return held }, func(done []imsg.Result) { settled <- slices.Clone(done) })
	link.Serve(func(*ipc.Request) {}, r.Attached, nil)
	flush, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(flush) }()

	r.Add(imsg.Result{ID: 1}) // before there is a queue
	first := newModel()
	first.refuse = true
	if err := ipc.Connect(first.link, link); err != nil {
		t.Fatal(err)
	}
	for _, last := range []bool{false, true} {
		if m := next[*imsg.Inflight](t, first); m.Last != last {
			t.Errorf("last %v with %d", m.Last, len(m.IDs))
		}
	}
	for range 2 {
		if m := next[*imsg.Results](t, first); len(m.Results) != 1 || m.Results[0].ID != 1 {
			t.Errorf("got %+v", m)
		}
	}
	first.link.Close()
	r.Add(imsg.Result{ID: 2})
	held = held[:2]
	second := newModel()
	if err := ipc.Connect(second.link, link); err != nil {
		t.Fatal(err)
	}
	if m := next[*imsg.Inflight](t, second); !m.Last || len(m.IDs) != 2 {
		t.Errorf("got %+v", m)
	}
	for id := mail.EnvelopeID(1); id <= 2; {
		for _, res := range next[*imsg.Results](t, second).Results {
			if res.ID != id {
				t.Errorf("got the result of %v; want %v", res.ID, id)
			}
			id++
		}
		<-settled
	}
	end()
	<-ended
}

// TestEnd ends with results that queue has and with one that it does not take.
func TestEnd(t *testing.T) {
	for name, refuse := range map[string]bool{"taken": false, "refused": true} {
		link, m := ipc.NewLink(imsg.MDA, imsg.Queue), newModel()
		m.refuse = refuse
		settled := 0
		r := New(link, func() []mail.EnvelopeID { return nil }, func(done []imsg.Result) { settled += len(done) })
		link.Serve(func(*ipc.Request) {}, r.Attached, nil)
		if err := ipc.Connect(m.link, link); err != nil {
			t.Fatal(err)
		}
		flush, end := context.WithCancel(context.Background())
		for range maxBatch + 1 {
			r.Add(imsg.Result{ID: 1})
		}
		end()
		r.Run(flush)
		if want := map[bool]int{false: maxBatch + 1}[refuse]; settled != want {
			t.Errorf("%s: %d settled; want %d", name, settled, want)
		}
	}
}
