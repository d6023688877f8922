package queue_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
)

func benchEnvelope() mail.Envelope {
	return mail.Envelope{
		Kind: mail.KindMTA, Dispatcher: "relay", SMTPName: "mx.example.org", Helo: "client.example.net",
		Host: "client.example.net", Client: "192.0.2.1",
		Sender:  mail.Address{User: "alice", Domain: "example.net"},
		Rcpt:    mail.Address{User: "bob", Domain: "example.org"},
		Dest:    mail.Address{User: "bob", Domain: "example.org"},
		Created: time.Unix(1795216993, 0), TTL: 96 * time.Hour,
	}
}

func openBench(b *testing.B) *queue.Bolt {
	s, err := queue.Open(b.TempDir(), queue.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// accept stores b.N messages of 4 KB from so many writers.
func accept(b *testing.B, s *queue.Bolt, writers int) []mail.MessageID {
	ctx := context.Background()
	body := make([]byte, 4096)
	var n atomic.Int64
	ids := make([]mail.MessageID, b.N)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				i := int(n.Add(1)) - 1
				if i >= b.N {
					return
				}
				id, err := s.Reserve(ctx, 1)
				if err == nil {
					err = s.Accept(ctx, &queue.Message{ID: id, Arrival: time.Unix(1795216993, 0), Body: body, Size: 4096,
						Envelopes: []mail.Envelope{benchEnvelope()}})
				}
				if err != nil {
					b.Error(err)
					return
				}
				ids[i] = id
			}
		})
	}
	wg.Wait()
	return ids
}

func BenchmarkAccept(b *testing.B) {
	for name, writers := range map[string]int{"1": 1, "50": 50} {
		b.Run(name, func(b *testing.B) {
			s := openBench(b)
			b.ReportAllocs()
			b.ResetTimer()
			accept(b, s, writers)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	s := openBench(b)
	ids := accept(b, s, 50)
	b.ReportAllocs()
	b.ResetTimer()
	for _, id := range ids {
		if _, err := s.Load(id.Envelope(1)); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Body(id); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDelete(b *testing.B) {
	s := openBench(b)
	ids := accept(b, s, 50)
	b.ReportAllocs()
	b.ResetTimer()
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for i := int(n.Add(1)) - 1; i < b.N; i = int(n.Add(1)) - 1 {
				_, err := s.Apply(context.Background(), []queue.Change{{ID: ids[i].Envelope(1),
					Edit: func(*mail.Envelope) queue.Verdict { return queue.Verdict{Delete: true} }}})
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkList(b *testing.B) {
	s := openBench(b)
	accept(b, s, 50)
	b.ReportAllocs()
	b.ResetTimer()
	var after mail.EnvelopeID
	for end := false; !end; {
		l, last, err := s.List(after, 500)
		if err != nil {
			b.Fatal(err)
		}
		if end = last; len(l) > 0 {
			after = l[len(l)-1].ID
		}
	}
}
