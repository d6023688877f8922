package parser

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"smtpd/internal/config"
)

// checker gives the tree its meaning: names are resolved, conflicts found,
// defaults filled in, and what the configuration names is looked at.
type checker struct {
	o     *Options
	diags *diagList
	in    *input
	cfg   *config.Config

	tables   map[string]*tableInfo
	inlined  []*tableInfo          // inline ones, by their numbers
	single   map[string]*tableInfo // those of one value, by it
	dynamic  map[string]*tableInfo // the others, by their contents
	unknown  map[string]bool       // "table NAME" of statements that could not be read
	pkis     map[string]*pkiInfo   // by lower-case name
	refs     []pkiRef              // uses of pki and ca names, resolved at the end
	used     map[string]bool       // "action NAME"
	socketAt pos
	bound    map[string]pos // address and port -> line of the listener
	ifs      []Interface
	services map[string]int // /etc/services, when it was needed
	files    map[string]*tableText
	bundles  map[string]*bundle // of authorities, by path
	lines    map[string]int32   // "table NAME" -> line, when it was needed
}

// pkiRef is the use of a name that may be declared further down.
type pkiRef struct {
	kind string // pki or ca
	name *token
}

func newChecker(o *Options, in *input) *checker {
	c := &checker{
		o: o, in: in, diags: in.diags, cfg: config.Defaults(),
		unknown: map[string]bool{},
		pkis:    map[string]*pkiInfo{},
		used:    map[string]bool{},
		bound:   map[string]pos{},
	}
	c.size()
	return c
}

// size makes the maps that a large file fills as large as they will be: growing
// them takes longer than all else.
func (c *checker) size() {
	single, several, tables, actions, rules := 0, 0, 0, 0, 0
	count := func(opts []*option) {
		for _, o := range opts {
			switch {
			case o.table == nil:
			case o.table.one != nil, o.table.values != nil && o.table.values.values == nil && len(o.table.values.keys) == 1:
				single++
			case o.table.values != nil:
				several++
			}
		}
	}
	for _, st := range c.in.tree.stmts {
		switch n := st.node.(type) {
		case *tableStmt:
			tables++
		case *actionStmt:
			actions++
			count(n.opts)
		case *matchStmt:
			rules++
			count(n.opts)
		}
	}
	c.tables = make(map[string]*tableInfo, tables)
	c.single = make(map[string]*tableInfo, single)
	c.dynamic = make(map[string]*tableInfo, several)
	c.inlined = make([]*tableInfo, 0, single+several)
	c.cfg.Tables = make(map[string]*config.Table, tables+single+several)
	c.cfg.Actions = make(map[string]*config.Action, actions)
	c.cfg.Rules = make([]*config.Rule, 0, rules)
}

func (c *checker) errorf(at pos, format string, args ...any) { c.diags.errorf(at, format, args...) }
func (c *checker) warnf(at pos, format string, args ...any)  { c.diags.warnf(at, format, args...) }

// cannotf refuses what a daemon of an ordinary user cannot do. Who only asks what
// becomes of mail, of a file that somebody else runs, is told.
func (c *checker) cannotf(at pos, format string, args ...any) {
	if c.o.Asking {
		c.warnf(at, format, args...)
		return
	}
	c.errorf(at, format, args...)
}

// at is a position for config.
func (c *checker) at(p pos) config.Pos {
	if p.file < 0 {
		return config.Pos{}
	}
	return config.Pos{File: c.diags.sources[p.file].name, Line: int(p.line)}
}

func (c *checker) check(ctx context.Context) {
	c.cfg.File, c.cfg.Generation = c.o.File, 1
	c.identity()
	for _, st := range c.in.tree.stmts {
		c.statement(ctx, st)
	}
	if c.cfg.ADMD == "" {
		c.cfg.ADMD = c.cfg.ServerName
	}
	c.finishListeners()
	for _, a := range c.cfg.Actions {
		if a.Relay != nil && a.Relay.Ciphers == "" {
			a.Relay.Ciphers = c.cfg.SMTP.Ciphers
		}
	}
	c.finishPKI()
	if len(c.cfg.Rules) == 0 && !c.unknown["match "] {
		c.errorf(noPos(), "no rules, nothing to do")
	}
	if c.diags.errors == 0 && c.o.CheckOnly {
		c.lint()
	}
}

// statement is in the order of the file: a name must stand above its use.
func (c *checker) statement(ctx context.Context, st *stmt) {
	switch n := st.node.(type) {
	case *badStmt:
		c.unknown[n.first+" "+n.name] = true
		if n.first == "match" || n.first == "accept" || n.first == "reject" {
			c.unknown["match "] = true
		}
	case *tableStmt:
		c.tableStmt(st, n)
	case *pkiStmt:
		c.pki(st, n)
	case *caStmt:
		c.ca(st, n)
	case *settingStmt:
		c.setting(st, n)
	case *listenStmt:
		c.listen(ctx, st, n)
	case *procStmt:
		c.proc(st.pos, n.name, n.command, n.opts)
	case *filterStmt:
		c.filter(st, n)
	case *actionStmt:
		c.action(st, n)
	case *matchStmt:
		c.match(st, n)
	}
}

// noSuch reports a name that is not declared above, with a near one; not when
// its declaration has been reported already.
func (c *checker) noSuch(kind string, name *token, format string, known []string) {
	if c.unknown[kind+" "+name.text] {
		c.diags.errors++
		return
	}
	for other := range c.unknown { // those whose declaration could not be read
		if n, ok := strings.CutPrefix(other, kind+" "); ok && n != "" && len(known) < maxNear {
			known = append(known, n)
		}
	}
	line := c.declaredBelow(kind, name.text)
	hint := c.diags.suggestion(name.text, known)
	switch {
	case line > 0:
		hint = fmt.Sprintf(", it is declared in line %d and must stand above its use", line)
	case hint == "" && declareAs[kind] != "" && bareText(name.text):
		hint = "; declare it above" + fmt.Sprintf(declareAs[kind], name.text)
	}
	c.errorf(name.pos, format+"%s", name.text, hint)
}

// declareAs is how names of a kind are declared.
var declareAs = map[string]string{
	"table":       ": table %[1]s file:/etc/mail/%[1]s",
	"action":      ", as in: action %s maildir",
	"filter":      ", as in: filter %s proc-exec \"PROGRAM\"",
	"proc":        ": proc %s \"PROGRAM\"",
	"mda wrapper": ", as in: mda wrapper %s \"PROGRAM %%{mda}\"",
}

// notKnown warns of a user or group that the system has not.
func (c *checker) notKnown(kind string, name *token, known func() []string) {
	c.warnf(name.pos, "%s %q is not known to this system%s", kind, name.text, c.diags.suggestion(name.text, known()))
}

// declaredBelow is the line of a declaration that comes too late; 0: none.
func (c *checker) declaredBelow(kind, name string) int32 {
	if c.lines == nil {
		c.lines = map[string]int32{}
		for _, st := range c.in.tree.stmts {
			if t := declared(st.node); t != nil {
				c.lines[st.node.word()+" "+t.text] = t.pos.line
			}
		}
	}
	return c.lines[kind+" "+name]
}

// declared is the name that a statement makes known; nil: none.
func declared(n node) *token {
	switch n := n.(type) {
	case *tableStmt:
		return n.name
	case *actionStmt:
		return n.name
	case *filterStmt:
		return n.name
	case *procStmt:
		return n.name
	}
	return nil
}

// once are the options that a statement has given so far: few, so that looking
// through them is cheaper than a map.
type once struct{ words []string }

func (s *once) has(what string) bool { return slices.Contains(s.words, what) }

// once notes that an option was given, and refuses it the second time.
func (c *checker) once(seen *once, what string, at pos, where string) bool {
	if seen.has(what) {
		c.errorf(at, "%s already specified%s", what, where)
		return false
	}
	seen.words = append(seen.words, what)
	return true
}

// identity finds out who this host is.
func (c *checker) identity() {
	name := c.o.server
	if !validName(name) {
		c.warnf(noPos(), "server name %q is not a host name, write one into %s", name, c.o.Mailname)
		name = "localhost"
	}
	c.cfg.LocalNames = []string{"localhost"}
	names := []string{name}
	if h := c.in.hostname; h != nil && validName(h.text) {
		names = append(names, h.text)
		name = h.text
	}
	c.cfg.ServerName = name
	for _, n := range names {
		if low := strings.ToLower(n); !slices.Contains(c.cfg.LocalNames, low) {
			c.cfg.LocalNames = append(c.cfg.LocalNames, low)
		}
	}
	var err error
	if c.ifs, err = c.o.System.Interfaces(); err != nil {
		c.warnf(noPos(), "%v", err)
	}
	for _, in := range c.ifs {
		c.cfg.LocalAddrs = append(c.cfg.LocalAddrs, in.Addrs...)
	}
}

// validName reports whether s is a host name: letters, digits, '-', '_' and
// dots between them.
func validName(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i, ch := range []byte(s) {
		alnum := isLetter(int(ch)) || isDigit(int(ch))
		inside := i > 0 && i < len(s)-1 && (ch == '-' || ch == '.' || ch == '_')
		if !alnum && !inside {
			return false
		}
	}
	return true
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// near are the names that a misspelt one may have meant; none when they are too
// many to look at.
func near[V any](m map[string]V) []string {
	if len(m) > maxNear {
		return nil
	}
	return keys(m)
}
