// Package smtp is the listener's side of SMTP: one Session per connection, from
// the banner to QUIT, on any net.Conn. It owns the dialogue, its limits and the
// text of a message until the Backend has made it durable; each Session is one
// goroutine. It knows nothing of processes, tables or the queue, and must never
// answer 250 to a message that Backend.Commit has not taken.
package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/netip"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/stat"
)

// Config is what the sessions of one listener share. It is not changed once a
// Session has it.
type Config struct {
	Listener *config.Listener
	SMTP     config.SMTP
	Name     string                    // the server name
	Actions  map[string]*config.Action // to tell when two recipients are one mailbox
	ADMD     string                    // Authentication-Results in this name are ours alone
	TLS      *tls.Config               // nil: none, whatever the listener says
	Backend  Backend
	Log      *log.Logger
	Stat     *stat.Set
	Now      func() time.Time
	Rand     func() uint64 // session ids and Message-IDs

	// ScramSecret makes SCRAM-SHA-256 offered; it is random, and the same for
	// the life of the process.
	ScramSecret []byte

	// Traced reports whether the dialogue with a client is to be shown in the
	// log; nil: it is not. It is asked for every line.
	Traced func(c *Client) bool
}

// Backend is what a session needs from the rest of the server. An error that
// is a *mail.Status is said to the client; any other means: not now. Methods
// are called from many sessions at once and return when ctx ends.
type Backend interface {
	// Admit counts in a client whom a proxy spoke for; a reply means that there
	// is no place. Leave counts it out.
	Admit(client netip.Addr) (refusal string)
	Leave(client netip.Addr)

	// ClientName finds the reverse name of a client, "<unknown>" without one,
	// and says whether it leads back: "pass", "fail" or "error".
	ClientName(ctx context.Context, addr netip.Addr) (host, fcrdns string)

	// Hostname is the name of a local address in the listener's table of host
	// names; empty: it is not there.
	Hostname(ctx context.Context, local netip.Addr) string

	// Authenticate checks a login. ErrCredentials: they are wrong.
	Authenticate(ctx context.Context, user, password string) error

	// Verifier is what SCRAM-SHA-256 needs of a login. ErrCredentials: there is
	// no such login, or it cannot be used that way.
	Verifier(ctx context.Context, user string) (*auth.Verifier, error)

	// KnowsLogin asks whether the listener's table has a login; nil: it has.
	// ErrCredentials: it has not.
	KnowsLogin(ctx context.Context, user string) error

	// CheckSender asks whether a login may use a reverse-path; nil: it may.
	CheckSender(ctx context.Context, user string, sender mail.Address) error

	// CheckRcpt asks what becomes of a recipient and of those that follow it. It
	// answers for the first of them, one at least.
	CheckRcpt(ctx context.Context, r *Rcpt) []Expansion

	// ReserveID takes an id for a message, and bounds its wait by itself: mostly
	// there is none. ReleaseID gives the id back when the message came to
	// nothing and no file was begun.
	ReserveID(ctx context.Context) (mail.MessageID, error)
	ReleaseID(mail.MessageID)

	// CreateBody opens the file of a body that is too long for memory. The
	// session closes it; AbortBody gives the message up.
	CreateBody(ctx context.Context, id mail.MessageID) (io.WriteCloser, error)
	AbortBody(mail.MessageID)

	// Commit makes a message durable; nil means that it survives a power cut.
	// After an error the message may exist or not, so the client is told to try
	// later.
	Commit(ctx context.Context, m *Message) error

	// Filter is what stands between a client and the commands, or nil. It is
	// asked once for each session.
	Filter(c *Client) Filter
}

// ErrCredentials is what Backend.Authenticate returns for a wrong password and
// for an unknown user alike.
var ErrCredentials = errors.New("smtp: wrong credentials")

// Rcpt is a recipient to be checked.
type Rcpt struct {
	Session  mail.SessionID
	Envelope mail.Envelope    // all but ID and what expansion decides
	Next     []mail.Recipient // whose RCPT has come in behind it; all else is as in Envelope
	TLS      bool
	Local    bool // through the local socket, or a notice
}

// OwnWords is a refusal in the words of the configuration: the client sees just
// these.
type OwnWords struct{ Status *mail.Status }

// Error is the status as the client sees it.
func (o *OwnWords) Error() string { return o.Status.String() }

// Unwrap gives the status.
func (o *OwnWords) Unwrap() error { return o.Status }

// Expansion is what becomes of a recipient: the branches, one at least, or why
// it is refused.
type Expansion struct {
	Branches []mail.Branch
	Err      error
}

// Message is a message to be made durable. The body has LF line ends, no dot
// stuffing, and ends with LF unless it is empty; the n-th envelope, counted
// from 1, is recipient number n.
type Message struct {
	ID        mail.MessageID
	Size      int64           // octets of the body
	Inline    []byte          // the body, unless InFile; valid until Commit returns
	InFile    bool            // the body is in the file of CreateBody, which is closed
	Envelopes []mail.Envelope // valid until Commit returns
}

// Client is who is at the other end.
type Client struct {
	Session mail.SessionID
	Addr    netip.AddrPort // invalid: the local socket
	Local   netip.AddrPort // our end
	Host    string         // reverse name
	FCrDNS  string         // "pass", "fail" or "error"
}

// Text is the client's address as the log, envelopes and trace fields show it:
// "127.0.0.1", "[::1]" or "local".
func (c *Client) Text() string {
	switch {
	case !c.Addr.IsValid():
		return "local"
	case c.Addr.Addr().Is4():
		return c.Addr.Addr().String()
	}
	return "[" + c.Addr.Addr().WithZone("").String() + "]"
}

// MaxInline is the longest body kept in memory, in octets; it is what fits one
// imsg with its envelopes.
const MaxInline = 64 << 10

// Timeouts of what a session waits for inside the server. Ours: a client that
// follows RFC 5321 section 4.5.3.2 waits longer than each.
const (
	lookupTimeout = 60 * time.Second
	commitTimeout = 5 * time.Minute
)
