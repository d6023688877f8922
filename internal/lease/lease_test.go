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
	m := &model{link: ipc.NewLink(imsg.Queue, imsg.MTA), heard: make(chan imsg.Msg, 100)}
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
	link := ipc.NewLink(imsg.MTA, imsg.Queue)
	settled := make(chan int, imsg.MaxItems+3)
	r := New(link)
	r.Changed = func(n int) { settled <- n }
	for i := range mail.EnvelopeID(imsg.MaxItems + 1) {
		take(r, i+1)
	}
	for range imsg.MaxItems + 1 {
		<-settled
	}
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
	var rest []mail.EnvelopeID
	for i := range mail.EnvelopeID(imsg.MaxItems - 1) {
		rest = append(rest, i+3)
	}
	r.Drop(rest)
	if n := <-settled; n != -len(rest) {
		t.Errorf("changed by %d; want %d", n, -len(rest))
	}
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

// take has one envelope held, and reports whether it was not.
func take(r *Results, id mail.EnvelopeID) bool {
	return r.Take(&imsg.Transfer{Message: id.Message(), Envelopes: []mail.Envelope{{ID: id}}})
}

// TestEnd ends with results that queue has and with one that it does not take.
func TestEnd(t *testing.T) {
	for name, refuse := range map[string]bool{"taken": false, "refused": true} {
		link, m := ipc.NewLink(imsg.MTA, imsg.Queue), newModel()
		m.refuse = refuse
		settled := 0
		r := New(link)
		r.Changed = func(n int) { settled -= min(n, 0) }
		link.Serve(func(*ipc.Request) {}, r.Attached, nil)
		if err := ipc.Connect(m.link, link); err != nil {
			t.Fatal(err)
		}
		flush, end := context.WithCancel(context.Background())
		for id := range mail.EnvelopeID(maxBatch + 1) {
			take(r, id)
			r.Add(imsg.Result{ID: id})
		}
		end()
		r.Run(flush)
		if want := map[bool]int{false: maxBatch + 1}[refuse]; settled != want {
			t.Errorf("%s: %d settled; want %d", name, settled, want)
		}
	}
}

// TestHandedOverAgain: queue hands an envelope over for another attempt before we
// know that it took the result of the last. The attempt is made once we do.
func TestHandedOverAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		code int
		want bool
	}{"failed for now": {451, true}, "delivered": {250, false}, "failed": {550, false}} {
		t.Run(name, func(t *testing.T) {
			link, far := ipc.NewLink(imsg.MTA, imsg.Queue), ipc.NewLink(imsg.Queue, imsg.MTA)
			r := New(link)
			var again []*imsg.Transfer
			r.Again = func(tr *imsg.Transfer) { again = append(again, tr) }
			const id = 0x700000001
			far.Serve(func(q *ipc.Request) {
				if m, ok := q.Msg.(*imsg.Results); !ok || m.Results[0].ID != id {
					return
				}
				tr := &imsg.Transfer{Message: 7, Size: 2, Inline: []byte("x\n"), Envelopes: []mail.Envelope{{ID: id, Retry: 1}, {ID: id + 1}}}
				if !r.Take(tr) || len(tr.Envelopes) != 1 || tr.Envelopes[0].ID != id+1 {
					t.Errorf("taken: %+v", tr.Envelopes)
				}
				q.Reply(&imsg.Done{OK: true}, nil)
			}, nil, nil)
			link.Serve(func(*ipc.Request) {}, nil, nil)
			ipc.ConnectMemory(link, far)
			defer far.Close()
			defer link.Close()
			take(r, id)
			r.Add(imsg.Result{ID: id, Status: mail.Status{Code: tt.code}})
			flush, end := context.WithCancel(t.Context())
			end()
			r.Run(flush) // until that result has been taken
			if (len(again) == 1) != tt.want || tt.want && (len(again[0].Envelopes) != 1 || again[0].Envelopes[0].Retry != 1 || !r.Take(again[0])) {
				t.Errorf("again: %+v", again)
			}
		})
	}
}

// TestRetry: what is worth another attempt is told to queue after its result.
func TestRetry(t *testing.T) {
	link, m := ipc.NewLink(imsg.MTA, imsg.Queue), newModel()
	r := New(link)
	link.Serve(func(*ipc.Request) {}, nil, nil)
	if err := ipc.Connect(m.link, link); err != nil {
		t.Fatal(err)
	}
	take(r, 1)
	r.Retry([]mail.EnvelopeID{1, 2})
	if m := next[*imsg.Retry](t, m); !slices.Equal(m.IDs, []mail.EnvelopeID{2}) {
		t.Errorf("at once: %v", m.IDs)
	}
	r.Add(imsg.Result{ID: 1})
	flush, end := context.WithCancel(t.Context())
	end()
	r.Run(flush)
	next[*imsg.Results](t, m)
	if m := next[*imsg.Retry](t, m); !slices.Equal(m.IDs, []mail.EnvelopeID{1}) {
		t.Errorf("after the result: %v", m.IDs)
	}
}
