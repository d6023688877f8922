package imsg

import "smtpd/internal/mail"

// Transfer hands leased envelopes of one message with one dispatcher to who
// carries them out. queue -> mta, mda. Each envelope is answered by one Result
// within Results.
type Transfer struct {
	Message   mail.MessageID
	Envelopes []mail.Envelope
	Size      int64  // of the body, in octets
	Inline    []byte // the body, or empty: ask with BodyOpen when it is needed
}

// Fields implements Msg.
func (m *Transfer) Fields(c *Codec) {
	Uint(c, &m.Message)
	envelopes(c, &m.Envelopes, &mail.Envelope{})
	c.Int(&m.Size)
	c.Bytes(&m.Inline, MaxInline)
}

// BodyOpen asks for the body of a message. mta, mda, control -> queue; answered
// by Body.
type BodyOpen struct{ Message mail.MessageID }

// Fields implements Msg.
func (m *BodyOpen) Fields(c *Codec) { Uint(c, &m.Message) }

// Body answers BodyOpen: inline, or with a descriptor open for reading that
// holds the body from its start (InFile), or with a Status other than 250.
type Body struct {
	Status mail.Status
	Inline []byte
	InFile bool
	Size   int64
}

// Fields implements Msg.
func (m *Body) Fields(c *Codec) {
	status(c, &m.Status)
	c.Bytes(&m.Inline, MaxInline)
	c.Bool(&m.InFile)
	c.Int(&m.Size)
}

// Result is the end of one attempt at one envelope.
type Result struct {
	ID      mail.EnvelopeID
	Attempt uint16      // Envelope.Retry as it was in Transfer: an older result is ignored
	Status  mail.Status // 2xx ok, 5xx permfail, else tempfail
	Line    string      // as show queue and notices print it; empty for ok
	Remote  string      // host that said Status; empty: we did
	Loop    bool        // with 5xx: the mail goes in circles
	Relayed bool        // with 2xx: the next hop does not do DSN, so RFC 3461 wants a notice from us
	NoTry   bool        // with 4xx: was not tried at all; does not count
}

func result(c *Codec, r *Result) {
	Uint(c, &r.ID)
	Uint(c, &r.Attempt)
	status(c, &r.Status)
	line(c, &r.Line, MaxText)
	line(c, &r.Remote, MaxName)
	c.Bool(&r.Loop)
	c.Bool(&r.Relayed)
	c.Bool(&r.NoTry)
}

// Results reports attempts. mta, mda -> queue; answered by Done once they are
// durable. A sender whose call fails keeps the results and sends them again
// when the queue is back; the queue knows a repeat by Attempt.
type Results struct{ Results []Result }

// Fields implements Msg.
func (m *Results) Fields(c *Codec) { List(c, &m.Results, MaxItems, result) }

// Inflight names the envelopes that the sender holds. mta, mda -> queue, first
// of all on every new channel, in parts (one empty part when there are none). A
// queue that was replaced learns so what is under way and leases nothing of
// that kind before; what it lent and is not named has lapsed.
type Inflight struct {
	IDs  []mail.EnvelopeID
	Last bool
}

// Fields implements Msg.
func (m *Inflight) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID); c.Bool(&m.Last) }

// Hold gives leased envelopes back until Release names the key. They do not
// count as tried. mta, mda -> queue; their keys are told apart by the top bit,
// which those of mda have.
type Hold struct {
	IDs []mail.EnvelopeID
	Key uint64
}

// Fields implements Msg.
func (m *Hold) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID); Uint(c, &m.Key) }

// Release wants up to Count of the envelopes held under Key; 0: all. mta, mda ->
// queue.
type Release struct {
	Key   uint64
	Count int
}

// Fields implements Msg.
func (m *Release) Fields(c *Codec) { Uint(c, &m.Key); c.Count(&m.Count, 1<<31-1) }

// Retry names envelopes that were deferred and are worth another attempt now:
// their destination has taken other mail. mta -> queue, and from there ->
// scheduler, behind the results that came before. One that is under way,
// suspended or held is not hurried.
type Retry struct{ IDs []mail.EnvelopeID }

// Fields implements Msg.
func (m *Retry) Fields(c *Codec) { List(c, &m.IDs, MaxItems, envelopeID) }
