package imsg

import "smtpd/internal/mail"

// ClientLookup asks for the names of a client. smtp -> lookup; answered by
// ClientName.
type ClientLookup struct{ Addr string } // netip.Addr text

// Fields implements Msg.
func (m *ClientLookup) Fields(c *Codec) { c.Name(&m.Addr) }

// ClientName answers ClientLookup.
type ClientName struct {
	Host   string // the first reverse name, or "<unknown>"
	FCrDNS string // "pass", "fail" or "error"
}

// Fields implements Msg.
func (m *ClientName) Fields(c *Codec) { c.Name(&m.Host); c.Name(&m.FCrDNS) }

// RcptCheck asks, at RCPT time, whether the recipient would be accepted and
// what becomes of it. smtp -> lookup; answered by RcptAnswer.
type RcptCheck struct {
	Session  mail.SessionID
	Envelope mail.Envelope   // all but ID, Dispatcher and what expansion decides
	Next     []mail.Envelope // recipients whose RCPT has come in behind it
	TLS      bool
	Local    bool // came through the local socket

	Generation uint64 // of the configuration that the session began with
}

// Fields implements Msg.
func (m *RcptCheck) Fields(c *Codec) {
	Uint(c, &m.Session)
	envelope(c, &m.Envelope)
	envelopes(c, &m.Next, &m.Envelope)
	c.Bool(&m.TLS)
	c.Bool(&m.Local)
	Uint(c, &m.Generation)
}

// RcptAnswer answers RcptCheck. Next are the outcomes of the first of its Next,
// maybe of none.
type RcptAnswer struct {
	RcptOutcome
	Next []RcptOutcome
}

// RcptOutcome is what becomes of a recipient: a Status with code 250 and the
// envelopes that expansion gave, or the Status to refuse with. Envelopes come in
// parts when they do not fit a frame: then More is set and RcptMore asks for the
// rest.
type RcptOutcome struct {
	Status    mail.Status
	Own       bool   // Status is in the configuration's own words
	Rule      string // "file:line" that decided, for the log
	Envelopes []mail.Envelope
	More      uint64 // 0, or the token for RcptMore
}

// Fields implements Msg.
func (m *RcptAnswer) Fields(c *Codec) {
	before := &mail.Envelope{}
	outcome := func(c *Codec, o *RcptOutcome) {
		status(c, &o.Status)
		c.Bool(&o.Own)
		c.Text(&o.Rule)
		envelopes(c, &o.Envelopes, before)
		if n := len(o.Envelopes); n > 0 {
			before = &o.Envelopes[n-1]
		}
		Uint(c, &o.More)
	}
	outcome(c, &m.RcptOutcome)
	List(c, &m.Next, MaxItems, outcome)
}

// RcptMore asks for the next envelopes of a long expansion. smtp -> lookup;
// answered by RcptAnswer.
type RcptMore struct{ Token uint64 }

// Fields implements Msg.
func (m *RcptMore) Fields(c *Codec) { Uint(c, &m.Token) }

// AuthCheck checks a login. smtp -> lookup; answered by AuthResult.
type AuthCheck struct {
	Table    string // empty: accounts of the system
	User     string
	Password string

	Generation uint64
}

// Fields implements Msg.
func (m *AuthCheck) Fields(c *Codec) {
	c.Name(&m.Table)
	c.Name(&m.User)
	c.Name(&m.Password)
	Uint(c, &m.Generation)
}

// SenderCheck asks whether a login may use a reverse-path. smtp -> lookup;
// answered by TableAnswer: Found says yes.
type SenderCheck struct {
	Table  string
	User   string
	Sender mail.Address

	Generation uint64
}

// Fields implements Msg.
func (m *SenderCheck) Fields(c *Codec) {
	c.Name(&m.Table)
	c.Name(&m.User)
	address(c, &m.Sender)
	Uint(c, &m.Generation)
}

// Generations says by which configuration new sessions begin, and by which
// earlier ones sessions still work: lookup keeps those and forgets the others.
// smtp -> lookup, at each change.
type Generations struct {
	Present uint64
	Used    []uint64
}

// MaxGenerations is how many old configurations sessions may still work by.
// Ours: a hundred reloads in the life of one session, and some.
const MaxGenerations = 128

// Fields implements Msg.
func (m *Generations) Fields(c *Codec) {
	Uint(c, &m.Present)
	List(c, &m.Used, MaxGenerations, func(c *Codec, g *uint64) { Uint(c, g) })
}
