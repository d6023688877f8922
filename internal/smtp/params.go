package smtp

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// Replies to parameters of MAIL and RCPT.
const (
	replyParamSyntax = "501 5.5.4 Invalid command arguments: "
	replyParam       = "555 5.5.4 Invalid command arguments: Unsupported option "
	replyTooBig      = "552 5.3.4 Message too big for system: Transaction failed, message too big"
	replyNever       = "501 5.5.4 NOTIFY option NEVER cannot be combined with other options"
	replyORcpt       = "501 5.5.4 ORCPT address syntax error"
)

// maxDigits is how long a size may be (RFC 1870 section 5).
const maxDigits = 20

// params are the parameters of one MAIL.
type params struct {
	size       int64 // as declared; 0: not
	binary     bool
	eightBit   bool
	utf8       bool
	requireTLS bool
	dsn        mail.DSN
}

// eachParam calls f with each parameter of "KEY=VALUE KEY ...", the key in
// upper case, until it gives a reply. A key that comes twice is refused.
func eachParam(s string, f func(key, value, word string, has bool) string) string {
	var known [8]string
	n := 0
	for word := range strings.FieldsSeq(s) {
		key, value, has := strings.Cut(word, "=")
		key = strings.ToUpper(key)
		for _, k := range known[:n] {
			if k == key {
				return replyParamSyntax + "option given twice: " + key
			}
		}
		if reply := f(key, value, word, has); reply != "" {
			return reply
		}
		if n == len(known) {
			return replyParamSyntax + "too many options"
		}
		known[n] = key
		n++
	}
	return ""
}

// mailParams reads the parameters of MAIL; reply is what refuses them, or empty.
func (s *Session) mailParams(text string) (p params, reply string) {
	reply = eachParam(text, func(key, value, word string, has bool) string {
		switch key {
		case "SIZE":
			return s.sizeParam(&p, value)
		case "BODY":
			return s.bodyParam(&p, value, word)
		case "AUTH":
			if !validXtext(value, mail.MaxLocalPart+mail.MaxDomain) || value == "" {
				return replyParamSyntax + "bad AUTH"
			}
			return ""
		case "SMTPUTF8":
			if s.offers(extUTF8) && !has {
				p.utf8 = true
				return ""
			}
		case "REQUIRETLS":
			if s.offers(extRequireTLS) && s.tls != nil && !has {
				p.requireTLS = true
				return ""
			}
		case "RET", "ENVID":
			if s.offers(extDSN) {
				return dsnMailParam(&p.dsn, key, value)
			}
		}
		return replyParam + cleanWord(word)
	})
	return p, reply
}

func (s *Session) sizeParam(p *params, value string) string {
	n, err := strconv.ParseUint(value, 10, 63)
	switch {
	case len(value) > maxDigits, err != nil && !errors.Is(err, strconv.ErrRange), value[0] == '+':
		return replyParamSyntax + "bad SIZE"
	case err != nil, int64(n) > s.c.SMTP.MaxMessageSize:
		return replyTooBig
	}
	p.size = int64(n)
	return ""
}

func (s *Session) bodyParam(p *params, value, word string) string {
	switch strings.ToUpper(value) {
	case "7BIT":
		return ""
	case "8BITMIME":
		if s.offers(ext8BitMIME) {
			p.eightBit = true
			return ""
		}
	case "BINARYMIME":
		if s.offers(extBinary) {
			p.eightBit, p.binary = true, true
			return ""
		}
	}
	return replyParam + cleanWord(word)
}

func dsnMailParam(d *mail.DSN, key, value string) string {
	switch {
	case key == "ENVID":
		if value == "" || !validXtext(value, mail.MaxEnvID) {
			return replyParamSyntax + "bad ENVID"
		}
		d.EnvID = value
	case strings.EqualFold(value, "FULL"):
		d.Ret = mail.RetFull
	case strings.EqualFold(value, "HDRS"):
		d.Ret = mail.RetHeaders
	default:
		return replyParamSyntax + "bad RET"
	}
	return ""
}

// rcptParams reads the parameters of RCPT into d, which begins clean for each.
// isUTF8 says that MAIL asked for SMTPUTF8.
func (s *Session) rcptParams(text string, isUTF8 bool, d *mail.DSN) (reply string) {
	return eachParam(text, func(key, value, word string, _ bool) string {
		switch {
		case !s.offers(extDSN):
		case key == "NOTIFY":
			return notifyParam(d, value)
		case key == "ORCPT":
			d.ORcpt = orcpt(value, isUTF8)
			if d.ORcpt == "" {
				return replyORcpt
			}
			return ""
		}
		return replyParam + cleanWord(word)
	})
}

func notifyParam(d *mail.DSN, value string) string {
	for word := range strings.SplitSeq(value, ",") {
		var n mail.Notify
		switch strings.ToUpper(word) {
		case "SUCCESS":
			n = mail.NotifySuccess
		case "FAILURE":
			n = mail.NotifyFailure
		case "DELAY":
			n = mail.NotifyDelay
		case "NEVER":
			n = mail.NotifyNever
		default:
			return replyParamSyntax + "bad NOTIFY"
		}
		if d.Notify&n != 0 {
			return replyParamSyntax + "bad NOTIFY"
		}
		d.Notify |= n
	}
	if d.Notify&mail.NotifyNever != 0 && d.Notify != mail.NotifyNever {
		return replyNever
	}
	return ""
}

// orcpt is what is kept of ORCPT; empty: it is wrong. Behind the type comes
// xtext, or for the type utf-8 what RFC 6533 section 3 makes of it: what is not
// ASCII there, with SMTPUTF8, is kept in the form that is.
func orcpt(value string, isUTF8 bool) string {
	kind, text, ok := strings.Cut(value, ";")
	if !ok || !validAtom(kind) || text == "" || len(value) > mail.MaxORcpt {
		return ""
	}
	if !strings.EqualFold(kind, "utf-8") {
		if !validXtext(text, mail.MaxORcpt) {
			return ""
		}
		return value
	}
	var b strings.Builder
	b.WriteString(kind + ";")
	for _, r := range text {
		switch {
		case r <= ' ' || r == 0x7f || r == '=' || r == utf8.RuneError || r >= 0x80 && !(isUTF8 && unicode.IsPrint(r)):
			return ""
		case r < 0x80:
			b.WriteByte(byte(r))
		default:
			fmt.Fprintf(&b, `\x{%02X}`, r)
		}
	}
	if b.Len() > mail.MaxORcpt {
		return ""
	}
	return b.String()
}

// validAtom checks the address type of ORCPT (RFC 3461 section 4.2).
func validAtom(s string) bool {
	for i := range len(s) {
		if !isAtext(s[i]) {
			return false
		}
	}
	return s != ""
}

// validXtext checks xtext (RFC 3461 section 4) of at most max octets that
// stands for printable text.
func validXtext(s string, max int) bool {
	if len(s) > max {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
				return false
			}
			if v, _ := strconv.ParseUint(s[i+1:i+3], 16, 8); v < ' ' || v == 0x7f {
				return false
			}
			i += 2
		case c <= ' ' || c >= 0x7f || c == '=':
			return false
		}
	}
	return true
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'A' <= c && c <= 'F' }

// maxEcho bounds what a reply repeats of a command. Ours: the reply stays one
// line of 512 octets (RFC 5321 section 4.5.3.1.5).
const maxEcho = 100

// cleanWord is a word of the client as a reply may show it.
func cleanWord(s string) string { return mail.Clean(s, maxEcho) }
