package enqueue

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"strings"
	"time"

	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
)

// complete writes the lines that are missing and drops what must not be sent.
func (m *Message) complete(user User, domain string, now time.Time) {
	fields := m.fields
	if find(fields, "from") == nil {
		from := m.Sender
		if from.IsNull() {
			from = mail.Address{User: user.Login, Domain: domain}
		}
		name := m.opts.Name
		if name == "" {
			name = user.Name
		}
		m.added = append(m.added, "From: "+displayName(name)+"<"+from.String()+">")
	}
	if find(fields, "date") == nil {
		m.added = append(m.added, "Date: "+rfc5322.Date(now))
	}
	if (m.scan.long || m.scan.binary) && encodable(fields) {
		m.encode = true
		for _, h := range [...][2]string{
			{"MIME-Version", "1.0"}, {"Content-Type", "text/plain; charset=unknown-8bit"},
			{"Content-Disposition", "inline"}, {"Content-Transfer-Encoding", "quoted-printable"},
		} {
			if find(fields, strings.ToLower(h[0])) == nil {
				m.added = append(m.added, h[0]+": "+h[1])
			}
		}
	}
	for _, f := range fields {
		if f.name != "bcc" && f.name != "return-path" {
			m.header = append(m.header, f.text...)
		}
	}
}

// encodable reports whether the body may be encoded: it is not yet, and it is no
// container, which must not be (RFC 2045 section 6.4).
func encodable(fields []field) bool {
	if find(fields, "content-transfer-encoding") != nil {
		return false
	}
	t := find(fields, "content-type")
	if t == nil {
		return true
	}
	v := strings.ToLower(strings.TrimSpace(t.value()))
	return !strings.HasPrefix(v, "multipart/") && !strings.HasPrefix(v, "message/")
}

// displayName is a full name with a space behind it, quoted or encoded as RFC
// 5322 section 3.2.4 and RFC 2047 want it.
func displayName(name string) string {
	switch {
	case name == "":
		return ""
	case strings.ContainsFunc(name, func(r rune) bool { return r >= 0x7f }):
		return mime.QEncoding.Encode("utf-8", strings.ToValidUTF8(name, "?")) + " "
	case strings.ContainsAny(name, `()<>@,;:\".[]`):
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `" `
	}
	return name + " "
}

// FullName is the name in the GECOS field of an account: its first part, "&"
// standing for the login with a capital.
func FullName(gecos, login string) string {
	name, _, _ := strings.Cut(gecos, ",")
	if login != "" && strings.Contains(name, "&") {
		name = strings.ReplaceAll(name, "&", strings.ToUpper(login[:1])+login[1:])
	}
	return mail.Clean(strings.TrimSpace(name), 255)
}

// lineWriter takes the message line by line; a line comes in any number of
// parts.
type lineWriter interface {
	part([]byte) error
	end() error
}

// write sends the whole message to w.
func (m *Message) write(w lineWriter) error {
	for _, h := range m.added {
		if err := errors.Join(w.part([]byte(h)), w.end()); err != nil {
			return err
		}
	}
	if err := writeLines(w, bytes.NewReader(m.header)); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return err
	}
	if m.encode {
		w = &qpWriter{w: w}
	}
	return writeLines(w, m.body.reader())
}

func writeLines(w lineWriter, r io.Reader) error {
	br := bufio.NewReaderSize(r, lineBuffer)
	for {
		part, err := br.ReadSlice('\n')
		if len(part) > 0 && part[len(part)-1] == '\n' {
			err = errors.Join(w.part(part[:len(part)-1]), w.end())
		} else if werr := w.part(part); werr != nil {
			err = werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// plainWriter writes LF lines.
type plainWriter struct{ w *bufio.Writer }

func (p plainWriter) part(b []byte) error { _, err := p.w.Write(b); return err }
func (p plainWriter) end() error          { return p.w.WriteByte('\n') }

// dotWriter writes CRLF lines with leading dots doubled (RFC 5321 section
// 4.5.2).
type dotWriter struct {
	w      *bufio.Writer
	within bool // a line
}

func (d *dotWriter) part(b []byte) error {
	if !d.within && len(b) > 0 {
		d.within = true
		if b[0] == '.' {
			if err := d.w.WriteByte('.'); err != nil {
				return err
			}
		}
	}
	_, err := d.w.Write(b)
	return err
}

func (d *dotWriter) end() error {
	d.within = false
	_, err := d.w.WriteString("\r\n")
	return err
}

// maxQPLine is the longest line of quoted-printable before its soft break (RFC
// 2045 section 6.7 rule 5: 76 with the "=").
const maxQPLine = 75

// qpWriter writes its lines as quoted-printable to another.
type qpWriter struct {
	w     lineWriter
	col   int
	space byte // a space or tab that may be the last octet of the line, or 0
}

func (q *qpWriter) part(b []byte) error {
	for _, c := range b {
		if q.space != 0 {
			if err := q.put(q.space, false); err != nil {
				return err
			}
			q.space = 0
		}
		if c == ' ' || c == '\t' {
			q.space = c
			continue
		}
		if err := q.put(c, c == '=' || c < ' ' || c >= 0x7f); err != nil {
			return err
		}
	}
	return nil
}

func (q *qpWriter) put(c byte, escape bool) error {
	const hex = "0123456789ABCDEF"
	text := []byte{c}
	if escape {
		text = []byte{'=', hex[c>>4], hex[c&15]}
	}
	if q.col+len(text) > maxQPLine {
		if err := errors.Join(q.w.part([]byte{'='}), q.w.end()); err != nil {
			return err
		}
		q.col = 0
	}
	q.col += len(text)
	return q.w.part(text)
}

func (q *qpWriter) end() error {
	if q.space != 0 {
		if err := q.put(q.space, true); err != nil {
			return err
		}
	}
	q.space, q.col = 0, 0
	return q.w.end()
}
