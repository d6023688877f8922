package smtp

import (
	"errors"
	"net/netip"
	"strings"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// maxLabel is the longest label of a domain, in octets (RFC 1035 section
// 2.3.4).
const maxLabel = 63

var errPath = errors.New("address syntax")

// parsePath reads "<path>" at the start of s (RFC 5321 section 4.1.2) and gives
// what follows it. A source route is cut off, a local-part that is quoted
// without need is unquoted. The null path gives the zero Address. Octets over
// 127 are accepted when utf8 is set (RFC 6531 section 3.3).
func parsePath(s string, utf8 bool) (a mail.Address, rest string, err error) {
	if len(s) < 2 || s[0] != '<' {
		return a, s, errPath
	}
	s = s[1:]
	if s[0] == '>' {
		return a, s[1:], nil
	}
	if s[0] == '@' {
		i := strings.IndexAny(s, ":>")
		if i < 0 || s[i] != ':' {
			return a, s, errPath
		}
		s = s[i+1:]
	}
	if a.User, s, err = parseLocal(s, utf8); err != nil {
		return mail.Address{}, s, err
	}
	if s == "" {
		return mail.Address{}, s, errPath
	}
	if s[0] == '@' {
		i := strings.IndexByte(s, '>')
		if i < 0 || !validDomain(s[1:i], utf8) {
			return mail.Address{}, s, errPath
		}
		a.Domain = s[1:i]
		s = s[i:]
	}
	if s[0] != '>' {
		return mail.Address{}, s, errPath
	}
	return a, s[1:], nil
}

// parseLocal reads a local-part: a dot-string or a quoted string.
func parseLocal(s string, utf8 bool) (local, rest string, err error) {
	if s != "" && s[0] == '"' {
		return parseQuoted(s, utf8)
	}
	i := 0
	for i < len(s) && (s[i] == '.' || isAtext(s[i]) || (utf8 && s[i] >= 0x80)) {
		i++
	}
	local = s[:i]
	if !validDotString(local, utf8) {
		return "", s, errPath
	}
	return local, s[i:], nil
}

// parseQuoted reads a quoted local-part and writes it in its shortest form: the
// same mailbox has one spelling from here on.
func parseQuoted(s string, utf8 bool) (local, rest string, err error) {
	var text []byte
	i := 1
	for ; i < len(s) && s[i] != '"'; i++ {
		if s[i] == '\\' {
			i++
		}
		if i == len(s) || s[i] < ' ' || s[i] == 0x7f || (s[i] >= 0x80 && !utf8) {
			return "", s, errPath
		}
		text = append(text, s[i])
	}
	if i >= len(s) {
		return "", s, errPath
	}
	rest = s[i+1:]
	if validDotString(string(text), utf8) {
		return string(text), rest, nil
	}
	q := []byte{'"'}
	for _, c := range text {
		if c == '"' || c == '\\' {
			q = append(q, '\\')
		}
		q = append(q, c)
	}
	q = append(q, '"')
	if len(q) > mail.MaxLocalPart || !validUTF8(text) {
		return "", s, errPath
	}
	return string(q), rest, nil
}

func validUTF8(b []byte) bool { return utf8.Valid(b) }

// validDotString checks atoms joined by single dots.
func validDotString(s string, eightBit bool) bool {
	if s == "" || len(s) > mail.MaxLocalPart || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if s[i-1] == '.' {
				return false
			}
		case c >= 0x80 && eightBit:
		case !isAtext(c):
			return false
		}
	}
	return !eightBit || utf8.ValidString(s)
}

// isAtext is atext of RFC 5322 section 3.2.3.
func isAtext(c byte) bool {
	return isAlnum(c) || strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// validDomain checks a host name or an address literal. '_' is accepted, as
// OpenSMTPD does: hosts with such names send mail.
func validDomain(s string, eightBit bool) bool {
	if s == "" || len(s) > mail.MaxDomain {
		return false
	}
	if s[0] == '[' {
		return validLiteral(s)
	}
	label := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case c == '-' && label == 0:
			return false
		case c >= 0x80 && eightBit:
		case !isAlnum(c) && c != '-' && c != '_':
			return false
		}
		if label++; label > maxLabel {
			return false
		}
	}
	return label > 0 && (!eightBit || utf8.ValidString(s))
}

// validLiteral checks "[192.0.2.1]", "[IPv6:...]", and "[v6]" as OpenSMTPD
// accepts it.
func validLiteral(s string) bool {
	if s[len(s)-1] != ']' {
		return false
	}
	s = s[1 : len(s)-1]
	v6 := len(s) > 5 && strings.EqualFold(s[:5], "IPv6:")
	if v6 {
		s = s[5:]
	}
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == "" && (!v6 || a.Is6())
}

// isASCII reports whether s needs no SMTPUTF8.
func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
