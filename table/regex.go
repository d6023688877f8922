package table

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var (
	errRegexGroup   = errors.New("(? is not part of an extended regular expression")
	errRegexBackref = errors.New("back references are not part of an extended regular expression")
	errRegexBracket = errors.New("a bracket expression is not closed")
)

// compileRegex compiles a POSIX extended regular expression as an entry of a
// table holds it, unanchored. Case never matters, since keys are folded;
// a leading "(?i)", by which OpenSMTPD asks for that, is taken. Matching takes
// time linear in the key.
func compileRegex(entry string) (*regexp.Regexp, error) {
	pattern, err := translateERE(strings.TrimPrefix(entry, "(?i)"))
	if err == nil {
		var re *regexp.Regexp
		if re, err = regexp.Compile("(?i)" + pattern); err == nil {
			return re, nil
		}
	}
	return nil, fmt.Errorf("%w: not a regular expression: %w", errValue, err)
}

// translateERE writes an extended regular expression (POSIX.1-2024, section
// 9.4) as one of package regexp. They differ inside brackets, where POSIX knows no
// escapes, and in what a backslash before a letter means.
func translateERE(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '[':
			n, err := translateBracket(&b, s[i:])
			if err != nil {
				return "", err
			}
			i += n
		case c == '\\' && i+1 < len(s):
			if err := translateEscape(&b, s[i+1]); err != nil {
				return "", err
			}
			i += 2
		case c == '(' && strings.HasPrefix(s[i+1:], "?"):
			return "", errRegexGroup
		default:
			b.WriteByte(c)
			i++
		}
	}
	return b.String(), nil
}

// translateEscape writes a backslash with the octet c. The letters are those
// that regcomp of common systems knows besides the standard.
func translateEscape(b *strings.Builder, c byte) error {
	switch {
	case '0' <= c && c <= '9':
		return errRegexBackref
	case c == '<' || c == '>':
		b.WriteString(`\b`)
	case strings.IndexByte("wWsSdDbB", c) >= 0 || (!isAlnum(c) && c < 0x80):
		b.WriteByte('\\')
		b.WriteByte(c)
	default:
		b.WriteByte(c)
	}
	return nil
}

// translateBracket writes the bracket expression at the start of s and tells
// its length.
func translateBracket(b *strings.Builder, s string) (int, error) {
	if strings.HasPrefix(s, "[[:<:]]") || strings.HasPrefix(s, "[[:>:]]") {
		b.WriteString(`\b`)
		return len("[[:<:]]"), nil
	}
	b.WriteByte('[')
	i := 1
	if i < len(s) && s[i] == '^' {
		b.WriteByte('^')
		i++
	}
	for first := true; i < len(s); first = false {
		c := s[i]
		if c == ']' && !first {
			b.WriteByte(']')
			return i + 1, nil
		}
		if c == '[' && i+1 < len(s) && strings.IndexByte(":.=", s[i+1]) >= 0 {
			end := strings.Index(s[i+2:], s[i+1:i+2]+"]")
			if end < 0 {
				return 0, errRegexBracket
			}
			name := s[i+2 : i+2+end]
			if s[i+1] == ':' {
				b.WriteString("[:" + name + ":]")
			} else {
				b.WriteString(regexp.QuoteMeta(name))
			}
			i += end + 4
			continue
		}
		if strings.IndexByte(`\[]&~`, c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
		i++
	}
	return 0, errRegexBracket
}
