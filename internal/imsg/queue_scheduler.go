package imsg

import (
	"time"

	"smtpd/internal/mail"
)

// Sched is what the scheduler needs to know of an envelope.
type Sched struct {
	ID           mail.EnvelopeID
	Kind         mail.Kind
	Flags        mail.Flags
	Dispatcher   string
	Domain       string // of Dest, lower-case
	Created      time.Time
	TTL          time.Duration
	LastTry      time.Time
	Retry        uint16
	DelayNotices uint8
	Notify       mail.Notify
	Inflight     bool // leased already: an attempt is under way and will report
}

// schedAfter is an envelope as what differs from the one before: mostly of the
// same message.
func schedAfter(c *Codec, before, s *Sched) {
	Uint(c, &s.ID)
	Uint(c, &s.Kind)
	Uint(c, &s.Flags)
	again(c, &before.Dispatcher, &s.Dispatcher, (*Codec).Name)
	again(c, &before.Domain, &s.Domain, func(c *Codec, d *string) { String(c, d, mail.MaxDomain) })
	again(c, &before.Created, &s.Created, (*Codec).Time)
	again(c, &before.TTL, &s.TTL, (*Codec).Duration)
	again(c, &before.LastTry, &s.LastTry, (*Codec).Time)
	Uint(c, &s.Retry)
	Uint(c, &s.DelayNotices)
	Uint(c, &s.Notify)
	c.Bool(&s.Inflight)
}

// Scheduled tells the scheduler of envelopes: new ones, ones it asked for with
// LoadAll, and ones whose attempt is over and that stay. queue -> scheduler.
type Scheduled struct {
	Envelopes []Sched
	Loaded    bool // the last part of what LoadAll asked for
}

// Fields implements Msg.
func (m *Scheduled) Fields(c *Codec) {
	before := &Sched{}
	List(c, &m.Envelopes, MaxItems, func(c *Codec, s *Sched) {
		schedAfter(c, before, s)
		before = s
	})
	c.Bool(&m.Loaded)
}

// Gone tells the scheduler of envelopes that are no more. queue -> scheduler.
type Gone struct {
	IDs []mail.EnvelopeID
	Why mail.GoneReason
}

// Fields implements Msg.
func (m *Gone) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID); Uint(c, &m.Why) }

// LoadAll asks the queue for every envelope it has. scheduler -> queue, when
// the channel is new; answered by Scheduled imsgs.
type LoadAll struct{}

// Fields implements Msg.
func (m *LoadAll) Fields(*Codec) {}

// Attempt leases envelopes of one message, all of one kind, and has them tried
// now. scheduler -> queue. Each comes back in Scheduled or Gone.
type Attempt struct{ IDs []mail.EnvelopeID }

// Fields implements Msg.
func (m *Attempt) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID) }

// Expire gives envelopes up. scheduler -> queue; each comes back in Gone, or in
// Scheduled as the notice it became.
type Expire struct{ IDs []mail.EnvelopeID }

// Fields implements Msg.
func (m *Expire) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID) }

// Remove takes envelopes out of the queue without notice, those in flight
// included. scheduler -> queue; each comes back in Gone.
type Remove struct{ IDs []mail.EnvelopeID }

// Fields implements Msg.
func (m *Remove) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID) }

// Suspend keeps the operator's pause of envelopes, or its end. scheduler ->
// queue.
type Suspend struct {
	IDs []mail.EnvelopeID
	On  bool
}

// Fields implements Msg.
func (m *Suspend) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID); c.Bool(&m.On) }

// Delayed asks for a notice that an envelope is delayed for longer than
// Interval. scheduler -> queue; the notice comes back in Scheduled.
type Delayed struct {
	ID       mail.EnvelopeID
	Interval time.Duration
	Number   uint8 // how many delay notices the envelope has had with this one
}

// Fields implements Msg.
func (m *Delayed) Fields(c *Codec) { Uint(c, &m.ID); c.Duration(&m.Interval); Uint(c, &m.Number) }

// Held parks leased envelopes until Release names their key: mta has more of
// them than it can use. queue -> scheduler.
type Held struct {
	IDs []mail.EnvelopeID
	Key uint64
}

// Fields implements Msg.
func (m *Held) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID); Uint(c, &m.Key) }

// Released makes up to Count envelopes parked under Key due at once; Count 0:
// all. Neither Key nor Count: all of all keys, because mta has gone and will
// release none. queue -> scheduler.
type Released struct {
	Key   uint64
	Count int
}

// Fields implements Msg.
func (m *Released) Fields(c *Codec) { Uint(c, &m.Key); c.Count(&m.Count, 1<<31-1) }

// MaxReleases bounds the domains that are released for a time. Ours.
const MaxReleases = 1000

// DomainRelease is a pattern of domains whose mail an operator lets leave for a
// time although its action holds it.
type DomainRelease struct {
	Domain string
	Until  time.Time
}

// Releases are all domains that are released. scheduler -> queue: keep them;
// the same comes back when they are durable. queue -> scheduler without a
// Number: what is kept, if anything, before the envelopes that LoadAll asks for.
type Releases struct {
	Number uint64
	List   []DomainRelease
}

// Fields implements Msg.
func (m *Releases) Fields(c *Codec) {
	Uint(c, &m.Number)
	List(c, &m.List, MaxReleases, func(c *Codec, r *DomainRelease) {
		String(c, &r.Domain, mail.MaxDomain)
		c.Time(&r.Until)
	})
}
