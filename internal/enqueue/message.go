package enqueue

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
)

// Bounds of a header and its addresses. Ours: a list of ten thousand recipients
// in To still fits.
const (
	maxHeader     = 1 << 20 // octets
	maxRecipients = 10000
	maxParts      = 4096 // continued lines of one field
	lineBuffer    = 64 << 10
	// maxBodyLine is the longest body line sent as it is, in octets without its
	// end; RFC 5322 section 2.1.1 allows 998.
	maxBodyLine = 990
)

// User is who runs sendmail.
type User struct {
	Login string
	Name  string // full name, may be empty
	Home  string
}

// Message is a message read from standard input. The caller closes it.
type Message struct {
	Sender     mail.Address // set by Complete; may be the null reverse-path
	Recipients []mail.Address

	opts   *Options
	fields []field
	scan   bodyScan
	added  []string // header lines that go in front
	header []byte   // what was there, LF lines, without what is dropped
	body   spool    // LF lines
	encode bool     // the body is sent as quoted-printable
}

// Close frees what the message holds.
func (m *Message) Close() { m.body.close() }

// Read takes a message from r until its end. The errors that are a *Refused are
// the user's to mend; others are i/o errors.
func Read(r io.Reader, o *Options) (*Message, error) {
	m := &Message{opts: o}
	br := bufio.NewReaderSize(r, lineBuffer)
	var err error
	if m.fields, err = readHeader(br); err == nil {
		err = m.scan.copy(&m.body, br)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Complete settles reverse-path and recipients and adds the header lines that
// are missing. domain is what an address without one gets, now the time for a
// missing Date. A refusal is a *Refused; the message can still be saved then.
func (m *Message) Complete(user User, domain string, now time.Time) error {
	err := m.addresses(user, domain)
	m.complete(user, domain, now)
	return err
}

// field is one header field with its continuation lines, LF line ends.
type field struct {
	name string // lower-case
	text []byte
}

// value is what follows the colon.
func (f *field) value() string {
	_, v, _ := bytes.Cut(f.text, []byte(":"))
	return string(v)
}

// readHeader reads fields up to the empty line, which it takes, or up to the
// first line that is none, which it leaves. A leading mbox separator is dropped.
func readHeader(br *bufio.Reader) ([]field, error) {
	var fields []field
	size := 0
	for first := true; ; first = false {
		line, err := peekLine(br)
		if err != nil || line == nil {
			return fields, err
		}
		whole := line[len(line)-1] == '\n' || len(line) < lineBuffer
		text := cleanLine(line)
		name, isField := fieldName(text)
		more := len(fields) > 0 && len(text) > 0 && (text[0] == ' ' || text[0] == '\t')
		switch {
		case !whole && (more || isField):
			return nil, &Refused{"header line too long"}
		case len(text) == 0, first && bytes.HasPrefix(text, []byte("From ")):
		case more:
			f := &fields[len(fields)-1]
			f.text = append(append(f.text, text...), '\n')
		case isField:
			fields = append(fields, field{name, append(text, '\n')})
		default:
			return fields, nil
		}
		if size += len(line); size > maxHeader || len(fields) > maxParts {
			return nil, &Refused{"header too large"}
		}
		if _, err := br.Discard(len(line)); err != nil {
			return nil, err
		}
		if len(text) == 0 {
			return fields, nil
		}
	}
}

// peekLine is the next line with its end, still unread; nil at the end of the
// input. A line that fills the buffer is returned as far as it goes.
func peekLine(br *bufio.Reader) ([]byte, error) {
	for n := 256; ; n = min(2*n, lineBuffer) {
		b, err := br.Peek(n)
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			return b[:i+1], nil
		}
		switch {
		case errors.Is(err, io.EOF) && len(b) == 0:
			return nil, nil
		case errors.Is(err, io.EOF), err == nil && n == lineBuffer:
			return b, nil
		case err != nil:
			return nil, err
		}
	}
}

// cleanLine copies a header line without its end; CR and NUL within become
// spaces.
func cleanLine(line []byte) []byte {
	text := bytes.Clone(bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")))
	for i, c := range text {
		if c == '\r' || c == 0 {
			text[i] = ' '
		}
	}
	return text
}

// fieldName is the name of a field (RFC 5322 section 2.2).
func fieldName(line []byte) (string, bool) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return "", false
	}
	name := bytes.TrimRight(line[:i], " \t") // obsolete syntax, section 4.5
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return "", false
		}
	}
	return strings.ToLower(string(name)), len(name) > 0
}

// bodyScan finds out what a body needs.
type bodyScan struct {
	long, binary bool
}

// copy copies a body with LF line ends.
func (s *bodyScan) copy(dst io.Writer, br *bufio.Reader) error {
	lineLen := 0
	for {
		part, err := br.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(part) == 0:
			if lineLen == 0 {
				return nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
			if part[len(part)-1] == '\r' { // may belong to the line's end
				part = part[:len(part)-1]
				if err := br.UnreadByte(); err != nil {
					return err
				}
			}
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		ended := err == nil || errors.Is(err, io.EOF)
		if ended {
			part = bytes.TrimSuffix(bytes.TrimSuffix(part, []byte("\n")), []byte("\r"))
		}
		lineLen += len(part)
		s.long = s.long || lineLen > maxBodyLine
		s.binary = s.binary || bytes.ContainsAny(part, "\r\x00")
		if _, err := dst.Write(part); err != nil {
			return err
		}
		if !ended {
			continue
		}
		lineLen = 0
		if _, err := dst.Write([]byte{'\n'}); err != nil {
			return err
		}
		if err != nil {
			return nil
		}
	}
}

// addresses settles reverse-path and recipients.
func (m *Message) addresses(user User, domain string) error {
	from := find(m.fields, "from")
	switch {
	case m.opts.SenderSet:
		s := strings.TrimSpace(m.opts.Sender)
		if strings.HasPrefix(s, "<") && strings.HasSuffix(s, ">") {
			s = s[1 : len(s)-1]
		}
		m.Sender = qualify(mail.SplitAddress(s), domain)
	case from != nil && len(rfc5322.AddressList(from.value(), 1)) == 1:
		m.Sender = qualify(rfc5322.AddressList(from.value(), 1)[0], domain)
	default:
		m.Sender = mail.Address{User: user.Login, Domain: domain}
	}
	if !m.Sender.IsNull() && !valid(m.Sender) {
		return &Refused{"invalid sender: " + mail.Clean(m.Sender.String(), 100)}
	}
	for _, arg := range m.opts.Recipients {
		list := rfc5322.AddressList(arg, maxRecipients+1)
		if len(list) == 0 {
			return &Refused{"invalid recipient: " + mail.Clean(arg, 100)}
		}
		m.Recipients = append(m.Recipients, list...)
	}
	if m.opts.FromHeader {
		for _, f := range m.fields {
			if slices.Contains([]string{"to", "cc", "bcc"}, f.name) {
				m.Recipients = append(m.Recipients, rfc5322.AddressList(f.value(), maxRecipients+1)...)
			}
		}
	}
	return m.checkRecipients(domain)
}

func (m *Message) checkRecipients(domain string) error {
	if len(m.Recipients) == 0 {
		return &Refused{"no recipients"}
	}
	if len(m.Recipients) > maxRecipients {
		return &Refused{"too many recipients"}
	}
	seen := map[mail.Address]bool{}
	kept := m.Recipients[:0]
	for _, a := range m.Recipients {
		a = qualify(a, domain)
		if !valid(a) {
			return &Refused{"invalid recipient: " + mail.Clean(a.String(), 100)}
		}
		if !seen[a] {
			seen[a] = true
			kept = append(kept, a)
		}
	}
	m.Recipients = kept
	return nil
}

func qualify(a mail.Address, domain string) mail.Address {
	if a.User != "" && a.Domain == "" {
		a.Domain = domain
	}
	return a
}

// valid reports whether an address can stand between angle brackets: no control
// octets, and neither brackets nor spaces outside quotes. The rest of the syntax
// is the server's to judge.
func valid(a mail.Address) bool {
	if a.User == "" || a.Domain == "" || len(a.User) > mail.MaxLocalPart || len(a.Domain) > mail.MaxDomain {
		return false
	}
	quoted := false
	for s, i := a.String(), 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f:
			return false
		case c == '\\' && quoted:
			i++
			if i == len(s) || s[i] < ' ' || s[i] == 0x7f {
				return false
			}
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ' ' || c == '<' || c == '>'):
			return false
		}
	}
	return !quoted
}

func find(fields []field, name string) *field {
	for i := range fields {
		if fields[i].name == name {
			return &fields[i]
		}
	}
	return nil
}
