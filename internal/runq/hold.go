package runq

import (
	"math"
	"time"

	"smtpd/internal/mail"
)

// known reports whether an envelope's dispatcher exists. Notices need none.
func (q *Queue) known(n *node) bool {
	return q.dispatchers[n.dispatcher].known || n.kind == mail.KindBounce
}

// heldBack reports whether an envelope must not be tried now although its time
// has come.
func (q *Queue) heldBack(n *node, now int64) bool {
	if n.flags&flagReleased != 0 || n.kind == mail.KindBounce {
		return false
	}
	if n.flags&flagHold != 0 {
		return true
	}
	d := &q.dispatchers[n.dispatcher]
	if q.policy.Hold != nil && (now < d.from || now >= d.until) {
		q.askHold(d, now)
	}
	return d.held
}

// askHold asks the policy about a dispatcher.
func (q *Queue) askHold(d *dispatcher, now int64) {
	d.held, d.from, d.until = false, now, math.MaxInt64
	if q.policy.Hold == nil {
		return
	}
	held, until := q.policy.Hold(d.name, time.Unix(0, now))
	d.held = held
	if !until.IsZero() {
		d.until = until.UnixNano()
	}
}

// opens is when an envelope that is parked may leave by itself; the largest
// number: never.
func (q *Queue) opens(n *node) int64 {
	d := &q.dispatchers[n.dispatcher]
	if !d.known || n.flags&flagHold != 0 || !d.held {
		return math.MaxInt64
	}
	return d.until
}

// shut takes envelopes off the heads of the lanes that are held back by now:
// they came there while a window was open. It reports false when it has not
// looked at all that may be there.
func (q *Queue) shut(now int64) bool {
	left := maxAdvance
	for k := range q.lanes {
		for lane := range q.lanes[k] {
			l := &q.lanes[k][lane]
			for l.head != 0 && q.heldBack(q.pool.at(l.head), now) {
				if left--; left < 0 {
					return false
				}
				i := l.head
				q.detach(i)
				q.park(i)
			}
		}
	}
	return true
}
