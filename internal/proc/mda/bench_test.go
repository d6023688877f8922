package mda

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// BenchmarkDeliver brings messages of 4 KB from queue to a Maildir, through mda
// and a worker, 20 at a time. It reports the CPU time of all of them, the
// queue's end of the channel included.
func BenchmarkDeliver(b *testing.B) {
	h := newHouse(b, nil)
	var mu sync.Mutex
	slots := make(chan struct{}, 20)
	var left sync.WaitGroup
	left.Add(b.N)
	old := h.queue
	h.queue = ipc.NewLink(imsg.Queue, imsg.MDA)
	h.queue.Serve(func(r *ipc.Request) {
		if m, ok := r.Msg.(*imsg.Results); ok {
			mu.Lock()
			for _, res := range m.Results {
				if !res.Status.OK() {
					b.Error(res.Line)
				}
				<-slots
				left.Done()
			}
			mu.Unlock()
			r.Reply(&imsg.Done{OK: true}, nil)
		}
	}, nil, nil)
	old.Close()
	h.wait("the end of the old queue", func() bool { return !h.peers.Queue.Up() })
	if err := ipc.Connect(h.queue, h.peers.Queue); err != nil {
		b.Fatal(err)
	}
	body := []byte("Subject: x\n\n" + strings.Repeat("0123456789012345678901234567890\n", 128))
	begin := cpu()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		slots <- struct{}{}
		id := mail.MessageID(i + 1)
		m := &imsg.Transfer{Message: id, Size: int64(len(body)), Inline: body, Envelopes: []mail.Envelope{envelope(id.Envelope(1), "md", "alice")}}
		if err := h.queue.Send(m, nil); err != nil {
			b.Fatal(err)
		}
	}
	left.Wait()
	b.ReportMetric(float64((cpu()-begin).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
