package rfc5322

import "smtpd/internal/mail"

// segment is one item of an address list, by offsets into the value.
type segment struct {
	end         int // one past the item: a comma, or the end of the value
	open, shut  int // the angle brackets; -1: there are none
	first, last int // the text of the address, blanks and comments around it left out; -1: none
	words       bool
	at          bool // the address has a domain
	group       bool // a colon or semicolon: part of a group
	broken      bool // a quote, comment or bracket that never ends
}

// scan reads the item that begins at i. It looks at every octet once. An item
// ends at a comma; with groups at the marks of a group as well.
func scan(v []byte, i int, groups bool) segment {
	s := segment{open: -1, shut: -1, first: -1, last: -1}
	gap := false
	for ; i < len(v); i++ {
		switch c := v[i]; c {
		case ' ', '\t', '\n', '\r':
			gap = true
			continue
		case '(':
			if i = skipComment(v, i); i == len(v) {
				s.broken = true
			}
			gap = true
			continue
		case ',':
			if s.open < 0 || s.shut >= 0 {
				s.end = i
				return s
			}
		case '<':
			s.broken = s.broken || s.open >= 0
			s.open, s.first, s.words, s.at, gap = i, -1, false, false, false
			continue
		case '>':
			s.broken = s.broken || s.open < 0 || s.shut >= 0
			s.shut = i
			continue
		case ':', ';':
			if s.open < 0 || s.shut >= 0 {
				s.group = true
				if groups {
					s.end = i
					return s
				}
			}
		case '@':
			s.at = s.at || s.shut < 0
		}
		if s.shut >= 0 {
			continue // words behind the brackets belong to no address
		}
		if s.words = s.words || (gap && s.first >= 0); s.first < 0 {
			s.first = i
		}
		if i = skipQuoted(v, i); i == len(v) {
			s.broken = true
			break
		}
		s.last, gap = i, false
	}
	s.end = len(v)
	s.broken = s.broken || (s.open >= 0 && s.shut < 0)
	return s
}

// skipQuoted gives the last octet of the quoted string or literal at i; i
// itself when there is none; len(v) when it never ends.
func skipQuoted(v []byte, i int) int {
	var stop byte
	switch v[i] {
	case '"':
		stop = '"'
	case '[':
		stop = ']'
	default:
		return i
	}
	for i++; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case stop:
			return i
		}
	}
	return len(v)
}

// skipComment gives the last octet of the comment at i; comments nest.
func skipComment(v []byte, i int) int {
	depth := 0
	for ; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(v)
}

// complete appends v with "@domain" behind each address that has none. Groups,
// empty items and what is malformed stay as they are, and so does all folding.
func complete(dst, v []byte, domain string) []byte {
	if domain == "" {
		return append(dst, v...)
	}
	for i := 0; i <= len(v); {
		s := scan(v, i, false)
		if s.first < 0 || s.words || s.at || s.group || s.broken {
			dst = append(dst, v[i:s.end]...)
		} else {
			dst = append(dst, v[i:s.last+1]...)
			dst = append(append(dst, '@'), domain...)
			dst = append(dst, v[s.last+1:s.end]...)
		}
		if s.end == len(v) {
			break
		}
		dst = append(dst, ',')
		i = s.end + 1
	}
	return dst
}

// masquerade appends v with each address replaced by sender. A value in which
// the addresses cannot be told is replaced as a whole.
func masquerade(dst, v []byte, sender string) []byte {
	start := len(dst)
	for i := 0; i <= len(v); {
		s := scan(v, i, false)
		switch {
		case s.group || s.broken || (s.first < 0 && s.open < 0):
			return append(append(append(dst[:start], " <"...), sender...), '>')
		case s.open >= 0:
			dst = append(append(dst, v[i:s.open+1]...), sender...)
			dst = append(dst, v[s.shut:s.end]...)
		default:
			dst = append(append(dst, v[i:s.first]...), sender...)
			dst = append(dst, v[s.last+1:s.end]...)
		}
		if s.end == len(v) {
			break
		}
		dst = append(dst, ',')
		i = s.end + 1
	}
	return dst
}

// AddressList reads the addresses out of the value of a To, Cc or Bcc field,
// folded or not, groups included, at most max of them. What is no address is
// left out; the syntax of the parts is not checked. Comments inside an address
// are not supported.
func AddressList(value string, max int) []mail.Address {
	v := []byte(value)
	var list []mail.Address
	for i := 0; i <= len(v) && len(list) < max; {
		s := scan(v, i, true)
		i = s.end + 1
		if s.first < 0 || s.broken || (s.words && s.open < 0) {
			continue
		}
		if s.end < len(v) && v[s.end] == ':' {
			continue // the name of a group
		}
		if a := mail.SplitAddress(string(v[s.first : s.last+1])); a.User != "" {
			list = append(list, a)
		}
	}
	return list
}
