package parser

import (
	"errors"
	"strings"

	"smtpd/table"
)

// oldParts are the pieces of an accept or reject.
type oldParts struct {
	st   *stmt
	r    *ruleStmt
	from *option
	tag  *option
	auth *option               // authenticated
	send *option               // sender
	rcpt *option               // recipient
	look map[string]*tableExpr // alias, virtual, userbase
	ttl  *token
	only bool // forward-only
	fors []*option
}

// rule translates one accept or reject: an action, and the rules that lead to
// it, in place.
func (t *translator) rule(st *stmt, r *ruleStmt) {
	errors := t.diags.errors
	p := t.parts(st, r)
	t.checkParts(p)
	if t.diags.errors > errors {
		t.broken(st, "match", "")
		return
	}
	if r.reject && r.how != nil {
		t.diags.warnf(st.pos, "the action of a reject has no meaning and is ignored")
	}
	sources := t.sources(p)
	if len(sources) == 0 {
		t.emit(st)
		return
	}
	var nodes []node
	var names map[string]string // what distinguishes actions -> their names
	if len(p.fors) > 1 || t.virtual != nil {
		names = map[string]string{}
	}
	for _, c := range p.fors {
		targets, virtual, ok := t.condition(p, c)
		if !ok {
			t.broken(st, "match", "")
			return
		}
		if len(targets) == 0 {
			continue
		}
		alias := c.alias
		if r.reject {
			nodes = append(nodes, t.matches(p, sources, targets, "", nil)...)
			continue
		}
		if t.virtual != nil && t.localDelivery(p) && virtual == nil {
			ref := &tableExpr{pos: st.pos, ref: t.virtual}
			name, made, ok := t.action(p, names, nil, ref, "_virtual")
			if !ok {
				t.broken(st, "match", "")
				return
			}
			nodes = append(append(nodes, made...), t.matches(p, sources, targets, name, ref)...)
		}
		name, made, ok := t.action(p, names, alias, virtual, "")
		if !ok {
			t.broken(st, "match", "")
			return
		}
		nodes = append(append(nodes, made...), t.matches(p, sources, targets, name, nil)...)
	}
	t.emit(st, nodes...)
}

// parts sorts what a rule says, and refuses what it says twice.
func (t *translator) parts(st *stmt, r *ruleStmt) *oldParts {
	p := &oldParts{st: st, r: r}
	set := func(at **option, o *option) {
		if *at != nil {
			t.multiple(o)
		}
		*at = o
	}
	for _, o := range r.opts {
		switch o.key {
		case "from":
			set(&p.from, o)
		case "tagged", "on", "tag":
			set(&p.tag, o)
		case "authenticated":
			set(&p.auth, o)
		case "sender":
			set(&p.send, o)
		case "recipient":
			set(&p.rcpt, o)
		case "for":
			if r.form == acceptForm && len(p.fors) > 0 {
				t.multiple(o)
			}
			p.fors = append(p.fors, o)
		default: // alias, virtual, userbase
			if p.look[o.key] != nil {
				t.multiple(o)
			}
			if p.look == nil {
				p.look = map[string]*tableExpr{}
			}
			p.look[o.key] = o.table
			if name := o.table.one; name != nil { // a map by its name alone
				p.look[o.key] = &tableExpr{pos: o.table.pos, ref: name, isMap: true}
				t.mapRef(p.look[o.key])
			}
		}
	}
	for _, o := range r.endings {
		switch o.key {
		case "tag":
			set(&p.tag, o)
		case "expire":
			if p.ttl != nil {
				t.multiple(o)
			}
			if p.ttl = o.arg; !t.expire(o.arg) {
				p.ttl = nil
			}
		case "forward-only":
			if p.only {
				t.multiple(o)
			}
			p.only = true
		}
	}
	if p.tag != nil && len(p.tag.arg.text) > maxTag {
		t.errorf(p.tag.pos, "tag name too long: %q, at most %d characters", p.tag.arg.text, maxTag)
	}
	if len(p.fors) == 0 {
		p.fors = []*option{{pos: st.pos, key: "for", sub: "local"}}
	}
	return p
}

// checkParts refuses what does not go together.
func (t *translator) checkParts(p *oldParts) {
	at := p.st.pos
	if p.look["alias"] != nil && p.look["virtual"] != nil {
		t.errorf(at, "alias and virtual may not be specified together")
	}
	if p.only && p.r.how != nil {
		t.errorf(at, "forward-only may not be used with a default action")
	}
	for _, c := range p.fors {
		if c.alias != nil && t.relays(p) && !p.r.reject {
			t.errorf(c.alias.pos, "aliases set on a relay rule")
		}
		t.mapRef(c.alias)
		if c.table != nil {
			t.mapRef(c.table)
		}
	}
	if p.from != nil && p.r.form == mapForm {
		t.mapRef(p.from.table)
	}
	if !t.relays(p) {
		return
	}
	for _, k := range []string{"alias", "userbase"} {
		if e := p.look[k]; e != nil {
			t.errorf(e.pos, "%s may not be used with a relay rule", k)
		}
	}
}

func (t *translator) relays(p *oldParts) bool {
	return p.r.how != nil && (p.r.how.method.text == "relay" || p.r.how.method.text == "via")
}

func (t *translator) localDelivery(p *oldParts) bool {
	return p.r.how != nil && !t.relays(p)
}

// condition turns the destination of a rule into one or more `for` options, and
// tells the table of virtual users that comes with it. No targets: the rule
// never matched.
func (t *translator) condition(p *oldParts, c *option) (targets []*option, virtual *tableExpr, ok bool) {
	at := c.pos
	target := func(sub string, e *tableExpr) []*option {
		return []*option{{pos: at, key: "for", not: c.not, sub: sub, table: e}}
	}
	switch c.sub {
	case "all", "any":
		if c.sub == "all" && p.r.form == acceptForm && !t.in.dialect.plain {
			t.diags.warnf(at, "for all is older than the rest of the file, read as for any")
		}
		return target("any", nil), nil, true
	case "local":
		targets = target("local", nil)
		if t.hostname != nil && !strings.EqualFold(t.hostname.text, "localhost") {
			targets = append(targets, target("domain", &tableExpr{pos: at, one: t.hostname})...)
		}
		return targets, nil, true
	case "domain":
		return target("domain", c.table), nil, true
	case "bare":
		t.diags.warnf(at, "the word domain is missing: for %s is read as for domain %s%s", c.arg.text, c.arg.text,
			t.diags.suggestion(c.arg.text, []string{"local", "domain", "virtual"}))
		return target("domain", &tableExpr{pos: at, one: c.arg}), nil, true
	case "network":
		return nil, nil, t.errorf(at, "for network is not supported: it matched no mail that smtpd could deliver")
	case "virtual":
		e, ok := t.virtualDomains(c.table)
		if e == nil {
			return nil, nil, ok
		}
		return target("domain", e), c.table, true
	}
	return nil, nil, t.errorf(at, "for %s is not supported", c.sub)
}

// virtualDomains are the domains that `for virtual` stood for: the keys of the
// map that are domains, else those of its addresses.
func (t *translator) virtualDomains(e *tableExpr) (*tableExpr, bool) {
	m := t.maps[e.ref.text]
	if m == nil {
		return nil, t.errorf(e.pos, "for virtual takes a map, %s is none", e.ref.text)
	}
	var domains, ofAddresses []*token
	seen := map[string]bool{}
	add := func(list *[]*token, name string) {
		name = strings.ToLower(name)
		if !seen[name] && (validName(name) || strings.HasPrefix(name, "*.")) {
			seen[name] = true
			*list = append(*list, word(name, e.pos))
		}
	}
	var addresses []string
	err := t.mapKeys(m, func(k string) {
		if _, domain, ok := strings.Cut(k, "@"); ok {
			addresses = append(addresses, domain)
		} else if strings.Contains(k, ".") {
			add(&domains, k)
		}
	})
	if err != nil {
		return nil, t.errorf(e.pos, "for virtual: cannot read map %s: %v", e.ref.text, err)
	}
	if len(domains) == 0 {
		for _, d := range addresses {
			add(&ofAddresses, d)
		}
		if domains = ofAddresses; len(domains) == 0 {
			t.diags.warnf(e.pos, "for virtual: map %s holds no domain, the rule can never match", e.ref.text)
			return nil, true
		}
		t.diags.warnf(e.pos, "for virtual: map %s has no domain as a key, those of its addresses are taken", e.ref.text)
	}
	return &tableExpr{pos: e.pos, values: &valueList{keys: domains}}, true
}

// mapKeys reads the keys of a map.
func (t *translator) mapKeys(m *mapStmt, each func(string)) error {
	for _, o := range m.opts {
		if o.key != "source" {
			continue
		}
		path := o.sub
		if o.arg != nil {
			path = o.arg.text
		}
		data, err := t.o.System.ReadFile(path, maxTableFile)
		if err != nil {
			return cause(err)
		}
		if mapKind(data) != "" {
			return table.DumpMap(path, func(k, _ string) error { each(k); return nil })
		}
		_, entries, err := readTable(string(data))
		for _, x := range entries {
			each(x.key)
		}
		return err
	}
	return errors.New("it has no source")
}

// sources are the `from` parts of the rules that an old rule stands for: there
// an authenticated client counted as local.
func (t *translator) sources(p *oldParts) [][]*option {
	at := p.st.pos
	from := func(not bool, sub string, e *tableExpr) *option {
		return &option{pos: at, key: "from", not: not, sub: sub, table: e}
	}
	auth := func(not bool) *option { return &option{pos: at, key: "auth", not: not} }
	logged := p.auth != nil && !p.auth.not // authenticated
	never := p.auth != nil && p.auth.not   // ! authenticated
	with := func(sets [][]*option) [][]*option {
		if t.offersAuth && !never {
			sets = append(sets, []*option{from(false, "auth", nil)})
		}
		return sets
	}
	none := func() [][]*option {
		t.diags.warnf(at, "the rule can never match and is left out")
		return nil
	}
	kind, not := "local", false
	var tab *tableExpr
	if p.from != nil {
		kind, not, tab = p.from.sub, p.from.not, p.from.table
	}
	switch {
	case (kind == "any" || kind == "all") && not:
		return none()
	case kind == "any" || kind == "all":
		if p.auth != nil {
			return [][]*option{{from(false, "any", nil), auth(never)}}
		}
		return [][]*option{{from(false, "any", nil)}}
	case kind == "local" && not:
		if logged {
			return none()
		}
		return [][]*option{{from(true, "local", nil), auth(true)}}
	case kind == "local":
		switch {
		case logged:
			return [][]*option{{from(false, "auth", nil)}}
		case never:
			return [][]*option{{from(false, "local", nil), auth(true)}}
		}
		return with([][]*option{{from(false, "local", nil)}})
	}
	return t.netSources(p, from(not, "src", tab), auth, with, none)
}

// netSources are the sources for addresses. An authenticated client passed
// every test of addresses up to 5.2, and none from 5.3 on.
func (t *translator) netSources(p *oldParts, src *option, auth func(bool) *option,
	with func([][]*option) [][]*option, none func() [][]*option) [][]*option {
	logged := p.auth != nil && !p.auth.not
	never := p.auth != nil && p.auth.not
	if t.in.dialect.kind == mapForm {
		switch {
		case logged:
			return [][]*option{{{pos: src.pos, key: "from", sub: "auth"}}}
		case never:
			return [][]*option{{src, auth(true)}}
		}
		return with([][]*option{{src}})
	}
	switch {
	case src.not && logged:
		return [][]*option{{{pos: src.pos, key: "from", sub: "auth"}}}
	case logged:
		return none()
	case src.not && never:
		return [][]*option{{src, auth(true)}}
	case src.not:
		return with([][]*option{{src}})
	}
	return [][]*option{{src, auth(true)}}
}

// matches writes the rules for all sources and targets. rcpt, if not nil, is a
// table the recipient must be in.
func (t *translator) matches(p *oldParts, sources [][]*option, targets []*option,
	action string, rcpt *tableExpr) []node {
	at := p.st.pos
	var nodes []node
	for _, target := range targets {
		for _, source := range sources {
			m := &matchStmt{reject: p.r.reject}
			if p.tag != nil {
				m.opts = append(m.opts, &option{pos: at, key: "tag", not: p.tag.not,
					table: &tableExpr{pos: at, one: p.tag.arg}})
			}
			m.opts = append(m.opts, source...)
			m.opts = append(m.opts, target)
			if p.send != nil {
				m.opts = append(m.opts, &option{pos: at, key: "mail-from", not: p.send.not, table: p.send.table})
			}
			switch {
			case rcpt != nil:
				m.opts = append(m.opts, &option{pos: at, key: "rcpt-to", table: rcpt})
			case p.rcpt != nil:
				m.opts = append(m.opts, &option{pos: at, key: "rcpt-to", not: p.rcpt.not, table: p.rcpt.table})
			case p.look["virtual"] != nil && t.relays(p):
				m.opts = append(m.opts, &option{pos: at, key: "rcpt-to", table: p.look["virtual"]})
			}
			if !p.r.reject {
				m.action = word(action, at)
			}
			nodes = append(nodes, m)
		}
	}
	return nodes
}
