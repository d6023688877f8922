package parser

import (
	"fmt"
	"strconv"
	"strings"

	"smtpd/internal/config"
)

// action writes the action of an old rule, unless the rule has one with the
// same tables already, and gives its name. names are those of the rule so far;
// nil: it needs but one.
func (t *translator) action(p *oldParts, names map[string]string, alias, virtual *tableExpr,
	suffix string) (string, []node, bool) {
	if alias == nil {
		alias = p.look["alias"]
	}
	if virtual == nil {
		virtual = p.look["virtual"]
	}
	if alias == nil && virtual == nil && t.aliases != nil && t.localDelivery(p) {
		alias = &tableExpr{pos: p.st.pos, ref: t.aliases}
	}
	id := ""
	if names != nil {
		id = suffix + "|" + refName(alias) + "|" + refName(virtual)
		if name := names[id]; name != "" {
			return name, nil, true
		}
	}
	name := t.actionName(p.st.pos, suffix)
	a := &actionStmt{name: word(name, p.st.pos), ttl: p.ttl}
	nodes := []node{a}
	if t.relays(p) {
		before, ok := t.relay(p, a)
		if !ok {
			return "", nil, false
		}
		nodes = append(before, a)
	} else if !t.local(p, a, alias, virtual) {
		return "", nil, false
	}
	if names != nil {
		names[id] = name
	}
	return name, nodes, true
}

func refName(e *tableExpr) string {
	if e == nil || e.ref == nil {
		return ""
	}
	return e.ref.text
}

// local writes a delivery on this host.
func (t *translator) local(p *oldParts, a *actionStmt, alias, virtual *tableExpr) bool {
	at := p.st.pos
	switch how := p.r.how; {
	case how == nil && p.only:
		a.method = key("forward-only", at)
	case how == nil:
		a.method = key("expand-only", at)
	default:
		a.method = how.method
		if a.arg = how.arg; a.arg != nil {
			if how.method.text == "lmtp" && !validLMTP(a.arg.text) {
				return t.errorf(a.arg.pos, "invalid lmtp destination: %s, expected host:port or /path/of/socket", a.arg.text)
			}
			a.arg = t.oldFormat(a.arg)
		}
		for _, o := range how.opts {
			same := *o
			if o.key == "as" {
				if same.key = "user"; o.arg.text == "" {
					return t.errorf(o.pos, "invalid empty parameter to AS")
				}
			}
			if o.key == "user" && !t.o.System.HasUser(o.arg.text) {
				return t.errorf(o.arg.pos, "user '%s' does not exist%s", o.arg.text,
					t.diags.suggestion(o.arg.text, t.o.System.Users()))
			}
			a.opts = append(a.opts, &same)
		}
	}
	for _, l := range []struct {
		key string
		e   *tableExpr
	}{{"alias", alias}, {"virtual", virtual}, {"userbase", p.look["userbase"]}} {
		if l.e != nil {
			a.opts = append(a.opts, &option{pos: at, key: l.key, table: l.e})
		}
	}
	return true
}

// relay writes a relay, and gives the statements that must stand before it.
func (t *translator) relay(p *oldParts, a *actionStmt) ([]node, bool) {
	how := p.r.how
	a.method = key("relay", p.st.pos)
	w := &relayWriter{t: t, a: a, at: p.st.pos, given: map[string]*option{}}
	for _, o := range how.opts {
		if w.given[o.key] != nil {
			return nil, t.errorf(o.pos, "%s specified multiple times", o.key)
		}
		w.given[o.key] = o
	}
	ok := true
	switch {
	case how.method.text == "relay":
		w.byMX()
	case w.isHostForm(how.arg.text):
		ok = w.viaHost(how.arg)
	default:
		ok = w.viaURL(how.arg)
	}
	if !ok || !w.common() {
		return nil, false
	}
	return w.before, true
}

// relayWriter gathers the options of a relay action.
type relayWriter struct {
	t      *translator
	a      *actionStmt
	at     pos
	given  map[string]*option
	before []node
}

func (w *relayWriter) add(key string, arg *token, e *tableExpr, sub string) {
	w.a.opts = append(w.a.opts, &option{pos: w.at, key: key, arg: arg, table: e, sub: sub})
}

// byMX is relay without via.
func (w *relayWriter) byMX() {
	if b := w.given["backup"]; b != nil {
		w.backup(b.arg)
	}
	if o := w.given["tls"]; o != nil {
		w.tls(o.sub == "verify")
	}
}

func (w *relayWriter) backup(mx *token) {
	if mx == nil {
		w.add("backup", nil, nil, "")
		return
	}
	w.add("backup", mx, nil, "mx")
}

func (w *relayWriter) tls(verify bool) {
	sub := "no-verify"
	if verify {
		sub = ""
	}
	w.add("tls", nil, nil, sub)
}

// isHostForm reports whether relay via is written as up to 5.1: a host with
// words behind it, rather than a URL.
func (w *relayWriter) isHostForm(s string) bool {
	for _, k := range []string{"port", "tls", "smtps", "ssl", "certificate", "enable"} {
		if w.given[k] != nil {
			return !strings.Contains(s, "://")
		}
	}
	return w.t.in.dialect.kind == mapForm && !strings.Contains(s, "://")
}

// viaHost is relay via HOST port ... tls ... as 4.6 to 5.1 had it.
func (w *relayWriter) viaHost(host *token) bool {
	t := w.t
	port, ok := "", true
	if o := w.given["port"]; o != nil {
		if port, ok = t.portNumber(o.arg); !ok {
			return false
		}
	}
	tls, smtps, ssl := w.given["tls"], w.given["smtps"], w.given["ssl"]
	scheme := "smtp"
	switch {
	case smtps != nil:
		scheme = "smtps"
	case tls != nil:
		scheme = "smtp+tls"
	case ssl != nil:
		scheme = "smtp+tls"
		if port == "" || port == "465" {
			scheme = "smtps"
		}
		t.diags.warnf(ssl.pos, "ssl tried SMTPS and then STARTTLS, read as %s", scheme)
	}
	auth := w.given["auth"]
	if scheme == "smtp" && (auth != nil || w.given["enable"] != nil || w.given["certificate"] != nil) {
		return t.errorf(w.at, "must specify tls, smtps, or ssl")
	}
	if w.given["enable"] != nil {
		if t.maps["secrets"] == nil && !t.tables["secrets"] {
			return t.errorf(w.given["enable"].pos, "enable auth needs a map named secrets")
		}
		auth = &option{pos: w.at, table: &tableExpr{pos: w.at, ref: key("secrets", w.at)}}
	}
	url := scheme + "://"
	if auth != nil {
		if !t.mapRef(auth.table) {
			return false
		}
		url += host.text + "@"
	}
	url += host.text
	if port != "" {
		url += ":" + port
	}
	if !w.host(url, host) {
		return false
	}
	if scheme != "smtp" {
		w.tls(false)
	}
	if auth != nil {
		w.add("auth", nil, auth.table, "")
	}
	return true
}

// portNumber reads the port of a relay.
func (t *translator) portNumber(p *token) (string, bool) {
	if n, ok := builtinPorts[p.text]; ok {
		return strconv.Itoa(n), true
	}
	if n, err := strconv.ParseUint(p.text, 10, 16); err == nil && n > 0 {
		return p.text, true
	}
	return "", t.errorf(p.pos, "invalid port: %s", p.text)
}

// host adds the destination, which must be right in its present form.
func (w *relayWriter) host(url string, written *token) bool {
	if _, err := config.ParseRelayURL(url); err != nil {
		return w.t.errorf(written.pos, "invalid url: %s: %v", written.text, err)
	}
	w.add("host", nil, &tableExpr{pos: written.pos, one: word(url, written.pos)}, "")
	return true
}

// oldScheme is what a scheme of 5.2 to 6.3 is today.
type oldScheme struct {
	now    string
	tls    bool // asked for TLS
	auth   bool
	backup bool
	either bool // SMTPS or STARTTLS, as the port tells
}

var oldSchemes = map[string]oldScheme{
	"": {now: "smtp"}, "smtp+tls": {now: "smtp"}, "smtp": {now: "smtp+notls"},
	"tls": {now: "smtp+tls", tls: true}, "tls+auth": {now: "smtp+tls", tls: true, auth: true},
	"smtps": {now: "smtps", tls: true}, "smtps+auth": {now: "smtps", tls: true, auth: true},
	"secure": {tls: true, either: true}, "secure+auth": {tls: true, auth: true, either: true},
	"ssl": {tls: true, either: true}, "ssl+auth": {tls: true, auth: true, either: true},
	"lmtp": {now: "lmtp"}, "backup": {backup: true}, "tls+backup": {tls: true, backup: true},
}

// viaURL is relay via URL as 5.2 to 6.3 had it. Its schemes have other
// meanings than those of today.
func (w *relayWriter) viaURL(u *token) bool {
	t := w.t
	scheme, rest := "", u.text
	if s, after, ok := strings.Cut(u.text, "://"); ok {
		scheme, rest = strings.ToLower(s), after
	}
	old, known := oldSchemes[scheme]
	if !known {
		return t.errorf(u.pos, "invalid url: %s: unknown scheme %q%s", u.text, scheme, t.diags.suggestion(scheme, keys(oldSchemes)))
	}
	label, host := "", rest
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		label, host = rest[:i], rest[i+1:]
	}
	switch {
	case old.auth && label == "":
		return t.errorf(u.pos, "invalid url: %s: %s needs a label, as in %s://LABEL@%s", u.text, scheme, scheme, host)
	case label != "" && !old.auth:
		return t.errorf(u.pos, "invalid url: %s: a label needs a scheme with auth, such as tls+auth", u.text)
	case old.auth && w.given["auth"] == nil:
		return t.errorf(u.pos, "auth without auth table: add auth <table>")
	case w.given["verify"] != nil && !old.tls:
		return t.errorf(w.given["verify"].pos, "cannot \"verify\" with insecure protocol")
	case old.backup:
		if _, err := config.ParseRelayURL(host); err != nil {
			return t.errorf(u.pos, "invalid url: %s: %v", u.text, err)
		}
		w.backup(word(host, u.pos))
		if old.tls {
			w.tls(w.given["verify"] != nil)
		}
		return true
	}
	if old.either {
		old.now = "smtps"
		if i := strings.LastIndexByte(host, ':'); i >= 0 && host[i+1:] != "465" && !strings.HasSuffix(host, "]") {
			old.now = "smtp+tls"
		}
		t.diags.warnf(u.pos, "%s tried SMTPS and then STARTTLS, read as %s", scheme, old.now)
	}
	if label != "" {
		host = label + "@" + host
	}
	if !w.host(old.now+"://"+host, u) {
		return false
	}
	if old.tls && w.given["verify"] == nil {
		w.tls(false)
	}
	if o := w.given["auth"]; o != nil && old.auth {
		w.add("auth", nil, o.table, "")
	} else if o != nil {
		t.diags.warnf(o.pos, "auth has no meaning with %s: no credentials are sent", u.text)
	}
	return true
}

// common adds what relays of all forms can have.
func (w *relayWriter) common() bool {
	t := w.t
	if o := w.given["as"]; o != nil {
		from := o.arg
		switch {
		case from.text == "" || from.text == "@":
			return t.errorf(o.pos, "invalid empty parameter to AS")
		case !strings.Contains(from.text, "@"):
			from = word(from.text+"@"+t.serverName(), from.pos)
		}
		w.add("mail-from", from, nil, "")
	}
	if o := w.given["source"]; o != nil {
		w.add("src", nil, o.table, "")
	}
	switch o := w.given["hostname"]; {
	case o != nil:
		w.add("helo", o.arg, nil, "")
	case t.hostname != nil:
		w.add("helo", t.hostname, nil, "")
	}
	for _, k := range []string{"hostnames", "helo"} {
		if o := w.given[k]; o != nil {
			w.add("helo-src", nil, o.table, "")
			break
		}
	}
	if o := w.given["certificate"]; o != nil {
		tmp := &listenStmt{}
		nodes, ok := t.certFiles(tmp, []string{o.arg.text}, o.pos)
		if !ok {
			return false
		}
		w.before = append(w.before, nodes...)
		w.a.opts = append(w.a.opts, tmp.opts...)
	}
	if o := w.given["pki"]; o != nil {
		w.add("pki", o.arg, nil, "")
		if ca := t.pkiCA[strings.ToLower(o.arg.text)]; ca != "" && w.given["ca"] == nil {
			w.add("ca", word(ca, o.pos), nil, "")
		}
	}
	if o := w.given["ca"]; o != nil {
		w.add("ca", o.arg, nil, "")
	}
	return true
}

// oldFormats are the short forms of %{} up to 5.2.
var oldFormats = map[byte]string{
	'a': "rcpt.user", 'u': "user.username", 'd': "rcpt.domain", 'U': "sender.user",
	'D': "sender.domain",
}

// oldFormat writes the short forms of %{} at length, and finds the home of a
// user that a path begins with.
func (t *translator) oldFormat(tok *token) *token {
	short := t.in.dialect.kind == mapForm || t.in.dialect.plain
	s := tok.text
	var b strings.Builder
	if name, rest, ok := strings.Cut(s, "/"); short && ok && len(name) > 1 && name[0] == '~' {
		if home := t.o.System.Home(name[1:]); home != "" {
			s = home + "/" + rest
		} else {
			t.diags.warnf(tok.pos, "the home of user %q is not known", name[1:])
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		digit, j := "", i+1
		if isDigit(int(s[j])) && j+1 < len(s) {
			digit, j = "["+s[j:j+1]+"]", j+1
		}
		name := oldFormats[s[j]]
		switch {
		case s[i+1] == '{' || s[i+1] == '%':
			b.WriteString(s[i : i+2])
			i++
		case name != "" && short:
			fmt.Fprintf(&b, "%%{%s%s}", name, digit)
			i = j
		default:
			t.diags.warnf(tok.pos, "%%%c is left as it is", rune(s[i+1]))
			b.WriteByte('%')
		}
	}
	if b.String() == tok.text {
		return tok
	}
	return word(b.String(), tok.pos)
}
