package mta

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

const (
	// maxBatch is how many results travel together: what fits a frame when
	// every line is as long as it may be.
	maxBatch = 400
	// retryPause is the rest after queue could not take results. Ours.
	retryPause = 200 * time.Millisecond
	// lastFlush is how long the process waits, at its end, for queue to take
	// the last results. What it does not take, it tries again.
	lastFlush = 800 * time.Millisecond
)

// results keeps what queue has not confirmed. While a call is open the next
// results gather, so that many share one call and one commit of queue.
type results struct {
	link    *ipc.Link
	settled func([]imsg.Result)
	wake    chan struct{} // room for one

	mu      sync.Mutex
	pending []imsg.Result
}

func newResults(link *ipc.Link, settled func([]imsg.Result)) *results {
	return &results{link: link, settled: settled, wake: make(chan struct{}, 1)}
}

// add keeps one result. It does not block.
func (r *results) add(res imsg.Result) {
	r.mu.Lock()
	r.pending = append(r.pending, res)
	first := len(r.pending) == 1
	r.mu.Unlock()
	if first {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// run brings results to queue until flush ends, and then those that are left,
// within lastFlush.
func (r *results) run(flush context.Context) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(flush, func() {
		pause(ctx, lastFlush)
		cancel()
	})()
	for {
		select {
		case <-r.wake:
			r.send(ctx)
		case <-flush.Done():
			r.send(ctx)
			return
		}
	}
}

// send empties the list; it comes back when that is done or ctx ends.
func (r *results) send(ctx context.Context) {
	for {
		r.mu.Lock()
		n := min(len(r.pending), maxBatch)
		batch := r.pending[:n:n]
		r.mu.Unlock()
		if n == 0 || ctx.Err() != nil {
			return
		}
		a, err := ipc.Ask[*imsg.Done](ctx, r.link, &imsg.Results{Results: batch})
		if err != nil || !a.OK {
			pause(ctx, retryPause)
			continue
		}
		r.settled(batch)
		r.mu.Lock()
		if r.pending = r.pending[n:]; len(r.pending) == 0 {
			r.pending = nil
		}
		r.mu.Unlock()
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
