package expand

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
	"smtpd/table"
)

// ParseQuery reads the question of `smtpd -n --explain`: the words client=ADDR
// (or client=local, the socket, which is also the default), rdns=NAME,
// helo=NAME, from=ADDRESS, rcpt=ADDRESS, auth=USER, tag=TAG, listener=NAME (as
// written, or its address and port), and tls. rcpt is needed.
func ParseQuery(c *config.Config, words []string) (*Request, error) {
	q := &Request{Envelope: mail.Envelope{Client: "local", Host: c.ServerName, SMTPName: c.ServerName}, Local: true}
	for _, w := range words {
		key, value, given := strings.Cut(w, "=")
		if !given && key != "tls" {
			return nil, fmt.Errorf("%q is not of the form key=value", w)
		}
		if err := q.set(c, key, value); err != nil {
			return nil, err
		}
	}
	if q.Envelope.Rcpt.User == "" {
		return nil, errors.New("rcpt= is missing")
	}
	if q.Local {
		q.Envelope.Flags |= mail.FlagAuthenticated
	}
	return q, nil
}

func (q *Request) set(c *config.Config, key, value string) error {
	e := &q.Envelope
	switch key {
	case "client":
		return q.setClient(c, value)
	case "rdns", "host":
		e.Host = value
	case "helo":
		e.Helo = value
	case "from":
		e.Sender = address(c, value)
	case "rcpt":
		e.Rcpt = address(c, value)
	case "auth":
		e.Username = value
		e.Flags |= mail.FlagAuthenticated
	case "tag":
		e.Tag = value
	case "tls":
		q.TLS = value == "" || value == "yes"
	case "listener":
		for _, l := range c.Listeners {
			if l.Name == value || l.Addr.String() == value || l.Addr.Addr().String() == value {
				e.Tag = l.Tag
				return nil
			}
		}
		return fmt.Errorf("no listener %q", value)
	default:
		return fmt.Errorf("unknown word %q, expected client, rdns, helo, from, rcpt, auth, tag, listener or tls", key)
	}
	return nil
}

func (q *Request) setClient(c *config.Config, value string) error {
	if q.Local = value == "local"; q.Local {
		q.Envelope.Client, q.Envelope.Host = value, c.ServerName
		return nil
	}
	a, err := table.ParseAddr(value)
	if err != nil {
		return fmt.Errorf("client %q is not an address", value)
	}
	if q.Envelope.Client = a.String(); a.Is6() {
		q.Envelope.Client = "[" + a.String() + "]"
	}
	if q.Envelope.Host == c.ServerName {
		q.Envelope.Host = ruleset.UnknownHost
	}
	if a == netip.IPv6Loopback() || a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		q.Envelope.Host = "localhost"
	}
	return nil
}

// address reads an address with or without brackets; one without domain is of
// this host.
func address(c *config.Config, s string) mail.Address {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "<"), ">")
	a := mail.SplitAddress(s)
	if a.User != "" && a.Domain == "" {
		a.Domain = c.ServerName
	}
	return a
}

// Explanation is what becomes of a recipient and why.
type Explanation struct {
	Accepted   bool         `json:"accepted"`
	Status     string       `json:"status"`
	Rule       string       `json:"rule,omitempty"`   // file:line of the rule that decided first
	Action     string       `json:"action,omitempty"` // its action
	Steps      []Step       `json:"steps"`
	Deliveries []Delivery   `json:"deliveries,omitempty"`
	Notes      []string     `json:"notes,omitempty"` // what the log would say
	status     *mail.Status // the same as Status
}

// Delivery is one envelope that would result.
type Delivery struct {
	Kind        string `json:"kind"` // mda or mta
	Action      string `json:"action"`
	Method      string `json:"method"`
	Address     string `json:"address"`
	User        string `json:"user,omitempty"`
	Destination string `json:"destination"` // folder, file, command, server, relay
}

// Explain expands like Expand and tells why. Nothing is sent.
func (x *Expander) Explain(ctx context.Context, q *Request) *Explanation {
	tr := &Trace{}
	r := x.Expand(ctx, q, tr)
	ex := &Explanation{Accepted: r.Status.OK(), Status: r.Status.String(), Steps: tr.Steps, status: &r.Status}
	if r.Rule != nil {
		ex.Rule, ex.Action = ruleset.Where(r.Rule), r.Rule.Action
	}
	for _, n := range r.Notes {
		ex.Notes = append(ex.Notes, n.Text)
	}
	for i := range r.Envelopes {
		e := &r.Envelopes[i]
		a := x.Config.Actions[e.Dispatcher]
		ex.Deliveries = append(ex.Deliveries, Delivery{Kind: e.Kind.String(), Action: a.Name, Method: string(a.Method),
			Address: e.Dest.String(), User: e.User, Destination: x.destination(ctx, a, e)})
	}
	return ex
}

// destination says in words where an envelope would go.
func (x *Expander) destination(ctx context.Context, a *config.Action, e *mail.Envelope) string {
	switch {
	case e.Exec != "" && e.Exec[0] == '|':
		return "command " + e.Exec[1:]
	case e.Exec != "":
		return "file " + e.Exec
	case a.Relay != nil:
		return x.relayDestination(ctx, a.Relay, e.Dest.Domain)
	}
	text := string(a.Method)
	for _, part := range []string{a.Path, a.Dest, a.Command} {
		if part != "" {
			text += " " + part
		}
	}
	return text
}

func (x *Expander) relayDestination(ctx context.Context, r *config.Relay, domain string) string {
	switch {
	case r.Host != "":
		return "relay host <" + r.Host + ">"
	case r.Domain != "":
		url, err := x.Tables.Lookup(ctx, r.Domain, table.Relayhost, domain)
		if err != nil {
			return "relay domain <" + r.Domain + ">: " + mail.Clean(err.Error(), 256)
		}
		return "relay host " + url
	case strings.HasPrefix(domain, "["):
		return "relay to address " + domain
	}
	return "relay to the mail exchangers of " + domain
}

// String is the explanation as lines for people.
func (ex *Explanation) String() string {
	var b strings.Builder
	b.WriteString((&Trace{ex.Steps}).String())
	for _, n := range ex.Notes {
		b.WriteString("log: " + n + "\n")
	}
	verdict := "refused"
	if ex.Accepted {
		verdict = "accepted"
	}
	b.WriteString(verdict + ": " + ex.Status)
	if ex.Rule != "" {
		b.WriteString(" (decided by " + ex.Rule + ")")
	}
	b.WriteString("\n")
	for _, d := range ex.Deliveries {
		b.WriteString("  " + d.Kind + " <" + d.Address + "> action \"" + d.Action + "\": " + d.Destination)
		if d.User != "" {
			b.WriteString(" as " + d.User)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Case is one line of a file of configuration tests: a question as for
// ParseQuery, "->", and what is expected: "action NAME" (the rule that decides
// names it), "accept", "reject" (refused for good, by a rule or by expansion),
// "tempfail", or a reply code.
type Case struct {
	Line  int
	Query []string
	Want  string
}

// ParseCases reads a file of configuration tests; '#' begins a comment line.
// The first bad line ends it with a *table.LineError.
func ParseCases(r io.Reader, name string) ([]Case, error) {
	var cases []Case
	in := bufio.NewScanner(r)
	for n := 1; in.Scan(); n++ {
		line := strings.TrimSpace(in.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		query, want, ok := strings.Cut(line, "->")
		c := Case{Line: n, Query: strings.Fields(query), Want: strings.Join(strings.Fields(want), " ")}
		if !ok || len(c.Query) == 0 || !c.valid() {
			return nil, &table.LineError{File: name, Line: n, Err: errCase}
		}
		cases = append(cases, c)
	}
	return cases, in.Err()
}

var errCase = errors.New(`expected: client=... from=... rcpt=... -> action NAME | accept | reject | tempfail | CODE`)

func (c *Case) valid() bool {
	switch c.Want {
	case "accept", "reject", "tempfail":
		return true
	}
	if name, ok := strings.CutPrefix(c.Want, "action "); ok {
		return name != ""
	}
	_, ok := mail.ParseStatus(c.Want)
	return ok && len(c.Want) == 3
}

// Met reports whether an explanation is what the case expects, and what it is
// instead, in the words of a case.
func (c *Case) Met(ex *Explanation) (ok bool, got string) {
	got = "accept"
	if ex.Action != "" {
		got = "action " + ex.Action
	}
	switch {
	case ex.status.Permanent():
		got = "reject"
	case ex.status.Temporary():
		got = "tempfail"
	}
	switch c.Want {
	case "accept":
		return ex.Accepted, got
	case "reject":
		return ex.status.Permanent(), got
	case "tempfail":
		return ex.status.Temporary(), got
	}
	if name, isAction := strings.CutPrefix(c.Want, "action "); isAction {
		name = strings.Trim(name, `"`)
		return ex.Action == name, got
	}
	return strings.HasPrefix(ex.Status, c.Want), ex.Status
}
