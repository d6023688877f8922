// Package lease is what a process that delivers owes queue for the envelopes it
// has been given: a queue that is new is told which these are, and results are
// kept until a queue has them. It owns the list of those envelopes and the results
// that queue has not confirmed, and must never forget one before that.
package lease

import (
	"context"
	"maps"
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
	// Again, set before Run, is given what Take put aside; it must not block.
	Again func(*imsg.Transfer)
	// Changed, when set before the first Take, is told by how many the envelopes
	// that are held have changed.
	Changed func(int)

	link *ipc.Link
	wake chan struct{} // room for one

	mu      sync.Mutex
	held    map[mail.EnvelopeID]*after // from Take until queue has the result, or Drop
	pending []imsg.Result

	last time.Time // a call was made; of the goroutine that makes them
}

// after is what comes for an envelope once queue has the result of its attempt.
type after struct {
	again *imsg.Transfer // another attempt; nil: none yet
	retry bool           // it is worth one
}

// New gives results for the queue at the other end of link, whose Serve must be
// given Attached.
func New(link *ipc.Link) *Results {
	return &Results{link: link, wake: make(chan struct{}, 1), held: map[mail.EnvelopeID]*after{}}
}

// Take has the envelopes of a Transfer held. It leaves in t those that were not,
// and reports whether there are any. One that is held has a result that queue took,
// and handed the envelope over again, before we heard that it took it: it is put
// aside until then.
func (r *Results) Take(t *imsg.Transfer) bool {
	r.mu.Lock()
	envs := t.Envelopes[:0]
	for i := range t.Envelopes {
		e := &t.Envelopes[i]
		n := r.held[e.ID]
		switch {
		case e.ID.Message() != t.Message:
		case n != nil: // its text is asked for when it is needed
			n.again = &imsg.Transfer{Message: t.Message, Envelopes: []mail.Envelope{*e}, Size: t.Size}
		default:
			r.held[e.ID] = &after{}
			envs = append(envs, *e)
		}
	}
	t.Envelopes = envs
	r.mu.Unlock()
	r.changed(len(envs))
	return len(envs) > 0
}

// Drop has envelopes held no longer, which go back to queue without a result.
func (r *Results) Drop(ids []mail.EnvelopeID) {
	r.mu.Lock()
	before := len(r.held)
	for _, id := range ids {
		delete(r.held, id)
	}
	n := len(r.held) - before
	r.mu.Unlock()
	r.changed(n)
}

func (r *Results) changed(n int) {
	if r.Changed != nil && n != 0 {
		r.Changed(n)
	}
}

// Retry tells queue that envelopes are worth another attempt now: of those that
// are held, once it has their results.
func (r *Results) Retry(ids []mail.EnvelopeID) {
	now := ids[:0]
	r.mu.Lock()
	for _, id := range ids {
		if n := r.held[id]; n != nil {
			n.retry = true
		} else {
			now = append(now, id)
		}
	}
	r.mu.Unlock()
	r.sendRetry(now)
}

func (r *Results) sendRetry(ids []mail.EnvelopeID) {
	for len(ids) > 0 {
		n := min(len(ids), imsg.MaxItems)
		_ = r.link.Send(&imsg.Retry{IDs: ids[:n]}, nil) // else they are tried when they would have been
		ids = ids[n:]
	}
}

// Attached tells a queue, before anything else, what is held.
func (r *Results) Attached() {
	r.mu.Lock()
	ids := slices.Collect(maps.Keys(r.held))
	r.mu.Unlock()
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
		r.settle(batch)
	}
}

// settle forgets the first results, which queue has, and that their envelopes are
// held.
func (r *Results) settle(batch []imsg.Result) {
	var retry []mail.EnvelopeID
	var again []*imsg.Transfer
	r.mu.Lock()
	before := len(r.held)
	for i := range batch {
		res := &batch[i]
		n := r.held[res.ID]
		if n == nil {
			continue
		}
		delete(r.held, res.ID)
		if n.retry {
			retry = append(retry, res.ID)
		}
		if n.again != nil && res.Status.Temporary() { // else queue has it no more
			again = append(again, n.again)
		}
	}
	n := len(r.held) - before
	if r.pending = r.pending[len(batch):]; len(r.pending) == 0 {
		r.pending = nil
	}
	r.mu.Unlock()
	r.changed(n)
	r.sendRetry(retry)
	for _, t := range again {
		r.Again(t)
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
