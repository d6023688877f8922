package ruleset

import (
	"strconv"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// step makes the line of a trace for a rule that was tried.
func (e *evaluation) step(r *config.Rule, failed option, err error) Step {
	s := Step{Rule: r, Matched: failed == none && err == nil, Err: err}
	if failed != none {
		s.Clause = clause(r, failed)
		s.Reason = e.reason(r, failed)
	}
	return s
}

// Where is "file:line" of a rule, as the log names the one that decided.
func Where(r *config.Rule) string { return r.Pos.File + ":" + strconv.Itoa(r.Pos.Line) }

// Text is a rule as the modern language writes it.
func Text(r *config.Rule) string {
	words := []string{"match"}
	for _, o := range []option{optTag, optFrom, optFor, optHelo, optAuth, optTLS, optMailFrom, optRcptTo} {
		if c := clause(r, o); c != "" {
			words = append(words, c)
		}
	}
	if r.Reject {
		words = append(words, "reject")
		if r.Reply != "" {
			words = append(words, `"`+r.Reply+`"`)
		}
	} else {
		words = append(words, "action", quote(r.Action))
	}
	return strings.Join(words, " ")
}

// clause is one option of a rule as the modern language writes it; "": the rule
// does not have it.
func clause(r *config.Rule, o option) string {
	switch o {
	case optTag:
		return clauseOf("tag", r.Tag)
	case optFrom:
		return clauseOf("from "+string(r.From.Kind), &r.From.Match)
	case optFor:
		return clauseOf("for "+string(r.For.Kind), &r.For.Match)
	case optHelo:
		return clauseOf("helo", r.HELO)
	case optAuth:
		return clauseOf("auth", r.Auth)
	case optTLS:
		return clauseOf("tls", r.TLS)
	case optMailFrom:
		return clauseOf("mail-from", r.MailFrom)
	case optRcptTo:
		return clauseOf("rcpt-to", r.RcptTo)
	}
	return ""
}

func clauseOf(word string, m *config.Match) string {
	if m == nil {
		return ""
	}
	if m.Not {
		word = "!" + word
	}
	if m.Regex {
		word += " regex"
	}
	if m.Table != "" {
		word += " <" + strings.Trim(m.Table, "<>") + ">"
	}
	return word
}

// reason says what the option that failed was compared with.
func (e *evaluation) reason(r *config.Rule, o option) string {
	f := e.facts
	switch o {
	case optTag:
		return "tag is " + quote(f.Tag)
	case optFrom:
		switch {
		case f.Internal:
			return "an address from an expansion counts as local"
		case r.From.Kind == config.FromRDNS && (f.Host == "" || f.Host == UnknownHost):
			return "the client has no reverse name"
		case r.From.Kind == config.FromRDNS:
			return "client is " + mail.Clean(f.Host, 255)
		case f.Socket:
			return "came through the socket"
		}
		return "client is " + mail.Clean(f.Client, 255)
	case optFor:
		return "domain is " + mail.Clean(f.Dest.Domain, 255)
	case optHelo:
		return "helo is " + quote(f.Helo)
	case optAuth:
		if !f.Authenticated {
			return "not authenticated"
		}
		return "user is " + quote(f.Username)
	case optTLS:
		if f.TLS {
			return "session uses tls"
		}
		return "session does not use tls"
	case optMailFrom:
		return "sender is <" + mail.Clean(f.Sender.String(), 512) + ">"
	}
	return "recipient is <" + mail.Clean(f.Dest.String(), 512) + ">"
}

// quote puts text from outside into quotes, without what would end them.
func quote(s string) string {
	return `"` + strings.ReplaceAll(mail.Clean(s, 255), `"`, "'") + `"`
}
