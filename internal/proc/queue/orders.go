package queue

import (
	"errors"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// orders is what the scheduler has ordered and is not done yet. The zero value
// works.
type orders struct {
	mu   sync.Mutex
	list []imsg.Msg
	wake chan struct{} // holds one
}

func (o *orders) init() {
	if o.wake == nil {
		o.wake = make(chan struct{}, 1)
	}
}

// fromScheduler takes orders in; they are carried out in order.
func (s *state) fromScheduler(r *ipc.Request) {
	if _, ok := r.Msg.(*imsg.LoadAll); ok {
		gen := s.out.generation()
		s.begin(func() { s.loadAll(gen) })
		return
	}
	o := &s.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	o.init()
	if len(o.list) >= maxOrders {
		if len(o.list) == maxOrders {
			s.env.Parent.Send(&imsg.Violation{Peer: imsg.Scheduler, Text: "more orders than there is room for"}, nil)
		}
		return
	}
	o.list = append(o.list, r.Msg)
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// schedulerAttached begins anew with a new scheduler: what the old one ordered
// it orders again, if it still wants it.
func (s *state) schedulerAttached() {
	s.out.attach()
	s.orders.mu.Lock()
	for _, m := range s.orders.list {
		if m, ok := m.(*imsg.Suspend); ok { // an operator was told that it is done
			s.pauses.add(m)
		}
	}
	s.orders.list = nil
	s.orders.mu.Unlock()
	for _, a := range s.agents {
		a.forget()
	}
}

// orderLoop carries orders out, one after the other.
func (s *state) orderLoop() {
	o := &s.orders
	o.mu.Lock()
	o.init()
	o.mu.Unlock()
	for {
		o.mu.Lock()
		list := o.list
		o.list = nil
		o.mu.Unlock()
		for _, m := range list {
			s.order(m)
		}
		select {
		case <-o.wake:
		case <-s.ctx.Done():
			return
		}
	}
}

// order carries one order out. What needs a commit gets a goroutine, so that
// many share one; but pauses and their ends keep their order among themselves.
func (s *state) order(m imsg.Msg) {
	switch m := m.(type) {
	case *imsg.Attempt:
		s.attempt(m.IDs)
	case *imsg.Suspend:
		s.pauses.add(m)
	case *imsg.Expire:
		s.begin(func() { s.expire(m.IDs) })
	case *imsg.Remove:
		s.begin(func() { s.remove(m.IDs) })
	case *imsg.Delayed:
		s.delays.add(m)
	case *imsg.Releases:
		s.releases.add(m)
	}
}

// loadAll tells a scheduler of every envelope there is.
func (s *state) loadAll(gen int) {
	var after mail.EnvelopeID
	paused := pausedBy(s.pauses)
	s.tellReleases()
	for end := false; !end; {
		ok := s.out.load(gen, func() ([]imsg.Sched, bool) {
			l, last, err := s.store.List(after, outboxPart)
			if err != nil {
				s.complain("list", err)
				end = true // it is asked again when this process was replaced
				return nil, false
			}
			sched := make([]imsg.Sched, len(l))
			for i := range l {
				if on, ok := paused[l[i].ID]; ok {
					suspended(&l[i], on)
				}
				sched[i] = schedOf(&l[i], s.leased(&l[i]))
				after = l[i].ID
			}
			end = last
			return sched, last
		})
		if !ok {
			return
		}
	}
}

// attempt hands ids to who carries them out. The first that is there says of
// what kind they are.
func (s *state) attempt(ids []mail.EnvelopeID) {
	for i, id := range ids {
		e, err := s.store.Load(id)
		switch {
		case errors.Is(err, queue.ErrNotFound) || errors.Is(err, queue.ErrCorrupt):
			s.out.gone(mail.GoneRemoved, id)
			continue
		case err != nil:
			s.complain("load", err)
			return // the store is out of order, and this process ends
		}
		if e.Kind == mail.KindBounce {
			s.notices.take(ids[i:])
		} else {
			s.agents[e.Kind].push(ids[i:])
		}
		return
	}
}

// unleased tells the scheduler of ids that could not be leased: who has them, or
// that they are gone.
func (s *state) unleased(ids []mail.EnvelopeID) {
	for _, id := range ids {
		e, err := s.store.Load(id)
		if err != nil {
			s.out.gone(mail.GoneRemoved, id)
			continue
		}
		s.out.scheduled(schedOf(&e, s.leased(&e)))
	}
}

// leased reports whether an attempt at e is under way. A lease on an earlier one
// is over, and about to be ended.
func (s *state) leased(e *mail.Envelope) bool {
	l, ok := s.store.LeaseOf(e.ID)
	return ok && l.Attempt == e.Retry
}

// ttl is how long an envelope of an action is kept.
func (s *state) ttl(dispatcher string) time.Duration {
	c := s.config.Load()
	if a := c.Actions[dispatcher]; a != nil && a.TTL > 0 {
		return a.TTL
	}
	return c.Queue.TTL
}

// apply makes the same change to several envelopes. Outcomes are those that
// were changed; nil after an error, which is logged.
func (s *state) apply(ids []mail.EnvelopeID, edit func(*mail.Envelope) queue.Verdict) []queue.Outcome {
	changes := make([]queue.Change, len(ids))
	for i, id := range ids {
		changes[i] = queue.Change{ID: id, Attempt: queue.AnyAttempt, Edit: edit}
	}
	out, err := s.store.Apply(s.work, changes)
	if err != nil {
		s.complain("update", err)
		return nil
	}
	done := out[:0]
	for i, o := range out {
		if o.Err == nil {
			done = append(done, o)
		} else {
			s.out.gone(mail.GoneRemoved, ids[i])
		}
	}
	return done
}

// remove takes envelopes out without notice, also those in flight: what comes
// back of them finds nothing.
func (s *state) remove(ids []mail.EnvelopeID) {
	out := s.apply(ids, func(*mail.Envelope) queue.Verdict { return queue.Verdict{Delete: true} })
	if out == nil {
		s.stay(ids)
		return
	}
	for i := range out {
		e := &out[i].Envelope
		s.logEnd(e, "Remove", "Removed by administrator")
		s.settled(e.ID)
		s.out.gone(mail.GoneRemoved, e.ID)
	}
}

// diskPause is how long the scheduler hears nothing of envelopes that could not
// be changed: it would only try again at once. Ours.
const diskPause = time.Second

// stay tells the scheduler, a little later, of envelopes that could not be
// changed.
func (s *state) stay(ids []mail.EnvelopeID) {
	t := time.NewTimer(diskPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
	s.unleased(ids)
}

// settled frees what the transfer of an envelope holds.
func (s *state) settled(id mail.EnvelopeID) {
	for _, a := range s.agents {
		a.settled(id)
	}
}

// expired is what a sender is shown of an envelope that was given up.
const expired = "Envelope expired"

// expire gives envelopes up, those that are not in flight.
func (s *state) expire(ids []mail.EnvelopeID) {
	var free []mail.EnvelopeID
	for _, id := range ids {
		if _, leased := s.store.LeaseOf(id); leased {
			s.unleased([]mail.EnvelopeID{id})
		} else {
			free = append(free, id)
		}
	}
	if len(free) == 0 {
		return
	}
	now := s.now()
	out := s.apply(free, func(e *mail.Envelope) queue.Verdict {
		n := *e
		n.LastError = expired
		return queue.Verdict{Delete: true, Add: notice(&n, mail.NoticeFailed, now)}
	})
	if out == nil {
		s.stay(free)
		return
	}
	for i := range out {
		o := &out[i]
		s.logEnd(&o.Envelope, "Expire", expired)
		s.unnoticed(o, mail.NoticeFailed)
		s.tell(o, mail.GoneExpired)
	}
}

// tell informs the scheduler of what became of an envelope.
func (s *state) tell(o *queue.Outcome, why mail.GoneReason) {
	if o.Deleted {
		s.out.gone(why, o.Envelope.ID)
	} else {
		s.out.scheduled(schedOf(&o.Envelope, s.leased(&o.Envelope)))
	}
	s.added(o)
}

// added tells the scheduler of a notice that is new.
func (s *state) added(o *queue.Outcome) {
	if o.Added != nil {
		s.stat.Add("queue.bounce", 1)
		s.out.scheduled(schedOf(o.Added, false))
	}
}
