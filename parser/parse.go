package parser

import "slices"

//go:generate go tool goyacc -p modern -o modern.go modern.y
//go:generate go tool goyacc -p accept -o accept.go accept.y
//go:generate go tool goyacc -p map -o map.go map.y

// grammar is one of the generated parsers with the words it reserves.
type grammar struct {
	run   func(*feed)
	first []string // words that begin its statements

	words               map[string]int
	str, num, nl, arrow int
	keyword             func(g *grammar, w *place) (int, bool)
}

var (
	modernGrammar = grammar{
		run:   func(f *feed) { f.use.modern.Parse(modernFeed{f}) },
		first: modernFirst, words: modernWords, keyword: reserved,
		str: mSTRING, num: mNUMBER, nl: mNL, arrow: mARROW,
	}
	// sharedGrammar is the present grammar where an older file borrows from it.
	sharedGrammar = grammar{
		run:   func(f *feed) { f.use.modern.Parse(modernFeed{f}) },
		first: sharedFirst, words: modernWords, keyword: contextual,
		str: mSTRING, num: mNUMBER, nl: mNL, arrow: mARROW,
	}
	// macroGrammar reads the macros of an older file.
	macroGrammar = grammar{
		run:   func(f *feed) { f.use.modern.Parse(modernFeed{f}) },
		words: modernWords, keyword: macroName,
		str: mSTRING, num: mNUMBER, nl: mNL, arrow: mARROW,
	}
	acceptGrammar = grammar{
		run:   func(f *feed) { f.use.accept.Parse(acceptFeed{f}) },
		first: acceptFirst, words: acceptWords, keyword: contextual,
		str: aSTRING, num: aNUMBER, nl: aNL, arrow: aARROW,
	}
	mapGrammar = grammar{
		run:   func(f *feed) { f.use.old.Parse(mapFeed{f}) },
		first: mapFirst, words: mapWords, keyword: contextual,
		str: pSTRING, num: pNUMBER, nl: pNL, arrow: pARROW,
	}
)

// place is a bare word and where it stands.
type place struct {
	text   string
	before []token // of its statement
	inside bool    // braces
}

// reserved takes each word of the grammar for a key word wherever it stands,
// but for the later ones.
func reserved(g *grammar, w *place) (int, bool) {
	id, ok := g.words[w.text]
	return id, ok && !w.isLaterName()
}

// isLaterName reports whether a word that OpenSMTPD does not have is a name
// here.
func (w *place) isLaterName() bool {
	asked, later := laterWords[w.text]
	if !later || len(w.before) == 0 {
		return later && asked != w.text
	}
	first, last := w.before[0].text, &w.before[len(w.before)-1]
	at := map[string]int{"listen": 3, "action": 3, "bounce": 1, "proc": 3, "filter": 4, "mta": 2, "queue": 1}[first]
	switch {
	case w.inside || at == 0 || len(w.before) < at || !wordIn(asked, first):
		return true
	case w.text == "quadratic":
		return len(w.before) < 4 || !has(w.before, len(w.before)-2, "retry") && (first != "queue" || !has(w.before, 1, "retry"))
	case w.text == "verify-rcpt" && !has(w.before, 2, "lmtp"), w.text == "x-original-to" && has(w.before, 2, "relay"):
		return true
	case first == "action" && (w.text == "prefer" || w.text == "hold" || w.text == "by-sender") && !has(w.before, 2, "relay"),
		first == "filter" && !has(w.before, 2, "proc-exec") && !has(w.before, 2, "proc"):
		return true
	case last.kind == tokOp:
		return last.text == "<"
	}
	return last.kind == tokWord && wordIn(askingWords, last.text)
}

// machines are the generated parsers. One is used for one statement after the
// other, as its stack is large.
type machines struct {
	modern modernParser
	accept acceptParser
	old    mapParser
}

func newMachines() *machines {
	return &machines{modernNewParser(), acceptNewParser(), mapNewParser()}
}

// feed hands one statement to a generated parser, token by token, and takes
// what comes out.
type feed struct {
	depth  int // of braces open
	g      *grammar
	use    *machines
	toks   []token // from the first of the statement to the end of the input
	next   int
	node   node
	done   bool
	failed *token // the token that cannot stand where it does

	at   place // of the word being read
	past bool  // the parser asked for more than there is, as in a trial
}

// The generated parsers differ in the type of a symbol, so each has a feed of
// its own.
type (
	modernFeed struct{ *feed }
	acceptFeed struct{ *feed }
	mapFeed    struct{ *feed }
)

// Lex implements the lexer of the generated parser.
func (f modernFeed) Lex(v *modernSymType) (id int) {
	id, v.tok = f.lex()
	return id
}

// Lex implements the lexer of the generated parser.
func (f acceptFeed) Lex(v *acceptSymType) (id int) {
	id, v.tok = f.lex()
	return id
}

// Lex implements the lexer of the generated parser.
func (f mapFeed) Lex(v *mapSymType) (id int) {
	id, v.tok = f.lex()
	return id
}

const badToken = 1 // no grammar knows it

func (f *feed) lex() (int, *token) {
	if f.done || f.next >= len(f.toks) {
		f.past = true
		return 0, nil
	}
	t := &f.toks[f.next]
	f.next++
	switch t.kind {
	case tokNL:
		return f.g.nl, t
	case tokWord:
		f.at = place{t.text, f.toks[:f.next-1], f.depth > 0}
		if id, ok := f.g.keyword(f.g, &f.at); ok {
			return id, t
		}
		return f.g.str, t
	case tokString:
		return f.g.str, t
	case tokNumber:
		return f.g.num, t
	case tokOp:
		f.depth += brace(t)
		if t.text == "=>" {
			return f.g.arrow, t
		}
		return int(t.text[0]), t
	}
	return badToken, t
}

// Error implements the lexer of the generated parser. The token it read last
// is the one it cannot use.
func (f *feed) Error(string) {
	if f.failed == nil && !f.past {
		f.failed = &f.toks[f.next-1]
	}
}

func (f *feed) accept(n node) { f.node, f.done = n, true }

// accepted is called by a grammar when a statement is whole; nothing after its
// line end is read.
func accepted(lex any, n node) { lex.(interface{ accept(node) }).accept(n) }

// statements reads all tokens into a tree, statement by statement. After a
// mistake it goes on behind the line.
type statements struct {
	toks     []token
	comments []comment
	diags    *diagList
	dialect  dialect
	o        *Options
	tree     *tree
	use      *machines
	feeds    [3]feed // for the grammars that a statement may be of; each is used again
	detailed int     // mistakes explained so far
}

func (s *statements) machines() *machines {
	if s.use == nil {
		s.use = newMachines()
	}
	return s.use
}

// maxDetailed bounds the mistakes for which all that could stand is worked out.
const maxDetailed = 100

func (s *statements) parse() {
	s.tree = &tree{}
	for i := 0; i < len(s.toks); {
		if s.toks[i].kind == tokNL {
			i++
			continue
		}
		i += s.statement(s.toks[i:], i)
	}
	s.tree.tail = trimBlank(tidy(s.lead(len(s.toks))))
}

// statement reads one statement and returns how many tokens it took.
func (s *statements) statement(toks []token, at int) int {
	f := s.run(toks)
	if f.node == nil {
		n := skip(toks, f, s.dialect.firstWords())
		s.report(toks[:n], f)
		s.tree.stmts = append(s.tree.stmts, &stmt{pos: toks[0].pos, node: broken(toks[:n])})
		return n
	}
	st := &stmt{pos: toks[0].pos, node: f.node}
	st.lead = s.lead(at)
	for len(s.comments) > 0 && s.comments[0].before < at+f.next {
		c := s.comments[0]
		s.comments = s.comments[1:]
		switch {
		case c.text == "":
		case c.before == at+f.next-1:
			st.trail = c.text
		default:
			st.lead = append(st.lead, c.text)
		}
	}
	st.lead = tidy(st.lead)
	s.tree.stmts = append(s.tree.stmts, st)
	return f.next
}

// run tries the grammars that know the first word. When none can read the
// statement, the one that came furthest says why.
func (s *statements) run(toks []token) *feed {
	var best *feed
	for i, g := range s.dialect.grammars(toks) {
		f := &s.feeds[i]
		*f = feed{g: g, use: s.machines(), toks: toks}
		g.run(f)
		if f.node != nil {
			return f
		}
		if best == nil || f.next > best.next {
			best = f
		}
	}
	return best
}

// skip is the number of tokens up to the end of the line that holds the
// mistake; braces left open there are skipped as well, when they are closed
// before the next statement begins.
func skip(toks []token, f *feed, first []string) int {
	depth := 0
	for i := range f.next {
		depth = max(0, depth+brace(&toks[i]))
	}
	i := max(f.next-1, 0)
	for i < len(toks) && toks[i].kind != tokNL {
		if i >= f.next {
			depth = max(0, depth+brace(&toks[i]))
		}
		i++
	}
	end := min(i+1, len(toks))
	for depth > 0 && i < len(toks) {
		if toks[i].kind == tokNL && i+2 < len(toks) && beginsStatement(toks[i+1:], first) {
			return end
		}
		depth += brace(&toks[i])
		i++
	}
	if depth > 0 {
		return end
	}
	for i < len(toks) && toks[i].kind != tokNL {
		i++
	}
	return max(end, min(i+1, len(toks)))
}

func brace(t *token) int {
	if t.kind == tokOp {
		switch t.text {
		case "{":
			return 1
		case "}":
			return -1
		}
	}
	return 0
}

// beginsStatement guesses whether a line inside braces is the next statement,
// the closing brace having been forgotten.
func beginsStatement(line []token, first []string) bool {
	if line[0].kind != tokWord || !slices.Contains(first, line[0].text) {
		return false
	}
	return line[1].kind == tokWord || line[1].kind == tokString
}

// broken stands for a statement that could not be read; the name it would have
// declared is kept.
func broken(toks []token) *badStmt {
	b := &badStmt{first: toks[0].text}
	at := 1
	if b.first == "mda" {
		b.first, at = "mda wrapper", 2
	}
	if at < len(toks) && (toks[at].kind == tokWord || toks[at].kind == tokString) {
		b.name = toks[at].text
	}
	return b
}

// lead takes the comments before token number n.
func (s *statements) lead(n int) []string {
	var lead []string
	for len(s.comments) > 0 && s.comments[0].before <= n {
		lead = append(lead, s.comments[0].text)
		s.comments = s.comments[1:]
	}
	return lead
}

// tidy keeps one blank line of several, and none at the end.
func tidy(lines []string) []string {
	var out []string
	for _, l := range lines {
		if l == "" && len(out) > 0 && out[len(out)-1] == "" {
			continue
		}
		out = append(out, l)
	}
	return out
}

func trimBlank(lines []string) []string {
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}
