// Package stat counts: named counters and gauges of one process, which control
// collects and `smtpctl show stats` prints. A Set owns nothing but its memory.
package stat

import (
	"sync"
	"sync/atomic"
)

// Set is the counters of one process. The zero value works; it is safe for
// concurrent use.
type Set struct {
	m sync.Map // name -> *atomic.Int64
}

// Counter is one counter or gauge, to be kept by who counts often.
type Counter struct {
	v    atomic.Int64
	used atomic.Bool // it was something else than 0 once
}

// Add changes the counter by n, which may be negative for a gauge.
func (c *Counter) Add(n int64) {
	c.v.Add(n)
	c.use(n)
}

// Set replaces the value of a gauge.
func (c *Counter) Set(n int64) {
	c.v.Store(n)
	c.use(n)
}

func (c *Counter) use(n int64) {
	if n != 0 && !c.used.Load() {
		c.used.Store(true)
	}
}

// Value is the counter's present value.
func (c *Counter) Value() int64 { return c.v.Load() }

// Counter finds or makes the counter of that name. Names are constants of the
// program, so their number is bounded.
func (s *Set) Counter(name string) *Counter {
	if c, ok := s.m.Load(name); ok {
		return c.(*Counter)
	}
	c, _ := s.m.LoadOrStore(name, &Counter{})
	return c.(*Counter)
}

// Add changes the named counter by n.
func (s *Set) Add(name string, n int64) { s.Counter(name).Add(n) }

// Set replaces the value of the named gauge.
func (s *Set) Set(name string, n int64) { s.Counter(name).Set(n) }

// Show has the named counter shown although it was never anything but 0.
func (s *Set) Show(name string) { s.Counter(name).used.Store(true) }

// All is a copy of every counter that was ever something else than 0, or Shown:
// `smtpctl show stats` shows what has happened, not what could.
func (s *Set) All() map[string]int64 {
	all := map[string]int64{}
	s.m.Range(func(k, v any) bool {
		if c := v.(*Counter); c.used.Load() {
			all[k.(string)] = c.Value()
		}
		return true
	})
	return all
}
