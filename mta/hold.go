package mta

import (
	"time"

	"smtpd/internal/mail"
)

// startup is how long a relay that had nothing to do may take more than its
// limit: nobody knows yet whether it is a slow one. Ours.
const startup = 2 * time.Second

// enqueue adds tasks to a relay, or gives their envelopes back when it has
// enough to do.
func (e *Engine) enqueue(r *relay, tasks []*task) {
	now := time.Now()
	if hiwat := r.hiwat(); hiwat > 0 && r.tasks.n >= hiwat && !now.Before(r.startup) {
		e.giveBack(r, tasks)
		return
	}
	if r.tasks.n == 0 && r.held == 0 && !now.Before(r.startup) {
		r.startup = now.Add(startup)
		e.agenda.add(r.startup, func(time.Time) { e.trim(r) })
	}
	for _, t := range tasks {
		r.tasks.push(t)
		e.waiting(1)
	}
	e.drain(r)
}

// trim gives back, at the end of a relay's startup, what is beyond its limit.
func (e *Engine) trim(r *relay) {
	e.keep(r, r.hiwat())
}

// spare gives back all but one task of a relay whose hosts do not answer: what
// waits for them must not fill the room that others' mail needs.
func (e *Engine) spare(r *relay) {
	if r.ready == 0 && r.limits.TaskHiwat > 0 {
		e.keep(r, 1)
	}
}

// keep gives back what is beyond n tasks; 0: no bound.
func (e *Engine) keep(r *relay, n int) {
	if n > 0 && r.tasks.n > n && !e.stopping {
		e.cut(r, n)
	}
}

// cut gives back what is beyond n tasks, of which there are more.
func (e *Engine) cut(r *relay, n int) {
	tasks := r.tasks.cut(n)
	e.waiting(-len(tasks))
	e.giveBack(r, tasks)
}

// hiwat is how many tasks a relay may have that is over its startup: one while
// it waits for a host that does not answer, or for a place among those who do.
func (r *relay) hiwat() int {
	if r.ready == 0 && (r.slow > 0 || r.crowded) {
		return min(r.limits.TaskHiwat, 1)
	}
	return r.scaled(r.limits.TaskHiwat)
}

// giveBack holds tasks that are not in the list of the relay.
func (e *Engine) giveBack(r *relay, tasks []*task) {
	var ids []mail.EnvelopeID
	for _, t := range tasks {
		for _, env := range t.envs {
			ids = append(ids, env.ID)
		}
	}
	r.held += len(ids)
	e.envelopes(-int64(len(ids)))
	e.opt.Observer.Hold(r.id, ids)
}

// pace counts what a relay gets done, in short spans of time.
type pace struct {
	begun time.Time // of the present span
	n     int       // tasks taken in it
	last  int       // tasks taken in the span before
}

const (
	paceSpan = 100 * time.Millisecond
	// paceSpans is how far ahead a relay may have tasks, by its pace: 2 s.
	paceSpans = 20
)

func (p *pace) count(now time.Time) {
	if d := now.Sub(p.begun); d >= paceSpan {
		if p.last = p.n; d >= 2*paceSpan {
			p.last = 0
		}
		p.begun, p.n = now, 0
	}
	p.n++
}

// scaled is a limit on tasks for a relay that gets much done: task-hiwat is for
// slow ones, and the others would be held up by giving back and taking again.
// What a relay does in two seconds is never too much; task-lowat and
// task-release keep their proportion.
func (r *relay) scaled(limit int) int {
	hiwat := r.limits.TaskHiwat
	if ahead := r.pace.last * paceSpans; ahead > hiwat && hiwat > 0 {
		return limit * ahead / hiwat
	}
	return limit
}

// release asks for envelopes that were given back, once there is room. It is
// called for each task taken.
func (e *Engine) release(r *relay, now time.Time) {
	r.pace.count(now)
	lowat := r.scaled(r.limits.TaskLowat)
	if r.held == 0 || r.tasks.n > lowat {
		return
	}
	r.taken++
	n := max(r.scaled(r.limits.TaskRelease), 1)
	if r.taken < n && r.tasks.n > 0 && r.tasks.n < lowat {
		return
	}
	r.taken = 0
	if r.held -= n; r.held > 0 {
		e.opt.Observer.Release(r.id, n)
		return
	}
	e.releaseAll(r, now)
}

// releaseAll wants all envelopes that were given back: now, and once more when
// the last of them must have been put away.
func (e *Engine) releaseAll(r *relay, now time.Time) {
	r.held = 0
	e.opt.Observer.Release(r.id, 0)
	e.agenda.add(now.Add(releaseAgain), func(time.Time) {
		if r.held == 0 && !e.stopping {
			e.opt.Observer.Release(r.id, 0)
		}
	})
}

// releaseAgain is how long a Hold may still be under way. Ours.
const releaseAgain = time.Second
