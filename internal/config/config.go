// Package config is the checked configuration as plain data: what the parser
// makes of smtpd.conf and every process works by. It holds no text to parse,
// opens no files and has no behaviour beyond looking things up in itself.
package config

import (
	"net/netip"
	"strings"
	"time"
)

// Pos is where in the configuration text something was written.
type Pos struct {
	File string
	Line int // 1-based; 0: not from a file
}

// Config is one whole configuration. It is never changed once handed out; a
// reload makes a new one. JSON carries it from the parent to the children.
type Config struct {
	Generation uint64   // counts reloads, from 1
	File       string   // the main file, as named
	Warnings   []string `json:"-"` // what its text was warned of, for who asked for it
	Renewal    bool     // differs from the one before by certificates and addresses of this host only

	ServerName string
	LocalNames []string     // lower-case domains that `for local` matches: localhost, server name, and what legacy files add
	LocalAddrs []netip.Addr // addresses of this host, for `from local` and literals

	Listeners []*Listener // network listeners, one per address and port
	Pending   []*Pending  // network listeners whose interface or name has no address yet
	Socket    *Listener   // the local socket (sendmail, notices); never nil
	Tables    map[string]*Table
	Actions   map[string]*Action
	Rules     []*Rule // in the order of the file
	Filters   map[string]*Filter
	Procs     map[string]*Proc
	PKI       map[string]*PKI // by lower-case name, and "*"
	CA        map[string]*CA
	Wrappers  map[string]string // mda wrapper: name -> command

	ADMD      string
	Resolvers []string // DNS servers, "address:port"; empty: those of resolv.conf
	Queue     Queue
	SMTP      SMTP
	MDA       MDA
	MTA       MTA
	Scheduler Scheduler
	SRS       SRS
	Warn      []time.Duration // bounce warn-interval, at most 4
	Bounce    Bounce
}

// Bounce is how notices are written.
type Bounce struct {
	Full bool   // return the whole message unless RET says otherwise; else its header
	From string // domain of MAILER-DAEMON in From; empty: the server name
}

// Queue holds the queue directives.
type Queue struct {
	TTL           time.Duration // default 4 days
	Compression   bool
	EncryptionKey Secret // 32 octets, or empty: not encrypted
	AskKey        string // "stdin" or "prompt": the key is still to be read at start

	RetryMDA, RetryMTA Retry // when failed attempts are repeated
}

// Retry is when failed attempts are repeated: the n-th after the n-th of Delays
// or, without any, at creation + Base*n². The zero value is the default for the
// kind: 10 s for mda, 400 s for mta, quadratic.
type Retry struct {
	Base   time.Duration   // 0: the default; else 1 s at least
	Delays []time.Duration // since the attempt before; the last one repeats; each 1 s at least
}

// IsZero reports whether nothing is set.
func (r Retry) IsZero() bool { return r.Base == 0 && len(r.Delays) == 0 }

// SMTP holds the smtp directives.
type SMTP struct {
	MaxRcpt        int   // recipients per transaction, default 1000
	MaxMails       int   // messages per session, default 100
	MaxMessageSize int64 // octets, default 35 MiB
	SubAddrDelim   string
	Ciphers        string

	// Bounds on what clients may do. Zero means no bound where it says so.
	MaxSessions        int // connections in all; 0: as descriptors allow
	MaxSessionsPerAddr int // connections of one address, loopback aside; 0: any
	MaxSessionsPerNet  int // the same for one IPv6 /64; 0: any
	MaxConnRate        int // new connections of one address in a minute, loopback aside; 0: any
	MaxCommands        int // commands since the last accepted message
	MaxErrors          int // refused commands since the last accepted message
	MaxAuthFailures    int // in one session
	MaxLine            int // octets of a line of a message with its line end
	MaxHeader          int // octets of a message header
	MaxHeaderFields    int // fields of a message header

	CommandTimeout   time.Duration // for one whole command
	HandshakeTimeout time.Duration // of TLS
	DataTimeout      time.Duration // between two pieces of a message
	DataTime         time.Duration // for one whole message; 0: any
	MinRate          int           // octets per second of a message once DataTimeout is over; 0: any
	AuthDelay        time.Duration // at most, after a wrong password
}

// MDA holds `mda limit`.
type MDA struct {
	MaxSession, MaxSessionPerUser     int
	TaskHiwat, TaskLowat, TaskRelease int
}

// Scheduler holds `scheduler limit`.
type Scheduler struct {
	MaxInflight, MaxEvpBatchSize, MaxMsgBatchSize, MaxSchedule int
}

// MTA holds `mta max-deferred`, `mta tls` and `mta limit`.
type MTA struct {
	MaxDeferred int
	TLS         string // table: domain -> TLSWish; empty: none
	Default     MTALimits
	Domain      map[string]*MTALimits // LimitName -> its own limits
}

// MTALimits are the bounds on connections out. Durations are in whole seconds.
type MTALimits struct {
	Family string // "", "inet4" or "inet6"

	MaxConnPerHost, MaxConnPerRoute, MaxConnPerSource        int
	SourceLimitGiven                                         bool // MaxConnPerSource is the operator's
	MaxConnPerConnector, MaxConnPerRelay, MaxConnPerDomain   int
	ConnDelayHost, ConnDelayRoute, ConnDelaySource           time.Duration
	ConnDelayConnector, ConnDelayRelay, ConnDelayDomain      time.Duration
	ReconnDelayRoute                                         time.Duration
	SessionMailMax                                           int
	SessionTransactionDelay, SessionKeepalive                time.Duration
	MaxFailuresPerSession, TaskHiwat, TaskLowat, TaskRelease int

	// A group is the domains whose best MX are in one place: those of a
	// provider. Zero means no bound.
	MaxConnPerGroup                     int
	MaxMailsPerDomain, MaxMailsPerGroup int           // in a minute
	MailDelayDomain, MailDelayGroup     time.Duration // between two mails
	Prefer                              string        // "", "inet4" or "inet6": tried first
}

// SRS holds the srs directives.
type SRS struct {
	Key, Backup Secret
	TTL         time.Duration // whole days
}

// Secret is a string that does not print itself. JSON carries it in the clear:
// that is how the parent hands it to the process it concerns.
type Secret string

// String hides the secret from every print verb that asks for text.
func (Secret) String() string { return "********" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return `"********"` }

// PKI is a certificate with its key, by the name a configuration gives it.
type PKI struct {
	Name     string
	CertFile string
	KeyFile  string
	DHE      string // "none", "auto" or "legacy"
	Pos      Pos

	Cert []byte // PEM, public; read by the parent
	Key  Secret // PEM; only ever in the copies for keys
}

// CA is a file of certificates to trust.
type CA struct {
	Name     string
	CertFile string
	Pos      Pos
	Cert     []byte // PEM; read by the parent
}

// Defaults fills a Config with what holds when the file says nothing. Maps are
// made, the socket listener is there, names and addresses are left to the
// caller.
func Defaults() *Config {
	return &Config{
		Socket:   &Listener{Name: "socket", IsSocket: true, DSN: true},
		Tables:   map[string]*Table{},
		Actions:  map[string]*Action{},
		Filters:  map[string]*Filter{},
		Procs:    map[string]*Proc{},
		PKI:      map[string]*PKI{},
		CA:       map[string]*CA{},
		Wrappers: map[string]string{},
		Queue:    Queue{TTL: 4 * 24 * time.Hour},
		SMTP: SMTP{MaxRcpt: 1000, MaxMails: 100, MaxMessageSize: 35 << 20,
			SubAddrDelim: "+", Ciphers: "HIGH:!aNULL:!MD5",
			MaxSessionsPerAddr: 200, MaxSessionsPerNet: 400, MaxConnRate: 600,
			MaxCommands: 2500, MaxErrors: 100, MaxAuthFailures: 5,
			MaxLine: 65535, MaxHeader: 1 << 20, MaxHeaderFields: 5000,
			CommandTimeout: 5 * time.Minute, HandshakeTimeout: time.Minute, DataTimeout: 5 * time.Minute,
			DataTime: 2 * time.Hour, MinRate: 100, AuthDelay: time.Second},
		MDA: MDA{MaxSession: 50, MaxSessionPerUser: 7, TaskHiwat: 50, TaskLowat: 30, TaskRelease: 10},
		MTA: MTA{MaxDeferred: 100, Default: DefaultMTALimits(), Domain: map[string]*MTALimits{}},
		Scheduler: Scheduler{MaxInflight: 5000, MaxEvpBatchSize: 256,
			MaxMsgBatchSize: 1024, MaxSchedule: 10},
		SRS:  SRS{TTL: 4 * 24 * time.Hour},
		Warn: []time.Duration{4 * time.Hour},
	}
}

// DefaultMTALimits are the limits that hold without any `mta limit`. Four differ
// from OpenSMTPD on purpose: its delays between connections to one relay and
// route (2 and 5 s) hold a willing destination down to a few mails a second, and
// so do, over a long way, its 10 connections to a host and 5 on a route. 20 is
// what hosts know from other servers; one that wants fewer says so, and is heard.
func DefaultMTALimits() MTALimits {
	return MTALimits{
		MaxConnPerHost: 20, MaxConnPerRoute: 20, MaxConnPerSource: 100,
		MaxConnPerConnector: 20, MaxConnPerRelay: 100, MaxConnPerDomain: 100,
		ReconnDelayRoute: 3 * time.Second, SessionMailMax: 100,
		SessionKeepalive: 10 * time.Second, MaxFailuresPerSession: 25,
		TaskHiwat: 50, TaskLowat: 30, TaskRelease: 10,
	}
}

// For is the limits that hold for a destination: its own, else those of where
// its hosts are, a name or a domain above it, else those for all. place is the
// name of the best mail exchanger, or of the host that an action names; empty:
// not known.
func (m *MTA) For(domain, place string) *MTALimits {
	if len(m.Domain) == 0 {
		return &m.Default
	}
	if l := m.Domain[LimitName(domain)]; l != nil {
		return l
	}
	for place = LimitName(place); place != ""; _, place, _ = strings.Cut(place, ".") {
		if l := m.Domain[place]; l != nil {
			return l
		}
		if _, err := netip.ParseAddr(place); err == nil {
			break // no domain is above it
		}
	}
	return &m.Default
}

// LimitName is what a domain, a host name or an address is called in MTA.Domain
// however it is written: [IPv6:2001:DB8::1] is 2001:db8::1.
func LimitName(s string) string {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	bare := s
	if in, ok := strings.CutPrefix(s, "["); ok {
		bare = strings.TrimPrefix(strings.TrimSuffix(in, "]"), "ipv6:")
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return a.Unmap().String()
	}
	return s
}
