package parser

// The tree holds each statement as written, in order, with its comments. Names
// and numbers are the tokens themselves, so every part knows its line.

// tree is one configuration with its included files in place.
type tree struct {
	stmts []*stmt
	tail  []string // comments after the last statement
}

// stmt is one statement. lead are the comments and blank lines ("") above it,
// trail the comment that ends its last line.
type stmt struct {
	pos   pos
	lead  []string
	trail string
	node  node
}

// node is what a statement says. The names of types follow the key words.
type node interface{ word() string }

type includeStmt struct{ path *token }

type macroStmt struct{ name, value *token }

type tableStmt struct {
	name    *token
	backend *token     // file:/path; nil: the values are here
	values  *valueList // nil: backend
}

type pkiStmt struct {
	name *token
	opts []*option
}

type caStmt struct{ name, cert *token }

// settingStmt is a directive that sets one thing: its key words, its arguments,
// or the words and numbers of a limit.
type settingStmt struct {
	key    string
	args   []*token
	limits []*token // word, number, word, number, inet4, ...
	domain *token   // mta limit for domain
	tail   string   // quadratic
	table  *tableExpr
}

type listenStmt struct {
	on     *token
	socket bool
	opts   []*option
}

type actionStmt struct {
	name   *token
	method *token
	arg    *token // path, destination or command
	opts   []*option
	ttl    *token
}

type matchStmt struct {
	opts   []*option
	reject bool
	text   *token // of reject; nil: the usual one
	action *token
}

type procStmt struct {
	name, command *token
	opts          []*option
}

type filterStmt struct {
	name     *token
	kind     string // proc, proc-exec, chain or phase
	arg      *token // name of the proc, command, or phase
	opts     []*option
	chain    []*token
	cond     *option
	decision *token
	text     *token
}

// badStmt stands for a statement that could not be read. Its name counts as
// declared, so that one mistake gives one error.
type badStmt struct {
	first string
	name  string
}

func (*includeStmt) word() string   { return "include" }
func (*macroStmt) word() string     { return "macro" }
func (*tableStmt) word() string     { return "table" }
func (*pkiStmt) word() string       { return "pki" }
func (*caStmt) word() string        { return "ca" }
func (s *settingStmt) word() string { return s.key }
func (*listenStmt) word() string    { return "listen" }
func (*actionStmt) word() string    { return "action" }
func (*matchStmt) word() string     { return "match" }
func (*procStmt) word() string      { return "proc" }
func (*filterStmt) word() string    { return "filter" }
func (s *badStmt) word() string     { return s.first }

// option is one option of a statement. What is not written is zero.
type option struct {
	pos   pos
	key   string
	not   bool
	regex bool
	sub   string // a second key word: verify, no-verify, masquerade, mx, any, src...
	arg   *token
	table *tableExpr
	list  []*token
	alias *tableExpr // of a condition in the form of 4.6 to 5.2
}

// tableExpr is a table where one is used: <name>, { values } or one value.
type tableExpr struct {
	pos    pos
	ref    *token
	one    *token
	values *valueList
	isMap  bool // ref is written without <>, as before 5.3
}

// valueList is the inside of braces: keys alone, or keys with values.
type valueList struct {
	keys   []*token
	values []*token // nil: a plain list
}

func newValues(t *token) *valueList { return &valueList{keys: []*token{t}} }

func (v *valueList) add(t *token) *valueList {
	v.keys = append(v.keys, t)
	return v
}

func newPairs(k, t *token) *valueList {
	return &valueList{keys: []*token{k}, values: []*token{t}}
}

func (v *valueList) addPair(k, t *token) *valueList {
	v.keys = append(v.keys, k)
	v.values = append(v.values, t)
	return v
}

func (v *valueList) pos() pos { return v.keys[0].pos }

// What the grammars build with.

func setting(key string, args ...*token) node { return &settingStmt{key: key, args: args} }

func retrySetting(kind *token, delays []*token, tail string) node {
	return &settingStmt{key: "queue retry " + kind.text, args: delays, tail: tail}
}

func tableSetting(key string, t *tableExpr) node { return &settingStmt{key: key, table: t} }

func limits(key string, domain *token, words []*token) node {
	return &settingStmt{key: key, domain: domain, limits: words}
}

func opt(key, arg *token) *option {
	return &option{pos: key.pos, key: key.text, arg: arg}
}

func optSub(key, sub *token) *option {
	return &option{pos: key.pos, key: key.text, sub: sub.text}
}

// optWords is an option with a list of words, or one of them without braces.
func optWords(key *token, sub string, list []*token) *option {
	return &option{pos: key.pos, key: key.text, sub: sub, list: list}
}

func optTable(key *token, t *tableExpr) *option {
	return &option{pos: key.pos, key: key.text, table: t}
}

func optMatch(not bool, key, sub *token, regex bool, t *tableExpr) *option {
	o := &option{pos: key.pos, key: key.text, not: not, regex: regex, table: t}
	if sub != nil {
		o.sub = sub.text
	}
	return o
}

func before(o *option, opts []*option) []*option { return append([]*option{o}, opts...) }

func newAction(name, method, arg *token, opts []*option, ttl *token) node {
	return &actionStmt{name: name, method: method, arg: arg, opts: opts, ttl: ttl}
}

// The statements that only older generations have.

// ruleStmt is accept or reject. opts are the decisions and lookups as written.
type ruleStmt struct {
	reject  bool
	form    generation // whose grammar read it
	opts    []*option
	how     *oldAction // nil: none written
	endings []*option
}

// oldAction is deliver to ... or relay ...; its method is via when a host is
// named.
type oldAction struct {
	method *token
	arg    *token
	opts   []*option
}

type mapStmt struct {
	name *token
	opts []*option
}

func (s *ruleStmt) word() string {
	if s.reject {
		return "reject"
	}
	return "accept"
}

func (*mapStmt) word() string { return "map" }

func newOld(method, arg *token, opts []*option) *oldAction { return &oldAction{method, arg, opts} }

func one(o *option) []*option { return []*option{o} }

// some is a list of the option, if there is one.
func some(o *option) []*option {
	if o == nil {
		return nil
	}
	return one(o)
}

func newMapRule(reject bool, on, from *option, conds []*option, how *oldAction, endings []*option) node {
	opts := append(some(on), some(from)...)
	for _, c := range conds {
		c.key = "for"
		opts = append(opts, c)
	}
	return &ruleStmt{reject: reject, form: mapForm, opts: opts, how: how, endings: endings}
}

// mapFile is the source of a map that is written as its path alone.
func mapFile(path *token) *option {
	return &option{pos: path.pos, key: "source", sub: "file", arg: path}
}
