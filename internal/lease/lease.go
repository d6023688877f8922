// Package lease is what a process that delivers owes queue for the envelopes it
// has been given: a queue that is new is told which these are, and results are
// kept until a queue has them. It owns the results that queue has not confirmed,
// and must never forget one before that.
package lease

import (
	"context"
	"slices"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
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
	// gatherTime lies between two calls while more and more attempts end. Ours:
	// some ten of them share what a call and a commit of queue cost.
	gatherTime = 5 * time.Millisecond
)

// Results keeps what queue has not confirmed. While a call is open, and for
// gatherTime after it was made, the next results gather, so that many share one
// call and one commit of queue. It is safe for concurrent use.
type Results struct {
	// Before, when set before Run, is called before each call: what it writes is
	// there when queue hears of the ends.
	Before func()

	link    *ipc.Link
	held    func() []mail.EnvelopeID
	settled func([]imsg.Result)
	wake    chan struct{} // room for one

	mu      sync.Mutex
	pending []imsg.Result

	last time.Time // a call was made; of the goroutine that makes them
}

// New gives results for the queue at the other end of link, whose Serve must be
// given Attached. held lists the envelopes that are held, which they are until
// settled is told that queue has their results.
func New(link *ipc.Link, held func() []mail.EnvelopeID, settled func([]imsg.Result)) *Results {
	return &Results{link: link, held: held, settled: settled, wake: make(chan struct{}, 1)}
}

// Attached tells a queue, before anything else, what is held.
func (r *Results) Attached() {
	ids := r.held()
	for {
		n := min(len(ids), imsg.MaxItems)
		last := n == len(ids)
		if err := r.link.Send(&imsg.Inflight{IDs: ids[:n], Last: last}, nil); err != nil || last {
			return // the next queue is told again
		}
		ids = ids[n:]
	}
}

// Add keeps one result. It does not block.
func (r *Results) Add(res imsg.Result) {
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

// Run brings results to queue until flush ends, and then those that are left,
// within lastFlush.
func (r *Results) Run(flush context.Context) {
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
func (r *Results) send(ctx context.Context) {
	for {
		r.gather(ctx)
		r.mu.Lock()
		n := min(len(r.pending), maxBatch)
		batch := slices.Clone(r.pending[:n]) // encoding touches it while others add
		r.mu.Unlock()
		if n == 0 || ctx.Err() != nil {
			return
		}
		if r.Before != nil {
			r.Before()
		}
		r.last = time.Now()
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

// gather lets more results come when some were told just now.
func (r *Results) gather(ctx context.Context) {
	r.mu.Lock()
	n := len(r.pending)
	r.mu.Unlock()
	if since := time.Since(r.last); n > 0 && n < maxBatch && since < gatherTime {
		pause(ctx, gatherTime-since)
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
