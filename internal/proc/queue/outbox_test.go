package queue

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// TestOutbox: what is told comes once, in order and as it was, though the memory
// of what was sent is used again; messages to one and to more than an imsg holds.
func TestOutbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := ipc.NewLink(imsg.Queue, imsg.Scheduler), ipc.NewLink(imsg.Scheduler, imsg.Queue)
		near.Serve(func(*ipc.Request) {}, nil, nil)
		var mu sync.Mutex
		var got []imsg.Sched
		gone := 0
		far.Serve(func(r *ipc.Request) {
			mu.Lock()
			defer mu.Unlock()
			switch m := r.Msg.(type) {
			case *imsg.Scheduled:
				if len(m.Envelopes) > outboxPart {
					t.Errorf("%d envelopes at once", len(m.Envelopes))
				}
				got = append(got, m.Envelopes...)
			case *imsg.Gone:
				gone += len(m.IDs)
			}
		}, nil, nil)
		ipc.ConnectMemory(near, far)
		o := newOutbox(near)
		o.attach()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { o.run(ctx) })
		var want []imsg.Sched
		for m, n := range []int{1, 3, outboxPart, 1, outboxPart - 1, 2*outboxPart + 7, 100, 1} {
			envs := make([]mail.Envelope, n)
			for i := range envs {
				envs[i] = mail.Envelope{ID: mail.MessageID(m + 1).Envelope(uint32(i + 1)), Kind: mail.KindMTA, Dispatcher: "out",
					Dest: mail.Address{User: "u", Domain: string(rune('a'+i%3)) + ".test"}, DSN: mail.DSN{Notify: mail.Notify(i % 4)}}
				want = append(want, schedOf(&envs[i], false))
			}
			o.accepted(envs)
			if m%2 == 1 {
				synctest.Wait()
			}
			again := schedOf(&envs[0], true)
			o.scheduled(again)
			want = append(want, again)
			o.gone(mail.GoneDelivered, envs[0].ID)
		}
		cancel()
		wg.Wait()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(got) != len(want) || gone != 8 {
			t.Fatalf("%d of %d, %d gone", len(got), len(want), gone)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("number %d: got %+v; want %+v", i, got[i], want[i])
			}
		}
		near.Close()
		far.Close()
	})
}
