// Package queue is the spool: messages and envelopes that survive a power cut.
// It owns everything below one folder: queue.db (bbolt: envelopes, messages,
// bodies up to MaxInline), queue.log (what has been changed and is not in queue.db
// yet), body/ (larger bodies, a file each), corrupt/ (what could not be read) and
// reserve (room to be given up when the disk is full). One goroutine per open
// store makes durable what all callers want changed, in groups: each is one
// record of the log and one sync, and what the log holds lies in memory over the
// database until it goes there, many groups at a time. The package knows nothing of
// processes or schedules, never answers before the disk has what it answers for,
// and never drops an item it cannot read: such an item is moved aside with the
// reason.
package queue

import (
	"context"
	"errors"
	"os"
	"time"

	"smtpd/internal/mail"
)

// Bounds of what is stored.
const (
	// MaxInline is the largest body kept in the database itself, in octets.
	// Ours: above it the write amplification of the database costs more than a
	// file of its own.
	MaxInline = 64 << 10
	// MaxRecipients is the number of envelopes one message may have. Ours.
	MaxRecipients = 1 << 16
	// MaxReserve is the number of ids one call of Reserve gives. Ours.
	MaxReserve = 4096
	// MaxList is the number of envelopes one call of List gives. Ours: no read
	// transaction lasts longer than it takes to copy so many.
	MaxList = 1000
)

// Errors that callers tell apart. Everything else that a Store returns is, or
// wraps, a *mail.Status: 452 when the disk is full, 451 otherwise.
var (
	ErrNotFound = errors.New("queue: no such item")
	ErrStale    = errors.New("queue: the envelope has been tried since")
	ErrExists   = errors.New("queue: the message id is taken")
	ErrCorrupt  = errors.New("queue: the item is damaged and was moved aside")
	ErrInvalid  = errors.New("queue: the item cannot be stored as it is")
	ErrClosed   = errors.New("queue: the store is closed")
)

// Message is a message as it is accepted.
type Message struct {
	ID      mail.MessageID // from Reserve
	Arrival time.Time
	Body    []byte // the body, unless InFile
	InFile  bool   // the body is in the file of NewBody
	Size    int64  // of the body, in octets; checked

	// Envelopes get the ids ID.Envelope(1), ID.Envelope(2), ... in order; what
	// their ID fields hold does not matter. At least one.
	Envelopes []mail.Envelope

	// Crowd is how many others may come at the same time, as far as known. It is
	// a hint: a store may let some of them gather.
	Crowd int
}

// Info is what the store knows of a message besides body and envelopes.
type Info struct {
	Size    int64 // of the body, in octets
	Arrival time.Time
	InFile  bool
}

// Body is a message's body. Exactly one of Inline and File is used; File is
// open for reading at its start and belongs to the caller.
type Body struct {
	Inline []byte
	File   *os.File
	Size   int64
}

// AnyAttempt is Change.Attempt for a change that holds whatever happened since.
const AnyAttempt = -1

// Change is what shall become of one envelope.
type Change struct {
	ID mail.EnvelopeID
	// Attempt is the Retry that the stored envelope must have, or AnyAttempt.
	// So the same result, told twice, changes the envelope once.
	Attempt int
	// Edit decides, seeing the envelope as it is stored at that moment, and may
	// change it; its ID is not looked at. It may be called more than once and
	// must touch nothing but its argument.
	Edit func(*mail.Envelope) Verdict
}

// Verdict is what Edit wants besides its changes to the envelope.
type Verdict struct {
	Delete bool
	Add    *mail.Envelope // one more envelope of the same message, with a number of its own
}

// Outcome is what became of a Change.
type Outcome struct {
	Err      error         // nil, ErrNotFound, ErrStale, ErrInvalid or ErrCorrupt: nothing was changed
	Envelope mail.Envelope // as it is stored now, or was when it was deleted; with ErrStale, as it is
	Deleted  bool
	Added    *mail.Envelope // as stored, with its id
}

// Lease says who works at an envelope. Leases are kept in memory: after a
// restart the owners are asked what they hold.
type Lease struct {
	Owner   string
	Until   time.Time
	Attempt uint16 // Retry of the envelope when it was leased
}

// Store keeps messages and envelopes. It is safe for concurrent use. Methods
// that change something return once the change is durable; ctx is looked at
// before the change is handed on, after that the wait ends with the disk.
type Store interface {
	// Reserve takes n ids, 1 to MaxReserve, that no message has or had: first,
	// first+1, ... They grow with time, but for the wrap at 32 bits.
	Reserve(ctx context.Context, n int) (first mail.MessageID, err error)

	// NewBody makes the file for the body of a message larger than MaxInline.
	// The file belongs to the caller, who writes and closes it before Accept.
	NewBody(id mail.MessageID) (*os.File, error)
	// DropBody gives up a file of NewBody; one that Accept has taken is left
	// alone.
	DropBody(id mail.MessageID)

	// Accept stores a message with its envelopes: all or nothing. The same
	// message once more is no error; another with the same id is ErrExists.
	// An id that Reserve has still to give is ErrExists too; one from elsewhere
	// is not. m.Envelopes get their ids.
	Accept(ctx context.Context, m *Message) error

	// Apply carries out changes, all in one transaction, and says of each what
	// became of it. One that cannot be carried out leaves the others alone. With
	// its last envelope a message goes. An error means that nothing is known to
	// have changed; the changes may be tried again.
	Apply(ctx context.Context, changes []Change) ([]Outcome, error)

	// Load reads one envelope: ErrNotFound, ErrCorrupt.
	Load(id mail.EnvelopeID) (mail.Envelope, error)
	// List reads up to max envelopes, at most MaxList, with ids greater than
	// after, in order. end: there are no more behind them; an empty list is one.
	List(after mail.EnvelopeID, max int) (l []mail.Envelope, end bool, err error)
	// Message describes a message: ErrNotFound, ErrCorrupt.
	Message(id mail.MessageID) (Info, error)
	// Body reads a message's body, checked: ErrNotFound, ErrCorrupt.
	Body(id mail.MessageID) (*Body, error)

	// Note keeps a few octets under a name, for who runs the queue; none: they are
	// forgotten.
	Note(ctx context.Context, name string, value []byte) error
	// Noted reads what Note keeps: nil when there is nothing, ErrCorrupt when it
	// cannot be read.
	Noted(name string) ([]byte, error)

	// Lease gives owner those of ids that exist and that nobody holds, until a
	// time, and returns them as stored.
	Lease(ctx context.Context, owner string, until time.Time, ids []mail.EnvelopeID) ([]mail.Envelope, error)
	// LeaseOf finds who holds an envelope; an expired lease is none.
	LeaseOf(id mail.EnvelopeID) (Lease, bool)
	// EndLeases ends those leases of ids that owner holds, and returns them. A
	// deleted envelope's lease ends by itself.
	EndLeases(owner string, ids []mail.EnvelopeID) []mail.EnvelopeID
	// Leases lists what owner holds, expired leases included.
	Leases(owner string) []mail.EnvelopeID

	// Close ends the store once what it was asked for is done.
	Close() error
}
