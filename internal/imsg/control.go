package imsg

import (
	"time"

	"smtpd/internal/mail"
)

// StatsGet asks a process for its counters. control -> all; answered by Stats.
type StatsGet struct{}

// Fields implements Msg.
func (m *StatsGet) Fields(*Codec) {}

// Stats answers StatsGet.
type Stats struct{ Values []Stat }

// Stat is one counter.
type Stat struct {
	Name  string
	Value int64
}

// Fields implements Msg.
func (m *Stats) Fields(c *Codec) {
	List(c, &m.Values, MaxItems, func(c *Codec, s *Stat) { c.Name(&s.Name); c.Int(&s.Value) })
}

// QueueList asks for stored envelopes, in the order of their ids. control ->
// queue; answered by QueueListing.
type QueueList struct {
	After mail.EnvelopeID // those greater than this
	Max   int             // at most this many, at most MaxItems
}

// Fields implements Msg.
func (m *QueueList) Fields(c *Codec) { Uint(c, &m.After); c.Count(&m.Max, MaxItems) }

// QueueListing answers QueueList; fewer envelopes than asked for do not mean
// the end unless End is set.
type QueueListing struct {
	Envelopes []mail.Envelope
	End       bool
}

// Fields implements Msg.
func (m *QueueListing) Fields(c *Codec) { envelopes(c, &m.Envelopes, &mail.Envelope{}); c.Bool(&m.End) }

// EnvelopeGet asks for one stored envelope. control -> queue; answered by
// QueueListing.
type EnvelopeGet struct{ ID mail.EnvelopeID }

// Fields implements Msg.
func (m *EnvelopeGet) Fields(c *Codec) { Uint(c, &m.ID) }

// SchedGet asks what the scheduler knows of envelopes. control -> scheduler;
// answered by SchedStates, one for each id, in order.
type SchedGet struct{ IDs []mail.EnvelopeID }

// Fields implements Msg.
func (m *SchedGet) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID) }

// SchedState is where an envelope stands.
type SchedState struct {
	Known    bool
	Inflight bool
	Since    time.Time // Inflight: start of the attempt; else: when it is next tried
	Wait     mail.Wait
	Suspend  bool
}

// SchedStates answers SchedGet.
type SchedStates struct{ States []SchedState }

// Fields implements Msg.
func (m *SchedStates) Fields(c *Codec) {
	List(c, &m.States, MaxItems, func(c *Codec, s *SchedState) {
		c.Bool(&s.Known)
		c.Bool(&s.Inflight)
		c.Time(&s.Since)
		Uint(c, &s.Wait)
		c.Bool(&s.Suspend)
	})
}

// SchedOp is what an operator does to envelopes.
type SchedOp uint8

// The operations.
const (
	OpSchedule SchedOp = iota + 1
	OpRemove
	OpPause
	OpResume
	OpDiscover
	OpRelease // lets mail for Domain leave that its action holds; Count is 1 once that is durable, 0: it is not kept
)

// SchedCommand applies an operation to one envelope, one message, a list of
// envelopes or all. control -> scheduler; answered by Count.
type SchedCommand struct {
	Op       SchedOp
	All      bool
	Message  mail.MessageID
	Envelope mail.EnvelopeID
	IDs      []mail.EnvelopeID
	Domain   string        // OpRelease: a pattern, lower-case
	Time     time.Duration // OpRelease: how long; 0: that ends
}

// Fields implements Msg.
func (m *SchedCommand) Fields(c *Codec) {
	Uint(c, &m.Op)
	c.Bool(&m.All)
	Uint(c, &m.Message)
	Uint(c, &m.Envelope)
	List(c, &m.IDs, MaxItems, envelopeID)
	String(c, &m.Domain, MaxText)
	c.Duration(&m.Time)
}

// Count answers SchedCommand: how many envelopes it touched.
type Count struct{ N int64 }

// Fields implements Msg.
func (m *Count) Fields(c *Codec) { c.Int(&m.N) }

// SessionOpen asks for a local SMTP session. control -> smtp; answered by
// SessionOpened with a descriptor: the client's end.
type SessionOpen struct{ UID uint32 }

// Fields implements Msg.
func (m *SessionOpen) Fields(c *Codec) { Uint(c, &m.UID) }

// SessionOpened answers SessionOpen; without OK there is no descriptor (smtp is
// paused, or full).
type SessionOpened struct{ OK bool }

// Fields implements Msg.
func (m *SessionOpened) Fields(c *Codec) { c.Bool(&m.OK) }

// TableUpdate has a table read again. control -> lookup; answered by Done.
type TableUpdate struct{ Table string }

// Fields implements Msg.
func (m *TableUpdate) Fields(c *Codec) { c.Name(&m.Table) }

// Show asks for lines that a process prints about itself. control -> mta,
// lookup, queue, smtp; answered by Lines.
type Show struct {
	What string // "hosts", "hoststats", "relays", "routes", "mta paused", "tls DOMAIN", ...
	Skip int    // lines already had
}

// Fields implements Msg.
func (m *Show) Fields(c *Codec) { c.Text(&m.What); c.Count(&m.Skip, 1<<31-1) }

// Lines answers Show.
type Lines struct {
	Text []byte // whole lines
	More bool   // ask again with Skip
}

// Fields implements Msg.
func (m *Lines) Fields(c *Codec) { c.Bytes(&m.Text, MaxData); c.Bool(&m.More) }

// Explain asks what becomes of a mail, and why. control -> lookup; answered by
// Explained.
type Explain struct {
	Facts []string // name=value, as smtpd -n --explain takes them
	JSON  bool     // the answer is to be an object
}

// Fields implements Msg.
func (m *Explain) Fields(c *Codec) {
	List(c, &m.Facts, MaxFacts, func(c *Codec, s *string) { c.Text(s) })
	c.Bool(&m.JSON)
}

// MaxFacts bounds the facts of Explain. Ours.
const MaxFacts = 64

// Explained answers Explain.
type Explained struct {
	Exit uint8  // 0: the mail is accepted, 1: refused, 2: neither, or Text is an error
	Text []byte // to be printed
	Fail bool   // Text is an error of the facts
}

// Fields implements Msg.
func (m *Explained) Fields(c *Codec) {
	Uint(c, &m.Exit)
	c.Bytes(&m.Text, MaxData)
	c.Bool(&m.Fail)
}

// RouteCommand resumes a route, or blocks and unblocks a source for a domain.
// control -> mta; answered by Done.
type RouteCommand struct {
	Resume uint64 // id of a route, or 0
	Block  bool   // else unblock
	Source string
	Domain string
}

// Fields implements Msg.
func (m *RouteCommand) Fields(c *Codec) {
	Uint(c, &m.Resume)
	c.Bool(&m.Block)
	c.Name(&m.Source)
	c.Name(&m.Domain)
}
