package parser

import (
	"fmt"
	"io"
	"strings"

	"smtpd/internal/config"
)

// Describe writes who the server is and what it understood: names and addresses
// that count as local, listeners, actions, and the rules, numbered. It shows no
// secret. Errors of w are not reported.
func Describe(w io.Writer, c *config.Config) {
	fmt.Fprintf(w, "server name: %s\n", c.ServerName)
	fmt.Fprintf(w, "local domains: %s\n", strings.Join(c.LocalNames, ", "))
	addrs := make([]string, len(c.LocalAddrs))
	for i, a := range c.LocalAddrs {
		addrs[i] = a.String()
	}
	fmt.Fprintf(w, "local addresses: %s\n", strings.Join(addrs, ", "))
	if len(c.Resolvers) > 0 {
		fmt.Fprintf(w, "resolvers: %s\n", strings.Join(c.Resolvers, ", "))
	}
	for _, l := range c.Listeners {
		fmt.Fprintf(w, "listen %s%s\n", l.Addr, listenerFacts(l))
	}
	fmt.Fprintf(w, "listen socket%s\n", listenerFacts(c.Socket))
	for _, name := range keys(c.Actions) {
		fmt.Fprintf(w, "action %q: %s\n", name, actionText(c, c.Actions[name]))
	}
	for _, r := range c.Rules {
		fmt.Fprintf(w, "%d. %s:%d: %s\n", r.Number, r.Pos.File, r.Pos.Line, ruleText(c, r))
	}
}

func listenerFacts(l *config.Listener) string {
	var b strings.Builder
	fact := func(on bool, format string, args ...any) {
		if on {
			fmt.Fprintf(&b, " "+format, args...)
		}
	}
	fact(l.TLS != config.TLSNone, "%s", l.TLS)
	fact(l.VerifyPeer, "verify")
	fact(len(l.PKI) > 0, "pki %s", strings.Join(l.PKI, ","))
	fact(l.CA != "", "ca %s", l.CA)
	fact(l.Auth && l.AuthRequired, "auth")
	fact(l.Auth && !l.AuthRequired, "auth-optional")
	fact(l.AuthTable != "", "<%s>", l.AuthTable)
	fact(l.Tag != "", "tag %s", l.Tag)
	fact(l.Hostname != "", "hostname %s", l.Hostname)
	fact(l.Hostnames != "", "hostnames <%s>", l.Hostnames)
	fact(l.Senders != "", "senders <%s>", l.Senders)
	fact(l.Masquerade, "masquerade")
	fact(len(l.Filter) > 0, "filter %s", strings.Join(l.Filter, ","))
	fact(l.MaskSource, "mask-src")
	fact(l.ReceivedAuth, "received-auth")
	fact(!l.DSN, "no-dsn")
	fact(l.ProxyV2, "proxy-v2")
	if len(l.ProxyFrom) > 0 {
		fact(true, "from %v", l.ProxyFrom)
	}
	fact(l.Repair, "repair-newlines")
	fact(l.LogConversation, "log-conversation")
	fact(len(l.Without) > 0, "without %s", strings.Join(l.Without, ","))
	return b.String()
}

func actionText(c *config.Config, a *config.Action) string {
	var b strings.Builder
	b.WriteString(string(a.Method))
	add := func(word, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s %s", word, value)
		}
	}
	table := func(word, name string) {
		if name != "" {
			add(word, c.TableText(name))
		}
	}
	for _, s := range []string{a.Path, a.Dest, a.Command} {
		if s != "" {
			fmt.Fprintf(&b, " %q", s)
		}
	}
	if a.Junk {
		b.WriteString(" junk")
	}
	if a.RcptTo {
		b.WriteString(" rcpt-to")
	}
	if a.VerifyRcpt {
		b.WriteString(" verify-rcpt")
	}
	if a.OriginalTo {
		b.WriteString(" x-original-to")
	}
	add("user", a.User)
	table("alias", a.Alias)
	table("virtual", a.Virtual)
	table("userbase", a.Userbase)
	add("wrapper", a.Wrapper)
	if r := a.Relay; r != nil {
		table("host", r.Host)
		table("domain", r.Domain)
		table("by-sender", r.Sender)
		if r.Backup {
			b.WriteString(" backup")
			add("mx", r.BackupMX)
		}
		if r.TLS {
			b.WriteString(" tls")
		}
		if r.NoVerify {
			b.WriteString(" no-verify")
		}
		table("auth", r.Auth)
		table("src", r.Src)
		add("helo", r.Helo)
		table("helo-src", r.HeloSrc)
		add("mail-from", r.MailFrom)
		add("pki", r.PKI)
		add("ca", r.CA)
		add("prefer", r.Prefer)
		if r.Hold != nil {
			b.WriteString(" hold")
			for i, w := range r.Hold.Windows {
				b.WriteString(map[bool]string{true: ",", false: ""}[i > 0] + fmt.Sprintf(" %q", w))
			}
		}
		if r.SRS {
			b.WriteString(" srs")
		}
		add("filter", strings.Join(r.Filter, ","))
	}
	if r := a.Retry; r.Base != 0 {
		add("retry", r.Base.String()+" quadratic")
	} else if len(r.Delays) > 0 {
		add("retry", strings.Trim(fmt.Sprint(r.Delays), "[]"))
	}
	if a.TTL != 0 {
		add("ttl", a.TTL.String())
	}
	return b.String()
}

func ruleText(c *config.Config, r *config.Rule) string {
	b := strings.Builder{}
	b.WriteString("match")
	add := func(word string, m *config.Match) {
		if m == nil {
			return
		}
		b.WriteByte(' ')
		if m.Not {
			b.WriteByte('!')
		}
		b.WriteString(word)
		if m.Regex {
			b.WriteString(" regex")
		}
		if m.Table != "" {
			b.WriteString(" " + c.TableText(m.Table))
		}
	}
	add("tag", r.Tag)
	add("from "+string(r.From.Kind), &r.From.Match)
	add("for "+string(r.For.Kind), &r.For.Match)
	add("helo", r.HELO)
	add("auth", r.Auth)
	add("tls", r.TLS)
	add("mail-from", r.MailFrom)
	add("rcpt-to", r.RcptTo)
	if r.Reject {
		b.WriteString(" reject")
		if r.Reply != "" {
			fmt.Fprintf(&b, " %q", r.Reply)
		}
		return b.String()
	}
	return fmt.Sprintf("%s action %q", b.String(), r.Action)
}
