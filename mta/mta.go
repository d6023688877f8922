// Package mta relays messages to other hosts. It knows what is wanted (relay),
// by which source and address it may be reached (route), opens connections
// within limits, speaks SMTP and LMTP as a client, and reports the end of each
// envelope's attempt at once. It owns its connections, their goroutines and the
// memory of hosts that failed. Names, tables, keys and the wire come through
// interfaces; it must never open a file, read a configuration text or decide
// when an envelope is tried again.
package mta

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// Message is one message with the envelopes that one action relays.
type Message struct {
	ID        mail.MessageID
	Envelopes []mail.Envelope
	Action    *config.Action // MethodRelay
	Size      int64          // of the text, in octets

	// Open gives the text when it is needed: once for each task, at a time when
	// a connection is ready. An error is temporary and not counted as a try.
	Open func(ctx context.Context) (Text, error)
}

// Text is a message's text, opened.
type Text struct {
	Data []byte // the whole text, when File is nil; never changed
	File File
	Size int64 // octets of File
}

// File is a text that is read in parts. The engine closes it.
type File interface {
	io.ReaderAt
	io.Closer
}

// Report is the end of one attempt at one envelope.
type Report struct {
	Session  mail.SessionID // 0: there was no connection
	Envelope *mail.Envelope
	Sender   mail.Address // reverse-path as it was sent, or would have been
	Source   string       // our address, or "-"
	Relay    string       // "address (name)" of the host; without one the domain
	Status   mail.Status
	Stat     string // for the log: the remote's reply, or our own words
	Line     string // for show queue and notices: Stat, and what led to it
	Remote   string // the host that said Status, "mx.example.net (192.0.2.1)"; empty: we did
	Loop     bool   // the mail would go in circles
	Relayed  bool   // with 2xx: the next hop does not do DSN though success is to be reported
	NoTry    bool   // with 4xx: was not tried at all
}

// Observer is told what happens. It must not block and not call the engine;
// its methods are called from many goroutines at once.
type Observer interface {
	// Done is called once for each envelope submitted, unless it is held or the
	// engine stops before its turn.
	Done(r *Report)
	// Event is one line of the mail log about a session.
	Event(id mail.SessionID, what string, attrs ...slog.Attr)
	// Note is one line of the mail log about relays and routes.
	Note(text string)
	// Trace is one line of a dialogue; secrets are masked. Tracing is asked first.
	Trace(id mail.SessionID, line string)
	Tracing() bool
	// Hold gives envelopes back: the relay named by key has enough to do.
	Hold(key uint64, ids []mail.EnvelopeID)
	// Release wants up to count of the envelopes held under key, 0: all.
	Release(key uint64, count int)
	// Retry names envelopes that were deferred and are worth another attempt: a
	// host of their domain has taken a recipient. It may keep ids.
	Retry(ids []mail.EnvelopeID)
	// Gauge is the present value of a counter: "mta.session", ...
	Gauge(name string, value int64)
}

// Result says how a question to the name system ended.
type Result uint8

// The results.
const (
	DNSOK      Result = iota
	DNSNoName         // the name does not exist
	DNSNoData         // the name exists, without records of the type
	DNSFailure        // could not be found out
)

// Record is one record of the type asked for.
type Record struct {
	Pref uint16 // MX only
	Data string // address or name as text; the root is "."
}

// Types of records the engine asks for (RFC 1035 section 3.2.2, RFC 3596).
const (
	TypeA    uint16 = 1
	TypePTR  uint16 = 12
	TypeMX   uint16 = 15
	TypeAAAA uint16 = 28
)

// DNS asks the name system. It is safe for concurrent use, follows CNAME
// records, and ends when ctx does.
type DNS interface {
	Query(ctx context.Context, name string, qtype uint16) ([]Record, Result)
	// Secured reports whether DNSSEC vouches for the answer to that question, by
	// the word of a resolver that we believe, and what the answer is.
	Secured(ctx context.Context, name string, qtype uint16) (bool, Result)
}

// Tables asks tables of the configuration. It is safe for concurrent use. An
// error is temporary.
type Tables interface {
	Lookup(ctx context.Context, table, service, key string) (value string, found bool, err error)
	// Fetch gives the next value of a list in turn.
	Fetch(ctx context.Context, table, service string) (value string, found bool, err error)
}

// Dialer opens connections. src is the address to use, or not valid.
type Dialer interface {
	Dial(ctx context.Context, src netip.Addr, dst netip.AddrPort) (net.Conn, error)
}

// Trust holds certificates: ours, and those we believe.
type Trust interface {
	// Certificate is ours for a pki entry; nil when there is none.
	Certificate(pki string) (*tls.Certificate, error)
	// Roots are the authorities of a ca entry; of the system for an empty name.
	Roots(ca string) (*x509.CertPool, error)
}

// Options is what an Engine is made of. DNS, Tables, Dialer, Trust and Observer
// must be set.
type Options struct {
	DNS      DNS
	Tables   Tables
	Dialer   Dialer
	Trust    Trust
	Observer Observer

	// Tell gives who is told what happens on a connection of an action with
	// filters; nil, or what gives nil: nobody is.
	Tell func(filters []string, id mail.SessionID) Told

	// Timeouts is for tests; the zero value means DefaultTimeouts.
	Timeouts Timeouts
	// Grace is how long transactions under way may go on when the engine
	// stops. Zero: DefaultGrace.
	Grace time.Duration
}

// DefaultGrace leaves the process a second of the five it has to end.
const DefaultGrace = 4 * time.Second

// Timeouts bound the phases of a session.
type Timeouts struct {
	Connect   time.Duration // ours: what other servers use; the system gives up later
	Greeting  time.Duration // RFC 5321 section 4.5.3.2.1
	Hello     time.Duration // as MAIL; RFC 5321 names none
	TLS       time.Duration // ours
	Mail      time.Duration // section 4.5.3.2.2
	Rcpt      time.Duration // section 4.5.3.2.3
	Data      time.Duration // section 4.5.3.2.4
	Block     time.Duration // section 4.5.3.2.5: one write
	End       time.Duration // section 4.5.3.2.6
	Quit      time.Duration // ours: nothing depends on it
	Name      time.Duration // ours: reverse name of a host, for the log
	Linger    time.Duration // ours: idle connections beyond the last of a relay
	TextError time.Duration // ours: for the reply of a host that stopped to listen
}

// DefaultTimeouts are the timeouts of RFC 5321, and ours where it has none.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Connect: 30 * time.Second, Greeting: 5 * time.Minute, Hello: 5 * time.Minute,
		TLS: time.Minute, Mail: 5 * time.Minute, Rcpt: 5 * time.Minute, Data: 2 * time.Minute,
		Block: 3 * time.Minute, End: 10 * time.Minute, Quit: 5 * time.Second,
		Name: 3 * time.Second, Linger: 2 * time.Second, TextError: 5 * time.Second,
	}
}
