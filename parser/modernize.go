package parser

import (
	"slices"
	"strconv"
	"strings"
)

// translator turns the tree of an older file into one of the present language.
// What the present language says in the same words is passed on untouched.
type translator struct {
	o     *Options
	in    *input
	diags *diagList

	out   []*stmt
	carry []string // comments of statements that leave nothing

	hostname   *token              // of 4.6 to 5.2
	offersAuth bool                // some listener does
	onTags     map[string]bool     // words after accept on
	maps       map[string]*mapStmt // by name
	tables     map[string]bool
	unread     map[string]bool // maps and tables whose statements could not be read
	late       []*stmt         // maps below the first rule
	hoisted    bool
	pkis       map[string]bool   // lower-case names
	pkiCA      map[string]string // pki name -> ca name
	actions    map[string]int    // how many are called so

	aliases *token // map for all local deliveries, as 4.6 had it
	virtual *token
}

// translate gives the tree in the present language, and says once that the
// file is not.
func translate(o *Options, in *input) *tree {
	t := &translator{
		o: o, in: in, diags: in.diags,
		onTags: map[string]bool{}, maps: map[string]*mapStmt{}, tables: map[string]bool{}, unread: map[string]bool{},
		pkis: map[string]bool{}, pkiCA: map[string]string{}, actions: map[string]int{},
	}
	in.diags.warnf(pos{0, 1}, "written in the language of OpenSMTPD %s; run smtpd -n --modern -f %s for the present form",
		in.dialect.kind.releases(), o.File)
	t.survey()
	for _, st := range in.written.stmts {
		out, said := len(t.out), len(t.diags.list)
		t.statement(st)
		t.show(st, t.out[out:], len(t.diags.list) > said)
	}
	return &tree{stmts: t.out, tail: append(t.carry, in.written.tail...)}
}

// show prints what has become of a statement, where its meaning was guessed or
// changed; asked for more words, wherever its form has changed.
func (t *translator) show(st *stmt, now []*stmt, guessed bool) {
	if len(now) == 0 || !t.o.CheckOnly || !guessed && !t.o.Verbose {
		return
	}
	bare := make([]*stmt, 0, len(now))
	for _, s := range now {
		if _, bad := s.node.(*badStmt); bad || holdsSecret(s.node) {
			return
		}
		bare = append(bare, &stmt{node: s.node})
	}
	if was := printTree(&tree{stmts: []*stmt{{node: st.node}}}); was != printTree(&tree{stmts: bare}) {
		t.diags.warnf(st.pos, "in the present language: %s", onOneLine(bare))
	}
}

// onOneLine prints statements with slashes between.
func onOneLine(stmts []*stmt) string {
	text := strings.TrimSuffix(printTree(&tree{stmts: stmts}), "\n")
	return strings.NewReplacer("{\n\t", "{ ", ",\n\t", ", ", "\n}", " }", "\n", " / ").Replace(text)
}

// holdsSecret reports what is not to be shown: keys, and passwords written in
// the configuration.
func holdsSecret(n node) bool {
	switch n := n.(type) {
	case *settingStmt:
		return n.key == "queue encryption" || strings.HasPrefix(n.key, "srs key")
	case *tableStmt:
		return n.values != nil
	case *actionStmt:
		return slices.ContainsFunc(n.opts, func(o *option) bool {
			return o.key == "auth" && o.table != nil && o.table.values != nil
		})
	}
	return false
}

// survey finds out what statements further down decide.
func (t *translator) survey() {
	aliasUsed, virtualUsed := false, false
	rules := false
	for _, st := range t.in.written.stmts {
		switch n := st.node.(type) {
		case *listenStmt:
			for _, o := range n.opts {
				t.offersAuth = t.offersAuth || o.key == "auth" || o.key == "auth-optional" || o.key == "enable"
			}
		case *settingStmt:
			if n.key == "hostname" {
				t.hostname, t.in.hostname = n.args[0], n.args[0]
			}
		case *pkiStmt:
			t.pkis[strings.ToLower(n.name.text)] = true
			for _, o := range n.opts {
				if o.key == "ca" {
					t.pkiCA[strings.ToLower(n.name.text)] = n.name.text
				}
			}
		case *badStmt:
			if n.first == "table" || n.first == "map" {
				t.unread[n.name] = true
			}
		case *tableStmt:
			t.tables[n.name.text] = true
		case *mapStmt:
			if t.maps[n.name.text] == nil {
				t.maps[n.name.text] = n
				if rules {
					t.late = append(t.late, st)
				}
			}
		case *ruleStmt:
			rules = true
			for _, o := range n.opts {
				aliasUsed = aliasUsed || o.alias != nil || o.key == "alias"
				virtualUsed = virtualUsed || o.sub == "virtual" || o.key == "virtual"
				if o.key == "on" {
					t.onTags[o.arg.text] = true
				}
			}
		}
	}
	if t.in.dialect.kind == mapForm {
		t.implicitMaps(aliasUsed, virtualUsed)
	}
}

// implicitMaps finds the maps that 4.6 used without being told to.
func (t *translator) implicitMaps(aliasUsed, virtualUsed bool) {
	if m := t.maps["aliases"]; m != nil && !aliasUsed {
		t.aliases = m.name
	}
	if m := t.maps["virtual"]; m != nil && !virtualUsed {
		t.virtual = m.name
	}
}

// emit adds statements that stand for an old one. Its comments go with the
// first of them.
func (t *translator) emit(st *stmt, nodes ...node) {
	if len(nodes) == 0 {
		t.carry = append(t.carry, st.lead...)
		return
	}
	for i, n := range nodes {
		s := &stmt{pos: st.pos, node: n}
		if i == 0 {
			s.lead = tidy(append(t.carry, st.lead...))
			t.carry = nil
		}
		if i == len(nodes)-1 {
			s.trail = st.trail
		}
		t.out = append(t.out, s)
	}
}

func (t *translator) statement(st *stmt) {
	switch n := st.node.(type) {
	case *settingStmt:
		t.setting(st, n)
	case *pkiStmt:
		t.pki(st, n)
	case *mapStmt:
		if t.hoisted && t.maps[n.name.text] == n {
			t.emit(st) // one of the late ones, which stand above the first rule
		} else {
			t.mapStmt(st, n)
		}
	case *listenStmt:
		t.listen(st, n)
	case *ruleStmt:
		if !t.hoisted {
			t.hoisted = true
			for _, m := range t.late {
				t.mapStmt(&stmt{pos: m.pos}, m.node.(*mapStmt))
			}
		}
		t.rule(st, n)
	default:
		t.emit(st, n)
	}
}

// word makes a token of the translation, at the line it translates.
func word(text string, at pos) *token { return &token{text: text, pos: at, kind: tokString} }

// key makes a key word of the translation.
func key(text string, at pos) *token { return &token{text: text, pos: at, kind: tokWord} }

// sameSetting are the directives that only changed their words.
var sameSetting = map[string]string{
	"bounce-warn": "bounce warn-interval", "expire": "queue ttl",
	"subaddressing-delimiter": "smtp sub-addr-delim",
	"max-message-size":        "smtp max-message-size", "size": "smtp max-message-size",
	"ciphers": "smtp ciphers", "max-mta-deferred": "mta max-deferred",
	"limit session": "smtp limit", "limit mda": "mda limit", "limit mta": "mta limit",
	"limit scheduler": "scheduler limit",
}

func (t *translator) setting(st *stmt, n *settingStmt) {
	switch {
	case n.key == "hostname":
		if !validName(n.args[0].text) {
			t.diags.errorf(n.args[0].pos, "hostname %q is not a host name", n.args[0].text)
		}
		if name := n.args[0]; !strings.EqualFold(name.text, t.o.server) {
			t.diags.warnf(name.pos, "hostname is no word of the present language: to go on as %s in all, write it into %s", name.text, t.o.Mailname)
		}
		t.admd(st, n.args[0])
		return
	case n.key == "queue interval":
		t.interval(st, n)
		return
	case n.key == "bounce-warn" && len(n.args) == 0:
		t.diags.warnf(st.pos, "bounce-warn without delays turned warnings off, the present language cannot: the default holds")
		t.emit(st)
		return
	case n.key == "expire" && !t.expire(n.args[0]):
		t.emit(st)
		return
	}
	same := *n
	if k, ok := sameSetting[n.key]; ok {
		same.key = k
	}
	t.emit(st, &same)
}

// admd says what of hostname is not said at listeners and relays.
func (t *translator) admd(st *stmt, name *token) {
	for _, s := range t.in.written.stmts {
		if other, ok := s.node.(*settingStmt); ok && other.key == "admd" {
			t.emit(st)
			return
		}
	}
	t.emit(st, setting("admd", name))
}

// expire checks a delay where the old language had one.
func (t *translator) expire(d *token) bool {
	if _, ok := parseDelay(d.text); !ok {
		t.diags.errorf(d.pos, "invalid expire delay: %s, expected a number and one of s, m, h, d, such as 4d", d.text)
		return false
	}
	return true
}

// interval drops queue interval, which has no equal: retries are planned for
// each message.
func (t *translator) interval(st *stmt, n *settingStmt) {
	text := n.args[0].text
	if len(n.args) == 2 {
		text += n.args[1].text
	}
	ok := n.args[0].kind == tokNumber && len(n.args) == 1 && n.args[0].number() > 0
	if _, delay := parseDelay(text); !ok && !delay {
		t.diags.errorf(n.args[0].pos, "invalid interval: %s", text)
	}
	t.diags.warnf(st.pos, "queue interval has no meaning any more: retries are planned for each message")
	t.emit(st)
}

// pki splits off what is no longer said with it: the CA.
func (t *translator) pki(st *stmt, n *pkiStmt) {
	same := &pkiStmt{name: n.name}
	var nodes []node
	for _, o := range n.opts {
		switch o.key {
		case "ca":
			nodes = append(nodes, &caStmt{name: n.name, cert: o.arg})
		case "dhparams":
			t.diags.warnf(o.pos, "dhparams is not read any more, dhe auto takes its place")
			same.opts = append(same.opts, &option{pos: o.pos, key: "dhe", arg: key("auto", o.pos)})
		default:
			same.opts = append(same.opts, o)
		}
	}
	if len(same.opts) > 0 || len(nodes) == 0 {
		nodes = append([]node{same}, nodes...)
	}
	t.emit(st, nodes...)
}

// mapStmt turns a map into a table.
func (t *translator) mapStmt(st *stmt, n *mapStmt) {
	if t.maps[n.name.text] != n || t.tables[n.name.text] {
		t.diags.errorf(n.name.pos, "map %s defined twice", n.name.text)
		t.emit(st)
		return
	}
	var backend string
	for _, o := range n.opts {
		if o.key != "source" {
			continue // type and config said nothing that the source does not
		}
		path := ""
		if o.arg != nil {
			path = o.arg.text
		}
		switch {
		case o.sub == "db":
			backend = "db:" + path
		case o.sub == "plain" || o.sub == "file":
			backend = "file:" + path
		case path == "" && strings.HasPrefix(o.sub, "/"):
			backend, path = "file:"+o.sub, o.sub
		default:
			t.diags.errorf(o.pos, "map %s: source %s is not supported%s, only db, plain and file are", n.name.text, o.sub,
				suggestion(o.sub, []string{"db", "plain", "file"}))
			t.broken(st, "table", n.name.text)
			return
		}
		if path == "" {
			t.diags.errorf(o.pos, "map %s: source %s needs a path", n.name.text, o.sub)
			t.broken(st, "table", n.name.text)
			return
		}
	}
	if backend == "" {
		t.diags.errorf(st.pos, "map %s has no source defined", n.name.text)
		t.broken(st, "table", n.name.text)
		return
	}
	t.emit(st, &tableStmt{name: n.name, backend: key(backend, st.pos)})
}

// broken keeps a name declared whose statement was refused.
func (t *translator) broken(st *stmt, first, name string) {
	t.emit(st, &badStmt{first: first, name: name})
}

// oldListener is what decides how a listener is translated.
type oldListener struct {
	now                          *listenStmt
	tls, port, auth, certificate *option
}

// listen translates the options of a listener.
func (t *translator) listen(st *stmt, n *listenStmt) {
	l := &oldListener{now: &listenStmt{on: n.on, socket: n.socket}}
	if n.socket {
		l.now.on = key("socket", n.on.pos)
	}
	for _, o := range n.opts {
		if !t.listenOption(l, n, o) {
			return
		}
	}
	if n.socket {
		t.emit(st, l.now)
		return
	}
	if t.in.dialect.kind == mapForm || t.in.dialect.plain {
		switch {
		case l.tls != nil && l.tls.key == "ssl":
			t.errorf(l.tls.pos, "ssl is not a listener mode, expected tls or smtps")
			return
		case l.tls == nil && (l.certificate != nil || l.auth != nil):
			t.errorf(n.on.pos, "must specify tls or smtps")
			return
		}
	}
	var nodes []node
	if l.tls != nil && !hasOption(n.opts, "pki") {
		var ok bool
		if nodes, ok = t.listenerPKI(l.now, n, l.certificate); !ok {
			return
		}
	}
	if t.hostname != nil && !hasOption(n.opts, "hostname") {
		l.now.opts = append(l.now.opts, &option{pos: n.on.pos, key: "hostname", arg: t.hostname})
	}
	if t.onTags[n.on.text] && !hasOption(n.opts, "tag") {
		l.now.opts = append(l.now.opts, &option{pos: n.on.pos, key: "tag", arg: n.on})
	}
	t.emit(st, append(nodes, t.bothModes(l.now, l.tls, l.port)...)...)
}

// listenOption translates one option; false when it has been refused.
func (t *translator) listenOption(l *oldListener, n *listenStmt, o *option) bool {
	same := *o
	switch o.key {
	case "mask-source":
		same.key = "mask-src"
	case "enable":
		same.key = "auth-optional"
		l.auth = o
	case "auth", "auth-optional":
		l.auth = o
	case "tls", "tls-require", "smtps", "secure", "ssl":
		if l.tls != nil {
			return t.errorf(o.pos, "TLS mode already specified")
		}
		l.tls = o
	case "port":
		l.port = o
	case "certificate":
		l.certificate = o
		return true
	case "pki":
		if ca := t.pkiCA[strings.ToLower(o.arg.text)]; ca != "" && !hasOption(n.opts, "ca") {
			l.now.opts = append(l.now.opts, &same, &option{pos: o.pos, key: "ca", arg: word(ca, o.pos)})
			return true
		}
	}
	l.now.opts = append(l.now.opts, &same)
	return true
}

func hasOption(opts []*option, key string) bool {
	return slices.ContainsFunc(opts, func(o *option) bool { return o.key == key })
}

// bothModes makes two listeners of secure: SMTPS, and STARTTLS.
func (t *translator) bothModes(l *listenStmt, tls, port *option) []node {
	if tls == nil || tls.key != "secure" && tls.key != "ssl" {
		return []node{l}
	}
	if port != nil {
		t.diags.errorf(port.pos, "tls/smtps on same port: %s offers both, write one listener for each", tls.key)
	}
	var nodes []node
	for _, mode := range []string{"smtps", "tls"} {
		m := &listenStmt{on: l.on}
		for _, o := range l.opts {
			same := *o
			if o.key == tls.key {
				same.key = mode
			}
			m.opts = append(m.opts, &same)
		}
		nodes = append(nodes, m)
	}
	return nodes
}

// listenerPKI finds the certificate of a listener that names none in the
// present way, adds it to the options, and gives what must be declared.
func (t *translator) listenerPKI(l, n *listenStmt, certificate *option) ([]node, bool) {
	names := []string{}
	at := n.on.pos
	if certificate != nil {
		names, at = []string{certificate.arg.text}, certificate.pos
	} else {
		names = append(names, n.on.text)
		for _, o := range n.opts {
			if o.key == "hostname" {
				names = append(names, o.arg.text)
				if p := strings.ToLower(o.arg.text); t.pkis[p] {
					return nil, t.usePKI(l, p, at)
				}
			}
		}
		if t.hostname != nil {
			names = append(names, t.hostname.text)
		}
		for _, p := range []string{strings.ToLower(t.serverName()), "*"} {
			if t.pkis[p] {
				return nil, t.usePKI(l, p, at)
			}
		}
	}
	return t.certFiles(l, names, at)
}

// usePKI gives the listener a pki name that is declared.
func (t *translator) usePKI(l *listenStmt, name string, at pos) bool {
	l.opts = append(l.opts, &option{pos: at, key: "pki", arg: word(name, at)})
	if ca := t.pkiCA[name]; ca != "" && !hasOption(l.opts, "ca") {
		l.opts = append(l.opts, &option{pos: at, key: "ca", arg: word(ca, at)})
	}
	return true
}

// certFiles looks for NAME.crt and NAME.key where old releases had them.
func (t *translator) certFiles(l *listenStmt, names []string, at pos) ([]node, bool) {
	var tried []string
	for _, name := range names {
		low := strings.ToLower(name)
		if t.pkis[low] {
			return nil, t.usePKI(l, low, at)
		}
		crt := t.o.CertDir + "/" + name + ".crt"
		if _, err := t.o.System.Stat(crt); err != nil || !validName(name) {
			tried = append(tried, crt)
			continue
		}
		return t.declarePKI(name, at), t.usePKI(l, low, at)
	}
	t.diags.errorf(at, "cannot load certificate: no pki fits and there is no %s", strings.Join(tried, ", no "))
	return nil, false
}

// declarePKI writes the statements for the files of one name.
func (t *translator) declarePKI(name string, at pos) []node {
	base := t.o.CertDir + "/" + name
	low := strings.ToLower(name)
	t.pkis[low] = true
	nodes := []node{&pkiStmt{name: word(low, at), opts: []*option{
		{pos: at, key: "cert", arg: word(base+".crt", at)},
		{pos: at, key: "key", arg: word(base+".key", at)},
	}}}
	if _, err := t.o.System.Stat(base + ".ca"); err == nil {
		t.pkiCA[low] = low
		nodes = append(nodes, &caStmt{name: word(low, at), cert: word(base+".ca", at)})
	}
	return nodes
}

func (t *translator) serverName() string {
	if t.hostname != nil {
		return t.hostname.text
	}
	return t.o.server
}

func (t *translator) errorf(at pos, format string, args ...any) bool {
	t.diags.errorf(at, format, args...)
	return false
}

// multiple reports what a rule may say only once.
func (t *translator) multiple(o *option) {
	t.diags.errorf(o.pos, "%s specified multiple times", o.key)
}

// mapRef makes sure that a map or table is there.
func (t *translator) mapRef(e *tableExpr) bool {
	if e == nil || e.ref == nil || t.maps[e.ref.text] != nil || t.tables[e.ref.text] {
		return true
	}
	if t.unread[e.ref.text] {
		t.diags.errors++ // its declaration has been reported
		return false
	}
	what := "table"
	if e.isMap {
		what = "map"
	}
	return t.errorf(e.ref.pos, "no such %s: %s%s", what, e.ref.text,
		t.diags.suggestion(e.ref.text, append(near(t.maps), near(t.tables)...)))
}

// actionName is action_N for line N, with a suffix when that is taken.
func (t *translator) actionName(at pos, suffix string) string {
	name := "action_" + strconv.Itoa(int(at.line)) + suffix
	t.actions[name]++
	if n := t.actions[name]; n > 1 { // no other is called so: a suffix is no number
		name += "_" + strconv.Itoa(n)
	}
	return name
}
