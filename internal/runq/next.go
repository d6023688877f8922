package runq

import (
	"math"
	"time"

	"smtpd/internal/mail"
)

// Op is what is to be done.
type Op int

// The operations. Each envelope of an Attempt or Expire comes back by Add or
// Gone, of a Remove by Gone.
const (
	Attempt Op = iota + 1 // try IDs now: one message, one kind, one dispatcher
	Expire                // give IDs up
	Remove                // delete IDs
	Delay                 // tell the sender of the one in IDs that it is delayed
)

// Action is one thing to be done now.
type Action struct {
	Op       Op
	Kind     mail.Kind // Attempt
	IDs      []mail.EnvelopeID
	Interval time.Duration // Delay: what has passed, or will have before the next try
	Number   uint8         // Delay: the notices that the envelope has had with this one
}

// maxAdvance bounds the work of one Next, so that callers can hold a lock over
// it. Ours: some 100 µs.
const maxAdvance = 1024

// Next is the next thing to do. Without one there may still be envelopes whose
// time has come and which it has not looked at: see Wake.
func (q *Queue) Next(now time.Time) (Action, bool) {
	t := now.UnixNano()
	q.advance(t)
	if a, ok := q.nextRemoval(); ok {
		return a, true
	}
	if a, ok := q.nextNotice(t); ok {
		return a, true
	}
	if a, ok := q.nextExpiry(); ok {
		return a, true
	}
	return q.nextAttempt(t)
}

// Wake is when Next has something to do if nothing happens before. It may be in
// the past: then at once. Without any envelope that waits for a time it is
// false.
func (q *Queue) Wake() (time.Time, bool) {
	at := int64(math.MaxInt64)
	if len(q.heap) > 0 {
		at = q.heap[0].at
	}
	if len(q.notices) > 0 {
		at = min(at, q.noticed.from+int64(time.Second))
	}
	if q.more {
		at = 0
	}
	if at == math.MaxInt64 {
		return time.Time{}, false
	}
	return time.Unix(0, at), true
}

// advance looks at envelopes whose time has come.
func (q *Queue) advance(now int64) {
	for range maxAdvance {
		if len(q.heap) == 0 || q.heap[0].at > now {
			return
		}
		i := q.heap[0].i
		q.detach(i)
		switch n := q.pool.at(i); {
		case n.state == removing:
			q.discard(i) // the queue could not: once more
		case n.expires <= now:
			n.state = expired
			q.expired.push(&q.pool, i)
		default:
			q.place(i, now)
		}
	}
}

// drain moves the first max envelopes of a list of things to do to the state
// that says it was done.
func (q *Queue) drain(l *list, max int, done state) []mail.EnvelopeID {
	ids := make([]mail.EnvelopeID, 0, min(l.n, max))
	for l.head != 0 && len(ids) < max {
		i := l.head
		l.remove(&q.pool, i)
		n := q.pool.at(i)
		n.state = done
		ids = append(ids, n.id)
	}
	return ids
}

func (q *Queue) nextRemoval() (Action, bool) {
	if q.removed.n == 0 {
		return Action{}, false
	}
	return Action{Op: Remove, IDs: q.drain(&q.removed, q.policy.MaxList, removing)}, true
}

// pace counts the notices of a second.
type pace struct {
	from int64 // its start
	n    int
}

func (q *Queue) nextNotice(now int64) (Action, bool) {
	if len(q.notices) == 0 {
		return Action{}, false
	}
	if now-q.noticed.from >= int64(time.Second) || now < q.noticed.from {
		q.noticed = pace{from: now}
	}
	if q.noticed.n == maxNotices {
		return Action{}, false
	}
	q.noticed.n++
	a := q.notices[0]
	if q.notices = q.notices[1:]; len(q.notices) == 0 {
		q.notices = nil
	}
	return a, true
}

// nextExpiry gives up what has expired, but no more at a time than may be in
// flight: each is work for the queue.
func (q *Queue) nextExpiry() (Action, bool) {
	room := min(q.policy.MaxInflight-q.givenUp, q.policy.MaxList)
	if q.expired.n == 0 || room <= 0 {
		return Action{}, false
	}
	ids := q.drain(&q.expired, room, expiring)
	q.givenUp += len(ids)
	return Action{Op: Expire, IDs: ids}, true
}

// turn says whose attempt is next. Kinds take turns, and so do first and later
// attempts: neither a deep queue of old mail nor a rush of new mail stops the
// other.
type turn struct {
	kind  int // index into order
	taken int // attempts of this kind in a row
	later [kinds]bool
}

// order is the order of the kinds.
var order = [...]mail.Kind{mail.KindBounce, mail.KindMDA, mail.KindMTA}

func (q *Queue) nextAttempt(now int64) (Action, bool) {
	if q.more = !q.shut(now); q.more {
		return Action{}, false
	}
	if q.turn.taken >= q.policy.MaxTurn {
		q.pass()
	}
	for range order {
		k := order[q.turn.kind]
		room := q.room(k)
		if !q.paused[k] && room > 0 && q.lanes[k][0].n+q.lanes[k][1].n > 0 {
			q.turn.taken++
			return q.attempt(k, min(room, q.policy.MaxBatch), now), true
		}
		q.pass()
	}
	return Action{}, false
}

func (q *Queue) pass() { q.turn.kind, q.turn.taken = (q.turn.kind+1)%len(order), 0 }

// room is how many envelopes of a kind may be leased. A tenth of all is kept
// for each other kind, so that one whose attempts last long does not stop the
// others.
func (q *Queue) room(k mail.Kind) int {
	free := q.policy.MaxInflight
	for _, other := range order {
		free -= q.running[other]
		if other != k {
			free -= max(q.policy.MaxInflight/10-q.running[other], 0)
		}
	}
	return free
}

// attempt takes the first envelope of a lane and those behind it that go the
// same way.
func (q *Queue) attempt(k mail.Kind, max int, now int64) Action {
	lane := 0
	if q.lanes[k][0].n == 0 || (q.turn.later[k] && q.lanes[k][1].n > 0) {
		lane = 1
	}
	q.turn.later[k] = lane == 0
	l := &q.lanes[k][lane]
	first := q.pool.at(l.head)
	a := Action{Op: Attempt, Kind: k}
	for len(a.IDs) < max && l.head != 0 {
		i := l.head
		n := q.pool.at(i)
		if n.id.Message() != first.id.Message() || n.dispatcher != first.dispatcher || q.heldBack(n, now) {
			break
		}
		a.IDs = append(a.IDs, n.id)
		q.detach(i)
		q.start(i, now)
	}
	return a
}

// start marks an envelope that is nowhere as being tried.
func (q *Queue) start(i uint32, now int64) {
	n := q.pool.at(i)
	n.state, n.at = inflight, now
	q.running[n.kind]++
}

// detach takes an envelope out of whatever it is in; the caller puts it
// somewhere else.
func (q *Queue) detach(i uint32) {
	n := q.pool.at(i)
	q.heap.remove(&q.pool, i)
	switch n.state {
	case ready:
		q.lanes[n.kind][n.lane()].remove(&q.pool, i)
	case held:
		q.unhold(n.key, i)
	case inflight:
		q.running[n.kind]--
	case expired:
		q.expired.remove(&q.pool, i)
	case expiring:
		q.givenUp--
	case removed:
		q.removed.remove(&q.pool, i)
	}
}

// lane is the index into Queue.lanes: it must not change while ready.
func (n *node) lane() int {
	if n.retry == 0 && n.lapses == 0 {
		return 0
	}
	return 1
}

// place puts an envelope that is nowhere where its time and flags want it.
func (q *Queue) place(i uint32, now int64) {
	n := q.pool.at(i)
	switch {
	case n.flags&flagSuspended != 0:
		n.state = suspended
	case !q.known(n), q.heldBack(n, now):
		q.park(i)
	case n.at > now:
		n.state = pending
		q.heap.push(&q.pool, min(n.at, n.expires), i)
	default:
		n.state = ready
		q.lanes[n.kind][n.lane()].push(&q.pool, i)
		q.heap.push(&q.pool, n.expires, i)
	}
}

// park keeps an envelope that may not be tried until that changes by itself,
// or it expires.
func (q *Queue) park(i uint32) {
	n := q.pool.at(i)
	n.state = parked
	q.heap.push(&q.pool, min(n.expires, q.opens(n)), i)
}
