package queue

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// entry is a model of smtp: it commits messages and takes notices.
type entry struct {
	w *world
	a *actor
}

func (e *entry) live(ctx context.Context) {
	handler, wait := ipc.Async(4, func(r *ipc.Request) {
		if !e.a.wait(e.w, 3*time.Second) {
			return
		}
		st := mail.Status{Code: 250}
		switch e.w.draw(10) {
		case 0:
			st.Code = 451
		case 1:
			st.Code = 550
		}
		r.Reply(&imsg.Injected{Status: st}, nil)
	})
	e.a.links[imsg.Queue].Serve(handler, nil, nil)
	e.a.env.Ready()
	var wg sync.WaitGroup
	for e.a.wait(e.w, 20*time.Second) && !e.w.isQuiet() {
		wg.Go(func() { e.message(ctx) })
	}
	<-ctx.Done()
	wg.Wait()
	wait()
}

func (w *world) isQuiet() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.quiet
}

// message commits one message of up to five recipients.
func (e *entry) message(ctx context.Context) {
	link := e.a.links[imsg.Queue]
	ids, err := ipc.Ask[*imsg.ReservedIDs](ctx, link, &imsg.ReserveIDs{Count: 1})
	if err != nil || ids.Count == 0 {
		return
	}
	m := &imsg.Commit{ID: ids.First, Size: 4, Inline: []byte("body")}
	var fates []*fate
	for n := range 1 + e.w.draw(5) {
		env := mail.Envelope{Kind: mail.KindMDA, Dispatcher: "in", Created: time.Now(),
			TTL: time.Duration(1+e.w.draw(40)) * time.Minute, Sender: mail.Address{User: "s", Domain: "x.test"},
			Rcpt: mail.Address{User: "r", Domain: "y.test"}, Dest: mail.Address{User: "r", Domain: "y.test"}}
		if e.w.draw(2) == 0 {
			env.Kind, env.Dispatcher = mail.KindMTA, "out"
		}
		m.Envelopes = append(m.Envelopes, env)
		fates = append(fates, &fate{id: ids.First.Envelope(uint32(n) + 1), kind: env.Kind, expires: env.Expires()})
	}
	e.w.mu.Lock()
	for _, f := range fates {
		e.w.fates[f.id] = f
	}
	e.w.mu.Unlock()
	c, err := ipc.Ask[*imsg.Committed](ctx, link, m)
	if err != nil || !c.Status.OK() {
		return // the client is told to try again; it may be there all the same
	}
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	for _, f := range fates {
		f.acked = true
	}
}

// carrier is a model of mta or mda. What it holds, and results that the queue
// has not confirmed, it names to each new queue.
type carrier struct {
	w    *world
	a    *actor
	link *ipc.Link
	kind mail.Kind

	mu      sync.Mutex
	has     map[mail.EnvelopeID]bool
	pending []imsg.Result
	wake    chan struct{}
	wg      sync.WaitGroup
	ended   bool
}

func newCarrier(w *world, a *actor) *carrier {
	kind := mail.KindMDA
	if a.role == imsg.MTA {
		kind = mail.KindMTA
	}
	return &carrier{w: w, a: a, link: a.links[imsg.Queue], kind: kind, has: map[mail.EnvelopeID]bool{}, wake: make(chan struct{}, 1)}
}

func (c *carrier) live(ctx context.Context) {
	c.link.Serve(c.take, c.greet, nil)
	c.a.env.Ready()
	for {
		select {
		case <-c.wake:
			c.report(ctx)
		case <-ctx.Done():
			c.mu.Lock()
			c.ended = true
			c.mu.Unlock()
			c.wg.Wait()
			return
		}
	}
}

func (c *carrier) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &imsg.Inflight{Last: true}
	for id := range c.has {
		m.IDs = append(m.IDs, id)
	}
	_ = c.link.Send(m, nil)
}

func (c *carrier) take(r *ipc.Request) {
	t := r.Msg.(*imsg.Transfer)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range t.Envelopes {
		e := t.Envelopes[i]
		if c.has[e.ID] || c.ended {
			continue // its result is on the way
		}
		c.has[e.ID] = true
		c.check(&e)
		c.wg.Go(func() { c.try(&e) })
	}
}

// check holds an attempt against what is known of the envelope.
func (c *carrier) check(e *mail.Envelope) {
	w := c.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tried++
	f := w.fates[e.ID]
	switch now := time.Now(); {
	case f == nil || e.Kind != c.kind:
		w.broken("%v was handed to %v", e.ID, c.a.role)
	case now.Before(f.earliest):
		w.broken("%v is tried %v early", e.ID, f.earliest.Sub(now))
	}
}

// try is one attempt.
func (c *carrier) try(e *mail.Envelope) {
	if c.kind == mail.KindMTA && c.w.draw(8) == 0 {
		c.hold(e.ID)
		return
	}
	if !c.a.wait(c.w, 30*time.Second) {
		return // died: nothing was delivered
	}
	res := imsg.Result{ID: e.ID, Attempt: e.Retry, Status: mail.Status{Code: 250}}
	switch n := c.w.draw(20); {
	case n < 9:
		c.ended1(e.ID)
	case n < 16:
		res.Status.Code, res.Line = 451, "try later"
	case n < 18:
		res.Status.Code, res.Line = 451, "no route"
		res.NoTry = true
	default:
		res.Status.Code, res.Line = 550, "no such user"
		c.ended1(e.ID)
	}
	c.mu.Lock()
	c.pending = append(c.pending, res)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// ended1 notes that an envelope was delivered, or refused for good. Until the
// queue has said that it knows, this agent's death makes the end doubtful.
func (c *carrier) ended1(id mail.EnvelopeID) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	f := c.w.fates[id]
	f.ends++
	f.doubtful++
}

// hold gives an envelope back, and wants it again later.
func (c *carrier) hold(id mail.EnvelopeID) {
	key := uint64(1 + c.w.draw(3))
	c.mu.Lock()
	delete(c.has, id)
	c.mu.Unlock()
	_ = c.link.Send(&imsg.Hold{IDs: []mail.EnvelopeID{id}, Key: key}, nil)
	if c.a.wait(c.w, 2*time.Minute) {
		_ = c.link.Send(&imsg.Release{Key: key, Count: c.w.draw(3)}, nil)
	}
}

// report repeats results until the queue has them.
func (c *carrier) report(ctx context.Context) {
	for {
		c.mu.Lock()
		batch := c.pending[:len(c.pending):len(c.pending)]
		c.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		a, err := ipc.Ask[*imsg.Done](ctx, c.link, &imsg.Results{Results: batch})
		if ctx.Err() != nil {
			return
		}
		if err != nil || !a.OK {
			if !c.a.wait(c.w, time.Second) {
				return
			}
			continue
		}
		c.mu.Lock()
		c.pending = c.pending[len(batch):]
		for _, r := range batch {
			delete(c.has, r.ID)
		}
		c.mu.Unlock()
		c.w.mu.Lock()
		for _, r := range batch {
			if f := c.w.fates[r.ID]; !r.Status.Temporary() {
				f.doubtful--
			}
		}
		c.w.mu.Unlock()
	}
}
