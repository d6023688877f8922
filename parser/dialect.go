package parser

import (
	"iter"
	"slices"
	"strings"
)

// generation is one of the three forms the language has had.
type generation int

const (
	modern     generation = iota // action and match, since 6.4
	acceptForm                   // table and accept, 5.3 to 6.3
	mapForm                      // map and accept, 4.6 to 5.2
)

// releases are the OpenSMTPD releases of a generation.
func (g generation) releases() string {
	return [...]string{"6.4 and later", "5.3-6.3", "4.6-5.2"}[g]
}

// dialect is the generation of a file, and what else decides how it is read.
type dialect struct {
	kind  generation
	first *token // the word that settles it; nil: nothing does
	plain bool   // an older file without anything that only 5.3 and later knew
}

// detect tells the generation of a configuration by its statements: action or
// match make it the present one, else accept or reject an older one; which of
// the two older ones, by what only one of them knew.
func detect(toks []token) dialect {
	d := dialect{plain: true}
	oldest := false
	for line := range lines(toks) {
		if len(line) > 1 && line[1].kind == tokOp && line[1].text == "=" || line[0].kind != tokWord {
			continue
		}
		switch w := line[0].text; w {
		case "action", "match":
			return dialect{kind: modern, first: &line[0]}
		case "accept", "reject":
			if d.first == nil {
				d.kind, d.first = acceptForm, &line[0]
			}
			oldest = oldest || oldRule(line)
		case "map", "hostname", "size":
			oldest = true
		case "queue":
			oldest = oldest || has(line, 1, "interval")
		case "listen":
			oldest = oldest || follows(line, "enable", "auth")
		}
		d.plain = d.plain && !newer(line)
	}
	if d.kind == acceptForm && oldest {
		d.kind = mapForm
	}
	return d
}

// oldRule reports whether a rule holds what only 4.6 to 5.2 knew.
func oldRule(line []token) bool {
	via := false
	for i := range line {
		if line[i].kind != tokWord {
			continue
		}
		switch line[i].text {
		case "via":
			via = true
		case "port", "tls", "smtps", "ssl":
			if via {
				return true
			}
		}
	}
	return follows(line, "enable", "auth") || follows(line, "from", "all") ||
		follows(line, "for", "virtual") || has(line, 1, "on") || follows(line, "{", "virtual")
}

// newer reports whether a statement can only be of 5.3 or later.
func newer(line []token) bool {
	switch line[0].text {
	case "accept", "reject", "listen", "expire", "queue", "map", "hostname", "size", "include":
	default:
		return true
	}
	for i := range line {
		t := &line[i]
		switch {
		case t.kind == tokOp && (t.text == "<" || t.text == "!"):
			return true
		case t.kind != tokWord:
		case slices.Contains([]string{"tagged", "sender", "recipient", "authenticated", "lmtp",
			"userbase", "forward-only", "pki", "mask-source", "hostnames", "secure"}, t.text):
			return true
		}
	}
	return false
}

func has(line []token, at int, word string) bool {
	return at < len(line) && line[at].kind == tokWord && line[at].text == word
}

// follows reports whether word b stands right after a.
func follows(line []token, a, b string) bool {
	for i := 1; i < len(line); i++ {
		if line[i-1].text == a && line[i-1].kind != tokString && has(line, i, b) {
			return true
		}
	}
	return false
}

// lines cuts the tokens into statements; line ends inside braces do not end
// one, unless braces stay open to the end.
func lines(toks []token) iter.Seq[[]token] {
	open := 0
	for i := range toks {
		open = max(0, open+brace(&toks[i]))
	}
	return func(yield func([]token) bool) {
		depth, start := 0, 0
		for i := range toks {
			if open == 0 {
				depth = max(0, depth+brace(&toks[i]))
			}
			if toks[i].kind != tokNL || depth > 0 {
				continue
			}
			if i > start && !yield(toks[start:i]) {
				return
			}
			start = i + 1
		}
	}
}

// grammars are those that may read a statement, the likeliest first.
func (d dialect) grammars(toks []token) []*grammar {
	switch {
	case d.kind == modern:
		return []*grammar{&modernGrammar}
	case len(toks) > 1 && toks[1].kind == tokOp && toks[1].text == "=":
		return []*grammar{&macroGrammar}
	}
	order := [...]*grammar{&acceptGrammar, &mapGrammar, &sharedGrammar}
	if d.kind == mapForm {
		order[0], order[1] = order[1], order[0]
	}
	out := make([]*grammar, 0, len(order))
	if toks[0].kind == tokWord {
		for _, g := range order {
			if slices.Contains(g.first, toks[0].text) {
				out = append(out, g)
			}
		}
	}
	if len(out) == 0 {
		out = append(out, order[:2]...)
	}
	return out
}

// firstWords are all words that can begin a statement.
func (d dialect) firstWords() []string {
	if d.kind == modern {
		return modernFirst
	}
	return slices.Concat(acceptFirst, mapFirst, sharedFirst)
}

// contextual takes a word for a key word only where a statement of an older
// generation can ask for it, and never where only a name can stand.
func contextual(g *grammar, w *place) (int, bool) {
	id, ok := g.words[w.text]
	if !ok {
		return 0, false
	}
	if len(w.before) == 0 {
		return id, true
	}
	if !isWordOf(w.before[0].text, w.text) || isNamePosition(w.before, w.text) || w.isLaterName() {
		return 0, false
	}
	return id, true
}

// macroName refuses the words that begin statements as names of macros.
func macroName(_ *grammar, w *place) (int, bool) {
	if len(w.before) == 0 && wordsOf[w.text] != "" {
		return badToken, true
	}
	return 0, false
}

// isNamePosition reports whether the word behind these can only be a name.
func isNamePosition(before []token, text string) bool {
	last := &before[len(before)-1]
	if last.kind == tokOp {
		return last.text == "<"
	}
	if n := len(before) - 1; last.kind != tokWord || n > 0 && isNamePosition(before[:n], last.text) {
		return false // that is a name itself, as in `for virtual map virtual`
	}
	rule := before[0].text == "accept" || before[0].text == "reject"
	switch last.text {
	case "map", "table", "alias", "tag", "tagged", "certificate", "user", "pki":
		return true
	case "virtual":
		return rule && text != "map"
	case "auth":
		return rule && !has(before, len(before)-2, "enable")
	case "on":
		return rule
	}
	return false
}

// isWordOf reports whether a statement of an older generation can ask for a word.
func isWordOf(first, word string) bool {
	switch word {
	case "for", "from", "domain", "relay", "deliver", "to", "via": // the usual ones of rules
		if first == "accept" {
			return true
		}
	}
	return wordIn(wordsOf[first], word)
}

func wordIn(set, word string) bool {
	for w := range strings.FieldsSeq(set) {
		if w == word {
			return true
		}
	}
	return false
}
