package parser

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// maxTrial bounds the statement for which the words that could stand at a
// mistake are worked out, and maxListed those that are then named.
const (
	maxTrial  = 2000
	maxListed = 30
)

// report tells of the token that a grammar could not use: what was found, what
// could have stood there, and a near miss.
func (s *statements) report(toks []token, f *feed) {
	bad := f.failed
	if bad == nil {
		bad = &toks[len(toks)-1]
	}
	for i := range toks[:min(f.next, len(toks))] {
		if toks[i].kind == tokError {
			s.diags.errors++ // the lexer has said why
			return
		}
	}
	at := max(f.next-1, 0)
	if bad.kind == tokUnquoted && bad.text == ";" {
		s.diags.errorf(bad.pos, "syntax error: found %q: statements end with the line, without a semicolon", bad.text)
		return
	}
	if bad.kind == tokUnquoted {
		s.diags.errorf(bad.pos, "syntax error: %q must be quoted", bad.text)
		return
	}
	s.detailed++
	if s.detailed > maxDetailed || at > maxTrial {
		s.diags.errorf(bad.pos, "syntax error: found %s", bad)
		return
	}
	if text := s.hint(toks, at); text != "" {
		s.diags.errorf(bad.pos, "syntax error: %s%s", text, f.g.misspelt(toks, at, text))
		return
	}
	words, other := f.g.expected(toks[:at])
	if at == 0 {
		words = s.dialect.firstWords()
	}
	text := mistake(toks, at, words, other)
	s.diags.errorf(bad.pos, "syntax error: %s%s", text, f.g.misspelt(toks, at, text))
}

// misspelt looks at the word before a mistake: it may have been taken for a name
// and meant to be a key word, one letter away.
func (g *grammar) misspelt(toks []token, at int, text string) string {
	if at < 2 || toks[at-1].kind != tokWord || g.words[toks[at-1].text] != 0 || strings.Contains(text, "did you mean") {
		return ""
	}
	word := toks[at-1].text
	words, _ := g.expected(toks[:at-1])
	near := nearest(word, words)
	if near == "" || distance(word, near) > 2 {
		return ""
	}
	return fmt.Sprintf("; did you mean %q by %q?", near, word)
}

// mistake words the error: words are the key words that could stand at token
// at, other what else could.
func mistake(toks []token, at int, words, other []string) string {
	bad := &toks[at]
	list := orList(words, other)
	if at == 0 {
		if near := nearest(bad.text, words); near != "" {
			return fmt.Sprintf("unknown directive %q, did you mean %q?", bad.text, near)
		}
		return fmt.Sprintf("unknown directive %s, expected %s", bad, list)
	}
	name := slices.ContainsFunc(other, func(o string) bool { return strings.HasPrefix(o, "a") })
	switch {
	case bad.kind == tokWord && strings.HasSuffix(bad.text, ";"):
		return fmt.Sprintf("found %s: a semicolon is part of the word, statements end with the line", bad)
	case bad.kind == tokWord && !name && len(words) > 0:
		if w := presentWord(bad.text, words); w != "" {
			return fmt.Sprintf("unknown option %q, did you mean %q?", bad.text, w)
		}
	case bad.kind == tokWord && name && modernWords[bad.text] != 0:
		return fmt.Sprintf("found %s, expected %s; %q is a reserved word and must be quoted to be a name",
			bad, list, bad.text)
	case bad.kind == tokNumber && strings.Contains(list, "a delay"):
		return fmt.Sprintf("found %s, expected %s; a delay needs a unit: s, m, h or d", bad, list)
	case bad.kind == tokNumber && name:
		return fmt.Sprintf("found %s, expected %s; a number that is a name must be quoted", bad, list)
	}
	return fmt.Sprintf("found %s, expected %s", bad, list)
}

// presentWord is the word of the list that was meant: a near one, or the one
// that has taken the place of an older word.
func presentWord(found string, words []string) string {
	if w := renamed[strings.ToLower(found)]; w != "" && slices.Contains(words, w) {
		return w
	}
	return nearest(found, words)
}

// renamed are words of earlier releases, and of other servers, for which the
// present language has one of its own.
var renamed = map[string]string{
	"sender": "mail-from", "recipient": "rcpt-to", "source": "src", "tagged": "tag",
	"mask-source": "mask-src", "certificate": "cert", "authenticated": "auth",
	"secure": "smtps", "ssl": "smtps", "starttls": "tls", "via": "host", "as": "mail-from",
	"expire": "ttl", "all": "any", "from": "mail-from", "to": "rcpt-to", "return": "reject",
	"deliver": "action", "accept": "action", "drop": "reject", "deny": "reject",
	"network": "src", "ip": "src", "ehlo": "helo", "hostname": "helo", "verify": "tls",
	"noverify": "no-verify", "command": "mda", "exec": "mda", "pipe": "mda", "user": "auth",
}

// orList is "a", "b" or c; a long list is cut.
func orList(words, other []string) string {
	var all []string
	all = append(all, other...)
	for i, w := range words {
		if i == maxListed {
			all = append(all, "...")
			break
		}
		all = append(all, fmt.Sprintf("%q", w))
	}
	switch n := len(all); n {
	case 0:
		return "nothing more"
	case 1:
		return all[0]
	default:
		return strings.Join(all[:n-1], ", ") + " or " + all[n-1]
	}
}

// expected finds what can follow the tokens of a statement: its key words, and
// the rest in words. It tries each on a parser of its own.
func (g *grammar) expected(before []token) (words, other []string) {
	use := newMachines()
	try := func(t token) bool {
		toks := append(slices.Clone(before), t)
		f := &feed{g: g, use: use, toks: toks}
		g.run(f)
		return f.failed == nil
	}
	inside := opened(before)
	for _, w := range slices.Sorted(maps.Keys(g.words)) {
		t := token{text: w, kind: tokWord}
		if id, ok := g.keyword(g, &place{w, before, inside}); ok && id != g.str && try(t) {
			words = append(words, w)
		}
	}
	str := try(token{text: "\x00", kind: tokString})
	tab := try(token{text: "<", kind: tokOp})
	switch {
	case str && tab:
		other = append(other, nounAfter(before)+" or <table>")
	case str:
		other = append(other, nounAfter(before))
	case tab:
		other = append(other, "a <table>")
	}
	if try(token{text: "0", kind: tokNumber}) {
		other = append(other, "a number")
	}
	for _, op := range []string{"{", "}", ",", "=", ">", "(", ")"} {
		if op == "{" && tab {
			continue
		}
		if try(token{text: op, kind: tokOp}) {
			other = append(other, fmt.Sprintf("%q", op))
		}
	}
	if try(token{kind: tokNL}) && len(before) > 0 && !opened(before) {
		other = append(other, "the end of the line")
	}
	return words, other
}

func opened(toks []token) bool {
	depth := 0
	for i := range toks {
		depth += brace(&toks[i])
	}
	return depth > 0
}

// nouns say what the name after a key word is.
var nouns = map[string]string{
	"domain": "a domain", "host": "a relay URL", "via": "a relay URL", "port": "a port",
	"ttl": "a delay such as 4d", "expire": "a delay such as 4d",
	"warn-interval": "a delay such as 4h", "action": "an action", "table": "a name",
	"pki": "a name", "ca": "a name", "cert": "a file", "certificate": "a file", "key": "a file",
	"include": "a file", "src": "an address", "source": "an address", "mail-from": "an address",
	"rcpt-to": "an address", "sender": "an address", "recipient": "an address",
	"tag": "a tag", "tagged": "a tag", "user": "a user", "as": "a user", "group": "a group",
	"chroot": "a folder", "on": "an interface or address", "mda": "a command",
	"proc-exec": "a command", "lmtp": "a host:port or socket", "hostname": "a host name",
	"helo": "a host name", "mx": "a host name", "rdns": "a host name", "filter": "a filter",
	"proc": "a name", "regex": "a regular expression", "reject": "a message such as \"550 no\"",
	"disconnect": "a message such as \"550 no\"", "max-message-size": "a size such as 35M",
	"alias": "a list", "virtual": "a list", "userbase": "a list", "auth": "a list",
	"for": "a domain", "from": "an address", "rewrite": "an address", "report": "a text",
	"wrapper": "a name", "map": "a name", "maildir": "a path", "timeout": "a delay such as 30s",
	"hold": "a time such as \"22:00-06:00\"", "retry": "a delay such as 10m", "resolver": "an address", "on-failure": "pass or tempfail", "without": "an extension such as CHUNKING",
}

func nounAfter(before []token) string {
	for i := len(before) - 1; i >= 0; i-- {
		if before[i].kind == tokWord {
			if i == 0 && before[i].text == "action" {
				return "a name"
			}
			if n := nouns[before[i].text]; n != "" {
				return n
			}
			break
		}
		if before[i].kind != tokOp {
			break
		}
	}
	return "a name"
}
