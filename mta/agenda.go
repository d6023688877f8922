package mta

import (
	"container/heap"
	"time"
)

// agenda is what is to be done later. It belongs to the engine's lock.
type agenda struct {
	entries entries
	changed chan struct{} // told when the first entry changed; room for one
}

type entry struct {
	at time.Time
	do func(now time.Time)
}

type entries []entry

func (e entries) Len() int           { return len(e) }
func (e entries) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e entries) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *entries) Push(x any)        { *e = append(*e, x.(entry)) }

func (e *entries) Pop() any {
	last := len(*e) - 1
	x := (*e)[last]
	(*e)[last] = entry{}
	*e = (*e)[:last]
	return x
}

// add has do called at that time, with the lock held. It cannot be taken back:
// do looks whether there is still something to do.
func (a *agenda) add(at time.Time, do func(now time.Time)) {
	heap.Push(&a.entries, entry{at, do})
	if a.entries[0].at.Equal(at) {
		select {
		case a.changed <- struct{}{}:
		default:
		}
	}
}

// run does what is due and tells how long to wait for the next; an hour when
// nothing is planned.
func (a *agenda) run(now time.Time) time.Duration {
	for len(a.entries) > 0 {
		if wait := a.entries[0].at.Sub(now); wait > 0 {
			return wait
		}
		e := heap.Pop(&a.entries).(entry)
		e.do(now)
	}
	return time.Hour
}
