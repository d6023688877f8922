package mta

import (
	"strconv"
	"strings"

	"smtpd/internal/mail"
)

// mailCommand gathers MAIL with the parameters that the host understands.
func (s *session) mailCommand(t *task, utf8 bool) error {
	env := t.envs[0]
	user, domain, ok := wirePath(t.sender, utf8)
	if !ok {
		return errUnfit
	}
	parts := append(s.parts[:0], "MAIL FROM:<", user, domain, ">")
	if s.ext.hasSize && t.msg.Size > 0 {
		parts = append(parts, " SIZE=", strconv.FormatInt(t.msg.Size, 10))
	}
	if s.ext.eightBit && env.Flags&mail.Flag8BitMIME != 0 {
		parts = append(parts, " BODY=8BITMIME")
	}
	if utf8 {
		parts = append(parts, " SMTPUTF8")
	}
	if env.Flags&mail.FlagRequireTLS != 0 && s.ext.requireTLS {
		parts = append(parts, " REQUIRETLS")
	}
	if s.ext.dsn {
		switch env.DSN.Ret {
		case mail.RetFull:
			parts = append(parts, " RET=FULL")
		case mail.RetHeaders:
			parts = append(parts, " RET=HDRS")
		}
		if env.DSN.EnvID != "" {
			parts = append(parts, " ENVID=", param(env.DSN.EnvID))
		}
	}
	return s.send(parts)
}

// rcptCommand gathers RCPT.
func (s *session) rcptCommand(env *mail.Envelope, utf8 bool) error {
	user, domain, ok := wirePath(env.Dest, utf8)
	if !ok || env.Dest.IsNull() {
		return errUnfit
	}
	parts := append(s.parts[:0], "RCPT TO:<", user, domain, ">")
	if s.ext.dsn {
		if n := notifyText(env.DSN.Notify); n != "" {
			parts = append(parts, " NOTIFY=", n)
		}
		if env.DSN.ORcpt != "" {
			parts = append(parts, " ORCPT=", param(env.DSN.ORcpt))
		}
	}
	if err := s.send(parts); err != nil {
		return err
	}
	if s.told != nil {
		s.told.Tell(toldEnvelope, env.ID.Message().String(), env.ID.String())
	}
	return nil
}

// send gathers one command.
func (s *session) send(parts []string) error {
	s.parts = parts
	if err := s.w.command(parts...); err != nil {
		return err
	}
	if s.tracing || s.told != nil {
		s.traceOut(strings.Join(parts, ""))
	}
	return nil
}

// param is a parameter value; a blank in it would begin another parameter, so
// it is made unfit to be sent.
func param(s string) string { return strings.ReplaceAll(s, " ", "\x00") }

// notifyText is the NOTIFY parameter (RFC 3461 section 4.1); empty: none.
func notifyText(n mail.Notify) string {
	if n&mail.NotifyNever != 0 {
		return "NEVER"
	}
	var words []string
	for _, w := range []struct {
		n    mail.Notify
		text string
	}{{mail.NotifySuccess, "SUCCESS"}, {mail.NotifyFailure, "FAILURE"}, {mail.NotifyDelay, "DELAY"}} {
		if n&w.n != 0 {
			words = append(words, w.text)
		}
	}
	return strings.Join(words, ",")
}

// wirePath is an address as it stands between angle brackets: the user, and the
// domain with its @. A domain of other letters becomes A-labels unless the host
// takes UTF-8. False: it cannot be sent.
func wirePath(a mail.Address, utf8 bool) (user, domain string, ok bool) {
	if !mail.FitPath(a.User) || !mail.FitPath(a.Domain) {
		return "", "", false
	}
	if a.Domain == "" {
		return a.User, "", true
	}
	domain = a.Domain
	if !utf8 && !isASCII(domain) {
		if domain, ok = hostName(domain); !ok {
			return "", "", false
		}
	}
	return a.User, "@" + domain, true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// maxHeader bounds how much of a text is searched for its header. Ours.
const maxHeader = 64 << 10

// needUTF8 decides whether SMTPUTF8 is asked for (RFC 6531 section 3.4): when a
// local-part is of other letters, or the client asked for it and the header is.
// The failure is for a host that does not offer what is needed.
func (s *session) needUTF8(t *task, text *Text) (bool, *failure) {
	need := !isASCII(t.sender.User)
	for _, env := range t.envs {
		need = need || !isASCII(env.Dest.User)
	}
	if !need && t.envs[0].Flags&mail.FlagUTF8 != 0 {
		if s.ext.utf8 {
			return true, nil
		}
		need = headerHasUTF8(text)
	}
	if need && !s.ext.utf8 {
		return false, &failUTF8
	}
	return need, nil
}

// headerHasUTF8 reports whether there is an octet beyond ASCII before the first
// empty line.
func headerHasUTF8(text *Text) bool {
	b := text.Data
	if text.File != nil {
		b = make([]byte, maxHeader)
		n, _ := text.File.ReadAt(b, 0)
		b = b[:n]
	}
	empty := true
	for _, c := range b[:min(len(b), maxHeader)] {
		switch {
		case c >= 0x80:
			return true
		case c == '\n' && empty:
			return false
		case c == '\n':
			empty = true
		case c != '\r':
			empty = false
		}
	}
	return false
}
