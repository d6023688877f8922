package lookup

import (
	"sync"
	"testing"
)

// Every question is answered at once however many wait, few workers stay, and
// all end.
func TestWorkers(t *testing.T) {
	w := newWorkers()
	var wg sync.WaitGroup
	for range 3 {
		const n = 4 * maxIdle
		var started, done sync.WaitGroup
		started.Add(n)
		done.Add(n)
		for range n { // each waits until all run
			w.run(&wg, func() { started.Done(); started.Wait(); done.Done() })
		}
		done.Wait()
	}
	w.mu.Lock()
	if w.idle > maxIdle {
		t.Errorf("%d idle", w.idle)
	}
	w.mu.Unlock()
	w.end()
	wg.Wait()
}
