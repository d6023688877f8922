// Package ruleset finds the rule that decides about a recipient: the first
// `match` line whose options all hold. It is a pure function of configuration,
// facts and table answers, which can tell why: the daemon, smtpctl and
// configuration tests all call the same one. It owns nothing.
package ruleset

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/table"
)

// Facts are what is known about a session and one recipient in it.
type Facts struct {
	Client        string     // address as tables see it, or "local": came through the socket
	Addr          netip.Addr // the same address; not valid: none
	Socket        bool       // came through the socket
	Host          string     // reverse name of the client; "" or "<unknown>": none
	Helo          string
	Tag           string // of the listener
	TLS           bool
	Authenticated bool
	Username      string // of the login
	Sender        mail.Address
	Dest          mail.Address // the recipient asked for, or what expansion made of it
	Internal      bool         // Dest came out of expansion; its client is "local"
}

// UnknownHost is what a session calls a client without a reverse name.
const UnknownHost = "<unknown>"

// localClient is what tables are asked for a client that has no address.
const localClient = "local"

// Tables answers the rules' questions.
type Tables interface {
	// Check reports whether key is in the named table. Any error means that it
	// could not be told now.
	Check(ctx context.Context, name string, s table.Service, key string) (bool, error)
}

// Trace collects why each rule that was tried did not decide, or did.
type Trace struct{ Steps []Step }

// Step is one rule that was tried.
type Step struct {
	Rule    *config.Rule
	Matched bool
	Clause  string // the option that failed, as the configuration would write it
	Reason  string // what it was compared with
	Err     error  // the option could not be decided, which ended the search
}

// Evaluate finds the rule that decides about f.Dest; nil: no rule does. An
// error means that some option could not be decided, so nothing can be said
// now. trace may be nil.
func Evaluate(ctx context.Context, cfg *config.Config, t Tables, f *Facts, trace *Trace) (*config.Rule, error) {
	e := evaluation{ctx: ctx, cfg: cfg, tables: t, facts: f}
	for _, r := range cfg.Rules {
		failed, err := e.try(r)
		if trace != nil {
			trace.Steps = append(trace.Steps, e.step(r, failed, err))
		}
		if err != nil {
			return nil, fmt.Errorf("rule %s:%d: %w", r.Pos.File, r.Pos.Line, err)
		}
		if failed == none {
			return r, nil
		}
	}
	return nil, nil
}

// option is one option of a rule, in the order in which they are tried.
type option int

const (
	none option = iota
	optTag
	optFrom
	optFor
	optHelo
	optAuth
	optTLS
	optMailFrom
	optRcptTo
)

type evaluation struct {
	ctx    context.Context
	cfg    *config.Config
	tables Tables
	facts  *Facts
}

// try tells the first option of r that does not hold.
func (e *evaluation) try(r *config.Rule) (failed option, err error) {
	f := e.facts
	if r.Tag != nil {
		if ok, err := e.match(r.Tag, table.String, f.Tag); !ok || err != nil {
			return optTag, err
		}
	}
	if ok, err := e.from(&r.From); !ok || err != nil {
		return optFrom, err
	}
	if ok, err := e.to(&r.For); !ok || err != nil {
		return optFor, err
	}
	if r.HELO != nil {
		if ok, err := e.match(r.HELO, table.Domain, f.Helo); !ok || err != nil {
			return optHelo, err
		}
	}
	if r.Auth != nil {
		if ok, err := e.auth(r.Auth); !ok || err != nil {
			return optAuth, err
		}
	}
	if r.TLS != nil && f.TLS == r.TLS.Not {
		return optTLS, nil
	}
	if r.MailFrom != nil {
		if ok, err := e.match(r.MailFrom, table.Mailaddr, f.Sender.String()); !ok || err != nil {
			return optMailFrom, err
		}
	}
	if r.RcptTo != nil {
		if ok, err := e.match(r.RcptTo, table.Mailaddr, f.Dest.String()); !ok || err != nil {
			return optRcptTo, err
		}
	}
	return none, nil
}

// match asks the table of m; a regular expression is another service.
func (e *evaluation) match(m *config.Match, s table.Service, key string) (bool, error) {
	if m.Regex {
		s = table.Regex
	}
	ok, err := e.tables.Check(e.ctx, m.Table, s, key)
	return ok != m.Not, err
}

func (e *evaluation) from(m *config.From) (bool, error) {
	f := e.facts
	switch m.Kind {
	case config.FromAny:
		return !m.Not, nil
	case config.FromSocket:
		return (f.Socket && !f.Internal) != m.Not, nil
	case config.FromSrc:
		return e.match(&m.Match, table.Netaddr, e.client())
	case config.FromRDNS:
		if f.Internal || f.Host == "" || f.Host == UnknownHost {
			return false, nil // whatever is asked of a name, there is none
		}
		if m.Table == "" {
			return !m.Not, nil
		}
		return e.match(&m.Match, table.Domain, f.Host)
	}
	return e.isLocal() != m.Not, nil
}

// client is the client as `from src` sees it.
func (e *evaluation) client() string {
	if f := e.facts; !f.Internal && !f.Socket {
		return f.Client
	}
	return localClient
}

// isLocal reports what `from local` means: the socket, an address that
// expansion gave, a client with an address of this host.
func (e *evaluation) isLocal() bool {
	f := e.facts
	return f.Internal || f.Socket || f.Client == localClient || (f.Addr.IsValid() && e.ours(f.Addr))
}

// ours reports an address of this host.
func (e *evaluation) ours(a netip.Addr) bool {
	a = a.Unmap()
	return a == loopback4 || a == netip.IPv6Loopback() || slices.Contains(e.cfg.LocalAddrs, a)
}

// loopback4 is the one address of 127.0.0.0/8 that is always this host's; the
// others are when an interface has them.
var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (e *evaluation) to(m *config.For) (bool, error) {
	switch m.Kind {
	case config.ForAny:
		return !m.Not, nil
	case config.ForDomain:
		return e.match(&m.Match, table.Domain, e.facts.Dest.Domain)
	}
	return e.isLocalDomain(e.facts.Dest.Domain) != m.Not, nil
}

// isLocalDomain reports what `for local` means: one of the local names, or a
// literal address of this host.
func (e *evaluation) isLocalDomain(domain string) bool {
	if strings.HasPrefix(domain, "[") {
		a, err := table.ParseAddr(domain)
		return err == nil && e.ours(a)
	}
	return slices.ContainsFunc(e.cfg.LocalNames, func(n string) bool { return strings.EqualFold(n, domain) }) ||
		strings.EqualFold(domain, "localhost")
}

func (e *evaluation) auth(m *config.Match) (bool, error) {
	f := e.facts
	if m.Table == "" || !f.Authenticated {
		return f.Authenticated != m.Not, nil
	}
	s := table.String
	if strings.Contains(f.Username, "@") {
		s = table.Mailaddr
	}
	return e.match(m, s, f.Username)
}
