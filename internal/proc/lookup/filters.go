package lookup

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/table"
)

// Bounds of filtering. Ours.
const (
	startWait  = 10 * time.Second // a session waits so long for a program that is being started
	maxFilters = 65536            // sessions that are filtered
)

// filters are the filter programs of all worlds and the sessions that they take
// part in. It is safe for concurrent use.
type filters struct {
	s *server

	mu       sync.Mutex
	sessions map[sessionKey]*filter.Session
	closing  sync.WaitGroup
}

// sessionKey tells the sessions of smtp from those of mta.
type sessionKey struct {
	d  filter.Direction
	id mail.SessionID
}

// proc is a program that is kept running, and what it was started with: when
// that changes there must be another.
type proc struct {
	sup   *filter.Supervisor
	with  string
	users int // worlds that have it
}

// begin gives a world its programs: those of the present world that were
// started in the same way, and new ones.
func (fs *filters) begin(w *world) {
	c := w.conf
	in, out := used(c)
	var before map[string]*proc
	fs.s.worlds.mu.Lock()
	if p := fs.s.worlds.present; p != nil {
		before = p.procs
	}
	fs.s.worlds.mu.Unlock()
	procs := map[string]*proc{}
	fs.mu.Lock()
	for name, p := range c.Procs {
		if !in[name] && !out[name] {
			continue
		}
		with := fmt.Sprintf("%+v %v %v %s %v %d", config.Proc{Command: p.Command, User: p.User, Group: p.Group,
			Chroot: p.Chroot, Timeout: p.Timeout}, in[name], out[name], admd(c), c.SMTP.CommandTimeout, c.SMTP.MaxLine)
		one := before[name]
		if one == nil || one.with != with {
			one = &proc{with: with, sup: fs.supervise(c, p, in[name], out[name])}
		}
		one.users++
		procs[name] = one
	}
	fs.mu.Unlock()
	fs.s.worlds.mu.Lock()
	w.procs = procs
	fs.s.worlds.mu.Unlock()
}

// release ends the programs of a world that no other has.
func (fs *filters) release(procs map[string]*proc) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, p := range procs {
		if p.users--; p.users == 0 {
			fs.closing.Go(p.sup.Close)
		}
	}
}

func admd(c *config.Config) string {
	if c.ADMD != "" {
		return c.ADMD
	}
	return c.ServerName
}

// used are the processors that listeners and relay actions name.
func used(c *config.Config) (in, out map[string]bool) {
	in, out = map[string]bool{}, map[string]bool{}
	mark := func(to map[string]bool, names []string) {
		if chain, err := filter.Compile(c, names); err == nil && chain != nil {
			for _, p := range chain.Procs {
				to[p] = true
			}
		}
	}
	for _, l := range append([]*config.Listener{c.Socket}, c.Listeners...) {
		if l != nil {
			mark(in, l.Filter)
		}
	}
	for _, a := range c.Actions {
		if a.Relay != nil {
			mark(out, a.Relay.Filter)
		}
	}
	return in, out
}

// supervise starts one program.
func (fs *filters) supervise(c *config.Config, p *config.Proc, in, out bool) *filter.Supervisor {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = config.FilterTimeout
	}
	log := fs.s.env.Log
	o := filter.Options{Name: p.Name, Software: ctl.Version, SessionTimeout: c.SMTP.CommandTimeout, ADMD: admd(c),
		In: in, Out: out, Timeout: timeout, MaxLine: max(c.SMTP.MaxLine, c.SMTP.MaxHeader), Now: fs.s.env.Now,
		Tracing: func() bool { return log.Tracing("filters") },
		Trace:   func(line string) { log.Trace("filters", p.Name+": "+line) },
	}
	return filter.Supervise(o, func(ctx context.Context) (filter.Process, error) { return fs.s.startFilter(ctx, p, c.Generation) },
		func(text string) { log.Warn("warn: " + text) })
}

// open begins a session with its programs; those that are being started are
// waited for.
func (fs *filters) open(ctx context.Context, d filter.Direction, m *imsg.FilterOpen) *imsg.FilterOpened {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	w := fs.s.worlds.acquire(m.Generation)
	if w == nil {
		return &imsg.FilterOpened{Failed: true}
	}
	defer fs.s.worlds.release(w)
	members := make([]filter.Member, len(m.Filters))
	for i, name := range m.Filters {
		sup := w.filter(name)
		timeout, pass := w.conf.Patience(name)
		members[i] = filter.Member{Name: name, Pass: pass, Timeout: timeout}
		if sup == nil {
			continue
		}
		wait := ctx
		if pass || d == filter.Out {
			sup.Tried(ctx)
			now, cancel := context.WithCancel(ctx)
			cancel() // it goes on without
			wait = now
		}
		members[i].Program = sup.Program(wait)
	}
	s, ok := filter.Enter(m.Session, d, members)
	if !ok && d == filter.In || !fs.keep(sessionKey{d, m.Session}, s) {
		s.Close()
		return &imsg.FilterOpened{Failed: true}
	}
	a := &imsg.FilterOpened{Events: uint32(s.Hears())}
	for i := range members {
		a.Phases = append(a.Phases, uint32(s.Wants(i)))
	}
	s.Tell(notes(m.Events))
	return a
}

// filter is the supervisor of a filter's program.
func (w *world) filter(name string) *filter.Supervisor {
	if f := w.conf.Filters[name]; f != nil {
		if p := w.procs[f.Proc]; p != nil {
			return p.sup
		}
	}
	return nil
}

func (fs *filters) keep(k sessionKey, s *filter.Session) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.sessions) >= maxFilters || fs.sessions[k] != nil {
		return false
	}
	fs.sessions[k] = s
	return true
}

func (fs *filters) session(k sessionKey) *filter.Session {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.sessions[k]
}

// tell carries out FilterEvents.
func (fs *filters) tell(d filter.Direction, m *imsg.FilterEvents) {
	k := sessionKey{d, m.Session}
	s := fs.session(k)
	if s == nil {
		return
	}
	s.Tell(notes(m.Events))
	if m.Close {
		fs.mu.Lock()
		delete(fs.sessions, k)
		fs.mu.Unlock()
		s.Close()
	}
}

// dropAll ends the sessions of a process that is gone.
func (fs *filters) dropAll(d filter.Direction) {
	fs.mu.Lock()
	var gone []*filter.Session
	for k, s := range fs.sessions {
		if k.d == d {
			gone = append(gone, s)
			delete(fs.sessions, k)
		}
	}
	fs.mu.Unlock()
	for _, s := range gone {
		s.Tell([]filter.Note{{Event: filter.LinkDisconnect, Time: fs.s.env.Now()}})
		s.Close()
	}
}

func notes(l []imsg.FilterEvent) []filter.Note {
	n := make([]filter.Note, len(l))
	for i, e := range l {
		n[i] = filter.Note{Event: filter.Event(e.Event), Time: e.Time, Tail: e.Tail}
	}
	return n
}

func membersOf(places []uint8) []int {
	l := make([]int, len(places))
	for i, p := range places {
		l[i] = int(p)
	}
	return l
}

// fromSMTPFilter handles what concerns filters; it reports false for all else.
// Events are taken in the order in which they come.
func (s *server) fromSMTPFilter(r *ipc.Request) bool {
	switch m := r.Msg.(type) {
	case *imsg.FilterOpen:
		s.long(r, func(ctx context.Context) { r.Reply(s.filters.open(ctx, filter.In, m), nil) })
	case *imsg.FilterEvents:
		s.filters.tell(filter.In, m)
	case *imsg.FilterAsk:
		f := s.filters.session(sessionKey{filter.In, m.Session})
		if f == nil || !f.Holds(membersOf(m.Filters)) {
			r.Reply(later(m), nil)
			return true
		}
		f.Ask(membersOf(m.Filters), filter.Phase(m.Phase), m.Param, notes(m.Events), func(v filter.Verdict) {
			r.Reply(&imsg.FilterVerdict{Action: uint8(v.Action), Text: v.Text}, nil)
		})
	case *imsg.FilterLines:
		f := s.filters.session(sessionKey{filter.In, m.Session})
		if f == nil || !f.Holds(membersOf(m.Filters)) {
			r.Reply(later(m), nil)
			return true
		}
		s.long(r, func(ctx context.Context) { filterLines(ctx, r, f, m, s.filters.maxLine()) })
	default:
		return false
	}
	return true
}

func (fs *filters) maxLine() int {
	w := fs.s.worlds.acquire(0)
	defer fs.s.worlds.release(w)
	return w.conf.SMTP.MaxLine
}

// tableChecks answers the questions of one phase.
func (s *server) tableChecks(ctx context.Context, w *world, m *imsg.TableChecks) *imsg.TableAnswers {
	a := &imsg.TableAnswers{}
	for i := range m.Queries {
		q := &m.Queries[i]
		if service, ok := table.ParseService(q.Service); !ok || service&matching == 0 {
			return &imsg.TableAnswers{Temporary: true}
		}
		one := s.tableQuery(ctx, w, q)
		if one.Temporary {
			return &imsg.TableAnswers{Temporary: true}
		}
		a.Found = append(a.Found, one.Found)
	}
	return a
}

// tableCopy hands out the keys of a table that built-in filters ask.
func tableCopy(w *world, m *imsg.TableCopy) *imsg.TableCopied {
	t := w.tables.Table(m.Table)
	if t == nil {
		return &imsg.TableCopied{}
	}
	keys, ok := t.Keys(imsg.MaxData)
	a := &imsg.TableCopied{OK: ok}
	for _, k := range keys {
		a.Keys = append(append(a.Keys, k...), 0)
	}
	return a
}

// staleTime is how long smtp may take to let go of copies. Ours: it does so at
// once, or is not there.
const staleTime = time.Second

// tellStale has smtp forget what it has of a table that was read again.
func (s *server) tellStale(ctx context.Context, name string) {
	if !s.peers.SMTP.Up() {
		return // the next one has nothing
	}
	ctx, cancel := context.WithTimeout(ctx, staleTime)
	defer cancel()
	if _, err := ipc.Ask[*imsg.Done](ctx, s.peers.SMTP, &imsg.TableStale{Table: name}); err != nil {
		s.env.Log.Warn("warn: table " + name + ": smtp was not told that it was updated: " + mail.Clean(err.Error(), 256))
	}
}

// showFilters prints the programs for smtpctl.
func showFilters(w *world) (lines []string) {
	for _, p := range w.procs {
		st := p.sup.State()
		state := "down"
		if st.Running {
			state = "running"
		}
		lines = append(lines, fmt.Sprintf("%s|%s|restarts=%d|requests=%d|median=%s|worst=%s|%s\n", st.Name, state,
			st.Restarts, st.Requests, st.Median.Round(time.Microsecond), st.Worst.Round(time.Microsecond),
			strings.ReplaceAll(st.LastError, "|", "/")))
	}
	slices.Sort(lines)
	return lines
}
