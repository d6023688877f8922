package runq

import (
	"runtime"
	"testing"
	"time"

	"smtpd/internal/mail"
)

func benchEntry(i int) Entry {
	return Entry{ID: mail.MessageID(i + 1).Envelope(1), Kind: mail.KindMTA, Dispatcher: "out",
		Created: epoch, TTL: four, Retry: uint16(i % 7), LastTry: epoch}
}

// BenchmarkLoad100k is what a restart with a deep queue costs.
func BenchmarkLoad100k(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		q := New(policy())
		for i := range 100_000 {
			q.Add(epoch, benchEntry(i))
		}
	}
}

// BenchmarkSchedule100k is one life of a new envelope, tried once, while
// 100,000 others wait for their time.
func BenchmarkSchedule100k(b *testing.B) {
	q := New(policy())
	for i := range 100_000 {
		e := benchEntry(i)
		e.Retry = 1 + e.Retry
		q.Add(epoch, e)
	}
	b.ReportAllocs()
	i := 100_000
	for b.Loop() {
		e := benchEntry(i % 1_000_000_000)
		e.Retry = 0
		q.Add(epoch, e)
		a, ok := q.Next(epoch)
		if !ok || len(a.IDs) != 1 {
			b.Fatal("no attempt")
		}
		q.Gone(a.IDs[0])
		i++
	}
}

// BenchmarkRetry100k is a failed attempt at one of 100,000.
func BenchmarkRetry100k(b *testing.B) {
	q := New(policy())
	for i := range 100_000 {
		q.Add(epoch, benchEntry(i))
	}
	b.ReportAllocs()
	now := epoch
	for b.Loop() {
		a, ok := q.Next(now)
		for !ok {
			if w, _ := q.Wake(); w.After(now) {
				now = w
			}
			a, ok = q.Next(now)
		}
		if a.Op != Attempt {
			q.Gone(a.IDs[0])
			e := benchEntry(int(a.IDs[0].Message()) - 1)
			e.Created = now
			q.Add(now, e)
			continue
		}
		e := benchEntry(int(a.IDs[0].Message()) - 1)
		i := q.byID[a.IDs[0]]
		e.Created, e.Retry = time.Unix(0, q.pool.at(i).created), q.pool.at(i).retry+1
		q.Add(now, e)
	}
}

// A million envelopes fit, with less than 200 octets each.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("a million envelopes")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	q := New(policy())
	const n = 1_000_000
	for i := range n {
		q.Add(epoch, benchEntry(i))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := float64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%.0f octets for an envelope", per)
	if per > 200 {
		t.Errorf("%.0f octets for an envelope; want 200 at most", per)
	}
	runtime.KeepAlive(q)
}
