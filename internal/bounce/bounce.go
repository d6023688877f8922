// Package bounce composes delivery status notifications: what is told to the
// sender of a message about some of its recipients (RFC 3461, 3464, 6522, 6533).
// It is pure: no state, no clock, no files. Whatever the original holds, a
// notice has printable headers, LF line ends, no line over MaxLine, and no more
// octets than asked for.
package bounce

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// MaxLine is the longest line of a notice, in octets without its end (RFC 5322
// section 2.1.1).
const MaxLine = 998

// MinSize is the least Notice.Max: room for one recipient with the longest of
// texts, and some header of the original.
const MinSize = 32 << 10

// Notice is what is told.
type Notice struct {
	Kind   mail.NoticeKind
	Server string       // our name: Reporting-MTA, and the domain of From
	From   string       // domain of From when it is another
	To     mail.Address // the sender of the original
	Date   time.Time
	ID     uint64 // random: makes the boundary and the Message-ID

	// Recipients are the envelopes reported, all of one message and with one
	// reverse-path; at least one. LastError is what people are shown, LastStatus
	// and RemoteMTA are what programs are.
	Recipients []mail.Envelope

	Arrival time.Time     // of the original; zero: not told
	Delay   time.Duration // NoticeDelayed: how long it has been waiting
	TTL     time.Duration // NoticeDelayed: how long it is kept in all

	// Full returns the whole original when the sender did not ask (RET) for
	// anything; only with a failure.
	Full     bool
	Original io.Reader // from its first octet; CRLF or LF
	Size     int64     // of the original, in octets

	Max int // octets of the notice, at least MinSize
}

// words are what differs between the kinds.
var words = map[mail.NoticeKind]struct{ action, intro string }{
	mail.NoticeFailed: {"failed", "    An error has occurred while attempting to deliver a message for\n" +
		"    the following list of recipients:\n\n"},
	mail.NoticeDelayed: {"delayed", "    A message is delayed for more than %s for the following\n" +
		"    list of recipients:\n\n"},
	mail.NoticeDelivered: {"delivered", "    Your message was successfully delivered to these recipients.\n\n"},
	mail.NoticeRelayed:   {"relayed", "    Your message was relayed to these recipients.\n\n"},
}

// Compose writes the notice. used is how many of the recipients it reports, at
// least one: the others did not fit and want a notice of their own. isUTF8 says
// that it needs SMTPUTF8 to travel.
func (n *Notice) Compose() (data []byte, used int, isUTF8 bool) {
	c := &composer{n: n, utf8: n.needsUTF8()}
	text, status := c.reports()
	room := max(n.Max, MinSize) - len(text) - len(status) - 4<<10 // the frame is much less
	original, kind := c.original(room)
	boundary := n.boundary(text, status, original)

	var b strings.Builder
	c.header(&b, boundary, !isASCII(text+status+original))
	part := func(description, kind, body string) {
		b.WriteString("--" + boundary + "\nContent-Description: " + description + "\nContent-Type: " + kind + "\n")
		if !isASCII(body) {
			b.WriteString("Content-Transfer-Encoding: 8bit\n")
		}
		b.WriteString("\n" + body + "\n")
	}
	b.WriteString("\nThis is a MIME-encapsulated message.\n\n")
	charset, report := "us-ascii", "message/delivery-status"
	if c.utf8 {
		charset, report = "utf-8", "message/global-delivery-status"
	}
	part("Notification", "text/plain; charset="+charset, text)
	part("Delivery Report", report, status)
	description := "Message headers"
	if kind == "message/rfc822" || kind == "message/global" {
		description = "Message"
	}
	part(description, kind, original)
	b.WriteString("--" + boundary + "--\n")
	return []byte(b.String()), c.used, c.utf8
}

// composer holds what the parts of one notice share.
type composer struct {
	n    *Notice
	utf8 bool
	used int
}

func (n *Notice) needsUTF8() bool {
	all := []string{n.To.User, n.To.Domain}
	for i := range n.Recipients {
		e := &n.Recipients[i]
		if e.Flags&mail.FlagUTF8 != 0 {
			return true
		}
		all = append(all, e.Dest.User, e.Dest.Domain)
	}
	return !isASCII(strings.Join(all, ""))
}

// boundary is a number of 20 digits and our name, and occurs in no part.
func (n *Notice) boundary(parts ...string) string {
	const least = 10_000_000_000_000_000_000 // of 20 digits
	id := n.ID
	if id < least {
		id += least
	}
	for all := strings.Join(parts, "\n"); ; id++ {
		if id < least {
			id = least // past the largest
		}
		b := strconv.FormatUint(id, 10) + "/" + token(n.Server)
		if !strings.Contains(all, b) {
			return b
		}
	}
}

// token makes a name fit for a boundary (RFC 2046 section 5.1.1).
func token(s string) string {
	s = strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`"\()<>@,;:[]`, r) {
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), 48)]
}

func (c *composer) header(b *strings.Builder, boundary string, eightBit bool) {
	n := c.n
	from := n.From
	if from == "" {
		from = n.Server
	}
	report := "delivery-status"
	if c.utf8 {
		report = "global-delivery-status"
	}
	fmt.Fprintf(b, "Subject: Delivery status notification: %s\n", words[n.Kind].action)
	fmt.Fprintf(b, "From: Mailer Daemon <MAILER-DAEMON@%s>\n", c.clean(from, 255))
	fmt.Fprintf(b, "To: %s\n", c.clean(n.To.String(), 900))
	fmt.Fprintf(b, "Date: %s\n", date(n.Date))
	b.WriteString("MIME-Version: 1.0\n")
	fmt.Fprintf(b, "Content-Type: multipart/report; report-type=%s;\n\tboundary=\"%s\"\n", report, boundary)
	if eightBit {
		b.WriteString("Content-Transfer-Encoding: 8bit\n")
	}
	b.WriteString("Auto-Submitted: auto-replied\n") // RFC 3834 section 5
	fmt.Fprintf(b, "Message-ID: <%016x@%s>\n", n.ID, c.clean(n.Server, 255))
}

func date(t time.Time) string { return t.Format("Mon, 2 Jan 2006 15:04:05 -0700 (MST)") }

// reports makes the part for people and the one for programs, of as many
// recipients as half of the room takes.
func (c *composer) reports() (text, status string) {
	n := c.n
	var t, s strings.Builder
	t.WriteString("    Hi!\n\n    This is the MAILER-DAEMON, please DO NOT REPLY to this email.\n\n")
	intro := words[n.Kind].intro
	if n.Kind == mail.NoticeDelayed {
		intro = fmt.Sprintf(intro, duration(n.Delay))
	}
	t.WriteString(intro)
	c.perMessage(&s)
	for i := range n.Recipients {
		e := &n.Recipients[i]
		people, programs := c.line(e), c.perRecipient(e)
		if c.used > 0 && t.Len()+s.Len()+len(people)+len(programs) > max(n.Max, MinSize)/2 {
			break
		}
		t.WriteString(people)
		s.WriteString(programs)
		c.used++
	}
	t.WriteString("\n")
	if n.Kind == mail.NoticeDelayed {
		fmt.Fprintf(&t, "    Please note that this is only a temporary failure report.\n"+
			"    The message is kept in the queue for up to %s.\n"+
			"    You DO NOT NEED to re-send the message to these recipients.\n\n", duration(n.TTL))
	}
	t.WriteString("    Below is a copy of the original message:\n")
	return t.String(), s.String()
}

// line is what people read of one recipient.
func (c *composer) line(e *mail.Envelope) string {
	s := e.Dest.String()
	if e.LastError != "" && (c.n.Kind == mail.NoticeFailed || c.n.Kind == mail.NoticeDelayed) {
		s += ": " + e.LastError
	}
	s = fold(c.clean(s, 6<<10), "    ") + "\n"
	if st := &e.LastStatus; c.n.Kind == mail.NoticeFailed && st.Code != 0 && st.Temporary() { // expired
		s += fold(c.clean("    The last attempt failed: "+st.String(), 6<<10), "    ") + "\n"
	}
	return s
}

// perMessage writes the first group of fields (RFC 3464 section 2.2).
func (c *composer) perMessage(b *strings.Builder) {
	c.field(b, "Reporting-MTA", "dns; "+c.n.Server)
	if id := unxtext(c.n.Recipients[0].DSN.EnvID); id != "" {
		c.field(b, "Original-Envelope-Id", id)
	}
	if !c.n.Arrival.IsZero() {
		c.field(b, "Arrival-Date", date(c.n.Arrival))
	}
}

// perRecipient makes the group of fields of one recipient (RFC 3464 section
// 2.3).
func (c *composer) perRecipient(e *mail.Envelope) string {
	var b strings.Builder
	b.WriteString("\n")
	if kind, addr, ok := strings.Cut(e.DSN.ORcpt, ";"); ok && addr != "" {
		if addr = unxtext(addr); c.utf8 && strings.EqualFold(kind, "utf-8") {
			addr = unitext(addr)
		}
		c.field(&b, "Original-Recipient", kind+"; "+addr)
	}
	kind := "rfc822"
	if c.utf8 && !isASCII(e.Dest.String()) {
		kind = "utf-8"
	}
	c.field(&b, "Final-Recipient", kind+"; "+e.Dest.String())
	c.field(&b, "Action", words[c.n.Kind].action)
	c.field(&b, "Status", c.status(e))
	failure := c.n.Kind == mail.NoticeFailed || c.n.Kind == mail.NoticeDelayed
	switch {
	case !failure || e.LastStatus.Code == 0:
	case e.RemoteMTA != "":
		c.field(&b, "Remote-MTA", "dns; "+e.RemoteMTA)
		c.field(&b, "Diagnostic-Code", "smtp; "+e.LastStatus.String())
	default: // nobody else said it
		c.field(&b, "Diagnostic-Code", "X-smtpd; "+e.LastStatus.String())
	}
	if failure && !e.LastTry.IsZero() {
		c.field(&b, "Last-Attempt-Date", date(e.LastTry))
	}
	if c.n.Kind == mail.NoticeDelayed && !c.n.Arrival.IsZero() && c.n.TTL > 0 {
		c.field(&b, "Will-Retry-Until", date(c.n.Arrival.Add(c.n.TTL)))
	}
	return b.String()
}

// status is the enhanced code of a recipient (RFC 3463). A failure whose last
// attempt was only a temporary one has expired.
func (c *composer) status(e *mail.Envelope) string {
	enh := e.LastStatus.Enh
	switch c.n.Kind {
	case mail.NoticeFailed:
		if !e.LastStatus.Permanent() {
			return "5.4.7"
		}
		enh[0] = 5
	case mail.NoticeDelayed:
		enh[0] = 4
	default:
		if enh[0] != 2 {
			enh = [3]uint8{2, 0, 0}
		}
	}
	return fmt.Sprintf("%d.%d.%d", enh[0], enh[1], enh[2])
}

// field writes one field for programs, folded.
func (c *composer) field(b *strings.Builder, name, value string) {
	b.WriteString(fold(name+": "+c.clean(value, 6<<10), " ") + "\n")
}

// clean makes text printable: ASCII, unless the notice is in UTF-8.
func (c *composer) clean(s string, max int) string {
	s = mail.Clean(s, max)
	if c.utf8 || isASCII(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return '?'
		}
		return r
	}, s)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// foldAt is where a long line is broken, in octets. Ours: well below MaxLine.
const foldAt = 900

// fold breaks a line that is too long, at a space when there is one; indent
// begins each further line.
func fold(s, indent string) string {
	if len(s) <= foldAt {
		return s
	}
	var b strings.Builder
	for len(s) > foldAt {
		at := strings.LastIndexByte(s[:foldAt], ' ')
		if at < foldAt/2 {
			for at = foldAt; s[at]&0xc0 == 0x80; at-- { // not inside a UTF-8 sequence
			}
		}
		b.WriteString(s[:at] + "\n")
		s = indent + strings.TrimLeft(s[at:], " ")
	}
	b.WriteString(s)
	return b.String()
}

// unxtext decodes xtext (RFC 3461 section 4) when what comes out is printable,
// and otherwise leaves it as it is.
func unxtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		ch := s[i]
		if ch == '+' {
			if i+2 >= len(s) {
				return s
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return s
			}
			ch = byte(v)
			i += 2
		}
		if ch < ' ' || ch == 0x7f {
			return s
		}
		b.WriteByte(ch)
	}
	return b.String()
}

// unitext decodes \x{HEX} in an address of type utf-8 (RFC 6533 section 3),
// which only a notice in UTF-8 may show as what it stands for.
func unitext(s string) string {
	var b strings.Builder
	for {
		before, rest, ok := strings.Cut(s, `\x{`)
		hex, after, closed := strings.Cut(rest, "}")
		v, err := strconv.ParseUint(hex, 16, 21)
		if !ok || !closed || err != nil || v < ' ' || v == 0x7f || !utf8.ValidRune(rune(v)) {
			return b.String() + s
		}
		b.WriteString(before)
		b.WriteRune(rune(v))
		s = after
	}
}

// duration is a length of time as notices print it: whole units of the largest
// that fits.
func duration(d time.Duration) string {
	n, unit := int64(d/time.Second), "second"
	switch {
	case d >= 24*time.Hour:
		n, unit = int64(d/(24*time.Hour)), "day"
	case d >= time.Hour:
		n, unit = int64(d/time.Hour), "hour"
	case d >= time.Minute:
		n, unit = int64(d/time.Minute), "minute"
	}
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s", n, unit)
}
