package smtp

import (
	"bytes"
	"log/slog"
	"strconv"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// maxCommand is the longest command line, in octets without its line end. Ours,
// as OpenSMTPD; RFC 5321 section 4.5.3.1.4 asks for 510.
const maxCommand = 2047

// ext is a set of extensions.
type ext uint16

// The extensions that a listener can leave out.
const (
	ext8BitMIME ext = 1 << iota
	extSize
	extDSN
	extPipelining
	extChunking
	extBinary
	extUTF8
	extRequireTLS
	extLimits
	extEnhanced
)

// keywords are the extensions by their EHLO keywords.
var keywords = map[string]ext{
	"8BITMIME": ext8BitMIME, "SIZE": extSize, "DSN": extDSN, "PIPELINING": extPipelining, "CHUNKING": extChunking,
	"BINARYMIME": extBinary, "SMTPUTF8": extUTF8, "REQUIRETLS": extRequireTLS, "LIMITS": extLimits,
	"ENHANCEDSTATUSCODES": extEnhanced,
}

// extensions are those that a listener offers. BINARYMIME is nothing without
// CHUNKING (RFC 3030 section 3), SMTPUTF8 needs 8BITMIME (RFC 6531 section 3.1).
func extensions(l *config.Listener) ext {
	e := ext8BitMIME | extSize | extPipelining | extChunking | extBinary | extUTF8 | extRequireTLS | extLimits | extEnhanced
	if l.DSN {
		e |= extDSN
	}
	for _, word := range l.Without {
		e &^= keywords[word]
	}
	if e&extChunking == 0 {
		e &^= extBinary
	}
	if e&ext8BitMIME == 0 {
		e &^= extUTF8
	}
	return e
}

func (s *Session) offers(e ext) bool { return s.ext&e != 0 }

// command carries out one line. The line is gone once more is read.
func (s *Session) command(line []byte) {
	line = bytes.TrimRight(line, " \t")
	s.hear(s.shownCommand(string(line)))
	if s.idle++; !s.notice && s.idle > max(s.c.SMTP.MaxCommands, 2*s.c.SMTP.MaxRcpt) {
		s.refuse(replyTooManyCmds)
		return
	}
	switch {
	case s.bareLF():
		s.refuse(replyBareLF)
		return
	case bytes.IndexByte(line, 0) >= 0 || bytes.IndexByte(line, '\r') >= 0:
		s.refuse(replyBadOctet)
		return
	}
	word, arg := line, ""
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		word, arg = line[:i], strings.TrimLeft(string(line[i+1:]), " \t")
	}
	s.dispatch(word, arg, line)
}

// hear shows what the client said to those who want to know.
func (s *Session) hear(shown string) {
	s.lastWord = shown
	if s.shown() {
		s.c.Log.Event(s.client.Session, "smtp dialogue", log.Quoted("client", mail.Clean(shown, maxLogged)))
	}
	if s.heard {
		s.report(EventClient, shown)
	}
}

// bareLF reports whether the line that was read last ended with LF alone, where
// that ends no line (RFC 5321 section 2.3.8).
func (s *Session) bareLF() bool { return s.wire.bare && !s.repairs() }

// repairs reports whether a bare CR or LF ends a line of this client.
func (s *Session) repairs() bool { return s.c.Listener.Repair || s.isLocal() }

// dispatch finds the command. Only one space separates MAIL from FROM, and
// none comes before the colon (RFC 5321 section 3.3).
func (s *Session) dispatch(word []byte, arg string, line []byte) {
	var upper [len("STARTTLS")]byte
	if len(word) > len(upper) {
		s.unknown(word)
		return
	}
	switch n := copy(upper[:], word); string(asciiUpper(upper[:n])) {
	case "HELO":
		s.identify("HELO", arg)
	case "EHLO":
		s.identify("EHLO", arg)
	case "MAIL":
		if rest, ok := cutPrefixFold(line, "MAIL FROM:"); ok {
			s.mail(rest)
			return
		}
		s.refuse(replyUnknown)
	case "RCPT":
		if rest, ok := cutPrefixFold(line, "RCPT TO:"); ok {
			s.rcpt(rest)
			return
		}
		s.refuse(replyUnknown)
	case "DATA":
		s.data(arg)
	case "BDAT":
		s.bdat(arg)
	case "RSET":
		s.rset(arg)
	case "NOOP":
		s.noop()
	case "QUIT":
		s.quit(arg)
	case "HELP":
		s.help(arg)
	case "STARTTLS":
		s.starttls(arg)
	case "AUTH":
		s.auth(arg)
	case "VRFY":
		s.say(replyVRFY)
	case "EXPN":
		s.refuse(replyEXPN)
	case "WIZ":
		s.refuse(replyWiz)
	default:
		s.unknown(word)
	}
}

// asciiUpper makes b upper case in place.
func asciiUpper(b []byte) []byte {
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return b
}

// cutPrefixFold gives what follows a prefix, blanks cut, whatever its case.
func cutPrefixFold(line []byte, prefix string) (string, bool) {
	if len(line) < len(prefix) || !strings.EqualFold(string(line[:len(prefix)]), prefix) {
		return "", false
	}
	return strings.TrimLeft(string(line[len(prefix):]), " \t"), true
}

// shownCommand is a command as the log, traces and filters see it. What AUTH
// carries is hidden, however it is written, and so is what a client goes on
// with that did not wait to hear that there is no AUTH: its login.
func (s *Session) shownCommand(line string) string {
	line = maskCommand(line)
	if !s.afterAuth {
		return line
	}
	word, _, _ := strings.Cut(line, " ")
	if !verbs[strings.ToUpper(word)] {
		return masked
	}
	s.afterAuth = false // AUTH sets it again
	return line
}

// masked stands for a secret.
const masked = "********"

// verbs are the commands that there are.
var verbs = map[string]bool{
	"HELO": true, "EHLO": true, "MAIL": true, "RCPT": true, "DATA": true, "BDAT": true, "RSET": true, "NOOP": true,
	"QUIT": true, "HELP": true, "STARTTLS": true, "AUTH": true, "VRFY": true, "EXPN": true, "WIZ": true,
}

// maskCommand hides what follows AUTH and its mechanism.
func maskCommand(line string) string {
	const verb = "AUTH"
	text := strings.TrimLeft(line, " \t")
	if len(text) <= len(verb) || !strings.EqualFold(text[:len(verb)], verb) {
		return line
	}
	args := strings.TrimLeft(text[len(verb):], " ")
	mech, secret, _ := strings.Cut(args, " ")
	switch {
	case text[len(verb)] != ' ' || !isMechanism(mech):
		return line[:len(line)-len(text)+len(verb)] + " " + masked
	case secret == "":
		return line
	}
	return line[:len(line)-len(secret)] + masked
}

// isMechanism reports whether a word may be the name of a SASL mechanism (RFC
// 4422 section 3.1), in letters of one case, and not the login itself.
func isMechanism(word string) bool {
	for i := range len(word) {
		if !isAlnum(word[i]) && word[i] != '-' && word[i] != '_' {
			return false
		}
	}
	return word != "" && len(word) <= 20 && (word == strings.ToUpper(word) || word == strings.ToLower(word))
}

// unknown refuses what is no command. Another protocol on our port is an
// attack through a browser: it is not listened to (RFC 5321 has no such verb).
func (s *Session) unknown(word []byte) {
	if httpVerbs[strings.ToUpper(string(word))] || isField(word) {
		s.refuse(replyNotHTTP)
		s.close(reasonBadInput)
		return
	}
	s.refuse(replyUnknown)
}

// httpVerbs are the methods of HTTP (RFC 9110 section 9.3, RFC 5789) and WebDAV,
// and the preface of HTTP/2.
var httpVerbs = map[string]bool{
	"GET": true, "HEAD": true, "POST": true, "PUT": true, "DELETE": true, "CONNECT": true, "OPTIONS": true,
	"TRACE": true, "PATCH": true, "PRI": true, "PROPFIND": true, "PROPPATCH": true, "MKCOL": true, "COPY": true,
	"MOVE": true, "LOCK": true, "UNLOCK": true, "REPORT": true, "SEARCH": true,
}

// isField reports whether a word is the name of a header field with its colon,
// which no command of SMTP is: a browser has come to its header.
func isField(word []byte) bool {
	i := bytes.IndexByte(word, ':')
	if i < 2 || i != len(word)-1 {
		return false
	}
	for _, c := range word[:i] {
		if !isAlnum(c) && c != '-' {
			return false
		}
	}
	return true
}

// identify is HELO and EHLO. They may come again and then reset the session
// (RFC 5321 section 4.1.4).
func (s *Session) identify(verb, arg string) {
	if arg == "" {
		s.refuse("501 5.5.1 Invalid command: " + verb + " requires domain name")
		return
	}
	if !s.notice && !validDomain(arg, false) { // our own name is what it is
		s.refuse(replyDomain)
		return
	}
	phase := PhaseHelo
	if verb == "EHLO" {
		phase = PhaseEhlo
	}
	v, ok := s.ask(phase, arg)
	if !ok {
		return
	}
	if v.Action == Rewrite {
		arg = cleanWord(v.Text)
	}
	s.rollback()
	s.helo, s.esmtp = arg, verb == "EHLO"
	s.report(EventIdentify, verb, arg)
	hello := s.name + " Hello " + arg + " " + s.bracketed() + ", pleased to meet you"
	if !s.esmtp {
		s.say("250 " + hello)
		return
	}
	s.say("250-" + hello)
	s.sayExtensions()
}

// bracketed is the client's address between brackets.
func (s *Session) bracketed() string {
	if a := s.client.Text(); a[0] == '[' {
		return a
	}
	return "[" + s.client.Text() + "]"
}

// sayExtensions is the reply to EHLO from its second line on, in the order of
// OpenSMTPD with what it lacks before HELP.
func (s *Session) sayExtensions() {
	if s.offers(ext8BitMIME) {
		s.say("250-8BITMIME")
	}
	if s.offers(extEnhanced) {
		s.say("250-ENHANCEDSTATUSCODES")
	}
	if s.offers(extSize) {
		s.say("250-SIZE " + strconv.FormatInt(s.c.SMTP.MaxMessageSize, 10))
	}
	if s.offers(extDSN) {
		s.say("250-DSN")
	}
	if s.canStartTLS() {
		s.say("250-STARTTLS")
	}
	if mechs := s.mechanisms(); mechs != "" {
		s.say("250-AUTH " + mechs)
	}
	if s.offers(extPipelining) {
		s.say("250-PIPELINING")
	}
	if s.offers(extChunking) {
		s.say("250-CHUNKING")
	}
	if s.offers(extBinary) {
		s.say("250-BINARYMIME")
	}
	if s.offers(extUTF8) {
		s.say("250-SMTPUTF8")
	}
	if s.offers(extRequireTLS) && s.tls != nil {
		s.say("250-REQUIRETLS")
	}
	if s.offers(extLimits) {
		s.say("250-LIMITS MAILMAX=" + strconv.Itoa(s.c.SMTP.MaxMails) + " RCPTMAX=" + strconv.Itoa(s.c.SMTP.MaxRcpt))
	}
	s.say("250 HELP")
}

func (s *Session) rset(arg string) {
	if arg != "" {
		s.refuse(replyNoArguments)
		return
	}
	if _, ok := s.ask(PhaseRset, ""); !ok {
		return
	}
	s.say(replyReset)
	s.rollback()
}

func (s *Session) noop() {
	if _, ok := s.ask(PhaseNoop, ""); ok {
		s.say(replyOK)
	}
}

func (s *Session) quit(arg string) {
	if arg != "" {
		s.refuse(replyNoArguments)
		return
	}
	if _, ok := s.ask(PhaseQuit, ""); ok {
		s.say(replyBye)
		s.close("quit")
	}
}

func (s *Session) help(arg string) {
	if arg != "" {
		s.refuse(replyNoArguments)
		return
	}
	s.say("214-2.0.0 This is smtpd")
	s.say("214-2.0.0 It accepts mail for the domains of this host and relays what its rules allow;")
	s.say("214-2.0.0 see smtpd(8) and smtpd.conf(5)")
	s.say("214 2.0.0 End of HELP info")
}

// logAuth writes the line that intrusion detectors read.
func (s *Session) logAuth(user, result string) {
	s.c.Log.Event(s.client.Session, "smtp authentication", slog.String("user", user),
		slog.String("result", result), log.Raw("address", s.client.Text()))
}
