package smtp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// Session is one connection. New makes it, Run serves it; Shutdown may be
// called from anywhere.
type Session struct {
	c      *Config
	ctx    context.Context
	raw    net.Conn // as accepted, beneath TLS
	wire   *wire
	client Client
	filter Filter
	heard  bool   // somebody is told what happens
	name   string // what we call ourselves
	ext    ext
	ids    []string // see servIDs

	admitted  netip.Addr // behind a proxy: counted in by Backend.Admit
	helo      string     // empty: not identified
	esmtp     bool
	tls       *tlsFacts // nil: in the clear
	authed    bool
	user      string // of the login
	junk      bool
	tx        *transaction
	mails     int // committed
	errs      int // since the last committed message
	idle      int // commands since the last committed message
	badAuth   int
	lastWord  string // of the command that is carried out, for the log
	afterAuth bool   // AUTH was not taken: what is no command now may be a login

	notice    bool   // no client: a message of our own
	lastReply string // notice only

	reason string // why the session ends; empty: it goes on
	stopAt atomic.Int64
}

var (
	errStopping       = errors.New("stopping")
	errTimeout  error = slowCommand
)

// tooSlow is the errTimeout of a message, with its reason.
type tooSlow string

func (e tooSlow) Error() string { return string(e) }

func (e tooSlow) Is(target error) bool { return target == errTimeout }

// The reasons.
const (
	slowCommand = tooSlow("Timeout: no command came in time")
	slowSilence = tooSlow("Timeout: the message stopped coming")
	slowRate    = tooSlow("Timeout: the message comes too slowly")
	slowTotal   = tooSlow("Timeout: the message takes too long")
)

// New makes the session of an accepted connection. addr is the client's
// address, of which an invalid one means the local socket; local is our end.
func New(c *Config, conn net.Conn, addr, local netip.AddrPort) *Session {
	s := &Session{c: c, raw: conn, wire: newWire(conn)}
	s.client = Client{
		Session: mail.SessionID(c.Rand()),
		Addr:    unmap(addr),
		Local:   unmap(local),
	}
	s.name = c.Listener.Hostname
	if s.name == "" {
		s.name = c.Name
	}
	s.ext = extensions(c.Listener)
	return s
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// ID is the session's name in the log.
func (s *Session) ID() mail.SessionID { return s.client.Session }

// Run serves the session to its end and closes the connection. Waits for the
// rest of the server end with ctx.
func (s *Session) Run(ctx context.Context) {
	s.ctx = ctx
	defer s.uncount()
	defer s.raw.Close()
	if s.open() {
		for s.reason == "" {
			s.step()
		}
	}
	s.finishUp()
}

// finishUp is the end of every session that ends by itself.
func (s *Session) finishUp() {
	s.rollback()
	s.wire.flush()
	switch s.reason {
	case reasonBadInput, reasonErrors, reasonAuth:
		s.wire.drain(int(s.c.SMTP.MaxMessageSize), drainTimeout)
	}
	s.wire.nc.Close() // beneath TLS the defer of Run closes it at any rate
	s.c.Log.Event(s.client.Session, "smtp disconnected", slog.String("reason", s.reason))
	if s.filter != nil {
		s.report(EventDisconnect)
		s.filter.Close()
	}
	s.wire.release()
}

func (s *Session) uncount() {
	if s.tls != nil {
		s.c.Stat.Add(s.tlsCounter(), -1)
	}
	if s.admitted.IsValid() {
		s.c.Backend.Leave(s.admitted)
	}
}

// Abandon closes the connection under the session, which then ends by itself.
func (s *Session) Abandon() { s.raw.Close() }

// Reasons why we end a session that the client would go on with.
const (
	reasonBadInput = "bad-input"
	reasonErrors   = "too many errors"
	reasonAuth     = "too many authentication failures"
)

// drainTimeout is how long the connection stays open for a client to read our
// last reply. Ours: a peer that is gone must not hold its place for long.
const drainTimeout = 2 * time.Second

// Shutdown asks the session to end: at once with 421 between commands, and at
// the given time at the latest within a message.
func (s *Session) Shutdown(by time.Time) {
	s.stopAt.Store(by.UnixNano())
	s.raw.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
}

// open is everything up to the banner; it reports whether the session goes on.
func (s *Session) open() bool {
	if s.c.Listener.ProxyV2 && !s.isLocal() && !s.proxy() {
		return false
	}
	s.names()
	s.c.Log.Event(s.client.Session, "smtp connected",
		log.Raw("address", s.client.Text()), slog.String("host", s.client.Host))
	if s.filter = s.c.Backend.Filter(&s.client); s.filter != nil {
		s.heard = s.filter.Hears()
		s.report(EventConnect, s.client.Host, s.client.FCrDNS, endpoint(s.client.Addr), endpoint(s.client.Local))
	}
	if _, ok := s.ask(PhaseConnect, s.client.Host+"|"+s.client.Addr.Addr().String()); !ok {
		if s.reason == "" {
			s.close("quit")
		}
		return false
	}
	if s.c.Listener.TLS == config.TLSImplicit && !s.startTLS() {
		return false
	}
	s.say("220 " + s.name + " ESMTP smtpd")
	s.report(EventGreeting, s.name)
	return true
}

// names finds out what the client and we are called.
func (s *Session) names() {
	if s.isLocal() {
		s.client.Host, s.client.FCrDNS = s.c.Name, "pass"
		s.authed = true
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, nameTimeout)
	defer cancel()
	s.client.Host, s.client.FCrDNS = s.c.Backend.ClientName(ctx, s.client.Addr.Addr())
	if s.c.Listener.Hostnames != "" {
		if name := s.c.Backend.Hostname(ctx, s.client.Local.Addr()); name != "" {
			s.name = name
		}
	}
}

// nameTimeout bounds the questions before the banner. Ours: a client that waits
// five minutes (RFC 5321 section 4.5.3.2.1) is not kept for long by its own DNS.
const nameTimeout = 10 * time.Second

func (s *Session) isLocal() bool { return !s.client.Addr.IsValid() }

// endpoint is an address and port as filters are told.
func endpoint(a netip.AddrPort) string {
	if !a.IsValid() {
		return "unix:local"
	}
	return a.String()
}

// close ends the session after the present command. The first reason stays.
func (s *Session) close(reason string) {
	if s.reason == "" {
		s.reason = reason
	}
}

// broken ends the session because of an error of reading or writing.
func (s *Session) broken(err error) {
	switch {
	case errors.Is(err, errStopping):
		s.sayError("421 4.3.2 " + s.name + " shutting down")
		s.close("shutdown")
	case errors.Is(err, errTimeout):
		s.report(EventTimeout)
		s.wire.hurry(drainTimeout)
		s.sayError("421 4.4.2 " + s.name + " " + err.Error())
		s.close("timeout")
	case errors.Is(err, errLineTooLong):
		s.badInput(replyLineTooLong)
	case errors.Is(err, errTooMuch):
		s.badInput(replyTooBig)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), isReset(err):
		s.close("disconnect")
	default:
		s.close("io-error: " + mail.Clean(err.Error(), maxEcho))
	}
}

// isReset reports that the client went away without a word.
func isReset(err error) bool {
	return strings.Contains(err.Error(), "reset by peer") || strings.Contains(err.Error(), "broken pipe")
}

// step carries out one command.
func (s *Session) step() {
	line, err := s.readLine(maxCommand)
	if err != nil {
		if errors.Is(err, errLineTooLong) {
			s.badInput(replyCommandTooLong)
			return
		}
		s.broken(err)
		return
	}
	s.command(line)
}

// readLine waits for a line, with the deadline of a command: it does not move
// when single octets dribble in.
func (s *Session) readLine(max int) ([]byte, error) {
	if s.stopAt.Load() != 0 {
		return nil, errStopping
	}
	var until time.Time
	for {
		line, ok, err := s.wire.line(max)
		if ok || err != nil {
			return line, err
		}
		if until.IsZero() {
			until = time.Now().Add(s.c.SMTP.CommandTimeout)
		}
		if s.wire.full() {
			s.wire.grow()
		}
		if err := s.fill(until, 0); err != nil {
			return nil, err
		}
	}
}

// fill says what is to be said and reads once, until the given time. stop is
// stopAt as the caller knows it: when Shutdown changes it, errStopping comes
// back at once.
func (s *Session) fill(until time.Time, stop int64) error {
	s.wire.flush()
	if s.wire.err != nil {
		return s.wire.err
	}
	if s.filter != nil {
		s.filter.Idle()
	}
	if err := s.raw.SetReadDeadline(until); err != nil {
		return err
	}
	if s.stopAt.Load() != stop {
		return errStopping // it may have been before our deadline
	}
	err := s.wire.fill()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if s.stopAt.Load() != stop {
		return errStopping
	}
	return errTimeout
}

// say sends a reply line of success, or one that is no reply to a command.
func (s *Session) say(line string) {
	if !s.offers(extEnhanced) {
		line = withoutEnhanced(line)
	}
	if s.notice {
		s.lastReply = line
	}
	if s.shown() {
		s.c.Log.Event(s.client.Session, "smtp dialogue", log.Quoted("server", line))
	}
	s.wire.say(line)
	if s.heard {
		s.report(EventServer, line)
	}
}

// withoutEnhanced is a reply line as a server without ENHANCEDSTATUSCODES says it
// (RFC 2034 section 3): the code of three parts behind the first is left out.
func withoutEnhanced(line string) string {
	const code = len("250 ")
	if len(line) < code {
		return line
	}
	word, text, _ := strings.Cut(line[code:], " ")
	if len(word) < len("2.0.0") || word[0] != line[0] || word[1] != '.' || strings.Count(word, ".") != 2 ||
		strings.Trim(word, "0123456789.") != "" {
		return line
	}
	return line[:code] + text
}

// shown reports whether the dialogue goes to the log.
func (s *Session) shown() bool {
	return s.c.Listener.LogConversation || s.c.Log.Tracing(traceTopic) || (s.c.Traced != nil && s.c.Traced(&s.client))
}

// traceTopic is the topic of `smtpctl trace smtp`.
const traceTopic = "smtp"

// refuse answers the present command with an error, logs it and counts it. Too
// many end the session.
func (s *Session) refuse(reply string) {
	s.sayError(reply)
	s.c.Log.Event(s.client.Session, "smtp failed-command",
		log.Quoted("command", mail.Clean(s.lastWord, maxLogged)), log.Quoted("result", reply))
	if strings.HasPrefix(reply, "421") {
		s.close("quit")
	}
	if s.errs++; s.errs > s.c.SMTP.MaxErrors && s.reason == "" {
		s.sayError("421 4.7.0 Too many errors")
		s.close(reasonErrors)
	}
}

// maxLogged bounds a command in the log, in octets.
const maxLogged = 512

// badInput ends the session because what comes in is not SMTP any more.
func (s *Session) badInput(reply string) {
	s.sayError(reply)
	s.c.Log.Event(s.client.Session, "smtp bad-input", log.Quoted("result", reply))
	s.close(reasonBadInput)
}

// sayError sends a reply that may be of several lines, joined by LF.
func (s *Session) sayError(reply string) {
	for line := range strings.SplitSeq(reply, "\n") {
		for len(line) > maxReplyLine {
			var first string
			first, line = splitReply(line)
			s.say(first)
		}
		s.say(line)
	}
}

// maxReplyLine bounds a reply line, without its CRLF (RFC 5321 section
// 4.5.3.1.5). Programs may want to say more: that goes into several.
const maxReplyLine = 512 - len("\r\n")

// splitReply cuts a reply line that is too long, at a blank if there is one in
// its second half. What is left has the codes again (RFC 2034 section 4).
func splitReply(line string) (first, rest string) {
	codes := len("550 ")
	if short := withoutEnhanced(line); short != line {
		codes += len(line) - len(short)
	}
	at := strings.LastIndexByte(line[:maxReplyLine+1], ' ')
	if at < maxReplyLine/2 {
		for at = maxReplyLine; line[at]&0xc0 == 0x80 && at > maxReplyLine/2; at-- { // not inside a UTF-8 sequence
		}
	}
	return line[:3] + "-" + line[4:at], line[:codes] + strings.TrimLeft(line[at:], " ")
}

// fail answers with the error of the backend: it is the only place where an
// error becomes a reply. One that is no Status is our own business: it goes to
// the log and the client is told to try later.
func (s *Session) fail(err error) {
	st, ok := errors.AsType[*mail.Status](err)
	if !ok {
		s.c.Log.Warn("warn: smtp: "+s.client.Session.String(), slog.String("error", err.Error()))
		st = mail.LocalError()
	}
	s.refuse(statusLine(st))
}

// statusLine is st as a reply, with an enhanced code of its class whatever st
// says (RFC 2034 section 4), and never a success.
func statusLine(st *mail.Status) string {
	fixed := *st
	if fixed.Code < 400 || fixed.Code > 599 {
		fixed.Code = 451
	}
	class := uint8(fixed.Code / 100)
	if fixed.Enh[0] != class {
		fixed.Enh = [3]uint8{class, 0, 0}
	}
	fixed.Text = mail.Clean(fixed.Text, mail.MaxStatusText)
	return fixed.String()
}
