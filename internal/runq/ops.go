package runq

import (
	"math"
	"time"

	"smtpd/internal/mail"
)

// Schedule makes an envelope due at once. It reports false for one that is
// under way, removed, suspended, without a dispatcher, or not known.
func (q *Queue) Schedule(now time.Time, id mail.EnvelopeID) bool {
	i, ok := q.byID[id]
	if !ok {
		return false
	}
	n := q.pool.at(i)
	switch n.state {
	case ready:
		n.flags |= flagReleased
		return true
	case parked:
		if !q.dispatchers[n.dispatcher].known {
			return false
		}
	case pending, held:
	default:
		return false
	}
	q.detach(i)
	n.at = now.UnixNano()
	n.flags |= flagReleased
	q.place(i, n.at)
	return true
}

// Suspend sets or takes back the operator's pause of an envelope, and reports
// whether that changed anything. An attempt under way goes on. A suspended
// envelope does not expire.
func (q *Queue) Suspend(now time.Time, id mail.EnvelopeID, on bool) bool {
	i, ok := q.byID[id]
	if !ok {
		return false
	}
	n := q.pool.at(i)
	if (n.flags&flagSuspended != 0) == on || n.state == removed || n.state == removing {
		return false
	}
	n.flags ^= flagSuspended
	if n.state == inflight || n.state == expiring {
		return true
	}
	q.detach(i)
	q.place(i, now.UnixNano())
	return true
}

// Remove takes an envelope out on the operator's word; Next will say so to the
// queue. It reports whether there was one that is not being removed already.
func (q *Queue) Remove(id mail.EnvelopeID) bool {
	i, ok := q.byID[id]
	if !ok {
		return false
	}
	if s := q.pool.at(i).state; s == removed || s == removing {
		return false
	}
	q.detach(i)
	q.discard(i)
	return true
}

// discard lists an envelope that is nowhere as to be removed.
func (q *Queue) discard(i uint32) {
	q.pool.at(i).state = removed
	q.removed.push(&q.pool, i)
}

// Hold parks an envelope whose attempt the relay gave back, until Release of
// the key, or for a minute. It reports false for one that is not under way.
// A key holds maxHeld envelopes; one more is tried again soon, and overflow is
// true.
func (q *Queue) Hold(now time.Time, id mail.EnvelopeID, key uint64) (ok, overflow bool) {
	i, known := q.byID[id]
	if !known || q.pool.at(i).state != inflight {
		return false, false
	}
	n := q.pool.at(i)
	t := now.UnixNano()
	q.detach(i)
	l := q.holds[key]
	if l == nil {
		l = &list{}
		q.holds[key] = l
	}
	overflow = l.n >= maxHeld
	if overflow {
		n.at = nextTry(n.created, baseOverflow, n.retry, t)
	} else {
		n.at = t + int64(maxHold)
	}
	if overflow || n.flags&flagSuspended != 0 {
		q.place(i, t)
		q.dropEmpty(key, l)
		return true, overflow
	}
	n.state, n.key = held, key
	l.push(&q.pool, i)
	q.heldCount++
	q.heap.push(&q.pool, min(n.at, n.expires), i)
	return true, false
}

// unhold takes a held envelope out of its list.
func (q *Queue) unhold(key uint64, i uint32) {
	l := q.holds[key]
	l.remove(&q.pool, i)
	q.heldCount--
	q.dropEmpty(key, l)
}

func (q *Queue) dropEmpty(key uint64, l *list) {
	if l.n == 0 {
		delete(q.holds, key)
	}
}

// Release makes up to count envelopes held under key due at once, those held
// longest first; count 0: all.
func (q *Queue) Release(now time.Time, key uint64, count int) {
	l := q.holds[key]
	if l == nil {
		return
	}
	if count <= 0 || count > l.n {
		count = l.n
	}
	t := now.UnixNano()
	for range count {
		i := l.head
		q.detach(i)
		q.pool.at(i).at = t
		q.place(i, t)
	}
}

// ReleaseAll makes all held envelopes due at once: who held them has gone.
func (q *Queue) ReleaseAll(now time.Time) {
	for key := range q.holds {
		q.Release(now, key, 0)
	}
}

// State is where an envelope stands.
type State struct {
	Inflight  bool
	Since     time.Time // Inflight: the start of the attempt; else the next try, not before a window
	Wait      mail.Wait
	Suspended bool
}

// Held reports that it is more than time that the envelope waits for.
func (s State) Held() bool { return s.Wait != mail.WaitTime }

// State finds an envelope; false: it is not known.
func (q *Queue) State(id mail.EnvelopeID) (State, bool) {
	i, ok := q.byID[id]
	if !ok {
		return State{}, false
	}
	n := q.pool.at(i)
	s := State{Inflight: n.state == inflight, Suspended: n.flags&flagSuspended != 0}
	at := n.at
	switch {
	case n.state == held:
		s.Wait = mail.WaitRelay
	case n.state == parked && !q.known(n):
		s.Wait = mail.WaitAction
	case n.state == parked && q.opens(n) == math.MaxInt64:
		s.Wait = mail.WaitRelease
	case n.state == parked:
		s.Wait = mail.WaitWindow
		at = max(at, q.opens(n))
	}
	s.Since = time.Unix(0, at)
	return s, true
}

// All calls f for the id of every envelope, more or less in the order of their
// arrival. f must not add or forget envelopes.
func (q *Queue) All(f func(mail.EnvelopeID)) {
	for i := uint32(1); i < q.pool.used; i++ {
		if id := q.pool.at(i).id; id != 0 {
			f(id)
		}
	}
}

// Of calls f for the id of every envelope of a message, in the order of their
// arrival. f must not add or
// forget envelopes.
func (q *Queue) Of(m mail.MessageID, f func(mail.EnvelopeID)) {
	for i := q.byMessage[m]; i != 0; {
		n := q.pool.at(i)
		i = n.mnext
		f(n.id)
	}
}

// Counts are the sizes of a Queue.
type Counts struct {
	Envelopes, Messages int
	Inflight            int
	Held, Holds         int // envelopes in hold lists, and hold lists
}

// Counts counts.
func (q *Queue) Counts() Counts {
	c := Counts{Envelopes: len(q.byID), Messages: len(q.byMessage), Held: q.heldCount, Holds: len(q.holds)}
	for _, n := range q.running {
		c.Inflight += n
	}
	return c
}
