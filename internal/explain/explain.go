// Package explain says what becomes of a mail by a configuration, and why: the
// rules that were tried, the expansion step by step, and where each envelope
// would go. It is how smtpd -n and smtpctl show the evaluation that the daemon
// itself uses. It owns nothing, sends nothing and opens nothing but what the
// expansion asks for.
package explain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
	"smtpd/mda"
	"smtpd/table"
)

// Verdict is what becomes of a mail.
type Verdict struct {
	Accepted  bool          `json:"accepted"`
	Status    string        `json:"status"`
	Rule      string        `json:"rule,omitempty"`   // file:line that decided
	Action    string        `json:"action,omitempty"` // of that rule
	Envelopes []Destination `json:"envelopes,omitempty"`
	Steps     []expand.Step `json:"steps"`
	Notes     []string      `json:"notes,omitempty"`

	refused bool // by a rule, whatever its code
}

// Destination is where one envelope would go.
type Destination struct {
	Action  string `json:"action"`
	Method  string `json:"method"`
	To      string `json:"to"`
	User    string `json:"user,omitempty"`
	Exec    string `json:"exec,omitempty"`
	Details string `json:"details"`
}

// The outcomes, which are exit statuses: a temporary failure is none of the
// configuration's decisions.
const (
	ExitAccepted = 0
	ExitRefused  = 1
	ExitError    = 2
)

// Exit is the outcome as an exit status.
func (v *Verdict) Exit() int {
	switch {
	case v.Accepted:
		return ExitAccepted
	case strings.HasPrefix(v.Status, "5") || v.refused:
		return ExitRefused
	}
	return ExitError
}

// Actions are those that the envelopes end with, each once, in their order.
func (v *Verdict) Actions() []string {
	var out []string
	for _, e := range v.Envelopes {
		if !slices.Contains(out, e.Action) {
			out = append(out, e.Action)
		}
	}
	return out
}

// Text is the verdict in lines.
func (v *Verdict) Text() string {
	var b strings.Builder
	b.WriteString((&expand.Trace{Steps: v.Steps}).String())
	for _, n := range v.Notes {
		fmt.Fprintln(&b, n)
	}
	if v.Rule != "" {
		fmt.Fprintf(&b, "decided by %s\n", v.Rule)
	}
	for _, e := range v.Envelopes {
		fmt.Fprintf(&b, "action %q: %s\n", e.Action, e.Details)
	}
	fmt.Fprintln(&b, v.Status)
	return b.String()
}

// JSON is the verdict as an object, indented.
func (v *Verdict) JSON() string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return "" // cannot be: strings, numbers and lists of them
	}
	return b.String()
}

// Decide says what becomes of a mail. x is not changed.
func Decide(ctx context.Context, x *expand.Expander, q *Facts) *Verdict {
	d := &decider{x: x, conf: x.Config}
	if len(q.Users) > 0 {
		own := *x
		own.System = &declared{x.System, q.Users}
		d.x = &own
	}
	if v := d.atListener(ctx, q); v != nil {
		return v
	}
	trace := &expand.Trace{}
	r := d.x.Expand(ctx, &q.Request, trace)
	st := r.Status
	if st.OK() {
		st.Text = "accepted"
	}
	d.nameValues(trace)
	v := &Verdict{Accepted: r.Status.OK(), Status: st.String(), Steps: trace.Steps}
	if r.Rule != nil {
		v.Rule, v.Action, v.refused = ruleset.Where(r.Rule), r.Rule.Action, r.Rule.Reject
	}
	for _, n := range r.Notes {
		v.Notes = append(v.Notes, n.Text)
	}
	for i := range r.Branches {
		e := q.Envelope
		e.Follow(&r.Branches[i])
		v.Envelopes = append(v.Envelopes, d.destination(ctx, &e))
	}
	return v
}

// decider is one decision.
type decider struct {
	x    *expand.Expander
	conf *config.Config
}

// atListener is what a listener refuses before any rule is asked; nil: nothing.
func (d *decider) atListener(ctx context.Context, q *Facts) *Verdict {
	l := q.Listener
	if l == nil || l.IsSocket {
		return nil
	}
	authenticated := q.Envelope.Flags&mail.FlagAuthenticated != 0
	refuse := func(st mail.Status, why string) *Verdict {
		where := fmt.Sprintf("%s:%d: listen on %s: ", l.Pos.File, l.Pos.Line, l.Name)
		return &Verdict{Status: st.String(), Steps: []expand.Step{{Text: where + why}}}
	}
	switch {
	case l.TLS == config.TLSRequired && !q.TLS:
		return refuse(*mail.NewStatus(530, [3]uint8{5, 7, 0}, "Must issue a STARTTLS command first"), "tls-require: the session does not use tls")
	case l.AuthRequired && !authenticated:
		return refuse(*mail.NewStatus(530, [3]uint8{5, 7, 0}, "Must issue an AUTH command first"), "auth: not authenticated")
	case authenticated && !l.Auth:
		return refuse(*mail.NewStatus(503, [3]uint8{5, 5, 1}, "Invalid command: Command not supported"), "it does not offer auth")
	case l.Senders == "" || !authenticated:
		return nil
	}
	value, err := d.x.Tables.Lookup(ctx, l.Senders, table.Mailaddrmap, q.Envelope.Username)
	if err != nil && !errors.Is(err, table.ErrNotFound) && !errors.Is(err, table.ErrKey) {
		return refuse(*mail.LocalError(), "senders <"+l.Senders+">: "+mail.Clean(err.Error(), mail.MaxStatusText))
	}
	list, _ := table.ParseMailaddrs(value) // what cannot be read allows nothing
	if slices.ContainsFunc(list, func(entry string) bool {
		return table.MatchMailaddr(q.Envelope.Sender.String(), entry, d.conf.SMTP.SubAddrDelim)
	}) {
		return nil
	}
	return refuse(*mail.NewStatus(550, [3]uint8{5, 7, 1}, "Sender rejected"),
		fmt.Sprintf("senders <%s>: user %q may not send as <%s>", l.Senders, mail.Clean(q.Envelope.Username, 64), q.Envelope.Sender))
}

// inlineTable is how a trace names a table that is written where it is used.
var inlineTable = regexp.MustCompile(`<dynamic:\d+>`)

// nameValues shows the values of tables without a name.
func (d *decider) nameValues(trace *expand.Trace) {
	show := func(s *string) { *s = inlineTable.ReplaceAllStringFunc(*s, d.conf.TableText) }
	for i := range trace.Steps {
		step := &trace.Steps[i]
		show(&step.Text)
		for j := range step.Rules {
			show(&step.Rules[j].Rule)
			show(&step.Rules[j].Clause)
		}
	}
}

func (d *decider) destination(ctx context.Context, e *mail.Envelope) Destination {
	a := d.conf.Actions[e.Dispatcher]
	to := Destination{Action: e.Dispatcher, Method: string(a.Method), To: e.Dest.String(), User: e.User, Exec: e.Exec}
	if a.Method == config.MethodRelay {
		to.Details = mail.Clean("relay "+to.To+" "+d.route(ctx, a.Relay, e), maxDetails)
		return to
	}
	v := d.delivery(ctx, a, e)
	where, err := v.Destination("")
	if err != nil {
		where = "nowhere: " + err.Error()
	}
	to.Details = mail.Clean(fmt.Sprintf("%s %s for %s as %s", v.Method, where, to.To, e.User), maxDetails)
	return to
}

// delivery is what a delivery worker would be told.
func (d *decider) delivery(ctx context.Context, a *config.Action, e *mail.Envelope) *mda.Delivery {
	v := &mda.Delivery{
		Method: mda.Method(a.Method), Path: a.Path + a.Dest, Command: a.Command, Wrapper: d.conf.Wrappers[a.Wrapper],
		Junk: a.Junk, OrigTo: a.OriginalTo, RcptTo: a.RcptTo,
		Values: mda.Values{Sender: e.Sender, Rcpt: e.Rcpt, Dest: e.Dest, User: e.User, Home: d.home(ctx, a, e.User), Delim: d.conf.SMTP.SubAddrDelim,
			SubAddr: e.SubAddr},
	}
	if rest, ok := strings.CutPrefix(e.Exec, "|"); ok {
		v.Method, v.Command = mda.Pipe, rest
	} else if e.Exec != "" {
		v.Method, v.Path = mda.File, e.Exec
	}
	return v
}

// home is the home folder of a user by the action; empty: it cannot be told.
func (d *decider) home(ctx context.Context, a *config.Action, name string) string {
	if a.Userbase != "" && a.User == "" {
		value, err := d.x.Tables.Lookup(ctx, a.Userbase, table.Userinfo, name)
		if f := strings.SplitN(value, ":", 3); err == nil && len(f) == 3 {
			return f[2]
		}
		return ""
	}
	u, err := d.x.System.User(ctx, name)
	if err != nil {
		return ""
	}
	return u.Home
}

// route names where a relay action sends mail for a domain to.
func (d *decider) route(ctx context.Context, r *config.Relay, e *mail.Envelope) string {
	domain := e.Dest.Domain
	if r.Sender != "" {
		keys := []string{strings.ToLower(e.Sender.String()), "@" + strings.ToLower(e.Sender.Domain), "@"} // as the engine asks
		if e.Sender.IsNull() {
			keys = keys[2:]
		}
		for _, key := range keys {
			if url, err := d.x.Tables.Lookup(ctx, r.Sender, table.Relayhost, key); err == nil {
				return "via " + url
			}
		}
	}
	switch {
	case r.Host != "":
		t := d.conf.Tables[r.Host]
		switch {
		case t != nil && len(t.List) == 1:
			return "via " + t.List[0]
		case t != nil && len(t.List) > 0:
			return "via one of " + strings.Join(t.List[:min(len(t.List), maxHosts)], ", ")
		}
		return "via a host of table " + r.Host
	case r.Domain != "":
		if url, err := d.x.Tables.Lookup(ctx, r.Domain, table.Relayhost, strings.ToLower(domain)); err == nil {
			return "via " + url
		}
		return "via table " + r.Domain
	}
	return "by the MX of " + domain
}

// Bounds of what is shown of a destination. Ours.
const (
	maxHosts   = 8    // of a table
	maxDetails = 4096 // octets
)

// declared is a system with accounts more than it has.
type declared struct {
	expand.System
	names []string
}

// Made-up accounts are ordinary ones.
const declaredUID = 60000

// User implements expand.System.
func (s *declared) User(ctx context.Context, name string) (expand.User, error) {
	u, err := s.System.User(ctx, name)
	if errors.Is(err, table.ErrNotFound) && (slices.Contains(s.names, name) || slices.Contains(s.names, "*")) {
		return expand.User{Name: name, UID: declaredUID, GID: declaredUID, Home: "/home/" + name}, nil
	}
	return u, err
}

// Forward implements expand.System: a made-up account has no such file.
func (s *declared) Forward(ctx context.Context, u expand.User) (expand.Forward, error) {
	if u.UID == declaredUID && u.Home == "/home/"+u.Name {
		return expand.Forward{}, nil
	}
	return s.System.Forward(ctx, u)
}
