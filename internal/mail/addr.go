// Package mail is the vocabulary that every part of the server shares:
// addresses, envelopes, ids and the Status that decides a mail's fate. It holds
// plain data and imports only the standard library; it owns no state, no files
// and no goroutines.
package mail

import "strings"

// MaxLocalPart is the longest local-part accepted, in octets. RFC 5321 section
// 4.5.3.1.1 says 64; 255 is what OpenSMTPD accepts, and lists use it.
const MaxLocalPart = 255

// MaxDomain is the longest domain accepted, in octets (RFC 5321 section
// 4.5.3.1.2).
const MaxDomain = 255

// Address is a mailbox without display name. The zero value is the null
// reverse-path. Case is kept as written; comparisons that fold it say so. A
// quoted local-part is held with its quotes, an address literal with its
// brackets.
type Address struct {
	User   string
	Domain string
}

// IsNull reports whether a is the null reverse-path `<>`.
func (a Address) IsNull() bool { return a.User == "" && a.Domain == "" }

// String is user@domain; the user alone when there is no domain; empty for the
// null reverse-path. Callers print the angle brackets.
func (a Address) String() string {
	if a.Domain == "" {
		return a.User
	}
	return a.User + "@" + a.Domain
}

// SplitAddress cuts s at its last '@'. It checks no syntax; s without '@' is a
// user without a domain.
func SplitAddress(s string) Address {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return Address{User: s}
	}
	return Address{User: s[:i], Domain: s[i+1:]}
}

// SplitTag cuts the sub-address off the user: "u+tag" gives "u" and "tag". No
// delimiter gives the whole user and an empty tag.
func (a Address) SplitTag(delim string) (user, tag string) {
	if delim == "" {
		return a.User, ""
	}
	user, tag, _ = strings.Cut(a.User, delim)
	return user, tag
}

// FitPath reports whether an address can stand between angle brackets: octets
// that would end the path are allowed in a quoted local-part only.
func FitPath(s string) bool {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return false
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			if i++; i == len(s) || s[i] < ' ' || s[i] == 0x7f {
				return false
			}
		case !quoted && strings.IndexByte(" <>", c) >= 0:
			return false
		}
	}
	return !quoted
}
