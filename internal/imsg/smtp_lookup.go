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
	Envelope mail.Envelope    // all but ID and what expansion decides
	Next     []mail.Recipient // whose RCPT has come in behind it; all else is as in Envelope
	TLS      bool
	Local    bool // came through the local socket

	Generation uint64 // of the configuration that the session began with
}

// Fields implements Msg.
func (m *RcptCheck) Fields(c *Codec) {
	Uint(c, &m.Session)
	envelope(c, &m.Envelope)
	before := mail.Recipient{Address: m.Envelope.Rcpt, DSN: m.Envelope.DSN}
	List(c, &m.Next, MaxItems, func(c *Codec, r *mail.Recipient) {
		line(c, &r.User, mail.MaxLocalPart)
		again(c, &before.Domain, &r.Domain, domain)
		again(c, &before.DSN, &r.DSN, dsn)
		before = *r
	})
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
// branches that expansion gave, or the Status to refuse with. Branches come in
// parts when they do not fit a frame: then More is set and RcptMore asks for the
// rest.
type RcptOutcome struct {
	Status   mail.Status
	Own      bool   // Status is in the configuration's own words
	Rule     string // "file:line" that decided, for the log
	Branches []mail.Branch
	More     uint64 // 0, or the token for RcptMore
}

// branchAfter is a branch as what differs from the one before.
func branchAfter(c *Codec, before, b *mail.Branch) {
	again(c, &before.Kind, &b.Kind, Uint[mail.Kind])
	c.Bool(&b.Internal)
	again(c, &before.Dispatcher, &b.Dispatcher, name)
	line(c, &b.Dest.User, mail.MaxLocalPart)
	again(c, &before.Dest.Domain, &b.Dest.Domain, domain)
	again(c, &before.User, &b.User, name)
	again(c, &before.Exec, &b.Exec, (*Codec).Text)
	again(c, &before.SubAddr, &b.SubAddr, func(c *Codec, s *string) { line(c, s, mail.MaxLocalPart) })
	again(c, &before.TTL, &b.TTL, (*Codec).Duration)
}

// Fields implements Msg.
func (m *RcptAnswer) Fields(c *Codec) {
	before, branch := &RcptOutcome{}, &mail.Branch{}
	outcome := func(c *Codec, o *RcptOutcome) {
		again(c, &before.Status, &o.Status, status)
		c.Bool(&o.Own)
		again(c, &before.Rule, &o.Rule, (*Codec).Text)
		i := 0
		List(c, &o.Branches, MaxItems, func(c *Codec, b *mail.Branch) {
			branchAfter(c, branch, b)
			branch = &o.Branches[i]
			i++
		})
		Uint(c, &o.More)
		before = o
	}
	outcome(c, &m.RcptOutcome)
	List(c, &m.Next, MaxItems, outcome)
}

// RcptMore asks for the next branches of a long expansion. smtp -> lookup;
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
