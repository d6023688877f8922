package mta

import "time"

// Connections that are not ready yet. All ours.
const (
	// slowSource is when one no longer counts against the limit of its source: a
	// host that is silent takes nothing of what others need.
	slowSource = 200 * time.Millisecond
	// slowConnect is when one is no longer counted on, so that the next address
	// gets its chance (RFC 8305 in spirit).
	slowConnect = time.Second
	// maxSlow bounds those that are not counted: each costs a descriptor. When
	// there would be more, the oldest is given up.
	maxSlow = 2000
	// dialPatience and hostPatience are how old one must be for that: where nobody
	// answers (to the second of two SYNs), and where one answers who says nothing.
	dialPatience = 5 * time.Second
	hostPatience = 30 * time.Second
	// slowShare is the part of the envelopes in flight that may wait for hosts that
	// do not answer: one in slowShare.
	slowShare = 16
)

// slowList is sessions that are not counted, those begun first in front. One that
// has got on is dropped when it is met.
type slowList struct{ list []*session }

func (l *slowList) push(s *session) { l.list = append(l.list, s) }

func (l *slowList) drop() {
	l.list[0] = nil
	if l.list = l.list[1:]; len(l.list) == 0 {
		l.list = nil
	}
}

// oldest is the first session that is slow still, in that phase; nil: none.
func (l *slowList) oldest(connected bool) *session {
	for len(l.list) > 0 {
		if s := l.list[0]; s.uncounted && s.connected == connected {
			return s
		}
		l.drop()
	}
	return nil
}

// watch plans what becomes of a session that is slow to get ready.
func (e *Engine) watch(s *session, now time.Time) {
	s.started = now
	e.agenda.add(now.Add(slowSource), func(now time.Time) { e.uncount(s, now) })
	e.agenda.add(now.Add(slowConnect), func(time.Time) {
		if s.isReady || s.ended {
			return
		}
		s.slow = true
		s.relay.slow++
		e.spare(s.relay)
		e.drain(s.relay)
	})
}

// uncount no longer counts a slow session against its source. When there are too
// many of them the oldest is given up, now or once it is old enough for that.
func (e *Engine) uncount(s *session, now time.Time) {
	if s.isReady || s.ended || s.uncounted {
		return
	}
	if e.nslow >= maxSlow {
		if at := e.giveUpOldest(now); at.After(now) {
			e.agenda.add(at, func(now time.Time) { e.uncount(s, now) })
			return
		}
	}
	s.uncounted = true
	e.nslow++
	e.slowIn(s).push(s)
	s.connector.source.slow++
	e.wake(&s.connector.source.conns)
}

// slowIn is the list for the phase that a session is in.
func (e *Engine) slowIn(s *session) *slowList {
	if s.connected {
		return &e.slowHosts
	}
	return &e.slowDials
}

// giveUpOldest ends one slow session, or tells when the first is old enough. No
// session is given up twice, so that as many go as come.
func (e *Engine) giveUpOldest(now time.Time) time.Time {
	dial, host := e.slowDials.oldest(false), e.slowHosts.oldest(true)
	var at time.Time
	for _, s := range []*session{dial, host} {
		if s == nil {
			continue
		}
		patience := dialPatience
		if s.connected {
			patience = hostPatience
		}
		when := s.started.Add(patience)
		if !when.After(now) {
			e.slowIn(s).drop()
			s.givenUp = true
			s.giveUp()
			return now
		}
		if at.IsZero() || when.Before(at) {
			at = when
		}
	}
	if at.IsZero() { // all have been given up, and are about to end
		at = now.Add(slowSource)
	}
	return at
}

// answered tells that a session is connected.
func (e *Engine) answered(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.connected = true
	if s.uncounted {
		e.slowHosts.push(s)
	}
}

// notSlow ends the exceptions for a session that takes long.
func (e *Engine) notSlow(s *session) {
	if s.slow {
		s.relay.slow--
	}
	if s.uncounted {
		s.connector.source.slow--
		e.nslow--
	}
	s.slow, s.uncounted = false, false
}

// shelve gives back what a relay has in memory when all that is left to it is to
// wait for hosts that do not answer, and there are many such: else a few thousand
// silent destinations would be all that is in flight.
func (e *Engine) shelve(r *relay) {
	waits := r.slow > 0 && r.slow == r.n && (!r.crowded || r.n >= len(r.candidates))
	many := e.nslow > e.cfg.Scheduler.MaxInflight/slowShare
	if waits && many && r.tasks.n > 0 && r.limits.TaskHiwat > 0 && !e.stopping {
		e.cut(r, 0)
	}
}

// refill asks for what was given back, for a session that has got ready and finds
// nothing to do.
func (e *Engine) refill(r *relay, now time.Time) {
	if r.held == 0 || r.tasks.n > 0 {
		return
	}
	n := r.limits.TaskHiwat
	if n == 0 || r.held <= n {
		e.releaseAll(r, now)
		return
	}
	r.held -= n
	e.opt.Observer.Release(r.id, n)
}
