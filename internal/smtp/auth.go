package smtp

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// Bounds of AUTH.
const (
	maxAuthLine = 12286 // RFC 4954 section 4, without the line end
	maxUser     = 255   // ours, as OpenSMTPD: a login is at most a domain long
	maxPassword = 1024  // ours: what one imsg field holds
)

// Replies of AUTH (RFC 4954 section 4 and 6).
const (
	replyAuthenticated = "503 5.5.1 Invalid command: Already authenticated"
	replyNoMechanism   = "501 5.5.4 Invalid command arguments: No parameters given"
	replyAuthSyntax    = "501 5.5.2 Syntax error: Syntax error"
	replyAuthFailed    = "535 5.7.8 Authentication failed"
	replyAuthTemporary = "454 4.7.0 Temporary failure"
	replyAuthTooMany   = "421 4.7.0 Too many authentication failures"
)

var errSASL = errors.New("malformed response")

// mechanisms are those offered now, in the order of EHLO; empty: AUTH is not.
// None ever is in the clear.
func (s *Session) mechanisms() string {
	if !s.c.Listener.Auth || s.tls == nil || s.authed {
		return ""
	}
	words := "PLAIN LOGIN"
	if s.c.ScramSecret != nil {
		words += " SCRAM-SHA-256"
	}
	if s.certificateUser() != "" {
		words += " EXTERNAL"
	}
	return words
}

// auth is AUTH (RFC 4954).
func (s *Session) auth(arg string) {
	mech, initial, _ := strings.Cut(arg, " ")
	s.afterAuth = true
	switch {
	case s.helo == "" || s.tx != nil:
		s.refuse(replySequence)
		return
	case s.authed:
		s.refuse(replyAuthenticated)
		return
	case s.mechanisms() == "":
		s.refuse(replyUnsupported)
		return
	case mech == "":
		s.refuse(replyNoMechanism)
		return
	}
	known := isMechanism(mech)
	mech = strings.ToUpper(mech)
	login := &login{s: s}
	server := login.server(mech)
	if server == nil {
		name := masked
		if known {
			name = cleanWord(mech)
		}
		s.refuse(`504 5.7.4 Security features not supported: AUTH method "` + name + `" not supported`)
		return
	}
	if _, ok := s.ask(PhaseAuth, arg); !ok {
		return
	}
	err := s.exchange(mech, strings.TrimLeft(initial, " "), server)
	s.endAuth(login.user, err)
}

// exchange carries out one mechanism.
func (s *Session) exchange(mech, initial string, server sasl.Server) error {
	var response []byte
	if initial != "" {
		var err error
		if response, err = decodeSASL(initial); err != nil {
			return err
		}
	}
	for {
		challenge, done, err := server.Next(response)
		if err != nil {
			return err
		}
		if done {
			return nil
		}
		s.say("334 " + base64.StdEncoding.EncodeToString(challenge))
		line, err := s.readLine(maxAuthLine)
		if err != nil {
			return err
		}
		s.wire.shrink()
		bare := s.bareLF()
		s.lastWord = authStep(mech, challenge)
		if s.shown() {
			s.c.Log.Event(s.client.Session, "smtp dialogue", log.Quoted("client", masked))
		}
		s.report(EventClient, masked)
		if bare {
			return errSASL
		}
		if response, err = decodeSASL(string(line)); err != nil {
			return err
		}
	}
}

// authStep names a step of AUTH in the log without what it said.
func authStep(mech string, challenge []byte) string {
	if mech == "LOGIN" {
		return "AUTH LOGIN (" + strings.ToLower(strings.TrimSuffix(string(challenge), ":")) + ")"
	}
	return "AUTH " + mech + " (...)"
}

// decodeSASL reads a response; "=" is an empty one. "*" cancels and is
// malformed like any other text that is not base64.
func decodeSASL(text string) ([]byte, error) {
	if text == "=" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errSASL
	}
	return b, nil
}

// endAuth answers AUTH.
func (s *Session) endAuth(user string, err error) {
	switch {
	case err == nil:
		s.authed, s.user, s.afterAuth = true, user, false
		s.logAuth(user, "ok")
		s.report(EventAuth, "pass", user)
		s.say(replyAuthOK)
	case errors.Is(err, ErrCredentials):
		s.logAuth(user, "permfail")
		s.report(EventAuth, "fail", user)
		s.wait(time.Duration(s.c.Rand() % uint64(max(s.c.SMTP.AuthDelay, 1))))
		s.refuse(replyAuthFailed)
		if s.badAuth++; s.badAuth >= s.c.SMTP.MaxAuthFailures {
			s.sayError(replyAuthTooMany)
			s.close(reasonAuth)
		}
	case errors.Is(err, errSASL):
		s.refuse(replyAuthSyntax)
	case errors.Is(err, errBackend):
		s.logAuth(user, "tempfail")
		s.report(EventAuth, "error", user)
		s.refuse(replyAuthTemporary)
	default:
		s.broken(err)
	}
}

var errBackend = errors.New("backend trouble")

// wait lets time pass: guessing is slow, and a wrong password takes no telltale
// time.
func (s *Session) wait(d time.Duration) {
	s.wire.flush()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
}

// login is one attempt to log in.
type login struct {
	s    *Session
	user string
}

// server makes the server's part of a mechanism; nil: it is not offered.
func (l *login) server(mech string) sasl.Server {
	switch mech {
	case "PLAIN":
		return strictServer{sasl.NewPlainServer(func(_, user, password string) error {
			return l.check(user, password)
		})}
	case "LOGIN":
		return &loginServer{check: l.check}
	case "SCRAM-SHA-256":
		if l.s.c.ScramSecret != nil {
			return l.scram()
		}
	case "EXTERNAL":
		if name := l.s.certificateUser(); name != "" {
			return strictServer{sasl.NewExternalServer(func(identity string) error {
				if l.user = name; identity != "" && identity != name {
					return ErrCredentials
				}
				return l.known(name)
			})}
		}
	}
	return nil
}

// known asks whether a login exists, with errors as check has them.
func (l *login) known(user string) error {
	ctx, cancel := context.WithTimeout(l.s.ctx, lookupTimeout)
	defer cancel()
	err := l.s.c.Backend.KnowsLogin(ctx, user)
	if err == nil || errors.Is(err, ErrCredentials) {
		return err
	}
	return errBackend
}

// check asks the backend; its errors are ErrCredentials, errSASL and
// errBackend only.
func (l *login) check(user, password string) error {
	l.user = mail.Clean(user, maxUser)
	if user == "" || password == "" || len(user) > maxUser || len(password) > maxPassword ||
		strings.ContainsAny(user, "\r\n\x00") || strings.ContainsAny(password, "\r\n\x00") {
		return errSASL
	}
	ctx, cancel := context.WithTimeout(l.s.ctx, lookupTimeout)
	defer cancel()
	err := l.s.c.Backend.Authenticate(ctx, user, password)
	if err == nil || errors.Is(err, ErrCredentials) {
		return err
	}
	return errBackend
}

// strictServer makes every error of a mechanism that is not ours errSASL.
type strictServer struct{ sasl.Server }

func (t strictServer) Next(response []byte) ([]byte, bool, error) {
	challenge, done, err := t.Server.Next(response)
	if err != nil && !errors.Is(err, ErrCredentials) && !errors.Is(err, errBackend) {
		err = errSASL
	}
	return challenge, done, err
}

// loginServer is LOGIN, which go-sasl has for clients only: two prompts.
type loginServer struct {
	check func(user, password string) error
	asked int
	user  string
}

func (t *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if t.asked == 0 {
		if t.asked = 1; response == nil {
			return []byte("Username:"), false, nil
		}
	}
	if t.asked == 1 {
		t.user, t.asked = string(response), 2
		return []byte("Password:"), false, nil
	}
	if err := t.check(t.user, string(response)); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// certificateUser is who a verified client certificate says it is: its first
// mail address, or its common name. Only an authority that the listener names
// says so, and of logins in a table only: those that all the world trusts give a
// certificate to anybody.
func (s *Session) certificateUser() string {
	if s.c.Listener.CA == "" || s.c.Listener.AuthTable == "" || s.tls == nil || !s.tls.verified || s.tls.cert == nil {
		return ""
	}
	name := s.tls.cert.Subject.CommonName
	if len(s.tls.cert.EmailAddresses) > 0 {
		name = s.tls.cert.EmailAddresses[0]
	}
	if len(name) > maxUser || mail.Clean(name, maxUser) != name {
		return ""
	}
	return name
}
