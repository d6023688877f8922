package rfc5322

import (
	"time"

	"smtpd/internal/mail"
)

// Received is what one trace field says (RFC 5321 section 4.4). Texts that come
// from outside lose whatever could end the field or open a comment in it.
type Received struct {
	Helo string // argument of HELO or EHLO
	Host string // reverse name of the client, or "<unknown>"
	Addr string // "127.0.0.1", "[::1]" or "local"
	Mask bool   // say nothing of the three above

	By    string // our name
	Proto string // SMTP, ESMTP, ESMTPSA, ... (RFC 3848)
	ID    mail.MessageID

	TLS      string // "TLSv1.3:TLS_AES_256_GCM_SHA384:256"; empty: in the clear
	Verified bool   // the client's certificate verified
	ShowAuth bool   // say who logged in, or that nobody did; with TLS only
	User     string // of the login; empty: none

	For  mail.Address // the only recipient; null: say nothing
	Date time.Time
}

// Append appends the field to b, in three or four lines with LF line ends.
func (r *Received) Append(b []byte) []byte {
	b = append(b, "Received: "...)
	if !r.Mask {
		b = append(b, "from "...)
		b = appendWord(b, r.Helo)
		b = append(b, " ("...)
		b = appendWord(b, r.Host)
		b = append(b, ' ')
		if len(r.Addr) > 0 && r.Addr[0] == '[' {
			b = append(b, r.Addr...)
		} else {
			b = append(append(append(b, '['), r.Addr...), ']')
		}
		b = append(b, ')')
	}
	b = append(b, "\n\tby "...)
	b = append(b, r.By...)
	b = append(b, " (smtpd) with "...)
	b = append(b, r.Proto...)
	b = append(b, " id "...)
	b = append(b, r.ID.String()...)
	if r.TLS != "" {
		b = r.appendTLS(b)
	}
	if !r.For.IsNull() {
		b = append(b, "\n\tfor <"...)
		b = append(b, mail.OneLine(r.For.String())...)
		b = append(b, '>')
	}
	b = append(b, ";\n\t"...)
	b = AppendDate(b, r.Date)
	return append(b, '\n')
}

func (r *Received) appendTLS(b []byte) []byte {
	b = append(b, " ("...)
	b = append(b, r.TLS...)
	if r.Verified {
		b = append(b, ":YES)"...)
	} else {
		b = append(b, ":NO)"...)
	}
	switch {
	case !r.ShowAuth:
	case r.User == "":
		b = append(b, " auth=no"...)
	default:
		b = append(b, " auth=yes user="...)
		b = appendWord(b, r.User)
	}
	return b
}

// maxWord bounds a name from outside in the trace field. Ours: the longest
// domain, and the line stays under the 998 octets of RFC 5322 section 2.1.1.
const maxWord = 255

// appendWord appends s as one word: blanks, controls and the marks that have a
// meaning in a trace field become '?'.
func appendWord(b []byte, s string) []byte {
	if len(s) > maxWord {
		s = s[:maxWord]
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c == 0x7f || c == '(' || c == ')' || c == ';' || c == '\\' || c == '"':
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return b
}
