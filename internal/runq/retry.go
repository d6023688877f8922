package runq

import (
	"math"
	"time"

	"smtpd/internal/mail"
)

// The factors of the retry formula.
const (
	baseLocal    = 10 * time.Second  // mda and bounce
	baseRelay    = 400 * time.Second // mta
	baseOverflow = 3 * time.Second   // given back by a relay whose hold list is full
)

const (
	// lapseDelay is the wait after an attempt that did not take place: a process
	// was replaced, a route is blocked. It doubles each time, maxLapses times:
	// up to about four minutes. Ours: a replacement takes 50 ms to 10 s.
	lapseDelay = time.Second
	maxLapses  = 8
	// maxHeld bounds one hold list; what goes beyond is tried again by itself.
	maxHeld = 1000
	// maxHold ends a hold that nobody released. Ours: the relay that asked for it
	// may have died with its process, and what is held is cheap to offer again.
	maxHold = time.Minute
	// maxNotices is how many delay notices go out in a second. Ours: each is a
	// message of its own, and an outage makes many at once.
	maxNotices = 1000
	// minDelay bounds what is configured. Ours: less is an endless loop.
	minDelay = time.Second
	// maxAge bounds base*step², so that no time overflows.
	maxAge = 100 * 365 * 24 * time.Hour
)

// backoff is what holds for an envelope.
func (q *Queue) backoff(n *node) Backoff {
	var b Backoff
	if q.policy.Backoff != nil {
		b = q.policy.Backoff(n.kind, q.dispatchers[n.dispatcher].name)
	}
	switch {
	case b.Base > 0:
		b.Base = max(b.Base, minDelay)
	case n.kind == mail.KindMTA:
		b.Base = baseRelay
	default:
		b.Base = baseLocal
	}
	return b
}

// after is the next try of an envelope whose last one ended at a time.
func (q *Queue) after(n *node, last int64) int64 {
	b := q.backoff(n)
	if len(b.Delays) == 0 || n.retry == 0 {
		return nextTry(n.created, b.Base, n.retry, last)
	}
	d := b.Delays[min(int(n.retry), len(b.Delays))-1]
	return last + int64(min(max(d, minDelay), maxAge))
}

// nextTry is created + base*step², where step begins at retry and is raised
// until the time lies after `after`.
func nextTry(created int64, base time.Duration, retry uint16, after int64) int64 {
	b, step := int64(base), int64(retry)
	if age := min(after-created, int64(maxAge)); age >= 0 {
		s := int64(math.Sqrt(float64(age) / float64(b)))
		for s > 0 && b*s*s > age {
			s--
		}
		for b*s*s <= age {
			s++
		}
		step = max(step, s)
	}
	step = min(step, int64(math.Sqrt(float64(maxAge)/float64(b))))
	return created + b*step*step
}

// firstTry is when an envelope is next tried that the queue has just named: at
// once when it is new; otherwise at the time that was set when its last attempt
// ended, which may have passed.
func (q *Queue) firstTry(n *node, last time.Time) int64 {
	if n.retry == 0 {
		return n.created
	}
	ended := n.created - 1
	if !last.IsZero() {
		ended = min(max(last.UnixNano(), 0), math.MaxInt64/2)
	}
	return q.after(n, ended)
}

// warn plans the delay notices that n has come to deserve: for each interval in
// order that its next try does not come before.
func (q *Queue) warn(n *node) {
	if n.flags&flagNoDelay != 0 || n.retry == 0 || n.kind == mail.KindBounce ||
		n.state == inflight || n.state == removed {
		return
	}
	for int(n.notices) < len(q.policy.Warn) {
		interval := q.policy.Warn[n.notices]
		if n.at < n.created+int64(interval) {
			return
		}
		n.notices++
		q.notices = append(q.notices, Action{Op: Delay, IDs: []mail.EnvelopeID{n.id},
			Interval: interval, Number: n.notices})
	}
}
