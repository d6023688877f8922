package queue

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// backlog is what the scheduler ordered once, and goes by already, and what the
// disk does not have yet, in order: what the disk refuses is kept here until it
// does not.
type backlog[M any] struct {
	wake chan struct{} // holds one

	mu   sync.Mutex
	list []M
}

func newBacklog[M any]() *backlog[M] { return &backlog[M]{wake: make(chan struct{}, 1)} }

func (b *backlog[M]) add(m M) {
	b.mu.Lock()
	b.list = append(b.list, m)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// first is up to max of what is there.
func (b *backlog[M]) first(max int) []M {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := min(max, len(b.list))
	return b.list[:n:n]
}

func (b *backlog[M]) drop(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.list = b.list[min(n, len(b.list)):]; len(b.list) == 0 {
		b.list = nil
	}
}

// run has do make what is there durable, up to max at a time, and again after a
// while what it reports that it could not. It ends with ctx.
func (b *backlog[M]) run(ctx context.Context, max int, do func([]M) bool) {
	for {
		for l := b.first(max); len(l) > 0; l = b.first(max) {
			if do(l) {
				b.drop(len(l))
				continue
			}
			select {
			case <-time.After(diskPause):
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-b.wake:
		case <-ctx.Done():
			return
		}
	}
}

// pausedBy is what the disk will say of envelopes that were paused, or are no
// more, and does not say yet; usually nil.
func pausedBy(b *backlog[*imsg.Suspend]) map[mail.EnvelopeID]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all map[mail.EnvelopeID]bool
	for _, m := range b.list {
		for _, id := range m.IDs {
			if all == nil {
				all = map[mail.EnvelopeID]bool{}
			}
			all[id] = m.On
		}
	}
	return all
}

// pause makes an operator's pause of envelopes durable, or its end.
func (s *state) pause(l []*imsg.Suspend) bool {
	m := l[0]
	edit := func(e *mail.Envelope) queue.Verdict { suspended(e, m.On); return queue.Verdict{} }
	return len(m.IDs) == 0 || s.apply(m.IDs, edit) != nil
}

func suspended(e *mail.Envelope, on bool) {
	e.Flags &^= mail.FlagSuspended
	if on {
		e.Flags |= mail.FlagSuspended
	}
}

// delayed stores notices that envelopes are late, once for each interval.
func (s *state) delayed(l []*imsg.Delayed) bool {
	now := s.now()
	changes := make([]queue.Change, len(l))
	for i, m := range l {
		changes[i] = queue.Change{ID: m.ID, Attempt: queue.AnyAttempt, Edit: func(e *mail.Envelope) queue.Verdict {
			if e.DelayNotices >= m.Number {
				return queue.Verdict{} // told already
			}
			e.DelayNotices = m.Number
			n := notice(e, mail.NoticeDelayed, now)
			if n != nil {
				n.NoticeDelay = m.Interval
			}
			return queue.Verdict{Add: n}
		}}
	}
	out, err := s.store.Apply(s.work, changes)
	if err != nil {
		s.complain("update", err)
		return false
	}
	for i := range out {
		if out[i].Err != nil {
			s.out.gone(mail.GoneRemoved, l[i].ID)
			continue
		}
		s.added(&out[i])
	}
	return true
}
