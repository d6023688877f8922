package smtp

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	engine "smtpd/internal/smtp"
	"smtpd/table"
)

// Bounds of filtering. Ours.
const (
	// filterMargin is what lookup may take beyond the programs' own timeouts.
	filterMargin = 15 * time.Second
	// eventDelay is how long events wait for a question that takes them along.
	eventDelay = 20 * time.Millisecond
	// maxEvents is how many events wait.
	maxEvents = 64
)

// filters is what the sessions of a listener need to be filtered.
type filters struct {
	chain  *filter.Chain
	tables *table.Set    // those written out in the configuration
	wait   time.Duration // for all programs of the chain
	bad    bool          // could not be made: nobody is let in
}

// newFilters makes the chain of a listener; nil: it has none.
func newFilters(conf *config.Config, l *config.Listener) (*filters, error) {
	if l == nil || len(l.Filter) == 0 {
		return nil, nil
	}
	chain, err := filter.Compile(conf, l.Filter)
	if err != nil || chain == nil {
		return &filters{bad: true}, err
	}
	inline := map[string]*config.Table{}
	for name, t := range conf.Tables {
		if t.Backend == "static" && t.Param == "" {
			inline[name] = t
		}
	}
	f := &filters{chain: chain, wait: filterMargin}
	if f.tables, err = table.OpenSet(inline, table.Options{Delim: conf.SMTP.SubAddrDelim}); err != nil {
		return &filters{bad: true}, err
	}
	for _, name := range chain.Members {
		timeout, _ := conf.Patience(name)
		f.wait += timeout
	}
	return f, nil
}

// sessionFilter stands between one client and the commands: built-in filters
// are decided here, programs are asked by way of lookup. All but the events
// belongs to the session's goroutine.
type sessionFilter struct {
	b      *backend
	c      *engine.Client
	f      *filters
	walk   *filter.Walk
	wants  []filter.Set // of each member
	open   bool         // lookup knows the session
	failed bool         // it does not any more, or a program is gone: nothing goes on

	mu     sync.Mutex
	events []imsg.FilterEvent
	hears  filter.Set // that any program does; everything until the session is open
	timer  *time.Timer
	closed bool
}

// Filter implements engine.Backend.
func (b *backend) Filter(c *engine.Client) engine.Filter {
	if b.filters == nil {
		return nil
	}
	s := &sessionFilter{b: b, c: c, f: b.filters}
	if s.failed = b.filters.bad; s.failed {
		return s
	}
	s.walk = b.filters.chain.Walk(s)
	s.walk.Facts = filter.Facts{Host: c.Host, FCrDNS: c.FCrDNS, Source: "local"}
	if c.Addr.IsValid() {
		s.walk.Facts.Source = c.Addr.Addr().String()
	}
	if len(b.filters.chain.Members) > 0 {
		s.hears = ^filter.Set(0)
	}
	return s
}

// Ask implements engine.Filter.
func (s *sessionFilter) Ask(ctx context.Context, p engine.Phase, param string) engine.Verdict {
	phase, ok := filter.ParsePhase(string(p))
	if !s.failed && len(s.f.chain.Members) > 0 && !s.open {
		s.enter(ctx)
	}
	if s.failed || !ok {
		return engine.Verdict{Action: engine.Disconnect, Text: filter.ReplyFailed}
	}
	facts := &s.walk.Facts
	switch phase {
	case filter.Helo, filter.Ehlo:
		facts.Helo = param
	case filter.MailFrom:
		facts.Sender = param
	case filter.RcptTo:
		facts.Rcpt = param
	case filter.Connect:
		if !s.c.Addr.IsValid() {
			param = s.c.Host + "|local"
		}
	}
	v := s.walk.Ask(ctx, phase, param)
	switch v.Action {
	case filter.Junk:
		return engine.Verdict{Action: engine.Junk}
	case filter.Reject:
		return engine.Verdict{Action: engine.Reject, Text: v.Text}
	case filter.Disconnect:
		return engine.Verdict{Action: engine.Disconnect, Text: v.Text}
	case filter.Rewrite:
		return engine.Verdict{Action: engine.Rewrite, Text: v.Text}
	case filter.Failed:
		s.failed = true
		return engine.Verdict{Action: engine.Disconnect, Text: v.Text}
	}
	return engine.Verdict{}
}

// enter makes the session known to its programs.
func (s *sessionFilter) enter(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.f.wait)
	defer cancel()
	a, err := ask[*imsg.FilterOpened](ctx, s.b.s.lookup,
		&imsg.FilterOpen{Session: s.c.Session, Filters: s.f.chain.Members, Events: s.take(),
			Generation: s.b.generation})
	s.open = err == nil
	if err != nil || a.Failed || len(a.Phases) != len(s.f.chain.Members) {
		s.failed = true
		return
	}
	for _, set := range a.Phases {
		s.wants = append(s.wants, filter.Set(set))
	}
	s.mu.Lock()
	s.hears = filter.Set(a.Events)
	s.mu.Unlock()
}

// Wants implements filter.Outside.
func (s *sessionFilter) Wants(member int) filter.Set {
	if member < len(s.wants) {
		return s.wants[member]
	}
	return 0
}

// Programs implements filter.Outside.
func (s *sessionFilter) Programs(ctx context.Context, members []int, p filter.Phase, param string) filter.Verdict {
	ctx, cancel := context.WithTimeout(ctx, s.f.wait)
	defer cancel()
	v, err := ask[*imsg.FilterVerdict](ctx, s.b.s.lookup, &imsg.FilterAsk{Session: s.c.Session,
		Filters: placesOf(members), Phase: uint8(p), Param: param, Events: s.take()})
	if err != nil {
		return filter.Verdict{Action: filter.Failed, Text: filter.ReplyFailed}
	}
	return filter.Verdict{Action: filter.Action(v.Action), Text: v.Text}.Checked()
}

func placesOf(members []int) []uint8 {
	l := make([]uint8, len(members))
	for i, m := range members {
		l[i] = uint8(m)
	}
	return l
}

// Check implements filter.Tables: what the configuration and small files hold is
// known here, for the rest lookup is asked once.
func (s *sessionFilter) Check(ctx context.Context, q []filter.Query, found []bool) error {
	var asked []imsg.TableQuery
	var at []int
	for i, one := range q {
		t := s.f.tables.Table(one.Table)
		if t == nil {
			t = s.b.copied(one.Table)
		}
		if service, ok := table.ParseService(one.Service); t != nil && ok {
			var err error
			found[i], err = t.Check(ctx, service, one.Key)
			s.b.s.copies.count(copyKey{s.b.generation, one.Table}, found[i], err)
			if err != nil {
				return err
			}
			continue
		}
		asked = append(asked, imsg.TableQuery{Table: one.Table, Service: one.Service, Key: one.Key,
			Generation: s.b.generation})
		at = append(at, i)
	}
	if len(at) == 0 {
		return nil
	}
	a, err := askAgain[*imsg.TableAnswers](ctx, s.b.s.lookup, &imsg.TableChecks{Queries: asked})
	if err != nil {
		return err
	}
	if a.Temporary || len(a.Found) != len(at) {
		return errTables
	}
	for n, i := range at {
		found[i] = a.Found[n]
	}
	return nil
}

// Report implements engine.Filter.
func (s *sessionFilter) Report(e engine.Event, fields ...string) {
	if s.walk == nil {
		return
	}
	switch e {
	case engine.EventConnect:
		if !s.c.Addr.IsValid() && len(fields) == 4 {
			fields = []string{fields[0], fields[1], "unix:" + ctl.Socket, "unix:" + ctl.Socket}
		}
	case engine.EventIdentify:
		s.walk.Facts.Helo = fields[len(fields)-1]
	case engine.EventAuth:
		if len(fields) == 2 && fields[0] == "pass" {
			s.walk.Facts.User = fields[1]
		}
	case engine.EventTxReset:
		s.walk.EndTransaction()
	}
	if len(s.f.chain.Members) == 0 {
		return
	}
	if event, ok := filter.ParseEvent(string(e)); ok {
		s.note(event, fields)
	}
}

// Note implements filter.Outside.
func (s *sessionFilter) Note(e filter.Event, tail string) { s.note(e, []string{tail}) }

func (s *sessionFilter) note(e filter.Event, fields []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hears.Has(uint8(e)) {
		return
	}
	tail := filter.Tail(fields...)
	if len(tail) > imsg.MaxText {
		tail = tail[:imsg.MaxText]
	}
	s.events = append(s.events, imsg.FilterEvent{Event: uint8(e), Time: s.b.s.env.Now(), Tail: tail})
	if len(s.events) >= maxEvents && s.open {
		s.send(false)
	}
}

// take gives the events that wait, to go with a question.
func (s *sessionFilter) take() []imsg.FilterEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.events
	s.events = nil
	return l
}

// send tells lookup the events that wait; mu is held, so that they keep their
// order. Of a lookup that is gone nobody needs to hear.
func (s *sessionFilter) send(last bool) {
	_ = s.b.s.lookup.link.Send(&imsg.FilterEvents{Session: s.c.Session, Events: s.events, Close: last}, nil)
	s.events = nil
}

// Hears implements engine.Filter.
func (s *sessionFilter) Hears() bool { return s.walk != nil && len(s.f.chain.Members) > 0 }

// Idle implements engine.Filter: events wait a moment for the next command.
func (s *sessionFilter) Idle() {
	if !s.open {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.events) == 0:
	case s.timer == nil:
		s.timer = time.AfterFunc(eventDelay, s.late) // ends by itself, at the latest with Close
	default:
		s.timer.Reset(eventDelay)
	}
}

func (s *sessionFilter) late() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) > 0 && !s.closed {
		s.send(false)
	}
}

// Close implements engine.Filter.
func (s *sessionFilter) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.open {
		s.send(true)
	}
}
