package enqueue

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Bounds of the dialogue.
const (
	greetTimeout   = 5 * time.Minute  // also commands: RFC 5321 section 4.5.3.2
	dataTimeout    = 10 * time.Minute // the answer to the final dot, section 4.5.3.2.6
	maxReplyLine   = 4096             // octets; ours, section 4.5.3.1.5 says 512
	maxReplyLines  = 128              // ours
	submitBuffered = 32 << 10
)

// CommandError is a command that the server did not accept, with the last line
// of its reply.
type CommandError struct{ Reply string }

// Error is the line for the user.
func (e *CommandError) Error() string { return "command failed: " + e.Reply }

// Submit hands m in over a session with the local listener, which it does not
// close. With Options.Verbose the dialogue is printed to trace. A refusal is a
// *CommandError; any other error is one of i/o. Nil means that the server has
// accepted the message.
func (m *Message) Submit(conn net.Conn, trace io.Writer) error {
	if !m.opts.Verbose {
		trace = io.Discard
	}
	s := &session{conn: conn, r: bufio.NewReaderSize(conn, maxReplyLine), trace: trace, limit: greetTimeout}
	s.w = bufio.NewWriterSize(s, submitBuffered)
	if err := s.expect(2); err != nil {
		return err
	}
	if err := s.command(2, "EHLO localhost"); err != nil {
		return err
	}
	if err := s.command(2, "MAIL FROM:<%s> %s %s%s", m.Sender, parameter("RET=", m.opts.Ret),
		parameter("ENVID=", m.opts.EnvID), s.utf8(m)); err != nil {
		return err
	}
	for _, r := range m.Recipients {
		if err := s.command(2, "RCPT TO:<%s> %s", r, parameter("NOTIFY=", m.opts.Notify)); err != nil {
			return err
		}
	}
	if err := s.command(3, "DATA"); err != nil {
		return err
	}
	if err := m.write(&dotWriter{w: s.w}); err != nil {
		return err
	}
	s.limit = dataTimeout
	if err := s.command(2, "."); err != nil {
		return err
	}
	// The message is the server's now: whatever QUIT meets changes nothing.
	s.limit = time.Second
	_ = s.command(2, "QUIT")
	return nil
}

func parameter(name, value string) string {
	if value == "" {
		return ""
	}
	return name + value
}

// session is the client's side of the dialogue.
type session struct {
	conn       net.Conn
	r          *bufio.Reader
	w          *bufio.Writer
	trace      io.Writer
	limit      time.Duration // for each read and write
	extensions []string      // lines of the last reply of several lines
}

// Write gives each write its time.
func (s *session) Write(b []byte) (int, error) {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.limit)); err != nil {
		return 0, err
	}
	return s.conn.Write(b)
}

// utf8 is the parameter for addresses that are not ASCII (RFC 6531 section
// 3.4), where the server knows it.
func (s *session) utf8(m *Message) string {
	ascii := func(a mail.Address) bool {
		return !strings.ContainsFunc(a.String(), func(r rune) bool { return r >= 0x80 })
	}
	need := !ascii(m.Sender)
	for _, r := range m.Recipients {
		need = need || !ascii(r)
	}
	for _, e := range s.extensions {
		if need && strings.EqualFold(e, "SMTPUTF8") {
			return " SMTPUTF8"
		}
	}
	return ""
}

// command sends one line and wants a reply of the class.
func (s *session) command(class byte, format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if mail.HasControl(line) {
		return &Refused{"an address or a parameter holds a control character"}
	}
	line += "\r\n"
	fmt.Fprint(s.trace, ">>> ", line)
	if _, err := s.w.WriteString(line); err != nil {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	return s.expect(class)
}

// expect reads a reply and compares its class: the first digit.
func (s *session) expect(class byte) error {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.limit)); err != nil {
		return err
	}
	s.extensions = nil
	for range maxReplyLines {
		b, err := s.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errors.New("reply line too long")
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		line := strings.TrimRight(string(b), "\r\n")
		fmt.Fprintln(s.trace, "<<< "+mail.Clean(line, len(line)))
		if len(line) < 3 || strings.Trim(line[:3], "0123456789") != "" {
			return errors.New("malformed reply")
		}
		if len(line) > 3 && line[3] == '-' {
			s.extensions = append(s.extensions, line[4:])
			continue
		}
		if len(line) > 4 {
			s.extensions = append(s.extensions, line[4:])
		}
		if line[0]-'0' != class {
			return &CommandError{mail.Clean(line, maxReplyLine)}
		}
		return nil
	}
	return errors.New("reply of too many lines")
}
