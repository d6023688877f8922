package mta

import (
	"errors"
	"strings"
	"syscall"
	"unicode/utf8"

	"smtpd/internal/mail"
)

// failure is why envelopes were not delivered, when no host said it.
type failure struct {
	code   int
	enh    [3]uint8
	text   string // as OpenSMTPD has it: log parsers know it
	detail string // what led to it; for show queue and notices
	loop   bool
	noTry  bool
	other  bool // another host of the action may do
}

// The failures that have fixed words.
var (
	failNoMX        = failure{code: 451, enh: [3]uint8{4, 4, 4}, text: "No MX found for domain"}
	failNoBackup    = failure{code: 451, enh: [3]uint8{4, 4, 4}, text: "No MX found for destination"}
	failMXLookup    = failure{code: 451, enh: [3]uint8{4, 4, 3}, text: "Temporary failure in MX lookup"}
	failNoDomain    = failure{code: 550, enh: [3]uint8{5, 1, 2}, text: "Domain does not exist"}
	failBadDomain   = failure{code: 550, enh: [3]uint8{5, 1, 2}, text: "Invalid domain name"}
	failNullMX      = failure{code: 556, enh: [3]uint8{5, 1, 10}, text: "Domain does not accept mail"}
	failNoHost      = failure{code: 451, enh: [3]uint8{4, 4, 4}, text: "Host not found", other: true}
	failSmarthost   = failure{code: 451, enh: [3]uint8{4, 3, 5}, text: "Cannot retrieve smarthost"}
	failParseHost   = failure{code: 451, enh: [3]uint8{4, 3, 5}, text: "Cannot parse smarthost"}
	failTLSWanted   = failure{code: 451, enh: [3]uint8{4, 7, 4}, text: "TLS required for relaying"}
	failTLSTable    = failure{code: 451, enh: [3]uint8{4, 7, 0}, text: "Could not retrieve TLS policy"}
	failNoAuthTable = failure{code: 451, enh: [3]uint8{4, 7, 0}, text: "No auth table for relaying"}
	failCredentials = failure{code: 451, enh: [3]uint8{4, 7, 0}, text: "Could not retrieve credentials"}
	failSource      = failure{code: 451, enh: [3]uint8{4, 3, 0}, text: "Could not retrieve source address"}
	failFamily      = failure{code: 451, enh: [3]uint8{4, 4, 4}, text: "Address family mismatch on destination MXs", other: true}
	failBlocked     = failure{code: 451, enh: [3]uint8{4, 4, 1}, text: "All routes to destination blocked"}
	failNetwork     = failure{code: 451, enh: [3]uint8{4, 4, 1}, text: "Network error on destination MXs", other: true}
	failNoRoute     = failure{code: 451, enh: [3]uint8{4, 4, 1}, text: "No valid route to remote MX", other: true}
	failText        = failure{code: 451, enh: [3]uint8{4, 3, 0}, text: "Temporary failure", noTry: true}
	failTooMany     = failure{code: 451, enh: [3]uint8{4, 4, 2}, text: "Too many consecutive errors, closing connection"}
	failSize        = failure{code: 552, enh: [3]uint8{5, 3, 4}, text: "Message is larger than the remote host accepts"}
	failSender      = failure{code: 553, enh: [3]uint8{5, 1, 7}, text: "Reverse-path cannot be sent"}
	failRcpt        = failure{code: 553, enh: [3]uint8{5, 1, 3}, text: "Recipient address cannot be sent"}
	failUTF8        = failure{code: 553, enh: [3]uint8{5, 6, 7}, text: "Remote host does not support SMTPUTF8"}
	failUnsecured   = failure{code: 550, enh: [3]uint8{5, 7, 30}, text: "Mail exchangers are not secured as REQUIRETLS demands"}
	failRequireTLS  = failure{code: 550, enh: [3]uint8{5, 7, 30}, text: "Remote host does not support REQUIRETLS"}
)

// with is f with what led to it.
func (f failure) with(detail string) failure {
	f.detail = detail
	return f
}

// status is f as the queue keeps it, and as a notice tells programs.
func (f *failure) status() mail.Status {
	return mail.Status{Code: f.code, Enh: f.enh, Text: mail.Clean(f.line(), mail.MaxStatusText)}
}

// line is f as show queue prints it: text, and what led to it.
func (f *failure) line() string {
	if f.detail == "" || f.detail == f.text {
		return f.text
	}
	return f.text + ": " + f.detail
}

// failLoop says that we are the best host for a domain that we do not take.
func failLoop(domain string) failure {
	return failure{code: 554, enh: [3]uint8{5, 4, 6},
		text: "mail for " + mail.Clean(domain, mail.MaxDomain) + " loops back to myself", loop: true}
}

// failSession is the end of a session in the middle of a transaction.
func failSession(err error) failure {
	return failure{code: 451, enh: [3]uint8{4, 4, 2}, text: mail.Clean(err.Error(), mail.MaxStatusText)}
}

// ioError is an error of the system, in the words of the log.
type ioError struct{ err error }

func (e ioError) Unwrap() error { return e.err }

// Error is "IO Error: Connection refused": the cause alone, as strerror(3)
// writes it.
func (e ioError) Error() string {
	if errno, ok := errors.AsType[syscall.Errno](e.err); ok {
		return "IO Error: " + capital(errno.Error())
	}
	return "IO Error: " + capital(e.err.Error())
}

func capital(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return strings.ToUpper(string(r)) + s[n:]
}

// setupError ends a session before it was ready, and says whom to blame.
type setupError struct {
	err   error
	blame blame
}

func (e *setupError) Error() string { return e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

// enhanced is the code of RFC 3463 for the mail that has to wait because of e.
func (e *setupError) enhanced() [3]uint8 {
	c, ok := errors.AsType[coded](e.err)
	switch {
	case ok && c.enh[0] != 0:
		return [3]uint8{4, c.enh[1], c.enh[2]}
	case e.blame == blameTLS:
		return [3]uint8{4, 7, 5}
	case e.blame == blameRelay: // what we were told to say cannot be said
		return [3]uint8{4, 3, 5}
	}
	return failNetwork.enh
}

// coded is an error with an enhanced code of its own.
type coded struct {
	text string
	enh  [3]uint8
}

func (e coded) Error() string { return e.text }

// noLogin is why we could not log in.
func noLogin(text string) error { return coded{text, [3]uint8{4, 7, 0}} }

// cause is why a host cannot be used.
type cause struct {
	text string
	enh  [3]uint8
}

// blame is what a session's failure tells about.
type blame uint8

const (
	blameRoute blame = iota // this address cannot be used in this way
	blameSMTP               // it answers, but does not want us
	blameRelay              // what we ask is refused, wherever we ask: credentials
	blameUs                 // nobody: we stopped
	blameTLS                // the handshake failed; without TLS it may work
	blameFit                // the host cannot do what this relay needs; others may use it
)
