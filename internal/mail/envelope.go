package mail

import "time"

// Wait says what an envelope waits for that is not being tried.
type Wait uint8

// What there is to wait for.
const (
	WaitTime    Wait = iota // the next try, or its turn when that has come
	WaitRelay               // its relay has more than it can use
	WaitRelease             // an operator
	WaitWindow              // the next time at which held mail may leave
	WaitAction              // its action, which there is not
)

// Kind says which process takes the next step with an envelope.
type Kind uint8

// The kinds of envelope, with the numbers stored in the queue.
const (
	KindMDA    Kind = 1 // delivered to a local user
	KindMTA    Kind = 2 // relayed
	KindBounce Kind = 3 // a notice about it is still to be sent
)

// String is the word of `smtpctl show queue`.
func (k Kind) String() string {
	switch k {
	case KindMDA:
		return "mda"
	case KindMTA:
		return "mta"
	case KindBounce:
		return "bounce"
	}
	return "?"
}

// Flags are the facts about an envelope that decide how it is treated later.
type Flags uint16

// The flags, with the bits stored in the queue.
const (
	FlagAuthenticated Flags = 1 << iota // the session had logged in, or was local
	FlagBounce                          // the message is itself a notice
	FlagInternal                        // the address came out of expansion, not from the client
	FlagSuspended                       // paused by the operator: not tried until resumed
	FlagUTF8                            // the transaction asked for SMTPUTF8 (RFC 6531)
	FlagRequireTLS                      // the transaction asked for REQUIRETLS (RFC 8689)
	Flag8BitMIME                        // the transaction declared BODY=8BITMIME
	FlagHold                            // kept until an operator or a window releases it
)

// Notify is the NOTIFY parameter of RFC 3461 section 4.1. Zero: not given.
type Notify uint8

// The values of NOTIFY; NotifyNever stands alone.
const (
	NotifySuccess Notify = 1 << iota
	NotifyFailure
	NotifyDelay
	NotifyNever
)

// Ret is the RET parameter of RFC 3461 section 4.3.
type Ret uint8

// The values of RET.
const (
	RetNone Ret = iota // not given
	RetFull
	RetHeaders
)

// DSN holds the parameters of RFC 3461 as the client gave them. EnvID and
// ORcpt are kept in xtext, so they can be passed on and never hold a control
// octet.
type DSN struct {
	Notify Notify
	Ret    Ret
	EnvID  string // at most MaxEnvID octets
	ORcpt  string // "type;xtext", at most MaxORcpt octets
}

// Bounds of the DSN parameters, in octets (RFC 3461 section 4.4 and 4.2).
const (
	MaxEnvID = 100
	MaxORcpt = 500
)

// NoticeKind says what a bounce envelope reports.
type NoticeKind uint8

// The notices, with the numbers stored in the queue.
const (
	NoticeFailed    NoticeKind = 1
	NoticeDelayed   NoticeKind = 2
	NoticeDelivered NoticeKind = 3
	NoticeRelayed   NoticeKind = 4
)

// Envelope is one recipient of one message with its fate. It is plain data:
// the queue stores it, the other processes get copies. Text fields hold no
// control octets; those that decode them check it.
type Envelope struct {
	ID    EnvelopeID
	Kind  Kind
	Flags Flags

	Dispatcher string // name of the action; its meaning is in the configuration
	Tag        string // of the listener
	SMTPName   string // host name the listener used
	Helo       string
	Host       string // reverse name of the client, "<unknown>", or the server name
	Client     string // client address as logged: "127.0.0.1", "[::1]", "local"
	Username   string // of the login; empty without one

	Sender Address // reverse-path
	Rcpt   Address // recipient as the client named it
	Dest   Address // recipient after expansion
	DSN    DSN

	// Local delivery (KindMDA, and what was one for KindBounce).
	User string // the user to deliver as; its meaning is in the userbase
	Home string // empty: ask the user database at delivery
	Exec string // "/file" or "|command" from an alias or .forward; empty: the action's method

	// SubAddr is the sub-address in the item of an alias or .forward that led to
	// User, as in "list: alice+x"; empty: that of Dest counts.
	SubAddr string

	Created time.Time
	TTL     time.Duration // expires at Created+TTL
	LastTry time.Time     // zero: never tried
	Retry   uint16        // attempts so far

	// LastStatus is the end of the last attempt: Code 0 when there was none.
	// LastError is its line as show queue and notices print it.
	LastStatus Status
	LastError  string
	RemoteMTA  string // who said LastStatus; empty: we did

	// Notices. DelayNotices counts the delay notices sent so far.
	DelayNotices uint8
	Notice       NoticeKind    // KindBounce only
	NoticeDelay  time.Duration // NoticeDelayed only: the interval that has passed
}

// Recipient is a recipient in the client's words.
type Recipient struct {
	Address
	DSN DSN
}

// Branch is what expansion decides about an envelope; the rest of it is what the
// session and the client said.
type Branch struct {
	Kind       Kind
	Internal   bool // FlagInternal
	Dispatcher string
	Dest       Address
	User       string
	Exec       string
	SubAddr    string
	TTL        time.Duration
}

// Follow makes e, which knows session and recipient, the envelope of a branch.
func (e *Envelope) Follow(b *Branch) {
	e.Kind, e.Dispatcher, e.Dest, e.TTL = b.Kind, b.Dispatcher, b.Dest, b.TTL
	e.User, e.Exec, e.SubAddr = b.User, b.Exec, b.SubAddr
	if b.Internal {
		e.Flags |= FlagInternal
	}
}

// Expires is when the envelope is given up.
func (e *Envelope) Expires() time.Time { return e.Created.Add(e.TTL) }

// GoneReason says how an envelope ended, for the counters.
type GoneReason uint8

// The reasons.
const (
	GoneDelivered GoneReason = iota + 1
	GoneFailed               // permanent failure; a notice may have taken its place
	GoneLoop                 // permanent failure: a loop
	GoneExpired
	GoneRemoved // by the operator
	GoneCorrupt // moved aside
)
