package parser

import (
	"context"
	"slices"
	"strings"

	"smtpd/internal/config"
)

// maxColumns is where the values of a table are put on lines of their own.
const maxColumns = 100

// Modern gives the configuration in the present language: macros expanded,
// included files in place, comments and order kept. The text is empty when the
// configuration cannot be read; diagnostics are those of Parse, so there can be
// errors and a text where something the file names is missing on this host.
func Modern(ctx context.Context, o Options) (string, Diagnostics) {
	o.fill(ctx)
	in := load(&o)
	if in.diags.errors > 0 {
		return "", in.diags.sorted()
	}
	text := printTree(in.tree.resolved(in.diags.sources))
	newChecker(&o, in).check(ctx)
	return text, in.diags.sorted()
}

// resolved is the tree without macros, which have been expanded, and with a
// comment where a file was included.
func (t *tree) resolved(sources []source) *tree {
	out := &tree{}
	var carry []string
	for _, s := range t.stmts {
		switch n := s.node.(type) {
		case *macroStmt:
			carry = append(carry, s.lead...)
			continue
		case *includeStmt:
			carry = append(append(carry, s.lead...), oneLine("# include "+n.path.text))
			continue
		}
		same := *s
		if a, ok := s.node.(*actionStmt); ok {
			same.node = presentURLs(a, func(*token, config.RelayURL) {})
		}
		same.lead = tidy(append(carry, s.lead...))
		carry = nil
		out.stmts = append(out.stmts, &same)
	}
	out.tail = trimBlank(tidy(append(carry, t.tail...)))
	return out
}

// presentURLs writes the relay URLs of an action that have the spelling of an
// older release as they are read, and tells of each. What tried SMTPS and
// STARTTLS never checked the certificate.
func presentURLs(a *actionStmt, tell func(*token, config.RelayURL)) *actionStmt {
	if a.method.text != "relay" {
		return a
	}
	same := *a
	same.opts = nil
	either, tls := false, false
	for _, o := range a.opts {
		tls = tls || o.key == "tls"
		if o.table == nil || !slices.Contains(urlOptions, o.key) {
			same.opts = append(same.opts, o)
			continue
		}
		now := *o
		e := *o.table
		url := func(t *token) *token {
			u, err := config.ParseRelayURL(t.text)
			if err != nil || !config.IsOldRelayURL(t.text) {
				return t
			}
			either = either || strings.HasPrefix(strings.ToLower(t.text), "secure")
			tell(t, u)
			return &token{text: u.String(), pos: t.pos, kind: t.kind}
		}
		switch {
		case e.one != nil:
			e.one = url(e.one)
		case e.values != nil:
			v := &valueList{}
			for i, k := range e.values.keys {
				if e.values.values == nil {
					v.add(url(k))
				} else {
					v.addPair(k, url(e.values.values[i]))
				}
			}
			e.values = v
		}
		now.table = &e
		same.opts = append(same.opts, &now)
	}
	if either && !tls {
		same.opts = append(same.opts, &option{pos: a.name.pos, key: "tls", sub: "no-verify"})
	}
	return &same
}

// oneLine makes a comment of text from a token, whatever octets it holds.
func oneLine(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' {
			return '?'
		}
		return r
	}, s), "\\ \t")
}

// printTree writes a tree of the present language as text. Reading it again
// gives the same tree.
func printTree(t *tree) string {
	p := &printer{}
	for _, s := range t.stmts {
		p.comments(s.lead)
		p.line.Reset()
		p.node(s.node)
		p.out.WriteString(p.line.String())
		if s.trail != "" {
			p.out.WriteString(" " + s.trail)
		}
		p.out.WriteByte('\n')
	}
	p.comments(t.tail)
	return p.out.String()
}

type printer struct {
	out  strings.Builder
	line strings.Builder
}

func (p *printer) comments(lines []string) {
	for _, l := range lines {
		p.out.WriteString(l + "\n")
	}
}

// put adds words to the line, with a blank between.
func (p *printer) put(words ...string) {
	for _, w := range words {
		if p.line.Len() > 0 {
			p.line.WriteByte(' ')
		}
		p.line.WriteString(w)
	}
}

func (p *printer) tok(ts ...*token) {
	for _, t := range ts {
		if t != nil {
			p.put(spell(t))
		}
	}
}

// spell writes a name, text or number so that it is read as the same: bare if
// it was so and may be, else in quotes.
func spell(t *token) string {
	switch {
	case t.kind == tokNumber:
		return t.text
	case t.kind != tokWord:
		return quote(t.text)
	case modernWords[t.text] == 0 && bareText(t.text):
		return t.text
	}
	return quote(t.text)
}

// quote puts text into double quotes. There a backslash counts only before a
// quote or a blank.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		blank := s[i] == ' ' || s[i] == '\t'
		if s[i] == '"' || blank && i > 0 && s[i-1] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	if strings.HasSuffix(s, `\`) {
		b.WriteString("\\\n") // joins lines, and so parts the backslash from the quote
	}
	b.WriteByte('"')
	return b.String()
}

func (p *printer) node(n node) {
	switch n := n.(type) {
	case *tableStmt:
		p.put("table")
		p.tok(n.name, n.backend)
		if n.values != nil {
			p.values(n.values)
		}
	case *pkiStmt:
		p.put("pki")
		p.tok(n.name)
		p.options(n.opts)
	case *caStmt:
		p.put("ca")
		p.tok(n.name)
		p.put("cert")
		p.tok(n.cert)
	case *settingStmt:
		p.setting(n)
	case *listenStmt:
		p.put("listen on")
		if n.socket {
			p.put("socket")
		} else {
			p.tok(n.on)
		}
		p.options(n.opts)
	case *actionStmt:
		p.action(n)
	case *matchStmt:
		p.put("match")
		p.options(n.opts)
		if n.reject {
			p.put("reject")
			p.tok(n.text)
		} else {
			p.put("action")
			p.tok(n.action)
		}
	case *procStmt:
		p.put("proc")
		p.tok(n.name, n.command)
		p.options(n.opts)
	case *filterStmt:
		p.filter(n)
	}
}

// commaSettings are the settings whose arguments are a list.
var commaSettings = []string{"bounce warn-interval", "resolver", "queue retry mda", "queue retry mta"}

// urlOptions are the options of a relay action whose tables hold relay URLs.
var urlOptions = []string{"host", "domain", "by-sender"}

// limitWords are the key words among those of a limit.
var limitWords = []string{"inet4", "inet6", "prefer"}

func (p *printer) setting(n *settingStmt) {
	p.put(n.key)
	if n.domain != nil {
		p.put("for domain")
		p.tok(n.domain)
	}
	for i, a := range n.args {
		if i > 0 && slices.Contains(commaSettings, n.key) {
			p.line.WriteByte(',')
		}
		p.tok(a)
	}
	if n.tail != "" {
		p.put(n.tail)
	}
	p.tables(n.table)
	for _, l := range n.limits {
		if l.kind == tokWord && slices.Contains(limitWords, l.text) {
			p.put(l.text)
		} else {
			p.tok(l)
		}
	}
}

func (p *printer) action(n *actionStmt) {
	p.put("action")
	p.tok(n.name)
	p.put(n.method.text)
	p.tok(n.arg)
	p.options(n.opts)
	if n.ttl != nil {
		p.put("ttl")
		p.tok(n.ttl)
	}
}

func (p *printer) filter(n *filterStmt) {
	p.put("filter")
	p.tok(n.name)
	p.put(n.kind)
	switch n.kind {
	case "chain":
		p.list(n.chain)
	case "phase":
		p.put(n.arg.text, "match")
		p.option(n.cond)
		p.put(n.decision.text)
		p.tok(n.text)
	default:
		p.tok(n.arg)
		p.options(n.opts)
	}
}

func (p *printer) options(opts []*option) {
	for _, o := range opts {
		p.option(o)
	}
}

func (p *printer) option(o *option) {
	word := o.key
	if o.not {
		word = "!" + word
	}
	p.put(word)
	if o.key == "retry" || o.key == "hold" {
		p.delays(o)
		return
	}
	if o.sub != "" && o.key != "senders" {
		p.put(o.sub)
	}
	if o.regex {
		p.put("regex")
	}
	p.tables(o.table)
	p.tok(o.arg)
	if o.list != nil {
		p.list(o.list)
	}
	if o.sub != "" && o.key == "senders" {
		p.put(o.sub)
	}
}

// tables writes a table, or a reference to one.
func (p *printer) tables(t *tableExpr) {
	switch {
	case t == nil:
	case t.ref != nil:
		p.put("<" + spell(t.ref) + ">")
	case t.one != nil:
		p.tok(t.one)
	default:
		p.values(t.values)
	}
}

// delays writes when failed attempts are repeated, or mail may leave.
func (p *printer) delays(o *option) {
	for i, d := range o.list {
		if i > 0 {
			p.line.WriteByte(',')
		}
		p.tok(d)
	}
	if o.sub != "" {
		p.put(o.sub)
	}
}

func (p *printer) list(names []*token) { p.values(&valueList{keys: names}) }

// values writes braces and what is in them, on lines of their own when they
// are many.
func (p *printer) values(v *valueList) {
	items := make([]string, len(v.keys))
	width := p.line.Len()
	for i, k := range v.keys {
		items[i] = spell(k)
		if v.values != nil {
			items[i] += " = " + spell(v.values[i])
		}
		width += len(items[i]) + 2
	}
	if width < maxColumns {
		p.put("{ " + strings.Join(items, ", ") + " }")
		return
	}
	p.put("{\n\t" + strings.Join(items, ",\n\t") + "\n}")
}
