package parser

import (
	"slices"
	"strings"

	"smtpd/mda"
)

// formatTokens and formatModifiers are what mda.CheckFormat knows, for those who
// misspell them.
var (
	formatTokens = []string{"dest", "dest.domain", "dest.user", "mbox.from", "mda", "rcpt",
		"rcpt.domain", "rcpt.user", "sender", "sender.domain", "sender.user",
		"user.directory", "user.username"}
	formatModifiers = []string{"lowercase", "raw", "strip", "uppercase"}
)

// format checks the %{...} of a command, path or destination, as delivery will
// read it.
func (c *checker) format(t *token, wrapper bool) {
	if err := mda.CheckFormat(t.text, wrapper); err != nil {
		c.errorf(t.pos, "%v%s", err, formatHint(t.text, wrapper))
	}
}

// formatHint is a near miss for the first specifier that is wrong.
func formatHint(s string, wrapper bool) string {
	for {
		_, after, ok := strings.Cut(s, "%{")
		body, rest, closed := strings.Cut(after, "}")
		if !ok || !closed {
			return ""
		}
		if mda.CheckFormat("%{"+body+"}", wrapper) != nil {
			return specifierHint(body)
		}
		s = rest
	}
}

func specifierHint(body string) string {
	end := strings.IndexAny(body, "[:")
	if end < 0 {
		end = len(body)
	}
	if name := strings.ToLower(body[:end]); !slices.Contains(formatTokens, name) {
		return suggestion(name, formatTokens)
	}
	if _, mods, ok := strings.Cut(body[strings.LastIndexByte(body, ']')+1:], ":"); ok {
		for m := range strings.SplitSeq(strings.ToLower(mods), "|") {
			if !slices.Contains(formatModifiers, m) {
				return suggestion(m, formatModifiers)
			}
		}
	}
	return ""
}
