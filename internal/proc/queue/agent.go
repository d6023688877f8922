package queue

import (
	"context"
	"errors"
	"sync"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// agent is what is known of mta, or of mda: whether it is there, what it was
// lent, and what it shall get. One goroutine hands it its work, so that one
// that does not read holds up nobody else.
type agent struct {
	s     *state
	owner string // of its leases
	kind  mail.Kind
	link  *ipc.Link

	mu     sync.Mutex
	gen    int                      // counts those who had this role
	named  map[mail.EnvelopeID]bool // by its Inflight so far
	ready  bool                     // it said all that it holds
	todo   [][]mail.EnvelopeID
	lent   map[mail.EnvelopeID]*transfer
	bodies map[mail.MessageID]int // envelopes lent, by message
	inline int                    // octets of bodies that travel with transfers
	held   bool                   // it holds envelopes back
	wake   chan struct{}

	heard heard
}

// transfer is what was handed over at once.
type transfer struct {
	inline int // octets of the body that went with it
	left   int // envelopes that are not settled
}

func newAgent(s *state, owner string, kind mail.Kind, l *ipc.Link) *agent {
	return &agent{s: s, owner: owner, kind: kind, link: l, wake: make(chan struct{}, 1),
		lent: map[mail.EnvelopeID]*transfer{}, bodies: map[mail.MessageID]int{}}
}

func (a *agent) notify() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// push adds envelopes of one message that shall be tried.
func (a *agent) push(ids []mail.EnvelopeID) {
	a.mu.Lock()
	a.todo = append(a.todo, ids)
	a.mu.Unlock()
	a.notify()
}

// run hands out what is to be done, whenever there is somebody to do it.
func (a *agent) run(ctx context.Context) {
	for {
		for ctx.Err() == nil {
			a.mu.Lock()
			if !a.ready || len(a.todo) == 0 {
				a.mu.Unlock()
				break
			}
			ids, gen := a.todo[0], a.gen
			if a.todo = a.todo[1:]; len(a.todo) == 0 {
				a.todo = nil
			}
			a.mu.Unlock()
			a.hand(ids, gen)
		}
		select {
		case <-a.wake:
		case <-ctx.Done():
			return
		}
	}
}

// hand leases envelopes of one message and transfers them, in parts that have
// one dispatcher and fit a frame, to the agent of that generation.
func (a *agent) hand(ids []mail.EnvelopeID, gen int) {
	s := a.s
	envs, err := s.store.Lease(s.work, a.owner, s.now().Add(leaseTime), ids)
	if err != nil {
		s.complain("lease", err)
	}
	got := make(map[mail.EnvelopeID]bool, len(envs))
	for i := range envs {
		got[envs[i].ID] = true
	}
	var rest []mail.EnvelopeID
	for _, id := range ids {
		if !got[id] {
			rest = append(rest, id)
		}
	}
	s.unleased(rest)
	for len(envs) > 0 {
		var part []mail.Envelope
		part, envs = a.cut(envs)
		if len(part) > 0 {
			a.transfer(part, gen)
		}
	}
}

// cut takes the first envelopes that may go together. What is of another kind
// is given back.
func (a *agent) cut(envs []mail.Envelope) (part, rest []mail.Envelope) {
	room := frameRoom
	for i := range envs {
		e := &envs[i]
		if e.Kind != a.kind {
			a.giveBack([]mail.EnvelopeID{e.ID})
			continue
		}
		size := envelopeSize(e)
		if len(part) > 0 && (e.Dispatcher != part[0].Dispatcher || e.ID.Message() != part[0].ID.Message() ||
			size > room || len(part) == imsg.MaxItems) {
			rest = append(rest, *e)
			continue
		}
		room -= size
		part = append(part, *e)
	}
	return part, rest
}

// envelopeSize is more than an envelope takes in a frame.
func envelopeSize(e *mail.Envelope) int {
	return 160 + len(e.Dispatcher) + len(e.Tag) + len(e.SMTPName) + len(e.Helo) + len(e.Host) + len(e.Client) +
		len(e.Username) + len(e.Sender.User) + len(e.Sender.Domain) + len(e.Rcpt.User) + len(e.Rcpt.Domain) +
		len(e.Dest.User) + len(e.Dest.Domain) + len(e.DSN.EnvID) + len(e.DSN.ORcpt) + len(e.User) + len(e.Home) +
		len(e.Exec) + len(e.SubAddr) + len(e.LastStatus.Text) + len(e.LastError) + len(e.RemoteMTA)
}

// transfer hands leased envelopes over, with the body when it is small and not
// too many are out.
func (a *agent) transfer(envs []mail.Envelope, gen int) {
	s := a.s
	ids := make([]mail.EnvelopeID, len(envs))
	for i := range envs {
		ids[i] = envs[i].ID
	}
	m, err := a.load(envs)
	if err != nil {
		if !errors.Is(err, queue.ErrCorrupt) && !errors.Is(err, queue.ErrNotFound) { // else they are gone
			s.complain("message "+ids[0].Message().String(), err)
		}
		a.giveBack(ids)
		return
	}
	a.lend(ids, len(m.Inline))
	err = a.link.Send(m, nil)
	a.mu.Lock()
	replaced := a.gen != gen
	a.mu.Unlock()
	if err != nil || replaced { // who got it, if anybody, is not known to have it
		for _, id := range ids {
			a.settled(id)
		}
		a.giveBack(ids)
	}
}

// load makes the Transfer of envelopes of one message.
func (a *agent) load(envs []mail.Envelope) (*imsg.Transfer, error) {
	id := envs[0].ID.Message()
	info, err := a.s.store.Message(id)
	m := &imsg.Transfer{Message: id, Envelopes: envs, Size: info.Size}
	if err != nil || info.InFile || info.Size == 0 || !a.claim(int(info.Size)) {
		return m, err
	}
	b, err := a.s.store.Body(id)
	if err != nil {
		a.unclaim(int(info.Size))
		return nil, err
	}
	m.Inline = b.Inline
	return m, nil
}

// lend notes what is handed over, with so many octets of a body.
func (a *agent) lend(ids []mail.EnvelopeID, inline int) {
	t := &transfer{inline: inline, left: len(ids)}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		if a.lent[id] != nil {
			t.left--
			continue
		}
		a.lent[id] = t
		a.bodies[id.Message()]++
	}
	if t.left == 0 {
		a.inline -= inline
	}
}

// claim takes room for a body that travels; false: ask for it.
func (a *agent) claim(n int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inline+n > maxInline {
		return false
	}
	a.inline += n
	return true
}

func (a *agent) unclaim(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inline -= n
}

// settled forgets that id was lent.
func (a *agent) settled(id mail.EnvelopeID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.lent[id]
	if t == nil {
		return
	}
	delete(a.lent, id)
	if a.bodies[id.Message()]--; a.bodies[id.Message()] == 0 {
		delete(a.bodies, id.Message())
	}
	if t.left--; t.left == 0 {
		a.inline -= t.inline
	}
}

// holds reports whether the agent was lent an envelope of the message.
func (a *agent) holds(id mail.MessageID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bodies[id] > 0
}

// giveBack ends leases of attempts that did not happen, and tells the
// scheduler.
func (a *agent) giveBack(ids []mail.EnvelopeID) {
	if ended := a.s.store.EndLeases(a.owner, ids); len(ended) > 0 {
		a.s.unleased(ended)
	}
}

// attached waits for what a new agent says that it holds.
func (a *agent) attached() {
	a.mu.Lock()
	a.gen++
	a.ready, a.named = false, nil
	a.mu.Unlock()
	a.inOrder(a.releaseAll)
}

// lost lets all leases of an agent that is gone lapse: they do not count as
// tried. When a new one came first, its Inflight says what it has.
func (a *agent) lost() {
	if a.link.Up() {
		return
	}
	a.mu.Lock()
	a.gen++
	a.ready, a.named = false, nil
	lent := a.lent
	a.lent, a.bodies, a.inline = map[mail.EnvelopeID]*transfer{}, map[mail.MessageID]int{}, 0
	a.mu.Unlock()
	ids := make([]mail.EnvelopeID, 0, len(lent))
	for id := range lent {
		ids = append(ids, id)
	}
	a.inOrder(func() { // before its successor is lent them
		a.giveBack(ids)
		a.releaseAll()
	})
}

// forget drops what a scheduler ordered that is gone.
func (a *agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.todo = nil
}

// receive takes what the agent says. All but questions is carried out in the
// order it was said: results of what Inflight names, and a Release, find done
// what came before them.
func (a *agent) receive(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.BodyOpen:
		a.s.begin(func() { a.openBody(r, m.Message) })
	case *imsg.Inflight:
		a.inflight(m)
	case *imsg.Results:
		a.inOrder(func() { a.results(r, m.Results) })
	case *imsg.Hold:
		a.inOrder(func() { a.hold(m) })
	case *imsg.Release:
		a.inOrder(func() { a.release(m) })
	case *imsg.Retry:
		a.inOrder(func() { a.s.out.send(m) })
	}
}

// heard is what an agent said, or what is to be done about its end, and is not
// carried out yet, in order. The zero value works.
type heard struct {
	mu   sync.Mutex
	list []func()
	busy bool // a goroutine works at it
}

// maxHeard bounds what an agent may say ahead of us. Ours: a thousand times
// what mta and mda say while the scheduler is far behind.
const maxHeard = 1 << 16

// inOrder carries f out after all that was given to inOrder before.
func (a *agent) inOrder(f func()) {
	h := &a.heard
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.list) >= maxHeard {
		if len(h.list) == maxHeard {
			a.s.env.Parent.Send(&imsg.Violation{Peer: a.role(), Text: "more said than there is room for"}, nil)
		}
		return
	}
	h.list = append(h.list, f)
	if !h.busy {
		h.busy = a.s.begin(a.listen)
	}
}

func (a *agent) role() imsg.Role {
	if a.kind == mail.KindMDA {
		return imsg.MDA
	}
	return imsg.MTA
}

// listen carries out what was heard until there is no more.
func (a *agent) listen() {
	h := &a.heard
	for {
		h.mu.Lock()
		list := h.list
		h.list = nil
		h.busy = len(list) > 0
		h.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, f := range list {
			f()
		}
	}
}

// maxNamed bounds what an agent may say that it holds. Ours: more than the
// scheduler lets be under way.
const maxNamed = 1 << 20

// inflight learns what the agent holds. With the last part it is ready.
func (a *agent) inflight(m *imsg.Inflight) {
	a.mu.Lock()
	if a.named == nil {
		a.named = map[mail.EnvelopeID]bool{}
	}
	for _, id := range m.IDs {
		if len(a.named) < maxNamed {
			a.named[id] = true
		}
	}
	named, gen := a.named, a.gen
	if m.Last {
		a.named = nil
	}
	a.mu.Unlock()
	if m.Last {
		a.inOrder(func() { a.adopt(named, gen) })
	}
}

// adopt makes the leases what the agent says it holds, and lets it have more.
func (a *agent) adopt(named map[mail.EnvelopeID]bool, gen int) {
	s := a.s
	var lapsed []mail.EnvelopeID
	for _, id := range s.store.Leases(a.owner) {
		if !named[id] {
			lapsed = append(lapsed, id)
			a.settled(id)
		}
	}
	a.giveBack(lapsed)
	ids := make([]mail.EnvelopeID, 0, len(named))
	for id := range named {
		ids = append(ids, id)
	}
	envs, err := s.store.Lease(s.work, a.owner, s.now().Add(leaseTime), ids)
	if err != nil {
		s.complain("lease", err)
	}
	for i := range envs {
		a.lend([]mail.EnvelopeID{envs[i].ID}, 0)
		s.out.scheduled(schedOf(&envs[i], true))
	}
	a.mu.Lock()
	a.ready = a.gen == gen
	a.mu.Unlock()
	a.notify()
}

// expireLeases gives up leases that nobody has reported on for too long.
func (a *agent) expireLeases() {
	var ids []mail.EnvelopeID
	for _, id := range a.s.store.Leases(a.owner) {
		if _, ok := a.s.store.LeaseOf(id); !ok {
			ids = append(ids, id)
			a.settled(id)
		}
	}
	if len(ids) > 0 {
		a.s.log.Warn("warn: queue: " + a.owner + " did not report on envelopes; they are tried again")
		a.giveBack(ids)
	}
}

// hold gives envelopes back until they are released.
func (a *agent) hold(m *imsg.Hold) {
	ended := a.s.store.EndLeases(a.owner, m.IDs)
	for _, id := range ended {
		a.settled(id)
	}
	if len(ended) > 0 {
		a.mu.Lock()
		a.held = true
		a.mu.Unlock()
		a.s.out.send(&imsg.Held{IDs: ended, Key: m.Key})
	}
}

func (a *agent) release(m *imsg.Release) {
	if m.Key == 0 && m.Count == 0 {
		m.Count = 1<<31 - 1 // both zero would be all keys
	}
	a.s.out.send(&imsg.Released{Key: m.Key, Count: m.Count})
}

// releaseAll has what the agent held back tried again, once it has gone: nobody
// else knows its keys.
func (a *agent) releaseAll() {
	a.mu.Lock()
	held := a.held
	a.held = false
	a.mu.Unlock()
	if held {
		a.s.out.send(&imsg.Released{})
	}
}

var errForbidden = mail.NewStatus(451, [3]uint8{4, 3, 0}, "Not yours")

// openBody answers with the body of a message that the agent has been lent.
func (a *agent) openBody(r *ipc.Request, id mail.MessageID) {
	if !a.holds(id) {
		r.Reply(&imsg.Body{Status: *errForbidden}, nil)
		return
	}
	a.s.openBody(r, id)
}

// openBody answers with the body of a message.
func (s *state) openBody(r *ipc.Request, id mail.MessageID) {
	b, err := s.store.Body(id)
	if err != nil {
		st := statusOf(err)
		switch {
		case errors.Is(err, queue.ErrNotFound):
			st = *mail.NewStatus(550, [3]uint8{5, 3, 0}, "No such message")
		case errors.Is(err, queue.ErrCorrupt):
		default:
			s.complain("body of "+id.String(), err)
		}
		r.Reply(&imsg.Body{Status: st}, nil)
		return
	}
	r.Reply(&imsg.Body{Status: mail.Status{Code: 250}, Inline: b.Inline, InFile: b.File != nil, Size: b.Size}, b.File)
}
