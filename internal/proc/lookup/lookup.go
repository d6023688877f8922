// Package lookup is the process that knows: tables, rules, expansion,
// credentials and the name system. It owns the tables of the present
// configuration with their programs and sockets, the DNS cache and a pool that
// checks passwords; it asks the parent for accounts and .forward files. One
// goroutine follows the configuration, and each question has one of its own, so
// that none waits behind another's table. It must never touch the spool or
// accept a connection.
package lookup

import (
	"context"
	"fmt"
	"os"
	osuser "os/user"
	"runtime"
	"strconv"
	"sync"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/explain"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	"smtpd/internal/resolver"
)

// Peers are the channels this process is given, and all that it is given.
type Peers struct{ SMTP, MTA, MDA, Control, Keys *ipc.Link }

// Bounds of the process.
const (
	maxOpen      = 16384            // ours: questions under way; more get "later"
	questionTime = 40 * time.Second // ours: less than ipc.CallTimeout, so that the answer still counts
	farewellTime = 4 * time.Second  // for questions under way when the process is to end
	watchEvery   = 2 * time.Second  // how often table files are looked at
	retryEvery   = 5 * time.Second  // for a configuration whose tables could not be opened
)

// server is the process.
type server struct {
	env      *privsep.Env
	peers    Peers
	resolver *resolver.Resolver
	pool     *auth.Pool
	system   *system
	daemon   expand.User // who we run as
	rest     rest
	stores   stores
	worlds   worlds
	filters  filters

	life    context.Context // of questions under way
	work    sync.WaitGroup  // questions under way, and workers
	workers *workers
	mu      sync.Mutex
	open    int  // number of them
	ends    bool // no new ones
}

// Run serves until ctx ends.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	pool, err := auth.NewPool(max(1, runtime.NumCPU()/2))
	if err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	pool.Around = env.Cores.All
	life, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &server{env: env, peers: p, pool: pool, life: life, daemon: self(), workers: newWorkers(),
		system: newSystem(env.Parent, env.Now)}
	var first *config.Config
	select {
	case first = <-env.Config:
	case <-ctx.Done():
		return nil
	}
	s.resolver = resolver.New(resolver.Options{Servers: first.Resolvers, Now: env.Now,
		Trace: func() func(string) {
			if !env.Log.Tracing("lookup") {
				return nil
			}
			return func(line string) { env.Log.Trace("lookup", line) }
		}})
	defer s.resolver.Close()
	s.filters = filters{s: s, sessions: map[sessionKey]*filter.Session{}}
	s.worlds.end = s.closeWorld
	w, err := s.newWorld(first)
	if err != nil {
		return fmt.Errorf("lookup: %w", err)
	}
	s.enter(w)
	env.OnPrepare(s.prepare)
	p.SMTP.Serve(s.fromSMTP, nil, func(error) {
		s.filters.dropAll(filter.In)
		s.worlds.noSessions()
	})
	p.MTA.Serve(s.fromMTA, nil, func(error) { s.filters.dropAll(filter.Out) })
	p.MDA.Serve(s.fromMDA, nil, nil)
	p.Control.Serve(s.fromControl, nil, nil)
	env.Ready()
	s.warnRoot(ctx, w)
	s.follow(ctx)
	s.farewell(cancel)
	return nil
}

// self is the user that the process runs as.
func self() expand.User {
	uid := os.Getuid()
	u := expand.User{Name: "_smtpd", UID: uint32(uid), GID: uint32(os.Getgid())}
	if a, err := osuser.LookupId(strconv.Itoa(uid)); err == nil {
		u.Name, u.Home = a.Username, a.HomeDir
	}
	return u
}

// follow follows configuration and files until ctx ends.
func (s *server) follow(ctx context.Context) {
	watch := time.NewTicker(watchEvery)
	defer watch.Stop()
	retry := time.NewTimer(retryEvery)
	defer retry.Stop()
	retry.Stop()
	var pending *config.Config // could not be opened yet
	for {
		select {
		case <-ctx.Done():
			return
		case pending = <-s.env.Config:
		case <-retry.C:
		case <-s.env.Switches: // verbosity and traces are the log's affair
			continue
		case <-watch.C:
			s.watch(ctx)
			continue
		}
		w := s.worlds.stagedFor(pending)
		if w == nil { // it came without having been made ready
			var err error
			if w, err = s.newWorld(pending); err != nil {
				s.env.Log.Warn("warn: " + err.Error() + ": keeping the tables of before")
				retry.Reset(retryEvery)
				continue
			}
		}
		s.enter(w)
		s.warnRoot(ctx, w)
		pending = nil
		retry.Stop()
	}
}

// enter makes a world the present one.
func (s *server) enter(w *world) {
	s.resolver.SetServers(w.conf.Resolvers)
	s.filters.begin(w)
	s.worlds.swap(w)
	s.env.Works(w.conf)
}

// farewell lets the questions under way end, those that take long by force.
func (s *server) farewell(cancel context.CancelFunc) {
	s.mu.Lock()
	s.ends = true
	s.mu.Unlock()
	s.workers.end()
	force := time.AfterFunc(farewellTime, cancel)
	s.work.Wait()
	force.Stop()
	cancel()
	s.worlds.stage(nil)
	s.worlds.swap(nil)
	s.worlds.closing.Wait()
	s.filters.closing.Wait()
}

// question runs f for a request in the world that it belongs to, bounded by
// questionTime. When that is gone the answer is "later".
func (s *server) question(r *ipc.Request, f func(ctx context.Context, w *world)) {
	s.long(r, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, questionTime)
		defer cancel()
		w := s.worlds.acquire(generation(r.Msg))
		if w == nil {
			r.Reply(later(r.Msg), nil)
			return
		}
		defer s.worlds.release(w)
		f(ctx, w)
	})
}

// generation is the configuration that a question belongs to; 0: the present.
func generation(m imsg.Msg) uint64 {
	switch m := m.(type) {
	case *imsg.RcptCheck:
		return m.Generation
	case *imsg.AuthCheck:
		return m.Generation
	case *imsg.SenderCheck:
		return m.Generation
	case *imsg.TableQuery:
		return m.Generation
	case *imsg.UserbaseQuery:
		return m.Generation
	case *imsg.TableCopy:
		return m.Generation
	case *imsg.TableChecks:
		if len(m.Queries) > 0 {
			return m.Queries[0].Generation
		}
	}
	return 0
}

// long runs f for a request, on a goroutine of its own; when there are too many,
// or the process is to end, the answer is "later".
func (s *server) long(r *ipc.Request, f func(ctx context.Context)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends || s.open >= maxOpen {
		r.Reply(later(r.Msg), nil)
		return
	}
	s.open++
	s.workers.run(&s.work, func() {
		defer func() {
			s.mu.Lock()
			s.open--
			s.mu.Unlock()
		}()
		f(s.life)
	})
}

// later is the answer to a question that cannot be dealt with now.
func later(m imsg.Msg) imsg.Msg {
	switch m.(type) {
	case *imsg.ClientLookup:
		return &imsg.ClientName{Host: unknownHost, FCrDNS: fcrdnsError}
	case *imsg.RcptCheck, *imsg.RcptMore:
		return &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: temporary()}}
	case *imsg.AuthCheck:
		return &imsg.AuthResult{Temporary: true}
	case *imsg.DNSQuery:
		return &imsg.DNSAnswer{Result: uint8(resolver.Failure)}
	case *imsg.UserbaseQuery:
		return &imsg.UserInfo{Temporary: true}
	case *imsg.TableUpdate:
		return &imsg.Done{Text: "too busy"}
	case *imsg.Show:
		return &imsg.Lines{}
	case *imsg.Explain:
		return &imsg.Explained{Exit: explain.ExitError, Text: []byte("too busy"), Fail: true}
	case *imsg.FilterOpen:
		return &imsg.FilterOpened{Failed: true}
	case *imsg.FilterAsk:
		return &imsg.FilterVerdict{Action: uint8(filter.Failed)}
	case *imsg.FilterLines:
		return &imsg.FilterLinesOut{Failed: true}
	case *imsg.TableChecks:
		return &imsg.TableAnswers{Temporary: true}
	case *imsg.TableCopy:
		return &imsg.TableCopied{}
	}
	return &imsg.TableAnswer{Temporary: true}
}

func (s *server) fromSMTP(r *ipc.Request) {
	if m, ok := r.Msg.(*imsg.Generations); ok {
		s.worlds.inUse(m)
		return
	}
	if s.fromSMTPFilter(r) {
		return
	}
	s.question(r, func(ctx context.Context, w *world) {
		switch m := r.Msg.(type) {
		case *imsg.RcptCheck:
			r.Reply(s.rcptCheck(ctx, w, m), nil)
		case *imsg.RcptMore:
			r.Reply(s.rest.next(m.Token, s.env.Now()), nil)
		case *imsg.ClientLookup:
			r.Reply(s.clientLookup(ctx, m), nil)
		case *imsg.AuthCheck:
			r.Reply(s.authCheck(ctx, w, m), nil)
		case *imsg.SenderCheck:
			r.Reply(s.senderCheck(ctx, w, m), nil)
		case *imsg.TableQuery:
			r.Reply(s.tableQuery(ctx, w, m), nil)
		case *imsg.TableChecks:
			r.Reply(s.tableChecks(ctx, w, m), nil)
		case *imsg.TableCopy:
			r.Reply(tableCopy(w, m), nil)
		}
	})
}

func (s *server) fromMTA(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.FilterOpen:
		s.long(r, func(ctx context.Context) { r.Reply(s.filters.open(ctx, filter.Out, m), nil) })
		return
	case *imsg.FilterEvents: // in the order in which they come
		s.filters.tell(filter.Out, m)
		return
	}
	s.question(r, func(ctx context.Context, w *world) {
		switch m := r.Msg.(type) {
		case *imsg.DNSQuery:
			r.Reply(s.dnsQuery(ctx, m), nil)
		case *imsg.TableQuery:
			r.Reply(s.tableQuery(ctx, w, m), nil)
		}
	})
}

func (s *server) fromMDA(r *ipc.Request) {
	s.question(r, func(ctx context.Context, w *world) {
		switch m := r.Msg.(type) {
		case *imsg.UserbaseQuery:
			r.Reply(s.userbaseQuery(ctx, w, m), nil)
		case *imsg.TableQuery:
			r.Reply(s.tableQuery(ctx, w, m), nil)
		}
	})
}

func (s *server) fromControl(r *ipc.Request) {
	if _, ok := r.Msg.(*imsg.StatsGet); ok {
		s.env.AnswerStats(r)
		return
	}
	s.question(r, func(ctx context.Context, w *world) {
		switch m := r.Msg.(type) {
		case *imsg.TableUpdate:
			r.Reply(s.tableUpdate(ctx, w, m), nil)
		case *imsg.TableQuery:
			r.Reply(s.tableProbe(ctx, w, m), nil)
		case *imsg.Show:
			r.Reply(s.show(ctx, w, m), nil)
		case *imsg.Explain:
			r.Reply(s.explain(ctx, w, m), nil)
		}
	})
}
