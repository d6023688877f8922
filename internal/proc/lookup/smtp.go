package lookup

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/internal/resolver"
	"smtpd/internal/ruleset"
	"smtpd/table"
)

// unknownHost is the name of a client without one.
const unknownHost = ruleset.UnknownHost

// The results of looking a client's name up and back again.
const (
	fcrdnsPass  = "pass"
	fcrdnsFail  = "fail"
	fcrdnsError = "error"
)

// temporary is what a client is told when nothing can be said now.
func temporary() mail.Status { return *mail.LocalError() }

// clientLookup finds the name of a client, and whether the name leads back to
// it.
func (s *server) clientLookup(ctx context.Context, m *imsg.ClientLookup) *imsg.ClientName {
	addr, err := table.ParseAddr(m.Addr)
	if err != nil {
		return &imsg.ClientName{Host: unknownHost, FCrDNS: fcrdnsFail}
	}
	names := s.resolver.Reverse(ctx, addr)
	if names.Result == resolver.Failure {
		return &imsg.ClientName{Host: unknownHost, FCrDNS: fcrdnsError}
	}
	if names.Result != resolver.OK || !hostName(names.Records[0].Data) {
		return &imsg.ClientName{Host: unknownHost, FCrDNS: fcrdnsFail}
	}
	answer := &imsg.ClientName{Host: names.Records[0].Data, FCrDNS: fcrdnsFail}
	addrs, result := s.resolver.Addrs(ctx, answer.Host)
	switch {
	case slices.Contains(addrs, addr):
		answer.FCrDNS = fcrdnsPass
	case result == resolver.Failure:
		answer.FCrDNS = fcrdnsError
	}
	return answer
}

// hostName reports a name that may be shown as one: whoever holds an address
// writes its reverse name.
func hostName(s string) bool {
	if s == "" || len(s) > mail.MaxDomain {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._", r))
	}) < 0
}

// aheadTime is how long recipients are looked at ahead of their turn. Ours: a
// slow table must not hold up the answer to the first.
const aheadTime = time.Second

// rcptCheck finds what becomes of a recipient, and of those that follow as long
// as that is quick and fits the answer.
func (s *server) rcptCheck(ctx context.Context, w *world, m *imsg.RcptCheck) *imsg.RcptAnswer {
	q := &expand.Request{Envelope: m.Envelope, TLS: m.TLS, Local: m.Local}
	res := s.expand(ctx, w, m.Session, q)
	part, others := cut(res.Branches)
	var name ruleName
	answer := &imsg.RcptAnswer{RcptOutcome: outcome(res, part, &name)}
	if len(others) > 0 {
		if answer.More = s.rest.keep(others, s.env.Now()); answer.More == 0 {
			return &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: temporary()}}
		}
		return answer
	}
	size := sizeOf(part)
	until := s.env.Now().Add(aheadTime)
	answer.Next = make([]imsg.RcptOutcome, 0, len(m.Next))
	for i := range m.Next {
		if s.env.Now().After(until) {
			break
		}
		q.Envelope.Rcpt, q.Envelope.Dest, q.Envelope.DSN = m.Next[i].Address, m.Next[i].Address, m.Next[i].DSN
		res := s.expand(ctx, w, m.Session, q)
		if size += sizeOf(res.Branches); size > partSize || ctx.Err() != nil {
			break
		}
		answer.Next = append(answer.Next, outcome(res, res.Branches, &name))
	}
	return answer
}

// expand expands one recipient of a question.
func (s *server) expand(ctx context.Context, w *world, session mail.SessionID, q *expand.Request) *expand.Result {
	var trace *expand.Trace
	if s.env.Log.Tracing("expand") || s.env.Log.Tracing("rules") || s.env.Log.Tracing("lookup") {
		trace = &expand.Trace{}
	}
	res := w.expand.Expand(ctx, q, trace)
	if st := s.verified(ctx, w, &q.Envelope, res.Branches); st != nil {
		if trace != nil {
			trace.Steps = append(trace.Steps, expand.Step{Text: "the store refuses: " + st.String()})
		}
		res.Status, res.Branches = *st, nil
	}
	s.notes(res.Notes)
	if trace != nil {
		s.trace(session, trace)
	}
	return res
}

func outcome(res *expand.Result, branches []mail.Branch, name *ruleName) imsg.RcptOutcome {
	o := imsg.RcptOutcome{Status: res.Status, Branches: branches}
	if res.Rule != nil {
		o.Rule, o.Own = name.of(res.Rule), res.Rule.Reply != ""
	}
	return o
}

// ruleName is what the rule last named is called: the recipients of a mail are
// mostly decided by one.
type ruleName struct {
	rule *config.Rule
	name string
}

func (n *ruleName) of(r *config.Rule) string {
	if n.rule != r {
		n.rule, n.name = r, ruleset.Where(r)
	}
	return n.name
}

func (s *server) notes(notes []expand.Note) {
	for _, n := range notes {
		if n.Warn {
			s.env.Log.Warn(n.Text)
		} else {
			s.env.Log.Info(n.Text)
		}
	}
}

// trace writes an expansion to the log, for the topics that are traced.
func (s *server) trace(id mail.SessionID, t *expand.Trace) {
	session := slog.String("session", id.String())
	for _, st := range t.Steps {
		s.env.Log.Trace("expand", st.Text, session)
		s.env.Log.Trace("lookup", st.Text, session)
		for _, r := range st.Rules {
			s.env.Log.Trace("rules", r.String(), session)
		}
	}
}

// authCheck checks a login. A login that does not exist takes as long as a
// wrong password.
func (s *server) authCheck(ctx context.Context, w *world, m *imsg.AuthCheck) *imsg.AuthResult {
	if m.User == "" || m.Password == "" {
		return &imsg.AuthResult{}
	}
	if m.Table == "" {
		a, err := ipc.Ask[*imsg.AuthResult](ctx, s.env.Parent, &imsg.SystemAuth{User: m.User, Password: m.Password})
		if err != nil {
			return &imsg.AuthResult{Temporary: true}
		}
		return a
	}
	ok, err := s.checkPassword(ctx, w, m)
	if err != nil {
		s.env.Log.Warn("warn: authentication: " + mail.Clean(err.Error(), mail.MaxStatusText))
		return &imsg.AuthResult{Temporary: true}
	}
	return &imsg.AuthResult{OK: ok}
}

func (s *server) checkPassword(ctx context.Context, w *world, m *imsg.AuthCheck) (bool, error) {
	t := w.tables.Table(m.Table)
	if t == nil {
		return false, errNoTable
	}
	if t.Services()&table.Auth != 0 && !strings.Contains(m.User, ":") {
		ok, err := t.Check(ctx, table.Auth, m.User+":"+m.Password)
		if err == nil || errors.Is(err, table.ErrKey) {
			return ok && err == nil, nil
		}
		if !errors.Is(err, table.ErrService) {
			return false, err
		}
	}
	if t.Services()&table.Credentials == 0 { // and no login with a colon can be asked about
		return false, s.pool.VerifyNobody(ctx, m.Password)
	}
	value, err := t.Lookup(ctx, table.Credentials, m.User)
	if errors.Is(err, table.ErrNotFound) || errors.Is(err, table.ErrKey) {
		return false, s.pool.VerifyNobody(ctx, m.Password)
	}
	if err != nil {
		return false, err
	}
	_, hash, err := table.ParseCredentials(m.User, value)
	if err != nil {
		return false, err
	}
	ok, err := s.pool.Verify(ctx, hash, m.Password)
	if errors.Is(err, auth.ErrForm) || errors.Is(err, auth.ErrCost) {
		s.env.Log.Warn("warn: table " + m.Table + ": " + mail.Clean(m.User, 64) + ": " + err.Error())
		return false, s.pool.VerifyNobody(ctx, m.Password) // the operator must mend it; waiting does not
	}
	return ok, err
}

var errNoTable = errors.New("no such table")

// senderCheck tells whether a login may use a reverse-path: one of its
// addresses must match.
func (s *server) senderCheck(ctx context.Context, w *world, m *imsg.SenderCheck) *imsg.TableAnswer {
	value, err := w.tables.Lookup(ctx, m.Table, table.Mailaddrmap, m.User)
	if err != nil {
		return s.tableAnswer("", false, err)
	}
	list, err := table.ParseMailaddrs(value)
	if err != nil {
		return s.tableAnswer("", false, err)
	}
	ok := slices.ContainsFunc(list, func(entry string) bool {
		return table.MatchMailaddr(m.Sender.String(), entry, w.conf.SMTP.SubAddrDelim)
	})
	return &imsg.TableAnswer{Found: ok, Value: value}
}
