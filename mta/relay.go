package mta

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// Bounds and times of relays; all ours.
const (
	// refresh is how long names, credentials and source addresses are used
	// before they are asked for again. The resolver has the exact times.
	refresh = 5 * time.Minute
	// prepareTime bounds the questions for one relay.
	prepareTime = 90 * time.Second
	// maxSources bounds the source addresses of one relay.
	maxSources = 64
	// tlsSessions bounds the TLS sessions a relay remembers.
	tlsSessions = 8
	// maxRcpts bounds the recipients of one transaction: what every host takes
	// (RFC 5321 section 4.5.3.1.8).
	maxRcpts = 100
	// maxRequeue bounds how often a task goes back because its connection was
	// no longer good.
	maxRequeue = 3
)

// relayKey is all that two mails must share to go over one connection.
type relayKey struct {
	domain     string // lower case; the destination, or the host given
	isHost     bool   // domain is a host that the action names: no MX
	lmtp       bool
	policy     tlsPolicy
	port       uint16
	authTable  string
	authLabel  string
	srcTable   string
	helo       string
	heloTable  string
	backup     string
	prefer     string
	pki, ca    string
	ciphers    string
	protocols  string
	srs        bool
	requireTLS bool
	filters    string // see filtersKey
}

// relay is one destination as it is wanted, with the tasks that wait for it.
type relay struct {
	relayKey
	name string // "[relay:example.net,smtp]"
	// sessions resumes TLS: only within the relay, so that nothing is resumed
	// under other rules than it was begun.
	sessions tls.ClientSessionCache
	id       uint64 // names it to who holds envelopes back
	limits   *config.MTALimits
	dom      *domain
	place    string // name of its best exchanger; empty: not known, or it is a host that the action names
	group    *group // nil: not known, or that host has no limits of its own
	conns

	tasks taskList
	held  int // envelopes given back
	taken int // tasks taken since the last release
	pace  pace
	// startup is when the relay's limit begins to hold, after it had nothing to
	// do.
	startup time.Time

	idle  []*session
	ready int // sessions that got ready
	slow  int // sessions that take long to get ready
	// crowded: there was no place at the source when it was last looked for.
	crowded bool

	preparing  bool
	prepared   time.Time // zero: what follows is not known yet
	candidates []candidate
	hosts      []*host              // of the candidates; the relay has a reference on each
	unfit      map[netip.Addr]cause // candidates that cannot do what the relay needs
	connectors map[netip.Addr]*connector
	secret     secret

	notBefore time.Time // the next connection: after we had no room for one

	failed  *failure // refused wherever we ask: tasks fail until then
	until   time.Time
	penalty int

	wakeAt   time.Time // when the agenda looks at it again; zero: it does not
	dropping bool
}

// secret is a login at a relay.
type secret struct{ user, password string }

// domain counts the connections to a destination domain.
type domain struct {
	conns
	mails ration
	refs  int
}

// task is a message for a relay: envelopes that travel in one transaction.
type task struct {
	msg      *Message
	sender   mail.Address // as it is sent
	envs     []*mail.Envelope
	requeued int
	tried    []relayKey // hosts of the action that cannot be reached
	next     *task
}

// taskList is a queue of tasks.
type taskList struct {
	first, last *task
	n           int
}

func (l *taskList) push(t *task) {
	t.next = nil
	if l.first == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
	l.n++
}

func (l *taskList) pushFront(t *task) {
	t.next = l.first
	if l.first == nil {
		l.last = t
	}
	l.first = t
	l.n++
}

func (l *taskList) pop() *task {
	t := l.first
	if t == nil {
		return nil
	}
	l.first = t.next
	t.next = nil
	if l.n--; l.n == 0 {
		l.last = nil
	}
	return t
}

// cut takes all tasks but the first n off the list, which has more.
func (l *taskList) cut(n int) []*task {
	var stay taskList
	for range n {
		stay.push(l.pop())
	}
	var off []*task
	for t := l.first; t != nil; t = t.next {
		off = append(off, t)
	}
	*l = stay
	return off
}

// relayName prints a key as listings and the log do.
func relayName(k *relayKey) string {
	var b strings.Builder
	b.WriteString("[relay:" + k.domain)
	part := func(name, value string) {
		if value != "" {
			b.WriteString("," + name + value)
		}
	}
	if k.isHost {
		part("port=", strconv.Itoa(int(k.port)))
	}
	part("", string(k.policy.scheme(k.lmtp)))
	if k.authTable != "" {
		part("auth=", k.authTable+":"+k.authLabel)
	}
	part("pki_name=", k.pki)
	if k.isHost {
		part("", "mx")
	}
	part("backup=", k.backup)
	part("sourcetable=", k.srcTable)
	part("helotable=", k.heloTable)
	part("heloname=", k.helo)
	return b.String() + "]"
}

// relay finds or makes the relay of a key.
func (e *Engine) relay(k relayKey) *relay {
	r := e.relays[k]
	if r != nil {
		return r
	}
	e.lastRelay++
	r = &relay{relayKey: k, name: relayName(&k), id: e.lastRelay,
		connectors: map[netip.Addr]*connector{},
		sessions:   tls.NewLRUClientSessionCache(tlsSessions)}
	e.setLimits(r)
	r.dom = e.domains[k.domain]
	if r.dom == nil {
		r.dom = &domain{}
		e.domains[k.domain] = r.dom
	}
	r.dom.refs++
	e.relays[k] = r
	e.gauge("mta.relay", len(e.relays))
	e.gauge("mta.domain", len(e.domains))
	return r
}

// setLimits looks up the limits of a relay, and whom it shares them with. A host
// that an action names is alone unless it has limits of its own: how much a
// smarthost gets is not for what holds for the providers of others.
func (e *Engine) setLimits(r *relay) {
	place := r.place
	if r.isHost {
		place = r.domain
	}
	r.limits = e.cfg.MTA.For(r.domain, place)
	if r.isHost && r.limits == &e.cfg.MTA.Default {
		place = ""
	}
	e.joinGroup(r, groupName(place))
}

// dropIfDone forgets a relay that has nothing to do and nothing to remember.
func (e *Engine) dropIfDone(r *relay, now time.Time) {
	if r.tasks.n > 0 || r.n > 0 || r.preparing || r.dropping {
		return
	}
	if r.held > 0 {
		e.releaseAll(r, now)
	}
	// What was looked up serves the next mail too.
	wait := max(r.until.Sub(now), min(refresh, routeKeep))
	r.dropping = true
	e.agenda.add(now.Add(wait), func(now time.Time) {
		r.dropping = false
		if r.tasks.n > 0 || r.n > 0 || r.preparing || r.until.After(now) {
			e.dropIfDone(r, now)
			return
		}
		e.drop(r)
	})
}

func (e *Engine) drop(r *relay) {
	e.forget(r)
	e.releaseGroup(r.group)
	delete(e.relays, r.relayKey)
	if r.dom.refs--; r.dom.refs == 0 {
		delete(e.domains, r.domain)
	}
	e.gauge("mta.relay", len(e.relays))
	e.gauge("mta.domain", len(e.domains))
}

// forget drops what was looked up for a relay. Connectors in use stay.
func (e *Engine) forget(r *relay) {
	for _, h := range r.hosts {
		e.releaseHost(h)
	}
	r.candidates, r.hosts, r.prepared = nil, nil, time.Time{}
	for a, c := range r.connectors {
		if c.n == 0 {
			delete(r.connectors, a)
			e.nconnectors--
			e.releaseSource(c.source)
		}
	}
	e.gauge("mta.connector", e.nconnectors)
}

// prepared is what a relay must know before it can connect.
type prepared struct {
	candidates []candidate
	sources    []netip.Addr
	secret     secret
	fail       *failure
}

// prepare asks for all of it, on a goroutine of its own.
func (e *Engine) prepare(r *relay) {
	r.preparing = true
	family := r.limits.Prefer
	e.wg.Go(func() {
		e.questions <- struct{}{}
		ctx, cancel := context.WithTimeout(e.soft, prepareTime)
		p := e.lookUp(ctx, r, family)
		cancel()
		<-e.questions
		e.mu.Lock()
		defer e.mu.Unlock()
		r.preparing = false
		if e.soft.Err() != nil {
			return
		}
		e.apply(r, p, time.Now())
	})
}

// lookUp needs no lock: it reads what never changes in a relay. family is what
// the limits prefer.
func (e *Engine) lookUp(ctx context.Context, r *relay, family string) prepared {
	var p prepared
	if r.authLabel != "" {
		if p.secret, p.fail = e.credentials(ctx, r); p.fail != nil {
			return p
		}
	}
	if p.sources, p.fail = e.sourceAddrs(ctx, r.srcTable); p.fail != nil {
		return p
	}
	d := destination{name: r.domain, isHost: r.isHost, backup: r.backup,
		isSelf: func(a netip.Addr) bool { return e.isSelf(a, r.port) }}
	p.candidates, p.fail = resolve(ctx, e.opt.DNS, d)
	rank(p.candidates, cmp.Or(r.prefer, family))
	return p
}

// credentials are "user:password" by the label of the relay URL, or by
// label@host, as older secrets files have it. Without a colon the label is the
// user.
func (e *Engine) credentials(ctx context.Context, r *relay) (secret, *failure) {
	if r.authTable == "" {
		return secret{}, &failNoAuthTable
	}
	for _, key := range []string{r.authLabel, r.authLabel + "@" + r.domain} {
		value, found, err := e.opt.Tables.Lookup(ctx, r.authTable, "credentials", key)
		if err != nil {
			return secret{}, &failCredentials
		}
		if !found {
			continue
		}
		user, password, ok := strings.Cut(value, ":")
		switch {
		case !ok:
			user, password = r.authLabel, value
		case user == key: // what a table says of a value without a colon
			user = r.authLabel
		}
		if user == "" || password == "" {
			return secret{}, &failCredentials
		}
		return secret{user, password}, nil
	}
	return secret{}, &failCredentials
}

// sourceAddrs are the addresses of a src table; one that is not valid, for the
// system's choice, without a table. The table is asked until it repeats itself.
func (e *Engine) sourceAddrs(ctx context.Context, table string) ([]netip.Addr, *failure) {
	if table == "" {
		return []netip.Addr{{}}, nil
	}
	var addrs []netip.Addr
	for range maxSources {
		value, found, err := e.opt.Tables.Fetch(ctx, table, "source")
		if err != nil {
			return nil, &failSource
		}
		if !found {
			break
		}
		a, ok := literal(value)
		if !ok {
			return nil, &failSource
		}
		if slices.Contains(addrs, a) {
			break
		}
		addrs = append(addrs, a)
	}
	if len(addrs) == 0 {
		return nil, &failSource
	}
	return addrs, nil
}

// apply takes what was looked up into the relay.
func (e *Engine) apply(r *relay, p prepared, now time.Time) {
	if p.fail != nil {
		what := "Failed to resolve MX for " + r.name
		switch p.fail.text {
		case failNoBackup.text:
			what = "No MX found for " + connectorName(&source{}, r)
		case failSource.text, failCredentials.text, failNoAuthTable.text:
			what = "Failed to prepare " + r.name
		}
		if p.fail.text == failNoBackup.text {
			e.opt.Observer.Note("smtp-out: " + what)
		} else {
			e.opt.Observer.Note("smtp-out: " + what + ": " + p.fail.line())
		}
		e.failTasks(r, *p.fail)
		e.dropIfDone(r, now)
		return
	}
	e.forget(r)
	r.prepared, r.candidates, r.secret = now, p.candidates, p.secret
	r.unfit = nil
	if !r.isHost && len(p.candidates) > 0 {
		r.place = p.candidates[0].name
		e.setLimits(r)
	}
	for _, c := range p.candidates {
		h := e.host(c.addr)
		if !slices.Contains(r.hosts, h) {
			h.refs++
			r.hosts = append(r.hosts, h)
		}
	}
	for a, c := range r.connectors {
		c.stale = !slices.Contains(p.sources, a)
	}
	for _, a := range p.sources {
		if r.connectors[a] == nil {
			c := &connector{relay: r, source: e.source(a)}
			c.source.refs++
			e.nconnectors++
			r.connectors[a] = c
		}
	}
	e.gauge("mta.connector", e.nconnectors)
	e.drain(r)
}

// failTasks ends the attempt of all tasks that wait, or has them try another
// host of their action.
func (e *Engine) failTasks(r *relay, f failure) {
	var tasks []*task
	for t := r.tasks.pop(); t != nil; t = r.tasks.pop() {
		tasks = append(tasks, t)
	}
	if r.held > 0 {
		e.releaseAll(r, time.Now())
	}
	if len(tasks) == 0 {
		return
	}
	e.waiting(-len(tasks))
	e.dropIfDone(r, time.Now())
	key := r.relayKey
	e.wg.Go(func() {
		for _, t := range tasks {
			if !f.other || !e.elsewhere(t, key) {
				e.failTask(t, key.domain, f)
			}
		}
	})
}

// failTask reports a failure without a connection.
func (e *Engine) failTask(t *task, where string, f failure) {
	for _, env := range t.envs {
		e.done(&Report{Envelope: env, Sender: t.sender, Source: "-", Relay: where,
			Status: f.status(), Stat: f.text, Line: f.line(), Loop: f.loop, NoTry: f.noTry})
	}
}

// maxHosts bounds the hosts of an action that are tried in one attempt. Ours.
const maxHosts = 8

// elsewhere moves a task to a host of its action that it has not been at in
// this attempt. False: there is none.
func (e *Engine) elsewhere(t *task, from relayKey) bool {
	a := t.msg.Action.Relay
	if a.Host == "" {
		return false
	}
	t.tried = append(t.tried, from)
	seen := map[relayKey]bool{}
	for range maxHosts {
		k, fail := e.target(e.soft, a, t.envs[0])
		if fail != nil || seen[k] {
			return false
		}
		seen[k] = true
		if slices.Contains(t.tried, k) {
			continue
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if !e.stopping {
			e.enqueue(e.relay(k), []*task{t})
		}
		return true
	}
	return false
}

// done counts and reports one envelope.
func (e *Engine) done(r *Report) {
	e.envelopes(-1)
	e.opt.Observer.Done(r)
}

// connectorName is how the log names a connector.
func connectorName(s *source, r *relay) string {
	return fmt.Sprintf("[connector:%s->%s,0x0]", s, r.name)
}
