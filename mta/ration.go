package mta

import (
	"strings"
	"time"
)

// ration counts the mails begun for a domain or a group of them.
type ration struct {
	last  time.Time // when the last mail was begun
	begun time.Time // of the present minute
	n     int       // mails begun in it
}

// next is when another mail may be begun; zero: now. max is for a minute, 0: no
// bound.
func (q *ration) next(max int, gap time.Duration, now time.Time) time.Time {
	var at time.Time
	if gap > 0 && !q.last.IsZero() {
		at = q.last.Add(gap)
	}
	if end := q.begun.Add(time.Minute); max > 0 && q.n >= max && end.After(now) && end.After(at) {
		at = end
	}
	if !at.After(now) {
		return time.Time{}
	}
	return at
}

func (q *ration) use(now time.Time) {
	if now.Sub(q.begun) >= time.Minute {
		q.begun, q.n = now, 0
	}
	q.n++
	q.last = now
}

// group is the domains whose best exchangers are in one place: limits count
// the many domains of a provider as one.
type group struct {
	conns
	name  string
	mails ration
	refs  int // relays and sessions
}

// groupName is where an exchanger is: its name without the first label, if what
// is left is a domain of at least two. An address is by itself.
func groupName(mx string) string {
	if _, ok := literal(mx); ok {
		return mx
	}
	if _, rest, ok := strings.Cut(mx, "."); ok && strings.Contains(rest, ".") {
		return rest
	}
	return mx
}

// joinGroup makes the relay one of those that go to that exchanger; an empty
// name: of none.
func (e *Engine) joinGroup(r *relay, name string) {
	if r.group != nil && r.group.name == name {
		return
	}
	e.releaseGroup(r.group)
	if r.group = nil; name == "" {
		return
	}
	g := e.groups[name]
	if g == nil {
		g = &group{name: name}
		e.groups[name] = g
	}
	g.refs++
	r.group = g
}

func (e *Engine) releaseGroup(g *group) {
	if g == nil {
		return
	}
	if g.refs--; g.refs == 0 {
		delete(e.groups, g.name)
	}
}

// mayMail is when the relay may begin its next mail; zero: now.
func (r *relay) mayMail(now time.Time) time.Time {
	at := r.dom.mails.next(r.limits.MaxMailsPerDomain, r.limits.MailDelayDomain, now)
	if r.group != nil {
		if t := r.group.mails.next(r.limits.MaxMailsPerGroup, r.limits.MailDelayGroup, now); t.After(at) {
			at = t
		}
	}
	return at
}

// popTask takes the next task of a relay, if there is one and it may be begun
// now. Else the relay is looked at again when it may.
func (e *Engine) popTask(r *relay) *task {
	if r.tasks.n == 0 {
		return nil
	}
	now := time.Now()
	if at := r.mayMail(now); !at.IsZero() {
		e.wakeLater(r, at, now)
		return nil
	}
	r.dom.mails.use(now)
	if r.group != nil {
		r.group.mails.use(now)
	}
	e.waiting(-1)
	e.running(1)
	t := r.tasks.pop()
	e.release(r, now)
	return t
}
