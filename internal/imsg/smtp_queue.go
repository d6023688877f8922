package imsg

import "smtpd/internal/mail"

// ReserveIDs takes message ids out of the queue's counter for messages to
// come. smtp -> queue; answered by ReservedIDs.
type ReserveIDs struct{ Count int }

// Fields implements Msg.
func (m *ReserveIDs) Fields(c *Codec) { c.Count(&m.Count, MaxItems) }

// ReservedIDs answers ReserveIDs: Count ids from First. Count 0: the queue is
// out of order, try later.
type ReservedIDs struct {
	First mail.MessageID
	Count int
}

// Fields implements Msg.
func (m *ReservedIDs) Fields(c *Codec) { Uint(c, &m.First); c.Count(&m.Count, MaxItems) }

// BodyCreate asks for a file to write a large body to. smtp -> queue; answered
// by BodyCreated with a descriptor.
type BodyCreate struct{ ID mail.MessageID }

// Fields implements Msg.
func (m *BodyCreate) Fields(c *Codec) { Uint(c, &m.ID) }

// BodyCreated answers BodyCreate; a Status other than 250 comes without a
// descriptor.
type BodyCreated struct{ Status mail.Status }

// Fields implements Msg.
func (m *BodyCreated) Fields(c *Codec) { status(c, &m.Status) }

// BodyAbort gives up a message whose body file was begun. smtp -> queue.
type BodyAbort struct{ ID mail.MessageID }

// Fields implements Msg.
func (m *BodyAbort) Fields(c *Codec) { Uint(c, &m.ID) }

// CommitPart carries envelopes of a message ahead of its Commit, when they do
// not fit one frame. smtp -> queue.
type CommitPart struct {
	ID        mail.MessageID
	Envelopes []mail.Envelope
}

// Fields implements Msg.
func (m *CommitPart) Fields(c *Codec) {
	Uint(c, &m.ID)
	envelopes(c, &m.Envelopes, &mail.Envelope{})
}

// Commit makes a message durable: body, envelopes of this imsg and of the
// CommitParts before it. The queue numbers the envelopes: the n-th of the
// message gets recipient number n. smtp -> queue; answered by Committed after
// the sync.
type Commit struct {
	ID        mail.MessageID
	Size      int64
	Inline    []byte // the body, when it is no longer than MaxInline
	InFile    bool   // the body is in the file of BodyCreate
	Envelopes []mail.Envelope
	Total     int // envelopes of the message, those of CommitParts included; 0: not said
	Sessions  int // that are open: how many may commit at the same time, at most
}

// Fields implements Msg.
func (m *Commit) Fields(c *Codec) {
	Uint(c, &m.ID)
	c.Int(&m.Size)
	c.Bytes(&m.Inline, MaxInline)
	c.Bool(&m.InFile)
	envelopes(c, &m.Envelopes, &mail.Envelope{})
	c.Count(&m.Total, 1<<20)
	c.Count(&m.Sessions, 1<<20)
}

// Committed answers Commit: 250 once the message survives a power cut.
type Committed struct{ Status mail.Status }

// Fields implements Msg.
func (m *Committed) Fields(c *Codec) { status(c, &m.Status) }

// Inject enters a message that the queue composed (a notice) like any other:
// null reverse-path, one recipient, through the rules. queue -> smtp; answered
// by Injected.
type Inject struct {
	Rcpt mail.Address
	Data []byte // the whole message, LF lines, at most MaxData octets
	UTF8 bool

	RequireTLS bool // it is about a message that asked for REQUIRETLS
}

// Fields implements Msg.
func (m *Inject) Fields(c *Codec) {
	address(c, &m.Rcpt)
	c.Bytes(&m.Data, MaxData)
	c.Bool(&m.UTF8)
	c.Bool(&m.RequireTLS)
}

// Injected answers Inject.
type Injected struct {
	Status mail.Status
	ID     mail.MessageID // when 250
}

// Fields implements Msg.
func (m *Injected) Fields(c *Codec) { status(c, &m.Status); Uint(c, &m.ID) }
