// Package smtp is the process that strangers talk to: it accepts connections,
// runs one session of internal/smtp for each, and asks lookup, queue and keys
// what it may not know itself. It owns the listening sockets it is given, the
// sessions, and nothing on disk. It must never read a file, connect out, or
// believe a client.
package smtp

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	engine "smtpd/internal/smtp"
)

// Peers are the processes that smtp asks, and that ask it.
type Peers struct{ Lookup, Queue, Keys, Control *ipc.Link }

// Bounds. Ours.
const (
	// stopTime is how long sessions inside a message may go on at the end.
	stopTime = 5 * time.Second
	// stopGrace is what the rest of them gets to notice that it is over.
	stopGrace = time.Second
	// maxInjects is how many notices are entered at a time; queue sends fewer.
	maxInjects = 4
	// downTimeout is how long a session waits for a process that is being
	// replaced: the parent needs less than a second, and up to ten when it backs
	// off; by then the client is better told to come back.
	downTimeout = 5 * time.Second
	// reserved are the descriptors that sessions leave to the rest.
	reserved = 5
)

// server is the state of the process. Sessions run on goroutines of their own
// and touch what mu guards only.
type server struct {
	env *privsep.Env
	ctx context.Context // ends when sessions must
	ids *ids
	wg  sync.WaitGroup // accept loops and sessions

	lookup, queue, keys asker

	tracing atomic.Pointer[[]netip.Prefix] // whose dialogues go to the log
	scram   []byte                         // makes the salt of users that do not exist

	mu        sync.Mutex
	cond      *sync.Cond // of open
	conf      *config.Config
	byAddr    map[netip.AddrPort]*engine.Config
	socket    *engine.Config
	listeners map[netip.AddrPort]*listener
	sessions  map[*engine.Session]struct{}
	gens      generations
	places    places
	copies    copies // has a lock of its own
	max       int    // what the descriptors are enough for
	wanted    int    // sessions of clients that the operator wants at most; 0: max
	paused    bool   // by the operator
	full      bool
	stopping  bool

	complained time.Time // of the disk, last
}

// Run accepts and serves until ctx ends. Then it stops accepting, ends idle
// sessions, lets those inside a message finish for five seconds, and returns
// once all are gone.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	return run(ctx, env, p, downTimeout, maxSessions())
}

// run is Run with the time that it waits for neighbours that are down, and the
// sessions that there is room for.
func run(ctx context.Context, env *privsep.Env, p Peers, down time.Duration, room int) error {
	hard, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &server{env: env, ctx: hard, lookup: asker{p.Lookup, down}, queue: asker{p.Queue, down}, keys: asker{p.Keys, down},
		listeners: map[netip.AddrPort]*listener{}, sessions: map[*engine.Session]struct{}{}, max: room}
	s.cond = sync.NewCond(&s.mu)
	s.ids = newIDs(s.queue)
	s.scram = []byte(crand.Text())
	s.places.init()
	env.Stat.Set("smtp.session", 0)

	inject, waitInject := ipc.Async(maxInjects, s.inject)
	serve := func(l *ipc.Link, h ipc.Handler, onAttach func()) {
		l.Serve(func(r *ipc.Request) { s.request(r, h) }, onAttach, nil)
	}
	serve(p.Lookup, s.fromLookup, s.newLookup)
	serve(p.Keys, nil, nil)
	serve(p.Queue, inject, s.ids.attached)
	serve(p.Control, s.fromControl, nil)

	env.OnPrepare(func(conf *config.Config) (func(), error) { return nil, s.prepare(conf) })
	sockets := false // those that there are have come
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case conf := <-env.Config:
			s.configure(conf)
			env.Works(conf)
		case sw := <-env.Switches:
			s.pause(sw.PauseSMTP)
			s.trace(sw.Trace)
		case sock := <-env.Sockets:
			if err := s.addSocket(sock); err != nil {
				return err
			}
			sockets = sockets || sock.Last
		}
		if s.works(sockets) {
			env.Ready()
		}
	}
	s.stop(cancel)
	waitInject()
	return nil
}

// open is how many sessions there are.
func (s *server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// request passes a request on; files that nobody expects are closed.
func (s *server) request(r *ipc.Request, h ipc.Handler) {
	if r.File != nil {
		r.File.Close()
		r.File = nil
	}
	if h != nil {
		h(r)
	}
}

// works reports whether there is all that the configuration needs. Not every
// listener has a socket: an address may be one that no interface has yet.
func (s *server) works(sockets bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conf != nil && (sockets || len(s.conf.Listeners) == 0)
}

// prepare reports what keeps us from working by a configuration.
func (s *server) prepare(conf *config.Config) error {
	for _, l := range append([]*config.Listener{conf.Socket}, conf.Listeners...) {
		if _, errs := s.sessionConfig(conf, l); len(errs) > 0 {
			return errors.Join(errs...)
		}
	}
	return nil
}

// configure works by a configuration from here on. Sessions keep the one they
// began with; sockets that it does not name are closed once those who wait
// there have been let in.
func (s *server) configure(conf *config.Config) {
	byAddr := make(map[netip.AddrPort]*engine.Config, len(conf.Listeners))
	session := func(l *config.Listener) *engine.Config {
		c, errs := s.sessionConfig(conf, l)
		for _, err := range errs {
			s.env.Log.Warn("warn: smtp: " + err.Error())
		}
		return c
	}
	for _, l := range conf.Listeners {
		byAddr[l.Addr] = session(l)
	}
	socket := session(conf.Socket)
	for _, l := range s.take(conf, byAddr, socket) {
		<-l.gone // whoever wants the address next can have it
	}
}

// take makes a configuration the one for new sessions. It gives back the
// listeners that are none of it and will be closed soon.
func (s *server) take(conf *config.Config, byAddr map[netip.AddrPort]*engine.Config, socket *engine.Config) (going []*listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.byAddr
	s.conf, s.byAddr, s.socket = conf, byAddr, socket
	s.wanted = conf.SMTP.MaxSessions
	s.full = s.full && len(s.sessions) >= s.max
	for a, l := range s.listeners {
		if byAddr[a] == nil {
			delete(s.listeners, a)
			s.drain(l, before[a])
			going = append(going, l)
		}
	}
	s.cond.Broadcast()
	for _, sess := range s.gens.begin(conf.Generation) {
		sess.Shutdown(time.Now().Add(stopTime))
	}
	s.tellLookup()
	return going
}

// sessionConfig is what the sessions of one listener work by.
func (s *server) sessionConfig(conf *config.Config, l *config.Listener) (*engine.Config, []error) {
	var errs []error
	filters, err := newFilters(conf, l)
	if err != nil {
		errs = append(errs, fmt.Errorf("listener %s: filters: %w", l.Addr, err))
	}
	c := &engine.Config{
		Listener: l,
		SMTP:     conf.SMTP,
		Name:     conf.ServerName,
		Actions:  conf.Actions,
		ADMD:     conf.ADMD,
		Backend:  &backend{s: s, l: l, generation: conf.Generation, limits: &conf.SMTP, filters: filters},
		Log:      s.env.Log,
		Stat:     s.env.Stat,
		Now:      s.env.Now,
		Rand:     rand.Uint64,
		Traced:   s.traced,
	}
	if c.ADMD == "" {
		c.ADMD = conf.ServerName
	}
	if l.Auth && (l.Scram || scramTable(conf.Tables[l.AuthTable])) {
		c.ScramSecret = s.scram
	}
	if l.TLS != config.TLSNone {
		t, err := tlsConfig(conf, l, s.keys)
		if err != nil {
			errs = append(errs, fmt.Errorf("listener %s: no TLS: %w", l.Addr, err))
		}
		c.TLS = t
	}
	return c, errs
}

// maxSessions is how many sessions there may be: each may need a descriptor
// more, for a long body.
func maxSessions() int {
	var lim unix.Rlimit
	n := 1024
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && lim.Cur < 1<<20 {
		n = int(lim.Cur)
	} else if err == nil {
		n = 1 << 20
	}
	return max((n-reserved)/2-reserved, 1)
}

// start runs a session on a goroutine of its own; the caller has a place for
// it, see enter.
func (s *server) start(sess *engine.Session, addr netip.Addr) {
	s.wg.Go(func() {
		defer s.leave(sess, addr)
		defer s.survive(sess)
		sess.Run(s.ctx)
	})
}

// survive ends a session that panicked, and only that one: what it did is
// logged and counted.
func (s *server) survive(sess *engine.Session) {
	p := recover()
	if p == nil {
		return
	}
	sess.Abandon()
	s.env.Stat.Add("smtp.session.panic", 1)
	s.env.Log.Warn(fmt.Sprintf("warn: smtp: %s: panic: %v: %s", sess.ID(), p,
		strings.ReplaceAll(strings.TrimSpace(string(debug.Stack())), "\n", " | ")))
}

// enter counts a session in; its generation has been. The last one that fits
// closes the door.
func (s *server) enter(sess *engine.Session, generation uint64, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[sess] = struct{}{}
	s.gens.is(sess, generation)
	if s.stopping {
		sess.Shutdown(time.Now().Add(stopTime))
	}
	s.env.Stat.Set("smtp.session", int64(len(s.sessions)))
	switch {
	case !addr.IsValid():
		s.env.Stat.Add("smtp.session.local", 1)
	case addr.Is4():
		s.env.Stat.Add("smtp.session.inet4", 1)
	default:
		s.env.Stat.Add("smtp.session.inet6", 1)
	}
	if addr.IsValid() && len(s.sessions) >= s.max && !s.full {
		s.full = true
		s.env.Log.Warn("warn: Disabling incoming SMTP connections: Client limit reached")
		s.wakeListeners()
	}
}

// leave counts a session out.
func (s *server) leave(sess *engine.Session, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess)
	if s.gens.leave(sess) {
		s.tellLookup()
	}
	s.places.leave(addr)
	s.env.Stat.Set("smtp.session", int64(len(s.sessions)))
	if s.full && len(s.sessions) < s.max {
		s.full = false
		s.env.Log.Warn("warn: smtp: fd exhaustion over, re-enabling incoming connections")
		s.cond.Broadcast()
	}
}

// stop ends everything: nothing is accepted any more, idle sessions are told
// so, the others get their time.
func (s *server) stop(cancel context.CancelFunc) {
	by := time.Now().Add(stopTime)
	s.mu.Lock()
	s.stopping = true
	for a, l := range s.listeners {
		l.ln.Close()
		delete(s.listeners, a)
	}
	for sess := range s.sessions {
		sess.Shutdown(by)
	}
	s.cond.Broadcast()
	s.mu.Unlock()

	gone := make(chan struct{})
	go func() { // ends with the last session
		s.wg.Wait()
		close(gone)
	}()
	t := time.NewTimer(stopTime + stopGrace)
	defer t.Stop()
	select {
	case <-gone:
		return
	case <-t.C:
	}
	cancel() // whoever waits for another process stops waiting
	s.mu.Lock()
	for sess := range s.sessions {
		sess.Abandon()
	}
	s.mu.Unlock()
	<-gone
}

// fromControl answers what control asks.
func (s *server) fromControl(r *ipc.Request) {
	switch r.Msg.(type) {
	case *imsg.StatsGet:
		s.env.AnswerStats(r)
	case *imsg.SessionOpen:
		s.openLocal(r)
	case *imsg.Show:
		r.Reply(&imsg.Lines{}, nil) // there is nothing that only smtp knows
	}
}
