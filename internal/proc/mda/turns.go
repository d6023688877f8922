package mda

import (
	"slices"
	"time"
)

// To start a worker costs as much as ten deliveries, and what has gathered for a
// user goes to disk together; users who took turns for each mail did nothing
// else. So users without a place wait behind work, though not for long, and never
// for nothing. Ours, all of them; docs/design/0008-batches.md says why.
const (
	// turnWait is how long a user waits at most for the place of a worker that has
	// nothing to do while mail goes on coming, and how long after its last mail a
	// worker is taken for one that will get more.
	turnWait = time.Second
	// flowTime without any delivery that comes or ends is the end of that: there is
	// nothing to wait for.
	flowTime = 10 * time.Millisecond
	// turnTime is how long a worker that has work is kept when others want its
	// place.
	turnTime = 2 * time.Second
	// turnCheck is how often places are looked at while users wait.
	turnCheck = flowTime / 2
	// freshPerCPU bounds the workers that come up at a time, and while mail goes on
	// coming flowPart of that many may: more would only keep each other from it, and
	// the sessions that bring mail, and meanwhile the mail of those who wait gathers.
	// One that has answered is up, and so is, whatever it does, one begun freshTime
	// ago.
	freshPerCPU = 3
	flowPart    = 3
	freshTime   = 50 * time.Millisecond
)

// place has a lane wait for a worker. The lock is held.
func (p *pool) place(l *lane) {
	if l.starting || l.wants {
		return
	}
	l.wants, l.since = true, p.now()
	p.waiting = append(p.waiting, l)
	p.turns()
}

// turns gives free places to those who wait, makes room for the others, and
// comes back while there are any. The lock is held.
func (p *pool) turns() {
	p.fill()
	p.makeRoom()
	if p.check == nil && len(p.waiting) > 0 && !p.stopped {
		p.check = time.AfterFunc(turnCheck, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.check = nil
			p.turns()
		})
	}
}

// fill starts workers while there are places. The lock is held.
func (p *pool) fill() {
	if p.stopped {
		return
	}
	now := p.now()
	for fresh := p.fresh(now); len(p.waiting) > 0 && p.live < p.limits.MaxSession; {
		i := 0
		for k, l := range p.waiting {
			if l.before(p.waiting[i], now) {
				i = k
			}
		}
		l := p.waiting[i]
		if fresh >= p.mayBegin(l, now) {
			return
		}
		p.waiting = slices.Delete(p.waiting, i, i+1)
		l.wants = false
		if !l.empty() {
			p.startWorker(l)
			fresh++
		}
	}
}

// mayBegin is how many workers may come up at a time, that of the lane among
// them. The lock is held.
func (p *pool) mayBegin(l *lane, now time.Time) int {
	if l.due(now) || now.Sub(p.came) >= flowTime {
		return p.maxFresh
	}
	return max(1, p.maxFresh/flowPart)
}

// fresh counts the workers that are coming up. The lock is held.
func (p *pool) fresh(now time.Time) int {
	n := 0
	for l, begun := range p.coming {
		if now.Sub(begun) < freshTime && (l.starting || l.worker != nil && !l.worker.answered) {
			n++
		} else {
			delete(p.coming, l)
		}
	}
	return n
}

// before tells which of two who wait comes first: for whom a client waits, who
// has waited enough, then who has the most mail.
func (l *lane) before(o *lane, now time.Time) bool {
	if a, b := l.due(now), o.due(now); a != b {
		return a
	}
	if !l.due(now) && l.count() != o.count() {
		return l.count() > o.count()
	}
	return l.since.Before(o.since)
}

// due reports whether a lane has waited enough for the place of another.
func (l *lane) due(now time.Time) bool { return l.asked || now.Sub(l.since) >= turnWait }

// makeRoom ends workers whose places others want, as many as can be started: one
// without work, the longest so first, when it need not be expected to get more or
// who wants the place has waited enough; for these also those whose turn is over.
// The lock is held.
func (p *pool) makeRoom() {
	if p.stopped || len(p.waiting) == 0 {
		return
	}
	now := p.now()
	due := 0
	for _, l := range p.waiting {
		if l.due(now) {
			due++
		}
	}
	fresh := p.fresh(now)
	want := min(len(p.waiting), p.maxFresh-fresh)
	var idle, over, stores []*lane
	for _, l := range p.lanes {
		switch w := l.worker; {
		case w == nil:
		case w.leave && now.Sub(w.left) < turnWait:
			want, due = want-1, due-1 // its place will be free
		case w.leave: // when it has made what it has, who knows when
		case l.unused() && l.empty():
			idle = append(idle, l)
		case now.Sub(w.begun) < turnTime:
		case l.id.store != "":
			stores = append(stores, l)
		default:
			over = append(over, l)
		}
	}
	p.flows = p.flows && (fresh > 0 || now.Sub(p.moved) < flowTime)
	slices.SortFunc(idle, func(a, b *lane) int { return a.came.Compare(b.came) })
	for _, l := range idle {
		if want <= 0 || (due <= 0 && p.flows && now.Sub(l.came) < turnWait) {
			return
		}
		p.dismiss(l, l.worker)
		want, due = want-1, due-1
	}
	over = append(over, stores...) // many wait behind what these still have
	for _, l := range over[:max(0, min(want, due, len(over)))] {
		p.dismiss(l, l.worker)
	}
}

// dismiss gives a worker nothing more and ends it once it has nothing to do.
// The lock is held; closing a link calls lost, which wants it too.
func (p *pool) dismiss(l *lane, w *worker) {
	if !w.leave {
		w.leave, w.left = true, p.now()
	}
	if l.unused() {
		p.tasks.Go(w.link.Close)
	}
}
