package mda

import (
	"context"
	"slices"
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
	// the last results. What it does not take, it has tried again.
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
	open    context.Context // while this queue is there, and knows what we hold
	close   context.CancelFunc
}

func newResults(link *ipc.Link, settled func([]imsg.Result)) *results {
	r := &results{link: link, settled: settled, wake: make(chan struct{}, 1)}
	r.open, r.close = context.WithCancel(context.Background())
	r.close()
	return r
}

// add keeps one result. It does not block.
func (r *results) add(res imsg.Result) {
	r.mu.Lock()
	r.pending = append(r.pending, res)
	r.mu.Unlock()
	r.nudge()
}

// setOpen says whether a queue is there that has been told what we hold. A call
// that waits for a queue when one is lost must not be the first that the next
// one hears.
func (r *results) setOpen(open bool) {
	r.mu.Lock()
	r.close()
	if open {
		r.open, r.close = context.WithCancel(context.Background())
	}
	r.mu.Unlock()
	if open {
		r.nudge()
	}
}

func (r *results) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run brings results to queue until flush ends, and then those that are left,
// within lastFlush.
func (r *results) run(flush context.Context) {
	for {
		select {
		case <-r.wake:
			r.send(flush)
		case <-flush.Done():
			ctx, cancel := context.WithTimeout(context.Background(), lastFlush)
			defer cancel()
			r.send(ctx)
			return
		}
	}
}

// send empties the list; it comes back when that is done, there is no queue, or
// ctx ends.
func (r *results) send(ctx context.Context) {
	for {
		r.mu.Lock()
		n := min(len(r.pending), maxBatch)
		batch := slices.Clone(r.pending[:n]) // encoding touches it while others add
		open := r.open
		r.mu.Unlock()
		if n == 0 || open.Err() != nil || ctx.Err() != nil {
			return
		}
		a, err := r.tell(ctx, open, batch)
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

// tell brings one batch to the queue that is there, until either context ends.
func (r *results) tell(ctx, open context.Context, batch []imsg.Result) (*imsg.Done, error) {
	ctx, cancel := context.WithTimeout(ctx, ipc.CallTimeout)
	defer cancel()
	defer context.AfterFunc(open, cancel)()
	return ipc.Ask[*imsg.Done](ctx, r.link, &imsg.Results{Results: batch})
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
