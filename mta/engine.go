package mta

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// maxLookups bounds the relays that wait for answers about themselves at a
// time. Ours: a resolver has about as many questions open.
const maxLookups = 256

// maxBusy is how often in a row a host that worked before may turn us down
// before its route is disabled. Ours.
const maxBusy = 5

// Engine relays. All of its state is under one lock, which is never held while
// something is waited for; each session has a goroutine of its own.
type Engine struct {
	opt Options

	soft, hard context.Context // end when work shall stop, and must stop
	endSoft    context.CancelFunc
	endHard    context.CancelFunc
	wg         sync.WaitGroup // sessions and lookups
	questions  chan struct{}

	nenvelopes atomic.Int64

	mu          sync.Mutex
	cfg         *config.Config
	stopping    bool
	relays      map[relayKey]*relay
	routes      map[routeKey]*route
	hosts       map[netip.Addr]*host
	sources     map[netip.Addr]*source
	domains     map[string]*domain
	groups      map[string]*group
	blocks      map[block]struct{}
	stats       map[string]hoststat
	idle        map[*session]struct{}
	lastRelay   uint64
	lastRoute   uint64
	nconnectors int
	nsessions   int
	nslow       int
	slowDials   slowList
	slowHosts   slowList
	ndeferred   int
	nwaiting    int
	nrunning    int
	agenda      agenda
}

// New makes an engine that works by cfg. Nothing happens before Run.
func New(cfg *config.Config, opt Options) *Engine {
	if opt.Timeouts == (Timeouts{}) {
		opt.Timeouts = DefaultTimeouts()
	}
	if opt.Grace == 0 {
		opt.Grace = DefaultGrace
	}
	e := &Engine{
		opt: opt, cfg: cfg, questions: make(chan struct{}, maxLookups),
		relays: map[relayKey]*relay{}, routes: map[routeKey]*route{},
		hosts: map[netip.Addr]*host{}, sources: map[netip.Addr]*source{},
		domains: map[string]*domain{}, groups: map[string]*group{}, blocks: map[block]struct{}{},
		stats: map[string]hoststat{}, idle: map[*session]struct{}{},
		// Keys of an earlier engine must not be met again; the top bit is not ours
		// (imsg.Hold).
		lastRelay: rand.Uint64() >> 2,
	}
	e.agenda.changed = make(chan struct{}, 1)
	e.soft, e.endSoft = context.WithCancel(context.Background())
	e.hard, e.endHard = context.WithCancel(context.Background())
	return e
}

// SetConfig changes the limits, names and addresses the engine works by. What
// is under way ends as it began.
func (e *Engine) SetConfig(cfg *config.Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cfg = cfg
	for _, r := range e.relays {
		e.setLimits(r)
		e.drain(r)
	}
}

// Run keeps time for the engine until ctx ends. Then nothing new is begun,
// transactions under way have the grace of Options to finish, and Run returns
// when all sessions have ended. Tasks that wait are not reported.
func (e *Engine) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		e.mu.Lock()
		wait := e.agenda.run(time.Now())
		e.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-e.agenda.changed:
		}
	}
	e.stop()
}

// stop ends everything, see Run.
func (e *Engine) stop() {
	e.mu.Lock()
	e.stopping = true
	for s := range e.idle {
		e.unidle(s)
		e.start(s, nil)
	}
	e.mu.Unlock()
	e.endSoft()
	timer := time.AfterFunc(e.opt.Grace, e.endHard)
	e.wg.Wait()
	timer.Stop()
	e.endHard()
}

// Submit takes a message over. Its envelopes are reported one by one, or held.
// It asks tables, and so may block until ctx ends.
func (e *Engine) Submit(ctx context.Context, m *Message) {
	e.envelopes(int64(len(m.Envelopes)))
	type group struct {
		key   relayKey
		tasks []*task
	}
	var groups []group
	for i := range m.Envelopes {
		env := &m.Envelopes[i]
		key, fail := e.target(ctx, m.Action.Relay, env)
		sender := e.reversePath(m.Action.Relay, env)
		if fail != nil {
			e.done(&Report{Envelope: env, Sender: sender, Source: "-", Relay: lower(env.Dest.Domain),
				Status: fail.status(), Stat: fail.text, Line: fail.line(), NoTry: fail.noTry})
			continue
		}
		n := len(groups) - 1
		for n >= 0 && groups[n].key != key {
			n--
		}
		if n < 0 {
			groups = append(groups, group{key: key})
			n = len(groups) - 1
		}
		groups[n].tasks = addTo(groups[n].tasks, m, sender, env)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopping {
		return
	}
	for i := range m.Envelopes {
		if env := &m.Envelopes[i]; env.Retry > 0 {
			e.undefer(domainKey(env), env.ID)
		}
	}
	for _, g := range groups {
		e.enqueue(e.relay(g.key), g.tasks)
	}
}

// addTo puts an envelope into the task of its reverse-path that has room.
func addTo(tasks []*task, m *Message, sender mail.Address, env *mail.Envelope) []*task {
	for _, t := range tasks {
		if t.sender == sender && len(t.envs) < maxRcpts {
			t.envs = append(t.envs, env)
			return tasks
		}
	}
	return append(tasks, &task{msg: m, sender: sender, envs: []*mail.Envelope{env}})
}

// target finds the relay for an envelope.
func (e *Engine) target(ctx context.Context, a *config.Relay, env *mail.Envelope) (relayKey, *failure) {
	// A notice keeps to verified TLS, but is not lost at a host that cannot
	// promise the same for the rest of its way (RFC 8689 section 5).
	wanted := env.Flags&mail.FlagRequireTLS != 0
	k := relayKey{domain: lower(env.Dest.Domain), helo: a.Helo, heloTable: a.HeloSrc, srcTable: a.Src,
		prefer: a.Prefer, pki: a.PKI, ca: a.CA, ciphers: a.Ciphers, protocols: a.Protocols, srs: a.SRS,
		requireTLS: wanted && !env.Sender.IsNull(), port: 25, filters: filtersKey(a.Filter)}
	facts := tlsFacts{scheme: config.SchemeSMTP, tls: a.TLS, noVerify: a.NoVerify, requireTLS: wanted,
		notice: env.Sender.IsNull()}
	u, isHost, fail := e.smarthost(ctx, a, k.domain, env.Sender)
	if fail == nil && !isHost {
		facts.domain, fail = e.tlsWish(ctx, k.domain)
		if fail == nil && k.requireTLS {
			facts.host, fail = e.trustIn(ctx, k.domain)
		}
	}
	if fail != nil {
		return k, fail
	}
	if isHost {
		k.domain, k.isHost, k.port = lower(u.Host), true, u.DefaultPort()
		k.lmtp, facts.scheme = u.Scheme == config.SchemeLMTP, u.Scheme
		if u.Label != "" {
			k.authTable, k.authLabel = a.Auth, u.Label
			if a.Auth == "" {
				return k, &failNoAuthTable
			}
		}
	}
	if a.Backup {
		if k.backup = lower(a.BackupMX); k.backup == "" {
			e.mu.Lock()
			k.backup = lower(e.cfg.ServerName)
			e.mu.Unlock()
		}
	}
	k.policy, fail = decideTLS(facts)
	return k, fail
}

// smarthost is the relay URL of an action, by sender, else by domain or for all;
// false: mail goes by MX.
func (e *Engine) smarthost(ctx context.Context, a *config.Relay, domain string, from mail.Address) (config.RelayURL, bool, *failure) {
	value, found, err := "", false, error(nil)
	if a.Sender != "" {
		value, found, err = e.bySender(ctx, a.Sender, from)
	}
	switch {
	case found || err != nil:
	case a.Host != "":
		value, found, err = e.opt.Tables.Fetch(ctx, a.Host, "relayhost")
	case a.Domain != "":
		value, found, err = e.opt.Tables.Lookup(ctx, a.Domain, "relayhost", domain)
	default:
		return config.RelayURL{}, false, nil
	}
	if err != nil || !found {
		return config.RelayURL{}, false, &failSmarthost
	}
	u, err := config.ParseRelayURL(value)
	if err != nil {
		f := failParseHost.with(err.Error())
		return u, false, &f
	}
	return u, true, nil
}

// bySender asks a table for a reverse-path: the address, its domain as
// "@example.org", and "@", which is for the null reverse-path too.
func (e *Engine) bySender(ctx context.Context, table string, from mail.Address) (value string, found bool, err error) {
	keys := []string{lower(from.String()), "@" + lower(from.Domain), "@"}
	if from.IsNull() {
		keys = keys[2:]
	}
	for _, key := range keys {
		value, found, err = e.opt.Tables.Lookup(ctx, table, "relayhost", key)
		if found || err != nil {
			break
		}
	}
	return value, found, err
}

// reversePath is the sender as the action wants it: rewritten by mail-from, and
// by SRS when the recipient is not the one the client named.
func (e *Engine) reversePath(a *config.Relay, env *mail.Envelope) mail.Address {
	from := env.Sender
	if from.IsNull() {
		return from
	}
	if a.MailFrom != "" {
		want := mail.SplitAddress(a.MailFrom)
		if want.User != "" {
			from.User = want.User
		}
		if want.Domain != "" {
			from.Domain = want.Domain
		}
	}
	if a.SRS && env.Dest != env.Rcpt {
		e.mu.Lock()
		key := e.cfg.SRS.Key
		e.mu.Unlock()
		from = srsForward(string(key), from, env.Rcpt.Domain, time.Now())
	}
	return from
}

// isSelf reports whether one of our listeners answers at an address and port.
func (e *Engine) isSelf(a netip.Addr, port uint16) bool {
	e.mu.Lock()
	cfg := e.cfg
	e.mu.Unlock()
	for _, l := range cfg.Listeners {
		if l.Addr.Port() != port {
			continue
		}
		if l.Addr.Addr().Unmap() == a {
			return true
		}
		if l.Addr.Addr().IsUnspecified() {
			for _, own := range cfg.LocalAddrs {
				if own.Unmap() == a {
					return true
				}
			}
		}
	}
	return false
}

// open begins one connection.
func (e *Engine) open(r *relay, c *connector, rt *route, to candidate, now time.Time) {
	s := newSession(e, r, c, rt, to)
	r.crowded = false
	for _, n := range s.counted() {
		n.open(now)
	}
	e.nsessions++
	e.gauge("mta.session", e.nsessions)
	e.watch(s, now)
	life, cancel := context.WithCancel(e.hard)
	s.giveUp = cancel
	e.wg.Go(func() { s.run(life) })
}

// noRoomPause is the rest after we could not open a connection for want of
// descriptors or ports. Ours.
const noRoomPause = 3 * time.Second

// becameReady tells that a session can take tasks; it is idle from then on.
// False: it has just been given up.
func (e *Engine) becameReady(s *session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.givenUp {
		return false
	}
	s.isReady = true
	s.relay.ready++
	e.notSlow(s)
	rt := s.route
	rt.ready++
	rt.fresh, rt.errors = false, 0
	if rt.cap > 0 && rt.ready >= rt.cap {
		rt.cap++ // it bears more than we thought
	}
	s.relay.failed, s.relay.penalty = nil, 0
	e.refill(s.relay, time.Now())

	if e.stopping {
		e.start(s, nil)
		return true
	}
	s.relay.idle = append(s.relay.idle, s)
	e.idle[s] = struct{}{}
	e.drain(s.relay)
	e.wake(&rt.conns)
	return true
}

// ended tells that a session is over; err is why it never got ready, or nil.
func (e *Engine) ended(s *session, err error) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	r, rt := s.relay, s.route
	for _, n := range s.counted() {
		n.n--
	}
	e.notSlow(s)
	if s.isReady {
		r.ready--
		rt.ready--
	}
	rt.lastdisc = now
	e.nsessions--
	e.gauge("mta.session", e.nsessions)
	if err != nil && !s.isReady && e.soft.Err() == nil {
		e.setupFailed(s, err, now)
	}
	e.planDrop(rt, now)
	for _, c := range s.counted() {
		e.wake(c)
	}
	e.releaseGroup(s.group)
	e.drain(r)
	e.dropIfDone(r, now)
}

// setupFailed draws the conclusions from a session that never got ready.
func (e *Engine) setupFailed(s *session, err error, now time.Time) {
	r, rt := s.relay, s.route
	to := blameRoute
	why := cause{mail.Clean(err.Error(), mail.MaxStatusText), failNetwork.enh}
	if se, ok := errors.AsType[*setupError](err); ok {
		to, why.enh = se.blame, se.enhanced()
	}
	switch to {
	case blameUs:
		r.notBefore = now.Add(noRoomPause)
	case blameRelay:
		r.penalty++
		r.failed = &failure{code: 451, enh: why.enh, text: why.text, other: true}
		r.until = now.Add(min(penaltyBase*time.Duration(r.penalty*r.penalty), penaltyMax))
		r.prepared = time.Time{} // the credentials may have changed
		e.failTasks(r, *r.failed)
	case blameFit:
		if r.unfit == nil {
			r.unfit = map[netip.Addr]cause{}
		}
		r.unfit[s.to.addr] = why
	default:
		rt.errors++
		// A host that took others may only want fewer of us at a time.
		if !rt.fresh && (rt.n > 0 || (to == blameSMTP && rt.errors < maxBusy)) {
			rt.cap = max(rt.ready, 1)
			return
		}
		e.disable(rt, why, to == blameSMTP, now)
	}
}

// start hands a task to a session that waits for one; nil: it shall end.
func (e *Engine) start(s *session, t *task) {
	delete(e.idle, s)
	s.next <- t // has room: the session is idle
}

// unidle takes a session out of the idle ones of its relay.
func (e *Engine) unidle(s *session) {
	r := s.relay
	for i, o := range r.idle {
		if o == s {
			r.idle = append(r.idle[:i], r.idle[i+1:]...)
			return
		}
	}
}

// take gives a session its next task without waiting; false: it shall end. No
// task and true: it is idle now, and is handed one through its channel.
func (e *Engine) take(s *session, wait bool) (*task, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := s.relay
	if e.stopping || s.spent(r.limits.SessionMailMax) {
		return nil, false
	}
	t := e.popTask(r)
	switch {
	case t != nil:
		return t, true
	case !wait:
		return nil, true
	case s.othersWait():
		return nil, false
	}
	r.idle = append(r.idle, s)
	e.idle[s] = struct{}{}
	return nil, true
}

// counted is all that counts the session as one of its connections.
func (s *session) counted() []*conns {
	all := []*conns{&s.route.conns, &s.route.host.conns, &s.connector.source.conns, &s.connector.conns,
		&s.relay.conns, &s.relay.dom.conns}
	if s.group != nil {
		all = append(all, &s.group.conns)
	}
	return all
}

// othersWait reports whether another relay waits for the place of the session.
func (s *session) othersWait() bool {
	for _, c := range s.counted() {
		if r := c.waiters.first(); r != nil && r != s.relay {
			return true
		}
	}
	return false
}

// idleEnd is what becomes of an idle session whose time is up.
type idleEnd uint8

const (
	idleLeaves idleEnd = iota // it ends
	idleHanded                // a task was handed to it at the same moment
	idleStays                 // it is the last of its relay
)

// leave ends the idleness of a session. keepLast spares the only one that a
// relay has.
func (e *Engine) leave(s *session, keepLast bool) idleEnd {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, idle := e.idle[s]; !idle {
		return idleHanded
	}
	if keepLast && s.relay.ready == 1 {
		return idleStays
	}
	e.unidle(s)
	delete(e.idle, s)
	return idleLeaves
}

// requeue puts a task back that no host has said anything about.
func (e *Engine) requeue(r *relay, t *task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running(-1)
	if e.stopping {
		return
	}
	r.tasks.pushFront(t)
	e.waiting(1)
}

// finished tells that a task has no envelopes left.
func (e *Engine) finished() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running(-1)
}

func (e *Engine) envelopes(n int64) {
	e.opt.Observer.Gauge("mta.envelope", e.nenvelopes.Add(n))
}

func (e *Engine) gauge(name string, n int) { e.opt.Observer.Gauge(name, int64(n)) }

func (e *Engine) waiting(n int) {
	e.nwaiting += n
	e.gauge("mta.task", e.nwaiting+e.nrunning)
}

func (e *Engine) running(n int) {
	e.nrunning += n
	e.gauge("mta.task", e.nwaiting+e.nrunning)
	e.gauge("mta.task.running", e.nrunning)
}

func lower(s string) string { return strings.ToLower(s) }
