package parser

import (
	"fmt"
	"slices"
)

// hint says more of a mistake at token at than the grammar can; it is empty
// when it knows nothing better.
func (s *statements) hint(toks []token, at int) string {
	first := &toks[0]
	if first.kind != tokWord {
		return ""
	}
	if s.dialect.kind == modern && at <= 1 {
		if text := s.olderStatement(toks); text != "" {
			return text
		}
	}
	if len(toks) > 1 && toks[1].kind == tokOp && toks[1].text == "=" && at <= 1 {
		return fmt.Sprintf("%q is a reserved word and cannot be the name of a macro", first.text)
	}
	known := slices.Contains(s.dialect.firstWords(), first.text)
	switch {
	case at == 1 && !known && modernWords[first.text] == 0:
		return fmt.Sprintf("unknown directive %q%s", first.text, suggestion(first.text, s.dialect.firstWords()))
	case first.text == "filter" && s.dialect.kind != modern && at == 2 && toks[at].kind != tokNL:
		return "filter programs of 5.x do not speak the present protocol; " +
			`install a present one and write: filter NAME proc-exec "COMMAND"`
	case first.text == "filter":
		return filterHint(toks, at)
	case first.text == "accept" || first.text == "reject":
		return ruleHint(toks, at)
	}
	return valuesHint(toks, at)
}

// valuesHint explains what is wrong inside braces.
func valuesHint(toks []token, at int) string {
	depth, pairs, seen := 0, false, false
	for i := range at {
		switch d := brace(&toks[i]); {
		case d > 0:
			depth, pairs, seen = depth+1, false, false
		case d < 0:
			depth--
		case toks[i].text == "=" || toks[i].text == "=>":
			pairs = true
		default:
			seen = seen || toks[i].kind != tokNL
		}
	}
	bad := &toks[at]
	switch {
	case depth == 0:
		return ""
	case bad.kind == tokOp && bad.text == "}" && !seen:
		return "nothing between the braces, expected at least one value"
	case bad.kind == tokOp && bad.text == "}" && toks[at-1].text == ",":
		return "found \"}\" after a comma, expected one more value"
	case bad.kind == tokOp && (bad.text == "=" || bad.text == "=>") && !pairs:
		return "values and pairs are mixed, expected either value, value or key = value, key = value"
	case pairs && bad.kind != tokWord && bad.kind != tokString && bad.kind != tokNumber && toks[at-1].kind != tokOp:
		return fmt.Sprintf("found %s after %q, expected \"=\" and a value: values and pairs are mixed", bad, toks[at-1].text)
	}
	return ""
}

// ruleHint explains mistakes in a rule of an older form.
func ruleHint(toks []token, at int) string {
	var bad = &toks[at]
	before := func(w string) bool {
		return slices.ContainsFunc(toks[:at], func(t token) bool { return t.kind == tokWord && t.text == w })
	}
	decision := slices.Contains([]string{"from", "for", "sender", "recipient", "tagged", "authenticated"}, bad.text)
	lookup := slices.Contains([]string{"alias", "virtual", "userbase"}, bad.text)
	switch {
	case bad.kind != tokWord:
	case (decision || lookup) && (before("deliver") || before("relay")):
		return fmt.Sprintf("found %q after the action, expected decisions (from, for, sender, recipient, tagged), "+
			"then lookups (alias, virtual, userbase), then deliver or relay", bad.text)
	case lookup && has(toks, at-1, "domain"):
		return fmt.Sprintf("found %q, expected a domain or <table>; write it as in: for domain <domains> "+
			"alias <aliases> userbase <users>", bad.text)
	}
	return ""
}

// olderStatement tells that a statement is of an older language than the file,
// and how it is written today.
func (s *statements) olderStatement(toks []token) string {
	old := dialect{kind: acceptForm, first: &toks[0]}
	w := toks[0].text
	if !slices.Contains(acceptFirst, w) && !slices.Contains(mapFirst, w) || slices.Contains(modernFirst, w) {
		return ""
	}
	text := fmt.Sprintf("%q is the language used before 6.4", w)
	if f := s.dialect.first; f != nil {
		text += fmt.Sprintf(", this file uses %q (line %d)", f.text, f.pos.line)
	}
	if w == "hostname" && len(toks) > 1 && validName(toks[1].text) {
		// What is left of it in the present form, admd, is not the server's name.
		return text + fmt.Sprintf("; write: hostname %s behind listen on, or that name into %s", toks[1].text, s.o.Mailname)
	}
	if now := s.present(toks, old); now != "" {
		text += "; write: " + now
	}
	return text
}

// present is one statement in the present language, its lines parted by
// slashes; empty when it cannot be read alone.
func (s *statements) present(toks []token, old dialect) string {
	end := slices.IndexFunc(toks, func(t token) bool { return t.kind == tokNL })
	if end < 0 {
		return ""
	}
	quiet := &diagList{sources: s.diags.sources}
	one := &statements{toks: toks[:end+1], diags: quiet, dialect: old, o: s.o}
	one.parse()
	in := &input{diags: quiet, dialect: old, written: one.tree}
	if quiet.errors > 0 {
		return ""
	}
	t := translate(s.o, in)
	if quiet.errors > 0 {
		return ""
	}
	for _, st := range t.stmts {
		st.lead, st.trail = nil, ""
		if holdsSecret(st.node) {
			return ""
		}
	}
	return onOneLine(t.stmts)
}
