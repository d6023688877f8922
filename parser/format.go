package parser

import (
	"fmt"
	"strconv"
	"strings"
)

// maxFormatToken bounds what stands in %{}, as when mail is delivered.
const maxFormatToken = 127

// formatTokens may stand in %{}, without regard to case.
var formatTokens = []string{"dest", "dest.domain", "dest.user", "mbox.from", "mda", "rcpt",
	"rcpt.domain", "rcpt.user", "sender", "sender.domain", "sender.user",
	"user.directory", "user.username"}

var formatModifiers = []string{"lowercase", "raw", "strip", "uppercase"}

// format checks the %{...} of a command, path or destination.
func (c *checker) format(t *token, wrapper bool) {
	if err := checkFormat(t.text, wrapper); err != nil {
		c.errorf(t.pos, "%v", err)
	}
}

func checkFormat(s string, wrapper bool) error {
	for {
		i := strings.IndexByte(s, '%')
		if i < 0 || i+1 == len(s) {
			return nil
		}
		switch s = s[i+1:]; s[0] {
		case '%':
			s = s[1:]
		case '{':
			inside, rest, ok := strings.Cut(s[1:], "}")
			if !ok {
				return fmt.Errorf("no } after %%{ in %q", "%"+s)
			}
			if err := checkExpansion(inside, wrapper); err != nil {
				return err
			}
			s = rest
		}
	}
}

// checkExpansion reads token[b:e]:mod|mod.
func checkExpansion(s string, wrapper bool) error {
	if len(s) > maxFormatToken {
		return fmt.Errorf("%%{%.20s...} is longer than %d characters", s, maxFormatToken)
	}
	end := strings.IndexAny(s, "[:")
	if end < 0 {
		end = len(s)
	}
	name, rest := strings.ToLower(s[:end]), s[end:]
	known := false
	for _, t := range formatTokens {
		known = known || t == name && (t != "mda" || wrapper)
	}
	if name == "mda" && !wrapper {
		return fmt.Errorf("%%{mda} is only known in an mda wrapper")
	}
	if !known {
		return fmt.Errorf("unknown format specifier %%{%s}%s", s[:end], suggestion(name, formatTokens))
	}
	if strings.HasPrefix(rest, "[") {
		span, after, ok := strings.Cut(rest[1:], "]")
		if !ok || !validRange(span) {
			return fmt.Errorf("invalid range in %%{%s}, expected [n], [b:e], [b:] or [:e]", s)
		}
		rest = after
	}
	if rest == "" {
		return nil
	}
	mods, ok := strings.CutPrefix(rest, ":")
	if !ok {
		return fmt.Errorf("unexpected %q in %%{%s}", rest, s)
	}
	for m := range strings.SplitSeq(mods, "|") {
		found := false
		for _, f := range formatModifiers {
			found = found || strings.EqualFold(f, m)
		}
		if !found {
			return fmt.Errorf("unknown modifier %q in %%{%s}%s", m, s, suggestion(m, formatModifiers))
		}
	}
	return nil
}

func validRange(s string) bool {
	b, e, both := strings.Cut(s, ":")
	number := func(s string) bool { _, err := strconv.ParseInt(s, 10, 16); return err == nil }
	if !both {
		return number(b)
	}
	return b+e != "" && (b == "" || number(b)) && (e == "" || number(e))
}
