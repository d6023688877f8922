// Package runq decides when each envelope is next tried: retry times, expiry,
// delay notices, operators' pauses, and how much is under way at a time. It has
// no clock and no disk: the caller says what time it is, carries out what Next
// tells it, and reports what came of it. It owns nothing but its memory, about
// 150 octets for an envelope; every operation on one envelope is O(log n). It
// must never forget an envelope that was not reported gone.
package runq

import (
	"math"
	"slices"
	"time"

	"smtpd/internal/mail"
)

// Policy is what the configuration says about scheduling. Limits below one
// count as one.
type Policy struct {
	MaxInflight int // envelopes under way at a time, of all kinds
	MaxBatch    int // envelopes of one attempt
	MaxTurn     int // attempts of one kind before the next kind has its turn
	MaxList     int // envelopes of one Expire or Remove
	// Warn are the ages after which the sender is told of a delay.
	Warn []time.Duration
	// Backoff says when failed attempts at envelopes of a kind and dispatcher are
	// repeated. nil: as by default.
	Backoff func(k mail.Kind, dispatcher string) Backoff
	// Known says whether a dispatcher exists; envelopes of others wait until one
	// of that name does, or they expire. nil: all exist.
	Known func(dispatcher string) bool
	// Hold says whether envelopes of a dispatcher are held back at a time, and
	// until when that stays so; the zero time: for good. nil: none are.
	Hold func(dispatcher string, now time.Time) (held bool, until time.Time)
}

// Backoff is when failed attempts are repeated: with Delays, the n-th comes the
// n-th of them after the attempt before, and the last of them repeats; without,
// at creation + Base*step². The zero value is the default for the kind: 10 s
// for mda and bounce, 400 s for mta.
type Backoff struct {
	Base   time.Duration
	Delays []time.Duration
}

// Entry is an envelope as the queue reports it.
type Entry struct {
	ID           mail.EnvelopeID
	Kind         mail.Kind
	Dispatcher   string
	Created      time.Time
	TTL          time.Duration // from Created
	LastTry      time.Time     // zero: never tried, or not known
	Retry        uint16        // attempts that counted
	DelayNotices uint8         // delay notices sent
	NoDelay      bool          // the sender does not want delay notices
	Suspended    bool          // by the operator; only for one that is not known
	Hold         bool          // waits for Schedule after each attempt
	Released     bool          // not held back for its next attempt, whatever Policy.Hold says
	Inflight     bool          // an attempt is under way
}

// state is where an envelope stands. The heap holds it under the time named.
type state uint8

const (
	pending   state = iota // waits for its time; heap: next try or expiry, what is first
	ready                  // in a lane, to be tried now; heap: expiry
	inflight               // being tried; not in the heap
	held                   // in a hold list; heap: end of the hold or expiry
	parked                 // held back, or for lack of its dispatcher; heap: expiry or end of that
	suspended              // by the operator; not in the heap
	expired                // in the list of what is to be given up
	expiring               // given up, the queue has not said Gone
	removed                // in the list of what is to be removed
	removing               // removed, the queue has not said Gone; heap: when it is told again, if it must be
)

// Bits of node.flags.
const (
	flagSuspended = 1 << iota
	flagHold
	flagNoDelay
	flagReleased // tried though it would be held back, until an attempt counts
)

// node is one envelope. Times are nanoseconds since 1970.
type node struct {
	id           mail.EnvelopeID
	created      int64
	expires      int64
	at           int64  // of the next try; inflight: when the attempt began
	key          uint64 // held: of the hold list
	next, prev   uint32 // in a lane, a hold list, expired or removed
	mnext, mprev uint32 // among the envelopes of the message; the first one's mprev is the last
	heap         uint32 // place in the heap, from 1; 0: not there
	dispatcher   uint32 // index into Queue.dispatchers
	retry        uint16
	kind         mail.Kind
	state        state
	flags        uint8
	notices      uint8
	lapses       uint8 // attempts in a row that did not count
}

// kinds is the number of envelope kinds, the unused zero included.
const kinds = int(mail.KindBounce) + 1

// Queue is every envelope with its time. It is not safe for concurrent use.
type Queue struct {
	policy      Policy
	pool        pool
	byID        map[mail.EnvelopeID]uint32
	byMessage   map[mail.MessageID]uint32 // the message's first envelope
	dispatchers []dispatcher
	dispatcher  map[string]uint32
	heap        heap
	lanes       [kinds][2]list // first attempts, and later ones
	paused      [kinds]bool
	running     [kinds]int // in flight
	givenUp     int        // expiring
	holds       map[uint64]*list
	heldCount   int
	expired     list
	removed     list
	notices     []Action
	noticed     pace
	doomed      map[mail.EnvelopeID]struct{} // removed before Reset
	turn        turn
	more        bool // Next left some undone
}

type dispatcher struct {
	name  string
	known bool

	held        bool  // held back, from..until
	from, until int64 // when that was asked, and when it has to be asked again
}

// New makes an empty Queue.
func New(p Policy) *Queue {
	q := &Queue{}
	q.clear()
	q.SetPolicy(time.Time{}, p)
	return q
}

func (q *Queue) clear() {
	*q = Queue{
		policy:     q.policy,
		paused:     q.paused,
		byID:       map[mail.EnvelopeID]uint32{},
		byMessage:  map[mail.MessageID]uint32{},
		dispatcher: map[string]uint32{},
		holds:      map[uint64]*list{},
		doomed:     map[mail.EnvelopeID]struct{}{},
	}
}

// Reset forgets every envelope, because the queue is about to name them all
// again. Removals that it has not confirmed are repeated when it names one of
// them, until Loaded.
func (q *Queue) Reset() {
	doomed := q.doomed
	for id, i := range q.byID {
		if s := q.pool.at(i).state; s == removed || s == removing {
			doomed[id] = struct{}{}
		}
	}
	q.clear()
	q.doomed = doomed
}

// Loaded says that the queue has named all its envelopes.
func (q *Queue) Loaded() { q.doomed = map[mail.EnvelopeID]struct{}{} }

// SetPolicy replaces the policy. What is under way stays so; envelopes whose
// dispatcher is there now, and was not, or that are not held back any more,
// become due as they would have been.
func (q *Queue) SetPolicy(now time.Time, p Policy) {
	p.MaxInflight, p.MaxBatch = max(p.MaxInflight, 1), max(p.MaxBatch, 1)
	p.MaxTurn, p.MaxList = max(p.MaxTurn, 1), max(p.MaxList, 1)
	p.Warn = slices.Sorted(slices.Values(p.Warn))
	q.policy = p
	changed := false
	for i := range q.dispatchers {
		d := &q.dispatchers[i]
		before := *d
		d.known = p.Known == nil || p.Known(d.name)
		q.askHold(d, now.UnixNano())
		changed = changed || before.known != d.known || before.held != d.held || before.until != d.until
	}
	if !changed {
		return
	}
	for i := uint32(1); i < q.pool.used; i++ { // in the order of arrival
		if n := q.pool.at(i); n.id != 0 && (n.state == parked || n.state == pending || n.state == ready) {
			q.detach(i)
			q.place(i, now.UnixNano())
		}
	}
}

// Pause stops attempts at envelopes of a kind, or lets them go on. Expiry goes
// on in any case.
func (q *Queue) Pause(k mail.Kind, on bool) {
	if valid(k) {
		q.paused[k] = on
	}
}

func valid(k mail.Kind) bool { return k > 0 && int(k) < kinds }

// Outcome says what Add made of an Entry.
type Outcome int

// The outcomes of Add.
const (
	Refused  Outcome = iota // not an envelope that can be scheduled
	Added                   // it was not known
	Tempfail                // an attempt is over that counted
	Updated                 // anything else
)

// Add takes what the queue says about an envelope: a new one, one after its
// attempt, one that is already known. An attempt that is over counted when Retry
// has grown; if not, the envelope is tried again soon, later each time, unless a
// later time is set. Whether a known one is suspended is Suspend's to say: what
// the queue had stored when it spoke may be older than the operator's word.
func (q *Queue) Add(now time.Time, e Entry) Outcome {
	if !valid(e.Kind) || e.ID == 0 {
		return Refused
	}
	i, known := q.byID[e.ID]
	if !known {
		i = q.insert(e.ID)
		n := q.pool.at(i)
		if e.Suspended {
			n.flags = flagSuspended
		}
		q.fill(n, now.UnixNano(), &e)
		n.at = q.firstTry(n, e.LastTry)
		q.settle(i, now.UnixNano(), &e)
		q.warn(n)
		return Added
	}
	switch n := q.pool.at(i); {
	case n.state == removed:
		return Updated
	case n.state == removing: // the operator's word stands: Gone comes, or it is said again
		q.detach(i)
		q.heap.push(&q.pool, now.UnixNano()+int64(lapseDelay<<n.lapses), i)
		n.lapses = min(n.lapses+1, maxLapses)
		return Updated
	case e.Retry == n.retry && e.Kind == n.kind && n.state != expiring && e.Inflight == (n.state == inflight) &&
		(!e.Released || n.flags&flagReleased != 0): // else it was said before its domain was released
		n.notices = max(n.notices, e.DelayNotices)
		return Updated
	}
	return q.update(i, now.UnixNano(), &e)
}

// update takes what came of an attempt.
func (q *Queue) update(i uint32, now int64, e *Entry) Outcome {
	n := q.pool.at(i)
	over := (n.state == inflight || n.state == expiring) && !e.Inflight
	retry, gaveUp := n.retry, n.state == expiring
	q.detach(i)
	q.fill(n, now, e)
	switch {
	case over && e.Retry > retry:
		n.at, n.lapses = q.after(n, now), 0
		if !e.Released {
			n.flags &^= flagReleased
		}
		q.settle(i, now, e)
		q.warn(n)
		return Tempfail
	case over:
		// Not before the time that is set, either: perhaps the attempt did count, and
		// this is the second that is heard of it.
		soon := now + int64(lapseDelay<<n.lapses)
		n.at = max(soon, q.firstTry(n, e.LastTry))
		n.lapses = min(n.lapses+1, maxLapses)
		if gaveUp { // the queue could not: not again at once
			n.expires = max(n.expires, soon)
		}
	case !e.Inflight:
		n.at = q.firstTry(n, e.LastTry)
	}
	q.settle(i, now, e)
	return Updated
}

// fill copies what may change.
func (q *Queue) fill(n *node, now int64, e *Entry) {
	n.kind, n.retry = e.Kind, e.Retry
	n.dispatcher = q.intern(e.Dispatcher)
	n.created = now
	if !e.Created.IsZero() {
		n.created = min(max(e.Created.UnixNano(), 0), math.MaxInt64/2)
	}
	n.expires = n.created + min(max(int64(e.TTL), 0), math.MaxInt64/2)
	n.notices = max(n.notices, e.DelayNotices)
	n.flags &= flagSuspended | flagReleased
	if e.Released {
		n.flags |= flagReleased
	}
	if e.Hold {
		n.flags |= flagHold
	}
	if e.NoDelay {
		n.flags |= flagNoDelay
	}
}

// settle puts an envelope that is nowhere where it belongs now.
func (q *Queue) settle(i uint32, now int64, e *Entry) {
	n := q.pool.at(i)
	if _, ok := q.doomed[n.id]; ok {
		delete(q.doomed, n.id)
		q.discard(i)
		return
	}
	if e.Inflight {
		q.start(i, now)
		return
	}
	q.place(i, now)
}

// intern gives each dispatcher's name a number, which Reset takes back.
func (q *Queue) intern(name string) uint32 {
	if d, ok := q.dispatcher[name]; ok {
		return d
	}
	d := uint32(len(q.dispatchers))
	q.dispatchers = append(q.dispatchers, dispatcher{name: name, known: q.policy.Known == nil || q.policy.Known(name)})
	q.dispatcher[name] = d
	return d
}

// insert makes an empty node and links it with its message.
func (q *Queue) insert(id mail.EnvelopeID) uint32 {
	i := q.pool.get()
	n := q.pool.at(i)
	n.id = id
	q.byID[id] = i
	head := q.byMessage[id.Message()]
	if head == 0 {
		q.byMessage[id.Message()] = i
		n.mprev = i
		return i
	}
	first := q.pool.at(head)
	n.mprev = first.mprev
	q.pool.at(first.mprev).mnext = i
	first.mprev = i
	return i
}

// unlink takes a node out of its message.
func (q *Queue) unlink(i uint32) {
	n := q.pool.at(i)
	m := n.id.Message()
	head := q.byMessage[m]
	switch {
	case head == i && n.mnext == 0:
		delete(q.byMessage, m)
	case head == i:
		q.byMessage[m] = n.mnext
		q.pool.at(n.mnext).mprev = n.mprev
	case n.mnext == 0:
		q.pool.at(n.mprev).mnext = 0
		q.pool.at(head).mprev = n.mprev
	default:
		q.pool.at(n.mprev).mnext = n.mnext
		q.pool.at(n.mnext).mprev = n.mprev
	}
}

// Gone forgets an envelope that is no more. It reports whether it was known.
func (q *Queue) Gone(id mail.EnvelopeID) bool {
	i, ok := q.byID[id]
	if !ok {
		return false
	}
	q.detach(i)
	q.unlink(i)
	delete(q.byID, id)
	q.pool.put(i)
	if len(q.byID) == 0 && q.pool.large() {
		q.shrink()
	}
	return true
}

// shrink gives the memory of a queue that was deep back, now that it is empty.
func (q *Queue) shrink() {
	turn, doomed, notices, noticed := q.turn, q.doomed, q.notices, q.noticed
	q.clear()
	q.turn, q.doomed, q.notices, q.noticed = turn, doomed, notices, noticed
}
