package parent

import (
	"context"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"
)

// TestPlaces has delivery workers wait for the places of others: for placeTime,
// and no more of them than there are places.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorkers(&parent{ctx: context.Background()})
		w.allow(1)
		running := &exec.Cmd{}
		w.running[running] = struct{}{}
		got := make(chan error, 2)
		place := func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			got <- w.place()
		}
		go place()
		synctest.Wait()
		go place()
		if err := <-got; err == nil || w.waiting != 1 {
			t.Errorf("a second waits: %v, %d", err, w.waiting)
		}
		time.Sleep(placeTime / 2)
		w.mu.Lock()
		delete(w.running, running)
		w.wake()
		w.mu.Unlock()
		if err := <-got; err != nil {
			t.Errorf("a place was free: %v", err)
		}
		w.running[running] = struct{}{}
		start := time.Now()
		place()
		if err := <-got; err == nil || time.Since(start) != placeTime {
			t.Errorf("no place was free: %v after %v", err, time.Since(start))
		}
		go place()
		synctest.Wait()
		delete(w.running, running) // it is no process
		w.allow(0)
		w.killAll()
		if err := <-got; err == nil {
			t.Error("a place at the end")
		}
	})
}
