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
}

// The failures that have fixed words.
var (
	failNoMX        = failure{451, [3]uint8{4, 4, 4}, "No MX found for domain", "", false, false}
	failNoBackup    = failure{451, [3]uint8{4, 4, 4}, "No MX found for destination", "", false, false}
	failMXLookup    = failure{451, [3]uint8{4, 4, 3}, "Temporary failure in MX lookup", "", false, false}
	failNoDomain    = failure{550, [3]uint8{5, 1, 2}, "Domain does not exist", "", false, false}
	failBadDomain   = failure{550, [3]uint8{5, 1, 2}, "Invalid domain name", "", false, false}
	failNullMX      = failure{556, [3]uint8{5, 1, 10}, "Domain does not accept mail", "", false, false}
	failNoHost      = failure{451, [3]uint8{4, 4, 4}, "Host not found", "", false, false}
	failSmarthost   = failure{451, [3]uint8{4, 3, 5}, "Cannot retrieve smarthost", "", false, false}
	failParseHost   = failure{451, [3]uint8{4, 3, 5}, "Cannot parse smarthost", "", false, false}
	failTLSWanted   = failure{451, [3]uint8{4, 7, 4}, "TLS required for relaying", "", false, false}
	failNoAuthTable = failure{451, [3]uint8{4, 7, 0}, "No auth table for relaying", "", false, false}
	failCredentials = failure{451, [3]uint8{4, 7, 0}, "Could not retrieve credentials", "", false, false}
	failSource      = failure{451, [3]uint8{4, 3, 0}, "Could not retrieve source address", "", false, false}
	failFamily      = failure{451, [3]uint8{4, 4, 4}, "Address family mismatch on destination MXs", "", false, false}
	failBlocked     = failure{451, [3]uint8{4, 4, 1}, "All routes to destination blocked", "", false, false}
	failNetwork     = failure{451, [3]uint8{4, 4, 1}, "Network error on destination MXs", "", false, false}
	failNoRoute     = failure{451, [3]uint8{4, 4, 1}, "No valid route to remote MX", "", false, false}
	failText        = failure{451, [3]uint8{4, 3, 0}, "Temporary failure", "", false, true}
	failTooMany     = failure{451, [3]uint8{4, 4, 2}, "Too many consecutive errors, closing connection", "", false, false}
	failSize        = failure{552, [3]uint8{5, 3, 4}, "Message is larger than the remote host accepts", "", false, false}
	failSender      = failure{553, [3]uint8{5, 1, 7}, "Reverse-path cannot be sent", "", false, false}
	failRcpt        = failure{553, [3]uint8{5, 1, 3}, "Recipient address cannot be sent", "", false, false}
	failUTF8        = failure{553, [3]uint8{5, 6, 7}, "Remote host does not support SMTPUTF8", "", false, false}
	failRequireTLS  = failure{550, [3]uint8{5, 7, 30}, "Remote host does not support REQUIRETLS", "", false, false}
)

// with is f with what led to it.
func (f failure) with(detail string) failure {
	f.detail = detail
	return f
}

// status is f as the queue keeps it.
func (f *failure) status() mail.Status {
	return mail.Status{Code: f.code, Enh: f.enh, Text: mail.Clean(f.text, mail.MaxStatusText)}
}

// line is f as show queue prints it.
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

// blame is what a session's failure tells about.
type blame uint8

const (
	blameRoute blame = iota // this address cannot be used in this way
	blameSMTP               // it answers, but does not want us
	blameRelay              // what we ask is refused, wherever we ask: credentials
	blameUs                 // nobody: we stopped
	blameTLS                // the handshake failed; without TLS it may work
)
