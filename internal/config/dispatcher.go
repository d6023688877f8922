package config

import "time"

// Method is how an action disposes of a message.
type Method string

// The methods of `action`.
const (
	MethodMbox        Method = "mbox"
	MethodMaildir     Method = "maildir"
	MethodLMTP        Method = "lmtp"
	MethodMDA         Method = "mda"
	MethodForwardOnly Method = "forward-only"
	MethodExpandOnly  Method = "expand-only"
	MethodRelay       Method = "relay"
)

// Action is one `action` line, the dispatcher that envelopes name.
type Action struct {
	Pos    Pos
	Name   string
	Method Method
	TTL    time.Duration // 0: Queue.TTL
	Retry  Retry         // zero: Queue.RetryMDA or RetryMTA

	// Local methods.
	Path   string // maildir; empty: ~/Maildir
	Junk   bool   // maildir
	Dest   string // lmtp: "/socket" or "host:port"
	RcptTo bool   // lmtp
	// VerifyRcpt: lmtp, the store is asked at RCPT time. OriginalTo: an
	// X-Original-To line is put in front.
	VerifyRcpt, OriginalTo bool
	Command                string // mda
	User                   string // deliver as
	Alias                  string // table
	Virtual                string // table
	Userbase               string // table; empty: getpwnam
	Wrapper                string // name

	Relay *Relay // MethodRelay
}

// IsLocal reports whether the action delivers on this host, by whatever method.
func (a *Action) IsLocal() bool { return a.Method != MethodRelay }

// Relay is the part of an action that sends mail on.
type Relay struct {
	Helo      string
	HeloSrc   string // table: address -> name
	PKI       string
	CA        string
	Ciphers   string
	Protocols string
	Src       string // table of addresses
	MailFrom  string
	Backup    bool
	BackupMX  string // empty: the server name
	Host      string // table of relay URLs
	Domain    string // table: domain -> relay URL
	Sender    string // table: reverse-path -> relay URL, before Host and Domain
	TLS       bool   // required
	NoVerify  bool   // with TLS: the certificate is not checked
	Auth      string // table of credentials
	Filter    []string
	SRS       bool
	Prefer    string // "", "inet4" or "inet6": addresses tried first
	Hold      *Hold  // nil: mail leaves when it can
}

// Filter is one `filter` line.
type Filter struct {
	Pos   Pos
	Name  string
	Proc  string   // runs in this Proc
	Chain []string // or is these filters in a row

	// With Proc, when set instead of what the Proc has.
	Timeout   time.Duration
	OnFailure OnFailure

	// Or decides by itself.
	Phase    string // connect helo ehlo auth mail-from rcpt-to data commit
	Cond     string // fcrdns rdns auth src helo mail-from rcpt-to
	Match    Match
	Decision string // reject disconnect rewrite report junk bypass
	Text     string // argument of the decision
}

// FilterTimeout is how long a filter program may take for an answer unless the
// configuration says otherwise.
const FilterTimeout = time.Minute

// Proc is a filter program.
type Proc struct {
	Pos     Pos
	Name    string
	Command string
	User    string
	Group   string
	Chroot  string
	Timeout time.Duration // for each answer; 0: FilterTimeout
	// OnFailure is what becomes of sessions when it fails; "": FailTemp.
	OnFailure OnFailure
}

// OnFailure is what becomes of the sessions of a filter program that fails.
type OnFailure string

// The ways to go on: without it, or not at all for the moment.
const (
	FailPass OnFailure = "pass"
	FailTemp OnFailure = "tempfail"
)

// Patience is how long the program of a filter may take for an answer, and
// whether sessions go on without it.
func (c *Config) Patience(filter string) (timeout time.Duration, pass bool) {
	timeout = FilterTimeout
	f := c.Filters[filter]
	if f == nil {
		return timeout, false
	}
	on := f.OnFailure
	if p := c.Procs[f.Proc]; p != nil {
		if p.Timeout > 0 {
			timeout = p.Timeout
		}
		if on == "" {
			on = p.OnFailure
		}
	}
	if f.Timeout > 0 {
		timeout = f.Timeout
	}
	return timeout, on == FailPass
}
