package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// stepTime bounds a connection and each command (RFC 5321 section 4.5.3.2), and
// endTime the end of the text.
const (
	connectTime = 30 * time.Second
	stepTime    = 5 * time.Minute
	endTime     = 10 * time.Minute
)

// client is one run of the program.
type client struct {
	options
	out    io.Writer
	text   []byte
	secure bool // the session is in TLS
}

var errNoLogin = errors.New("no login without TLS")

var errNoHost = errors.New("no more host")

func (c *client) say(format string, args ...any) {
	if c.verbose {
		fmt.Fprintf(c.out, format+"\n", args...)
	}
}

// run tries the addresses of the server in turn, until one can be spoken to.
func (c *client) run(ctx context.Context) error {
	lctx, cancel := context.WithTimeout(ctx, connectTime)
	hosts, err := net.DefaultResolver.LookupHost(lctx, c.server.Host)
	cancel()
	if err != nil {
		fmt.Fprintln(c.out, "connection error: "+cause(err))
	}
	for _, h := range hosts {
		c.say("trying host %s port %d...", h, c.server.DefaultPort())
		s, err := c.connectTo(ctx, h)
		if err != nil {
			fmt.Fprintln(c.out, "connection error: "+cause(err))
			c.say("connection closed...")
			continue
		}
		c.say("connection ready...")
		if !c.connect {
			err = c.send(s)
		}
		if err == nil {
			_ = s.Quit() // the server has all it shall have
		} else {
			fmt.Fprintln(c.out, "connection error: "+cause(err))
		}
		s.Close()
		c.say("connection closed...")
		c.say("done...")
		return nil
	}
	return errNoHost
}

// connectTo opens a session with one address: greeting, TLS and login.
func (c *client) connectTo(ctx context.Context, host string) (*smtp.Client, error) {
	d := net.Dialer{Timeout: connectTime}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(c.server.DefaultPort()))))
	if err != nil {
		return nil, err
	}
	s, err := c.greet(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s.CommandTimeout, s.SubmissionTimeout = stepTime, endTime
	if c.auth != "" {
		if err = errNoLogin; c.secure {
			err = s.Auth(c.login(s))
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (c *client) login(s *smtp.Client) sasl.Client {
	user, password, _ := strings.Cut(c.auth, ":")
	if s.SupportsAuth(sasl.Plain) {
		return sasl.NewPlainClient("", user, password)
	}
	return sasl.NewLoginClient(user, password)
}

// greet opens the session on a connection, with TLS as the URL says.
func (c *client) greet(ctx context.Context, conn net.Conn) (*smtp.Client, error) {
	c.secure = false
	tlsConf := c.tls.config(c.server.Host, c.check)
	switch c.server.Scheme {
	case config.SchemeLMTP:
		s := smtp.NewClientLMTP(conn)
		return s, s.Hello(c.helo)
	case config.SchemeSMTPS:
		t, err := c.handshake(ctx, conn, tlsConf)
		if err != nil {
			return nil, err
		}
		conn = t
	case config.SchemeSMTP, config.SchemeSMTPTLS:
		offered, said, err := c.startTLS(conn)
		if err == nil && !offered && c.server.Scheme == config.SchemeSMTPTLS {
			err = errors.New("TLS is not offered")
		}
		g := &greeted{again: said, skip: len(c.hello())}
		if err == nil && offered {
			conn, err = c.handshake(ctx, conn, tlsConf)
			g = &greeted{again: []byte("220 again\r\n")} // EHLO is due once more, RFC 3207 section 4.2
		}
		if err != nil {
			return nil, err
		}
		g.Conn = conn
		conn = g
	}
	s := smtp.NewClient(conn)
	return s, s.Hello(c.helo)
}

func (c *client) handshake(ctx context.Context, conn net.Conn, conf *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	t := tls.Client(conn, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c.secure = true
	return t, nil
}

// hello is the first command, as the client of go-smtp writes it.
func (c *client) hello() string { return "EHLO " + c.helo + "\r\n" }

// startTLS says EHLO and, when the server offers it, STARTTLS, by hand: the
// client of go-smtp does not begin TLS in mid session. said is what the server
// has said to it.
func (c *client) startTLS(conn net.Conn) (offered bool, said []byte, err error) {
	if err := conn.SetDeadline(time.Now().Add(stepTime)); err != nil {
		return false, nil, err
	}
	// No line is read ahead of what was asked for: what a server sends behind
	// its reply to STARTTLS must not be taken for what it says in TLS.
	in := &oneByOne{Conn: conn}
	text := textproto.NewConn(in)
	if _, _, err := text.ReadResponse(220); err != nil {
		return false, nil, err
	}
	if _, err := io.WriteString(conn, c.hello()); err != nil {
		return false, nil, err
	}
	_, reply, err := text.ReadResponse(250)
	if _, refused := errors.AsType[*textproto.Error](err); err != nil && !refused {
		return false, nil, err
	}
	for line := range strings.SplitSeq(reply, "\n") {
		offered = err == nil && (offered || strings.EqualFold(strings.TrimSpace(line), "STARTTLS"))
	}
	if !offered {
		return false, in.seen, nil // if EHLO was refused the session goes on with HELO
	}
	if err := text.PrintfLine("STARTTLS"); err != nil {
		return false, nil, err
	}
	if _, _, err := text.ReadResponse(220); err != nil {
		return false, nil, err
	}
	return true, nil, conn.SetDeadline(time.Time{})
}

// oneByOne reads single octets, and keeps them.
type oneByOne struct {
	net.Conn
	seen []byte
}

func (o *oneByOne) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p[:min(1, len(p))])
	o.seen = append(o.seen, p[:n]...)
	return n, err
}

// greeted is a connection on which was spoken already: what the server said is
// said again, and what it was told not repeated.
type greeted struct {
	net.Conn
	again []byte
	skip  int // octets that the server has
}

func (g *greeted) Write(p []byte) (int, error) {
	had := min(g.skip, len(p))
	g.skip -= had
	n, err := g.Conn.Write(p[had:])
	return had + n, err
}

func (g *greeted) Read(p []byte) (int, error) {
	if len(g.again) > 0 {
		n := copy(p, g.again)
		g.again = g.again[n:]
		return n, nil
	}
	return g.Conn.Read(p)
}

// send carries the transaction out. A recipient that is refused is reported and
// left out.
func (c *client) send(s *smtp.Client) error {
	if err := s.Mail(c.from, c.mailOptions(s)); err != nil {
		return err
	}
	taken := 0
	for _, r := range c.rcpts {
		err := s.Rcpt(r, nil)
		if _, refused := errors.AsType[*smtp.SMTPError](err); refused {
			fmt.Fprintf(c.out, "%s: RCPT: %s\n", r, cause(err))
			continue
		}
		if err != nil {
			return err
		}
		taken++
	}
	if taken == 0 {
		return nil
	}
	w, err := s.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(lines(c.text)); err != nil {
		return err
	}
	return w.Close()
}

// lines is a text in which LF or CRLF alone ends a line, and CR by itself is a
// blank: no server may see a line end where another sees none.
func lines(text []byte) []byte {
	text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
	return bytes.ReplaceAll(text, []byte("\r"), []byte(" "))
}

// mailOptions asks for what the text and the addresses need and the server has.
func (c *client) mailOptions(s *smtp.Client) *smtp.MailOptions {
	var o smtp.MailOptions
	if ok, _ := s.Extension("8BITMIME"); ok && !ascii(string(c.text)) {
		o.Body = smtp.Body8BitMIME
	}
	if ok, _ := s.Extension("SMTPUTF8"); ok && !ascii(c.from+strings.Join(c.rcpts, "")) {
		o.UTF8 = true
	}
	return &o
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}

// cause is an error in the words of a user.
func cause(err error) string {
	if e, ok := errors.AsType[*smtp.SMTPError](err); ok {
		text := e.Message
		if enh := e.EnhancedCode; enh[0] > 0 {
			text = fmt.Sprintf("%d.%d.%d %s", enh[0], enh[1], enh[2], text)
		}
		return mail.Clean(fmt.Sprintf("%d %s", e.Code, text), maxShown)
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		text := e.Error()
		return strings.ToUpper(text[:1]) + text[1:]
	}
	if e, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if e.Cert != nil && bytes.Equal(e.Cert.RawIssuer, e.Cert.RawSubject) {
			return "certificate verification failed: self-signed certificate"
		}
		return "certificate verification failed: unable to get local issuer certificate"
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return mail.Clean("certificate verification failed: "+strings.TrimPrefix(e.Err.Error(), "x509: "), maxShown)
	}
	return mail.Clean(err.Error(), maxShown)
}

// maxShown bounds a line that a server made us print, in octets. Ours.
const maxShown = 1000
