package smtp

import (
	"context"
	"net"
	"net/netip"
	"time"

	"smtpd/internal/mail"
)

// Notice is a message that we wrote ourselves: a bounce. It has the null
// reverse-path and one recipient.
type Notice struct {
	Rcpt mail.Address
	Data []byte // header and body, LF line ends
	UTF8 bool

	RequireTLS bool // it is about a message that asked for REQUIRETLS (RFC 8689)
}

// Inject enters a notice as a client of the local listener would, with the same
// commands: through the rules, the filters and the header rewriting of c. The
// error is a *mail.Status when somebody refused it.
func Inject(ctx context.Context, c *Config, n Notice) (mail.MessageID, error) {
	s := New(c, nowhere{}, netip.AddrPort{}, netip.AddrPort{})
	s.ctx, s.notice = ctx, true
	s.open()
	option := ""
	if n.UTF8 {
		option = " SMTPUTF8"
	}
	if !s.tell("EHLO " + s.name) {
		return 0, s.giveUp()
	}
	for _, cmd := range []string{"MAIL FROM:<>" + option, "RCPT TO:<" + n.Rcpt.String() + ">"} {
		if !s.tell(cmd) || s.tx == nil {
			return 0, s.giveUp()
		}
		s.tx.p.requireTLS = n.RequireTLS // before RCPT, where envelopes begin
	}
	id := s.tx.id
	s.hear("DATA")
	if !s.openData(false) {
		return 0, s.giveUp()
	}
	s.lastWord = "."
	if err := s.tx.msg.feed(n.Data); err != nil {
		s.broken(err)
		return 0, s.giveUp()
	}
	s.finish(".")
	if s.lastReply[0] != '2' {
		return 0, s.giveUp()
	}
	s.leave()
	return id, nil
}

// tell carries out a command of a notice and reports whether it was taken.
func (s *Session) tell(cmd string) bool {
	if s.reason == "" {
		s.command([]byte(cmd))
	}
	return s.reason == "" && s.lastReply[0] == '2'
}

// leave ends the session of a notice as a client would.
func (s *Session) leave() {
	s.tell("QUIT")
	if s.reason == "" {
		s.close("quit") // a filter has no say in that
	}
	s.finishUp()
}

// giveUp ends the session of a notice and gives what refused it.
func (s *Session) giveUp() error {
	st, ok := mail.ParseStatus(s.lastReply)
	s.leave()
	if !ok || st.Code/100 < 4 {
		return mail.LocalError()
	}
	return st
}

// nowhere is the connection of a session that has no client.
type nowhere struct{}

func (nowhere) Read([]byte) (int, error)         { return 0, net.ErrClosed }
func (nowhere) Write(b []byte) (int, error)      { return len(b), nil }
func (nowhere) Close() error                     { return nil }
func (nowhere) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (nowhere) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (nowhere) SetDeadline(time.Time) error      { return nil }
func (nowhere) SetReadDeadline(time.Time) error  { return nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }
