package queue

import (
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// pauses are operators' pauses of envelopes, and their ends, that the disk does
// not have yet, in order. The scheduler, which is who an operator talks to,
// follows them already; so one that the disk refuses is kept here until it does
// not, or the next queue would not know of it.
type pauses struct {
	wake chan struct{} // holds one

	mu   sync.Mutex
	list []*imsg.Suspend
}

func (p *pauses) add(m *imsg.Suspend) {
	p.mu.Lock()
	p.list = append(p.list, m)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pauses) first() *imsg.Suspend {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.list) == 0 {
		return nil
	}
	return p.list[0]
}

func (p *pauses) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list = p.list[1:]; len(p.list) == 0 {
		p.list = nil
	}
}

// wanted is what the disk will say of envelopes, and does not say yet; usually
// nil.
func (p *pauses) wanted() map[mail.EnvelopeID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all map[mail.EnvelopeID]bool
	for _, m := range p.list {
		for _, id := range m.IDs {
			if all == nil {
				all = map[mail.EnvelopeID]bool{}
			}
			all[id] = m.On
		}
	}
	return all
}

// pauseLoop makes pauses durable, one after the other.
func (s *state) pauseLoop() {
	for {
		for m := s.pauses.first(); m != nil; m = s.pauses.first() {
			edit := func(e *mail.Envelope) queue.Verdict { suspended(e, m.On); return queue.Verdict{} }
			if s.apply(m.IDs, edit) != nil || len(m.IDs) == 0 {
				s.pauses.drop()
				continue
			}
			select {
			case <-time.After(diskPause):
			case <-s.ctx.Done():
				return
			}
		}
		select {
		case <-s.pauses.wake:
		case <-s.ctx.Done():
			return
		}
	}
}

func suspended(e *mail.Envelope, on bool) {
	e.Flags &^= mail.FlagSuspended
	if on {
		e.Flags |= mail.FlagSuspended
	}
}
