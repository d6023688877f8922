package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	osuser "os/user"
	"regexp"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/expand"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
	"smtpd/mda"
	"smtpd/parser"
	"smtpd/table"
)

// Exit statuses of --explain.
const (
	exitAccepted = 0
	exitRefused  = 1
	exitError    = 2
)

// verdict is what --explain prints with --json.
type verdict struct {
	Accepted  bool          `json:"accepted"`
	Status    string        `json:"status"`
	Rule      string        `json:"rule,omitempty"`   // file:line that decided
	Action    string        `json:"action,omitempty"` // of that rule
	Envelopes []destination `json:"envelopes,omitempty"`
	Steps     []expand.Step `json:"steps"`
	Notes     []string      `json:"notes,omitempty"`
	refused   bool          // by a rule, whatever its code
}

// destination is where one envelope would go.
type destination struct {
	Action  string `json:"action"`
	Method  string `json:"method"`
	To      string `json:"to"`
	User    string `json:"user,omitempty"`
	Exec    string `json:"exec,omitempty"`
	Details string `json:"details"`
}

// explain is smtpd -n --explain: what would become of a recipient, and why.
func explain(ctx context.Context, f *flags, conf *config.Config, stdout, stderr io.Writer) int {
	q, err := parseFacts(conf, f.operands)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	d, err := newDecider(conf)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer d.close()
	v, trace := d.decide(ctx, q)
	if f.json {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return exitError
		}
	} else {
		fmt.Fprint(stdout, trace.String())
		v.print(stdout)
	}
	switch {
	case v.Accepted:
		return exitAccepted
	case strings.HasPrefix(v.Status, "5") || v.refused:
		return exitRefused
	}
	return exitError
}

func (v *verdict) print(w io.Writer) {
	for _, n := range v.Notes {
		fmt.Fprintln(w, n)
	}
	if v.Rule != "" {
		fmt.Fprintf(w, "decided by %s\n", v.Rule)
	}
	for _, e := range v.Envelopes {
		fmt.Fprintf(w, "action %q: %s\n", e.Action, e.Details)
	}
	fmt.Fprintln(w, v.Status)
}

// decider evaluates rules and expansion from the file alone, without a daemon.
type decider struct {
	conf   *config.Config
	tables *table.Set
	x      *expand.Expander
}

func newDecider(conf *config.Config) (*decider, error) {
	tables, err := table.OpenSet(conf.Tables, table.Options{Delim: conf.SMTP.SubAddrDelim, Accounts: systemAccount})
	if err != nil {
		return nil, err
	}
	d := &decider{conf: conf, tables: tables}
	// The daemon is meant, whoever asks.
	daemon := expand.User{Name: ctl.DaemonUser}
	if u, err := (hostSystem{}).User(context.Background(), ctl.DaemonUser); err == nil {
		daemon = u
	}
	d.x = &expand.Expander{Config: conf, Tables: tables, System: hostSystem{}, Now: time.Now, Daemon: daemon}
	return d, nil
}

func (d *decider) close() { _ = d.tables.Close() }

func (d *decider) decide(ctx context.Context, q *expand.Request) (*verdict, *expand.Trace) {
	trace := &expand.Trace{}
	r := d.x.Expand(ctx, q, trace)
	st := r.Status
	if st.OK() {
		st.Text = "accepted"
	}
	d.nameValues(trace)
	v := &verdict{Accepted: r.Status.OK(), Status: st.String(), Steps: trace.Steps}
	if r.Rule != nil {
		v.Rule, v.Action, v.refused = ruleset.Where(r.Rule), r.Rule.Action, r.Rule.Reject
	}
	for _, n := range r.Notes {
		v.Notes = append(v.Notes, n.Text)
	}
	for i := range r.Envelopes {
		v.Envelopes = append(v.Envelopes, d.destination(ctx, &r.Envelopes[i]))
	}
	return v, trace
}

// inlineTable is how a trace names a table that is written where it is used.
var inlineTable = regexp.MustCompile(`<dynamic:\d+>`)

// nameValues shows the values of tables without a name.
func (d *decider) nameValues(trace *expand.Trace) {
	show := func(s *string) {
		*s = inlineTable.ReplaceAllStringFunc(*s, func(name string) string { return parser.TableText(d.conf, name) })
	}
	for i := range trace.Steps {
		step := &trace.Steps[i]
		show(&step.Text)
		for j := range step.Rules {
			show(&step.Rules[j].Rule)
			show(&step.Rules[j].Clause)
		}
	}
}

func (d *decider) destination(ctx context.Context, e *mail.Envelope) destination {
	a := d.conf.Actions[e.Dispatcher]
	to := destination{Action: e.Dispatcher, Method: string(a.Method), To: e.Dest.String(), User: e.User, Exec: e.Exec}
	if a.Method == config.MethodRelay {
		to.Details = "relay " + to.To + " " + d.route(a.Relay, e.Dest.Domain)
		return to
	}
	v := d.delivery(ctx, a, e)
	where, err := v.Destination("")
	if err != nil {
		where = "nowhere: " + err.Error()
	}
	to.Details = fmt.Sprintf("%s %s for %s as %s", v.Method, where, to.To, e.User)
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
		value, err := d.tables.Lookup(ctx, a.Userbase, table.Userinfo, name)
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
func (d *decider) route(r *config.Relay, domain string) string {
	switch {
	case r.Host != "":
		if t := d.conf.Tables[r.Host]; t != nil && len(t.List) == 1 {
			return "via " + t.List[0]
		}
		return "via a host of table " + r.Host
	case r.Domain != "":
		if url, err := d.tables.Lookup(context.Background(), r.Domain, table.Relayhost, strings.ToLower(domain)); err == nil {
			return "via " + url
		}
		return "via table " + r.Domain
	}
	return "by the MX of " + domain
}

// parseFacts reads name=value words.
func parseFacts(conf *config.Config, words []string) (*expand.Request, error) {
	q := &expand.Request{Envelope: mail.Envelope{Client: "127.0.0.1", Host: "localhost", Helo: "localhost"}}
	e := &q.Envelope
	rcpt := false
	for _, w := range words {
		name, value, _ := strings.Cut(w, "=")
		switch name {
		case "client":
			if value == "local" {
				q.Local, e.Client = true, value
				break
			}
			a, err := netip.ParseAddr(strings.Trim(value, "[]"))
			if err != nil {
				return nil, fmt.Errorf("client=%s: not an address", value)
			}
			if e.Client = a.String(); a.Is6() {
				e.Client = "[" + e.Client + "]"
			}
			if !a.IsLoopback() {
				e.Host = ruleset.UnknownHost
			}
		case "rdns":
			e.Host = value
		case "helo":
			e.Helo = value
		case "from":
			e.Sender = mail.SplitAddress(strings.Trim(value, "<>"))
		case "rcpt":
			e.Rcpt, rcpt = mail.SplitAddress(strings.Trim(value, "<>")), true
		case "auth":
			e.Username = value
			e.Flags |= mail.FlagAuthenticated
		case "tag":
			e.Tag = value
		case "tls":
			q.TLS = true
		case "listener":
			if err := useListener(conf, value, e); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("unknown fact %q: want client, rdns, helo, from, rcpt, auth, tag, tls or listener", name)
		}
	}
	if !rcpt {
		return nil, errors.New("the fact rcpt=user@domain is missing")
	}
	return q, nil
}

// useListener takes the tag of the listener that was written so, or listens
// there.
func useListener(conf *config.Config, name string, e *mail.Envelope) error {
	for _, l := range conf.Listeners {
		if l.Name == name || l.Addr.String() == name {
			e.Tag = l.Tag
			return nil
		}
	}
	return fmt.Errorf("listener=%s: there is no such listener", name)
}

// cases is smtpd -n --cases: lines "facts -> action NAME" or "facts -> reject".
func cases(ctx context.Context, f *flags, conf *config.Config, stdout, stderr io.Writer) int {
	file, err := os.Open(f.cases)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer file.Close()
	d, err := newDecider(conf)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer d.close()
	sc := bufio.NewScanner(file)
	total, wrong := 0, 0
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		total++
		got, want, err := d.tryCase(ctx, line)
		switch {
		case err != nil:
			fmt.Fprintf(stderr, "%s:%d: %v\n", f.cases, n, err)
			return exitError
		case got != want:
			wrong++
			fmt.Fprintf(stdout, "%s:%d: got %s, expected %s\n", f.cases, n, got, want)
		}
	}
	if err := sc.Err(); err != nil {
		fmt.Fprintf(stderr, "smtpd: %s: %v\n", f.cases, err)
		return exitError
	}
	fmt.Fprintf(stdout, "%d cases, %d differ\n", total, wrong)
	if wrong > 0 {
		return exitRefused
	}
	return exitAccepted
}

// tryCase decides one line.
func (d *decider) tryCase(ctx context.Context, line string) (got, want string, err error) {
	facts, want, ok := strings.Cut(line, "->")
	if !ok {
		return "", "", errors.New(`expected "facts -> action NAME" or "facts -> reject"`)
	}
	want = strings.Join(strings.Fields(want), " ")
	if want != "reject" && !strings.HasPrefix(want, "action ") {
		return "", "", fmt.Errorf("%q: expected action NAME or reject", want)
	}
	q, err := parseFacts(d.conf, strings.Fields(facts))
	if err != nil {
		return "", "", err
	}
	v, _ := d.decide(ctx, q)
	switch {
	case !v.Accepted && strings.HasPrefix(v.Status, "4") && !v.refused:
		return "temporary failure (" + v.Status + ")", want, nil
	case !v.Accepted:
		return "reject", want, nil
	}
	return "action " + v.Action, strings.ReplaceAll(want, `"`, ""), nil
}

// hostSystem answers expansion from this host, with the rights of who asks.
type hostSystem struct{}

// User implements expand.System.
func (hostSystem) User(_ context.Context, name string) (expand.User, error) {
	u, err := osuser.Lookup(name)
	if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown {
		return expand.User{}, table.ErrNotFound
	}
	if err != nil {
		return expand.User{}, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return expand.User{Name: u.Username, UID: uint32(uid), GID: uint32(gid), Home: u.HomeDir}, errors.Join(err1, err2)
}

// maxForward is the size of a .forward file that the daemon still reads.
const maxForward = 4095

// Forward implements expand.System. The daemon checks owner and mode as well;
// here the file is read when it can be.
func (hostSystem) Forward(_ context.Context, u expand.User) (expand.Forward, error) {
	b, err := os.ReadFile(u.Home + "/.forward")
	if err != nil || len(b) > maxForward {
		return expand.Forward{}, nil
	}
	return expand.Forward{Present: true, Data: b}, nil
}

// Include implements expand.System.
func (hostSystem) Include(_ context.Context, path string) (string, error) {
	b, err := os.ReadFile(path)
	if len(b) > expand.MaxInclude {
		b = b[:expand.MaxInclude]
	}
	return string(b), err
}

// systemAccount answers getpwnam tables.
func systemAccount(ctx context.Context, name string) (table.Account, error) {
	u, err := hostSystem{}.User(ctx, name)
	if err != nil {
		return table.Account{}, err
	}
	return table.Account{UID: u.UID, GID: u.GID, Home: u.Home}, nil
}
