package queue

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// BenchmarkLife is what a mail of 4 KB costs here from its commit to its end,
// with 50 sessions that commit; the neighbours' part of the channels included.
func BenchmarkLife(b *testing.B) {
	h := &house{t: b, dir: b.TempDir()}
	h.open()
	ended := make(chan struct{}, b.N)
	h.sched = wire(b, h.peers.Scheduler, imsg.Scheduler, func(n *neighbour, r *ipc.Request) {
		switch m := r.Msg.(type) {
		case *imsg.Scheduled:
			for _, e := range m.Envelopes {
				n.send(&imsg.Attempt{IDs: []mail.EnvelopeID{e.ID}})
			}
		case *imsg.Gone:
			for range m.IDs {
				ended <- struct{}{}
			}
		}
	})
	h.sched.send(&imsg.LoadAll{}) // so that it is known to be there
	h.mta = wire(b, h.peers.MTA, imsg.MTA, func(n *neighbour, r *ipc.Request) {
		if m, ok := r.Msg.(*imsg.Transfer); ok {
			go ipc.Ask[*imsg.Done](context.Background(), n.link, &imsg.Results{Results: []imsg.Result{
				{ID: m.Envelopes[0].ID, Status: mail.Status{Code: 250}}}})
		}
	})
	h.mta.send(&imsg.Inflight{Last: true})
	body := make([]byte, 4096)
	b.ReportAllocs()
	b.ResetTimer()
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			var ids imsg.ReservedIDs
			for n.Add(1) <= int64(b.N) {
				if ids.Count == 0 {
					ids = *ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 64})
				}
				c := ask[*imsg.Committed](h.smtp, &imsg.Commit{ID: ids.First, Size: 4096, Inline: body,
					Envelopes: []mail.Envelope{envelope(mail.KindMTA, "bob@example.net")}})
				if c.Status.Code != 250 {
					b.Error(c.Status.String())
				}
				ids.First++
				ids.Count--
			}
		})
	}
	wg.Wait()
	for range b.N {
		<-ended
	}
}

// wire is connect with a handler.
func wire(t testing.TB, self *ipc.Link, role imsg.Role, f func(*neighbour, *ipc.Request)) *neighbour {
	t.Helper()
	n := &neighbour{t: t, link: ipc.NewLink(role, imsg.Queue)}
	n.link.Serve(func(r *ipc.Request) { f(n, r) }, nil, nil)
	if err := ipc.Connect(self, n.link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.link.Close)
	return n
}
