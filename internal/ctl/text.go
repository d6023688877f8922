package ctl

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// Vis makes text harmless on a terminal and in a field, in the manner of
// vis(3): \^C for control octets, \M-x for octets of the upper half, \\ for a
// backslash. UTF-8 that prints is kept as it is.
func Vis(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == '\\' || r < ' ' || r >= 0x7f }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r >= 0x80 && r != utf8.RuneError && strconv.IsPrint(r) {
			b.WriteString(s[:n])
		} else {
			for i := range n {
				visOctet(&b, s[i])
			}
		}
		s = s[n:]
	}
	return b.String()
}

func visOctet(b *strings.Builder, c byte) {
	low := c & 0x7f
	switch {
	case c == '\\':
		b.WriteString(`\\`)
		return
	case c == ' '|0x80:
		b.WriteString(`\240`)
		return
	case c >= 0x80:
		b.WriteString(`\M`)
		if low >= ' ' && low < 0x7f {
			b.WriteByte('-')
		}
	case low < ' ' || low == 0x7f:
		b.WriteByte('\\')
	}
	if low < ' ' || low == 0x7f {
		b.WriteByte('^')
		low ^= 0x40
	}
	b.WriteByte(low)
}

// Duration is d in whole seconds as "1d2h3m4s" without the parts that are zero;
// "0s" when all are.
func Duration(d time.Duration) string {
	if d < 0 {
		return "-" + Duration(-d)
	}
	sec := int64(d / time.Second)
	var b []byte
	for _, u := range [...]struct {
		size int64
		name byte
	}{{24 * 60 * 60, 'd'}, {60 * 60, 'h'}, {60, 'm'}, {1, 's'}} {
		if n := sec / u.size; n > 0 {
			b = append(strconv.AppendInt(b, n, 10), u.name)
		}
		sec %= u.size
	}
	if len(b) == 0 {
		return "0s"
	}
	return string(b)
}

// envelopeVersion is the version that OpenSMTPD 7.8 writes into its envelope
// files, whose form EnvelopeText has.
const envelopeVersion = "3"

// EnvelopeText is a stored envelope as `smtpctl show envelope` prints it: lines
// "name: value" in the order and with the names of OpenSMTPD's envelope files;
// what is empty is left out. No value holds a line end.
func EnvelopeText(e *mail.Envelope) string {
	t := lines{}
	t.add("version", envelopeVersion)
	t.add("dispatcher", e.Dispatcher)
	t.add("tag", e.Tag)
	t.add("type", e.Kind.String())
	t.add("smtpname", e.SMTPName)
	t.add("helo", e.Helo)
	t.add("hostname", e.Host)
	t.add("username", e.Username)
	t.add("errorline", e.LastError)
	t.add("sockaddr", e.Client)
	t.add("sender", e.Sender.String())
	t.add("rcpt", e.Rcpt.String())
	t.add("dest", e.Dest.String())
	t.add("ctime", unixTime(e.Created))
	t.add("last-try", unixTime(e.LastTry))
	t.add("last-bounce", "0")
	t.add("ttl", number(int64(e.TTL/time.Second)))
	t.add("retry", strconv.Itoa(int(e.Retry)))
	t.add("flags", envelopeFlags(e.Flags))
	t.add("dsn-notify", strconv.Itoa(int(e.DSN.Notify)))
	t.add("dsn-ret", [...]string{"", "FULL", "HDRS"}[min(e.DSN.Ret, mail.RetHeaders)])
	t.add("dsn-envid", e.DSN.EnvID)
	t.add("dsn-orcpt", e.DSN.ORcpt)
	if enh := e.LastStatus.Enh; enh[0] != 0 {
		t.add("esc-class", strconv.Itoa(int(enh[0])))
		t.add("esc-code", strconv.Itoa(int(enh[1])*10+int(enh[2])))
	}
	switch e.Kind {
	case mail.KindMDA:
		t.add("mda-exec", e.Exec)
		t.add("mda-user", e.User)
	case mail.KindBounce:
		if e.Notice == mail.NoticeDelayed {
			t.add("bounce-delay", number(int64(e.NoticeDelay/time.Second)))
		}
		t.add("bounce-type", noticeName(e.Notice))
	}
	return t.b.String()
}

// lines gathers "name: value" lines.
type lines struct{ b strings.Builder }

func (l *lines) add(name, value string) {
	if value == "" {
		return
	}
	l.b.WriteString(name)
	l.b.WriteString(": ")
	l.b.WriteString(mail.Clean(value, len(value)))
	l.b.WriteByte('\n')
}

func envelopeFlags(flags mail.Flags) string {
	var words []string
	for _, f := range [...]struct {
		flag mail.Flags
		name string
	}{
		{mail.FlagAuthenticated, "authenticated"}, {mail.FlagBounce, "bounce"}, {mail.FlagInternal, "internal"},
		{mail.FlagSuspended, "suspended"}, {mail.FlagHold, "hold"}, {mail.FlagUTF8, "smtputf8"},
		{mail.FlagRequireTLS, "requiretls"}, {mail.Flag8BitMIME, "8bitmime"},
	} {
		if flags&f.flag != 0 {
			words = append(words, f.name)
		}
	}
	return strings.Join(words, " ")
}

func noticeName(n mail.NoticeKind) string {
	switch n {
	case mail.NoticeFailed:
		return "failed"
	case mail.NoticeDelayed:
		return "delayed"
	case mail.NoticeDelivered, mail.NoticeRelayed:
		return "delivered"
	}
	return ""
}
