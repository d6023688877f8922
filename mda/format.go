package mda

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"smtpd/internal/mail"
)

// Bounds of the format language, in octets (smtpd.conf(5), FORMAT SPECIFIERS).
const (
	maxToken    = 127  // what stands between the braces
	maxExpanded = 1023 // a value, and the whole result
)

// Values are what the format specifiers of one delivery stand for.
type Values struct {
	Sender, Rcpt, Dest mail.Address
	User, Home         string
	Delim              string // sub-address delimiter, for the modifier strip
	SubAddr            string // of the item that led to User; empty: that of Dest
	MDA                string // the expanded command, for %{mda} of a wrapper
}

// daemonName stands for the null reverse-path where a name is needed.
const daemonName = "MAILER-DAEMON"

// CheckFormat reports what is wrong with the format specifiers in s, for the
// configuration to be refused: an unknown token or modifier, a range that can
// never hold. %{mda} is known where allowMDA is set: in wrappers.
func CheckFormat(s string, allowMDA bool) error {
	parts, err := parseFormat(s)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if p.tok != nil && p.tok.name == "mda" && !allowMDA {
			return errors.New("%{mda} has a meaning in wrappers only")
		}
	}
	return nil
}

// Why a format cannot be expanded. The first two will not change by trying
// again.
var (
	errTooLong = errors.New("result too long")
	errEscapes = errors.New("result leaves its folder")
	errRange   = errors.New("range beyond the value")
)

// part is a stretch of plain text, or one specifier.
type part struct {
	text string
	tok  *token
}

// token is one %{name[begin:end]:modifier|modifier}.
type token struct {
	name   string
	ranged bool
	begin  int
	end    int
	one    bool // [n]: a single octet
	open   bool // [b:]: up to the end
	raw    bool
	mods   []string // in order, without raw
}

func parseFormat(s string) ([]part, error) {
	var parts []part
	for s != "" {
		i := strings.IndexByte(s, '%')
		switch {
		case i < 0:
			return append(parts, part{text: s}), nil
		case strings.HasPrefix(s[i:], "%%"):
			parts = append(parts, part{text: s[:i+1]})
			s = s[i+2:]
		case strings.HasPrefix(s[i:], "%{"):
			body, rest, ok := strings.Cut(s[i+2:], "}")
			switch {
			case !ok:
				return nil, fmt.Errorf("no } after %%{ in %q", mail.Clean(s[i:], maxToken))
			case len(body) > maxToken:
				return nil, fmt.Errorf("%%{%s...} is longer than %d characters", mail.Clean(body, 20), maxToken)
			}
			tok, err := parseToken(body)
			if err != nil {
				return nil, err
			}
			parts = append(parts, part{text: s[:i]}, part{tok: tok})
			s = rest
		default:
			parts = append(parts, part{text: s[:i+1]})
			s = s[i+1:]
		}
	}
	return parts, nil
}

func parseToken(body string) (*token, error) {
	t := &token{}
	cut := strings.IndexAny(body, "[:")
	if cut < 0 {
		cut = len(body)
	}
	t.name = strings.ToLower(body[:cut])
	if _, ok := (&Values{}).value(t.name); !ok {
		return nil, fmt.Errorf("unknown format specifier %%{%s}", mail.Clean(body, maxToken))
	}
	rest := body[cut:]
	if strings.HasPrefix(rest, "[") {
		expr, after, ok := strings.Cut(rest[1:], "]")
		if !ok || !t.setRange(expr) {
			return nil, fmt.Errorf("invalid range in %%{%s}", mail.Clean(body, maxToken))
		}
		rest = after
	}
	if rest == "" {
		return t, nil
	}
	if rest[0] != ':' {
		return nil, fmt.Errorf("invalid format specifier %%{%s}", mail.Clean(body, maxToken))
	}
	for m := range strings.SplitSeq(rest[1:], "|") {
		switch name := strings.ToLower(m); name {
		case "raw":
			t.raw = true
		case "lowercase", "uppercase", "strip":
			t.mods = append(t.mods, name)
		default:
			return nil, fmt.Errorf("unknown modifier %q in %%{%s}", m, mail.Clean(body, maxToken))
		}
	}
	return t, nil
}

// setRange reads "n", "b:e", "b:" and ":e".
func (t *token) setRange(expr string) bool {
	t.ranged = true
	b, e, colon := strings.Cut(expr, ":")
	t.one, t.open = !colon, colon && e == ""
	var err error
	if b != "" || t.one {
		if t.begin, err = strconv.Atoi(b); err != nil {
			return false
		}
	} else if t.open {
		return false // "[:]"
	}
	if !t.one && !t.open {
		if t.end, err = strconv.Atoi(e); err != nil {
			return false
		}
		return t.begin < 0 || t.end < 0 || t.begin <= t.end
	}
	return true
}

// cut applies the range. The end is inclusive; one beyond the value is cut
// back, a negative one counts from the last octet but one, as it always has.
func (t *token) cut(v string) (string, error) {
	b, e := t.begin, t.end
	if b < 0 {
		b += len(v)
	}
	switch {
	case t.one:
		e = b
	case t.open:
		e = len(v) - 1
	case e < 0:
		e += len(v) - 1
	}
	e = min(e, len(v)-1)
	if b < 0 || b >= len(v) || e < b {
		return "", errRange
	}
	return v[b : e+1], nil
}

// value is what a token stands for, before modifiers.
func (v *Values) value(name string) (string, bool) {
	switch name {
	case "sender":
		return v.Sender.String(), true
	case "sender.user":
		return v.Sender.User, true
	case "sender.domain":
		return v.Sender.Domain, true
	case "rcpt":
		return v.Rcpt.String(), true
	case "rcpt.user":
		return v.Rcpt.User, true
	case "rcpt.domain":
		return v.Rcpt.Domain, true
	case "dest":
		return v.Dest.String(), true
	case "dest.user":
		return v.Dest.User, true
	case "dest.domain":
		return v.Dest.Domain, true
	case "user.username":
		return v.User, true
	case "user.directory":
		return v.Home, true
	case "mbox.from":
		return v.from(), true
	case "mda":
		return v.MDA, true
	}
	return "", false
}

// from is the sender as `From ` lines name it.
func (v *Values) from() string {
	if v.Sender.IsNull() {
		return daemonName
	}
	return v.Sender.String()
}

// use says what an expanded text is for, and so what a value may bring in.
type use int

const (
	useCommand use = iota // read by a shell
	usePath               // names a file or folder
)

// ours tells the tokens whose values are not taken from the envelope.
func ours(name string) bool { return name == "user.directory" || name == "mda" }

func (t *token) expand(v *Values, u use) (string, error) {
	s, _ := v.value(t.name)
	for _, m := range t.mods {
		switch m {
		case "lowercase":
			s = eachOctet(s, func(c byte) byte {
				if c >= 'A' && c <= 'Z' {
					c += 'a' - 'A'
				}
				return c
			})
		case "uppercase":
			s = eachOctet(s, func(c byte) byte {
				if c >= 'a' && c <= 'z' {
					c -= 'a' - 'A'
				}
				return c
			})
		case "strip":
			s = stripTag(s, v.Delim)
		}
	}
	if !ours(t.name) {
		if !t.raw {
			s = sanitise(s, u)
		}
		if u == usePath {
			s = strings.ReplaceAll(s, "/", ":")
		}
	}
	if t.ranged {
		return t.cut(s)
	}
	return s, nil
}

// stripTag cuts the sub-address off: u+tag@d gives u@d.
func stripTag(s, delim string) string {
	user, domain := s, ""
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		user, domain = s[:i], s[i:]
	}
	if delim != "" {
		user, _, _ = strings.Cut(user, delim)
	}
	return user + domain
}

// Octets of a value that become ':'. The first list is that of the
// specification. The second holds what else a shell acts on; such an octet can
// only come out of a quoted local-part, which the reference does not accept.
const (
	escapedAlways = "!#$%&'*?`{|}~\""
	escapedShell  = "\\;<>()"
)

func sanitise(s string, u use) string {
	return eachOctet(s, func(c byte) byte {
		if strings.IndexByte(escapedAlways, c) >= 0 {
			return ':'
		}
		if u == useCommand && (c <= ' ' || c == 0x7f || strings.IndexByte(escapedShell, c) >= 0) {
			return ':'
		}
		return c
	})
}

// eachOctet is strings.Map by octets: text that is not UTF-8 keeps its length.
func eachOctet(s string, f func(byte) byte) string {
	b := []byte(s)
	for i, c := range b {
		b[i] = f(c)
	}
	return string(b)
}

// expand replaces the specifiers in s. A path in which a value makes up a name
// that leads upwards is refused.
func (v *Values) expand(s string, u use) (string, error) {
	parts, err := parseFormat(s)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(s, "~/") {
		parts[0].text = v.Home + parts[0].text[1:]
	}
	var b strings.Builder
	var marks [][2]int // where values stand
	for _, p := range parts {
		if p.tok == nil {
			b.WriteString(p.text)
			continue
		}
		val, err := p.tok.expand(v, u)
		if err != nil {
			return "", err
		}
		if len(val) > maxExpanded {
			return "", errTooLong
		}
		if !ours(p.tok.name) {
			marks = append(marks, [2]int{b.Len(), b.Len() + len(val)})
		}
		b.WriteString(val)
	}
	if b.Len() > maxExpanded {
		return "", errTooLong
	}
	out := b.String()
	if u == usePath && leadsUp(out, marks) {
		return "", errEscapes
	}
	return out, nil
}

// leadsUp reports whether a name in path that a value has a part in is "." or
// "..": what was written out in the configuration is the operator's business.
func leadsUp(path string, marks [][2]int) bool {
	start := 0
	for name := range strings.SplitSeq(path, "/") {
		end := start + len(name)
		if name == "." || name == ".." {
			for _, m := range marks {
				if m[0] <= end && m[1] >= start {
					return true
				}
			}
		}
		start = end + 1
	}
	return false
}
