package filter

import (
	"context"
	"net/netip"
	"strings"

	"smtpd/internal/config"
)

// Facts are what a session knows of itself, as built-in rules see it.
type Facts struct {
	Host   string // reverse name of the client, or "<unknown>"
	FCrDNS string // "pass", "fail" or "error"
	Source string // address of the client, or "local"
	Helo   string
	User   string // of the login; empty: none
	Sender string
	Rcpt   string
}

// Query asks whether a table has a key; Service as the tables name it.
type Query struct{ Table, Service, Key string }

// Tables answers queries: found, which is as long, says which keys are there. An
// error means that one of them cannot be answered now.
type Tables interface {
	Check(ctx context.Context, q []Query, found []bool) error
}

// Rule is a filter that is built in: at one phase, on one condition, it decides.
type Rule struct {
	Name     string
	phase    Phase
	cond     string
	match    config.Match
	decision string
	text     string
}

// NewRule compiles a filter with a phase. ok is false for a phase that there is
// not.
func NewRule(f *config.Filter) (r *Rule, ok bool) {
	p, ok := ParsePhase(f.Phase)
	return &Rule{Name: f.Name, phase: p, cond: f.Cond, match: f.Match, decision: f.Decision, text: f.Text}, ok
}

// key is what the condition looks at, and the service of its table.
func (r *Rule) key(f *Facts) (key, service string) {
	switch r.cond {
	case "rdns":
		return f.Host, "domain"
	case "src":
		return f.Source, "netaddr"
	case "helo":
		return f.Helo, "domain"
	case "auth":
		return f.User, "string"
	case "mail-from":
		return f.Sender, "mailaddr"
	case "rcpt-to":
		return f.Rcpt, "mailaddr"
	}
	return "", ""
}

// query is the question that must be asked to know whether the condition holds.
// need is false when the facts are enough; holds is the answer then.
func (r *Rule) query(f *Facts) (q Query, need, holds bool) {
	key, service := r.key(f)
	switch {
	case r.cond == "fcrdns":
		return q, false, (f.FCrDNS == "pass") != r.match.Not
	case r.cond == "rdns" && !named(f.Host):
		return q, false, r.match.Not // no table has the name that is not there
	case r.cond == "auth" && f.User == "":
		return q, false, r.match.Not
	case r.match.Table == "":
		return q, false, !r.match.Not
	}
	if r.match.Regex {
		service = "regex"
	}
	return Query{r.match.Table, service, key}, true, false
}

// named reports a reverse name that is one: not missing, and not an address.
func named(host string) bool {
	if host == "" || strings.HasPrefix(host, "<") {
		return false
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err != nil
}

// verdict is what the rule decides when its condition holds. goOn says that the
// filters after it are asked as well.
func (r *Rule) verdict() (v Verdict, goOn bool) {
	switch r.decision {
	case "junk":
		return Verdict{Action: Junk}, false
	case "reject":
		return Verdict{Reject, r.text}.Checked(), false
	case "disconnect":
		return Verdict{Disconnect, r.text}.Checked(), false
	case "rewrite":
		return Verdict{Rewrite, r.text}.Checked(), false
	case "bypass":
		return Verdict{}, false
	}
	return Verdict{}, true
}
