package queue

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// Bounds of what waits for the scheduler. Ours.
const (
	outboxPart = 512     // envelopes in one imsg
	outboxMax  = 1 << 17 // envelopes that wait; who has more waits too

	// outboxPause lies between two imsgs while news go on coming: some ten of
	// them go at once instead of one by one, each with its wake-up.
	outboxPause = 2 * time.Millisecond
)

// outbox is the way to the scheduler: in order, gathered into large imsgs, and
// nothing at all while there is no scheduler, who asks for everything first.
type outbox struct {
	link *ipc.Link

	mu    sync.Mutex
	cond  *sync.Cond // msgs changed, or gen, or ended
	msgs  []imsg.Msg
	count int
	up    bool
	gen   int // counts schedulers
	ended bool
}

func newOutbox(l *ipc.Link) *outbox {
	o := &outbox{link: l}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// attach begins anew for a new scheduler.
func (o *outbox) attach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.up = true
	o.gen++
	o.msgs, o.count = nil, 0
	o.cond.Broadcast()
}

func (o *outbox) detach() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.link.Up() { // else a new one came already
		o.up = false
		o.msgs, o.count = nil, 0
		o.cond.Broadcast()
	}
}

// room waits until more can be taken, with the lock held. It reports whether
// there is somebody to tell.
func (o *outbox) room() bool {
	for o.up && !o.ended && o.count > outboxMax {
		o.cond.Wait()
	}
	return o.up && !o.ended
}

// put adds n envelopes' worth of m. The lock is held.
func (o *outbox) put(m imsg.Msg, n int) {
	o.msgs = append(o.msgs, m)
	o.count += n
	if len(o.msgs) == 1 {
		o.cond.Broadcast()
	}
}

// scheduled tells of envelopes that are to be tried. It waits while the
// scheduler is far behind.
func (o *outbox) scheduled(l ...imsg.Sched) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.room() {
		o.schedule(l)
	}
}

func (o *outbox) schedule(l []imsg.Sched) {
	for len(l) > 0 {
		m := o.part()
		n := min(len(l), outboxPart-len(m.Envelopes))
		m.Envelopes = append(m.Envelopes, l[:n]...)
		o.count += n
		l = l[n:]
	}
}

// accepted tells of the envelopes of a message that is new. It waits as
// scheduled does.
func (o *outbox) accepted(envs []mail.Envelope) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.room() {
		return
	}
	var m *imsg.Scheduled
	for i := range envs {
		if m == nil || len(m.Envelopes) == outboxPart {
			m = o.part()
		}
		m.Envelopes = append(m.Envelopes, schedOf(&envs[i], false))
	}
	o.count += len(envs)
}

// parts are the memory of what was sent.
var parts = sync.Pool{New: func() any { return new([outboxPart]imsg.Sched) }}

// part is the imsg that envelopes are added to, in the memory of a part.
func (o *outbox) part() *imsg.Scheduled {
	if n := len(o.msgs); n > 0 {
		if m, ok := o.msgs[n-1].(*imsg.Scheduled); ok && !m.Loaded && len(m.Envelopes) < outboxPart {
			return m
		}
	}
	m := &imsg.Scheduled{Envelopes: parts.Get().(*[outboxPart]imsg.Sched)[:0]}
	o.put(m, 0)
	return m
}

// sent gives the memory of a part back.
func sent(m imsg.Msg) {
	if m, ok := m.(*imsg.Scheduled); ok && cap(m.Envelopes) == outboxPart {
		clear(m.Envelopes)
		parts.Put((*[outboxPart]imsg.Sched)(m.Envelopes[:outboxPart]))
		m.Envelopes = nil
	}
}

// gone tells of envelopes that are no more.
func (o *outbox) gone(why mail.GoneReason, ids ...mail.EnvelopeID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.room() {
		return
	}
	for len(ids) > 0 {
		var m *imsg.Gone
		if n := len(o.msgs); n > 0 {
			m, _ = o.msgs[n-1].(*imsg.Gone)
		}
		if m == nil || m.Why != why || len(m.IDs) >= outboxPart {
			m = &imsg.Gone{Why: why}
			o.put(m, 0)
		}
		n := min(len(ids), outboxPart-len(m.IDs))
		m.IDs = append(m.IDs, ids[:n]...)
		o.count += n
		ids = ids[n:]
	}
}

// send adds any other imsg.
func (o *outbox) send(m imsg.Msg) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.room() {
		o.put(m, 1)
	}
}

// generation is the number of the present scheduler.
func (o *outbox) generation() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.gen
}

// load adds what read gives, for the scheduler gen. read runs under the lock,
// so that what it read cannot be overtaken by news of its end. It reports
// whether that scheduler is still there.
func (o *outbox) load(gen int, read func() (l []imsg.Sched, last bool)) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.room() || o.gen != gen {
		return false
	}
	l, last := read()
	o.schedule(l)
	if last {
		o.put(&imsg.Scheduled{Loaded: true}, 0)
	}
	return true
}

// run sends what is put in until ctx ends.
func (o *outbox) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.ended = true
		o.cond.Broadcast()
	})
	defer stop()
	var last time.Time
	for {
		if time.Since(last) < outboxPause {
			o.gather(ctx)
		}
		o.mu.Lock()
		for len(o.msgs) == 0 && !o.ended {
			o.cond.Wait()
		}
		msgs, gen := o.msgs, o.gen
		o.msgs, o.count = nil, 0
		ended := o.ended
		last = time.Now()
		o.cond.Broadcast()
		o.mu.Unlock()
		for _, m := range msgs {
			if o.generation() != gen || o.link.Send(m, nil) != nil {
				break // the next scheduler asks for everything
			}
			sent(m)
		}
		if ended {
			return
		}
	}
}

// gather lets a crowd gather, unless one is there already.
func (o *outbox) gather(ctx context.Context) {
	o.mu.Lock()
	crowd := o.count >= outboxPart
	o.mu.Unlock()
	if crowd {
		return
	}
	t := time.NewTimer(outboxPause)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// schedOf is what the scheduler needs to know of e.
func schedOf(e *mail.Envelope, inflight bool) imsg.Sched {
	sc := imsg.Sched{ID: e.ID, Kind: e.Kind, Flags: e.Flags, Dispatcher: e.Dispatcher, Domain: lower(e.Dest.Domain),
		Created: e.Created, TTL: e.TTL, Retry: e.Retry, DelayNotices: e.DelayNotices, Notify: e.DSN.Notify,
		Inflight: inflight}
	if e.Retry > 0 { // a notice brings the last try of what it is about
		sc.LastTry = e.LastTry
	}
	return sc
}

// lower is strings.ToLower for domains, without a copy in the usual case.
func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
