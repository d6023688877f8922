package parser

import (
	"fmt"
	"slices"
	"strings"
)

// filterDecisions is what a filter with a phase can do.
const filterDecisions = `"reject", "disconnect", "rewrite" or "report" with a text, "junk" or "bypass"`

// filterHint explains a filter with a phase that the grammar cannot read.
func filterHint(toks []token, at int) string {
	if len(toks) < 5 || !has(toks, 2, "phase") || !has(toks, 4, "match") || at < 5 {
		return ""
	}
	name, phase, conds := toks[1].text, toks[3].text, filterConds[toks[3].text]
	i := 5
	if toks[i].kind == tokOp && toks[i].text == "!" {
		i++
	}
	if i >= len(toks) || toks[i].kind != tokWord {
		return ""
	}
	cond := toks[i].text
	asked := cond
	if w := renamed[cond]; filterConds["rcpt-to"] != nil && w != "" && modernWords[cond] == 0 {
		asked = w
	}
	var says []string
	switch {
	case !slices.Contains(append(filterConds["rcpt-to"], "mail-from"), asked):
		if i != at {
			return ""
		}
		says = append(says, fmt.Sprintf("%q is no condition of a filter, expected %s%s", cond,
			orList(conds, nil), suggestion(cond, conds)))
		if cond == "relay" || cond == "greylist" {
			says = append(says, "greylisting is done by a filter program, or by spamd in front")
		}
	default:
		if asked != cond {
			says = append(says, fmt.Sprintf("%q is no condition of a filter, it is written %q", cond, asked))
		}
		if !slices.Contains(conds, asked) {
			says = append(says, fmt.Sprintf("%s is not known at phase %s, expected %s", asked, phase, orList(conds, nil)))
		}
		if toks[at].kind == tokNL && at == i+1 {
			says = append(says, "a decision is missing, expected "+filterDecisions)
		}
		if w := corrected(toks, i, asked); w != "" && len(says) > 0 && asked != cond {
			says = append(says, "write: "+w)
		}
	}
	if len(says) == 0 {
		return ""
	}
	return fmt.Sprintf("filter %q: %s", name, strings.Join(says, "; "))
}

// corrected writes the filter as it may have been meant: at the first phase
// that knows the condition, with a message.
func corrected(toks []token, cond int, asked string) string {
	phase := asked
	if filterConds[phase] == nil {
		phase = toks[3].text
	}
	words := []string{"filter", spell(&toks[1]), "phase", phase, "match"}
	end := toks[len(toks)-1]
	for i := 5; i < len(toks) && toks[i].kind != tokNL; i++ {
		switch t := &toks[i]; {
		case i == cond:
			words = append(words, asked)
		case t.kind == tokOp:
			words = append(words, t.text)
		case t.kind == tokString:
			words = append(words, quote(t.text))
		default:
			words = append(words, t.text)
		}
		end = toks[i]
	}
	if end.text == "reject" || end.text == "disconnect" {
		words = append(words, `"550 ..."`)
	}
	text := strings.Join(words, " ")
	return strings.NewReplacer("< ", "<", " >", ">", "! ", "!").Replace(text)
}
