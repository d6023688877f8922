package queue

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestGatherUntil(t *testing.T) {
	tests := map[string]struct{ waiting, last, crowd, want int }{
		"nothing has come":      {0, 20, 100, 0},
		"one after the other":   {1, 1, 100, 0},
		"a few":                 {1, 3, 100, 0},
		"a crowd that grows":    {1, 4, 100, 8},
		"half of all":           {1, 40, 50, 25},
		"ten, of whom five":     {2, 5, 10, 5},
		"nothing is known":      {5, 20, 0, 0},
		"more than ever before": {60, 20, 100, 40},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := gatherUntil(tc.waiting, tc.last, tc.crowd); got != tc.want {
				t.Errorf("got %d; want %d", got, tc.want)
			}
		})
	}
}

// A group waits for the crowd, not longer than gatherTime, and who comes after
// that wakes the loop again.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Bolt{}
		c := &s.commits
		c.init()
		c.last = 10
		c.crowd.Store(100)
		gathered := func() time.Duration {
			began := time.Now()
			c.gather()
			return time.Since(began)
		}
		s.submit(&job{})
		if d := gathered(); d != gatherTime {
			t.Errorf("one of twenty waits %v; want %v", d, gatherTime)
		}
		go func() {
			for range 19 {
				s.submit(&job{})
			}
		}()
		if d := gathered(); d != 0 {
			t.Errorf("twenty of twenty wait %v", d)
		}
		synctest.Wait()
		c.waiting = nil
		select {
		case <-c.wake:
		default:
		}
		if d := gathered(); d != 0 {
			t.Errorf("nobody waits %v", d)
		}
		s.submit(&job{})
		select {
		case <-c.wake:
		default:
			t.Error("an idle loop is not woken")
		}
	})
}
