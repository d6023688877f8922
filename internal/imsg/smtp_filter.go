package imsg

import (
	"time"

	"smtpd/internal/mail"
)

// Bounds of what travels for filters. Ours.
const (
	maxFilters = 64   // programs of one chain
	maxEvents  = 1024 // events in one imsg
	maxQueries = 256  // questions to tables in one imsg
)

// FilterEvent is one event that filter programs are told; Tail is what follows
// the session id in its line.
type FilterEvent struct {
	Event uint8 // filter.Event
	Time  time.Time
	Tail  string
}

func filterEvent(c *Codec, e *FilterEvent) {
	Uint(c, &e.Event)
	c.Time(&e.Time)
	c.Text(&e.Tail)
}

func filterEvents(c *Codec, l *[]FilterEvent) { List(c, l, maxEvents, filterEvent) }

func filterPlace(c *Codec, n *uint8) { Uint(c, n) }

// FilterOpen begins a session with filter programs. smtp, mta -> lookup;
// answered by FilterOpened.
type FilterOpen struct {
	Session mail.SessionID
	Filters []string // in the order of the chain; later they go by their place
	Events  []FilterEvent

	Generation uint64 // of the configuration that the session began with
}

// Fields implements Msg.
func (m *FilterOpen) Fields(c *Codec) {
	Uint(c, &m.Session)
	List(c, &m.Filters, maxFilters, func(c *Codec, s *string) { c.Name(s) })
	filterEvents(c, &m.Events)
	Uint(c, &m.Generation)
}

// FilterOpened answers FilterOpen. Failed: a program that must be there is not.
type FilterOpened struct {
	Failed bool
	Phases []uint32 // filter.Set of each
	Events uint32   // filter.Set of those that any of them is told
}

// Fields implements Msg.
func (m *FilterOpened) Fields(c *Codec) {
	c.Bool(&m.Failed)
	List(c, &m.Phases, maxFilters, func(c *Codec, v *uint32) { Uint(c, v) })
	Uint(c, &m.Events)
}

// FilterAsk has filter programs decide on a phase, after they have been told
// Events. smtp -> lookup; answered by FilterVerdict.
type FilterAsk struct {
	Session mail.SessionID
	Filters []uint8 // places
	Phase   uint8   // filter.Phase
	Param   string
	Events  []FilterEvent
}

// Fields implements Msg.
func (m *FilterAsk) Fields(c *Codec) {
	Uint(c, &m.Session)
	List(c, &m.Filters, maxFilters, filterPlace)
	Uint(c, &m.Phase)
	c.Text(&m.Param)
	filterEvents(c, &m.Events)
}

// FilterVerdict answers FilterAsk.
type FilterVerdict struct {
	Action uint8 // filter.Action
	Text   string
}

// Fields implements Msg.
func (m *FilterVerdict) Fields(c *Codec) {
	Uint(c, &m.Action)
	line(c, &m.Text, MaxText)
}

// FilterEvents tells filter programs what has happened, and ends the session
// with them. smtp, mta -> lookup; one way.
type FilterEvents struct {
	Session mail.SessionID
	Events  []FilterEvent
	Close   bool
}

// Fields implements Msg.
func (m *FilterEvents) Fields(c *Codec) {
	Uint(c, &m.Session)
	filterEvents(c, &m.Events)
	c.Bool(&m.Close)
}

// FilterLines sends the lines of a message, each ended by LF, through filter
// programs. smtp -> lookup; answered by FilterLinesOut.
type FilterLines struct {
	Session mail.SessionID
	Filters []uint8 // places
	Lines   []byte
	Whole   bool // these are all
	Events  []FilterEvent
}

// Fields implements Msg.
func (m *FilterLines) Fields(c *Codec) {
	Uint(c, &m.Session)
	List(c, &m.Filters, maxFilters, filterPlace)
	c.Bytes(&m.Lines, MaxData)
	c.Bool(&m.Whole)
	filterEvents(c, &m.Events)
}

// FilterLinesOut answers FilterLines. With Stream a descriptor comes: on it go
// the lines that are still to come, ended by a line of one dot, and all that
// come out, ended the same way; without the dot they are not whole. Otherwise
// Lines are all that came out.
type FilterLinesOut struct {
	Failed bool
	Stream bool
	Lines  []byte
}

// Fields implements Msg.
func (m *FilterLinesOut) Fields(c *Codec) {
	c.Bool(&m.Failed)
	c.Bool(&m.Stream)
	c.Bytes(&m.Lines, MaxData)
}

// TableChecks asks several tables whether they have a key. smtp -> lookup;
// answered by TableAnswers.
type TableChecks struct{ Queries []TableQuery }

// Fields implements Msg.
func (m *TableChecks) Fields(c *Codec) {
	List(c, &m.Queries, maxQueries, func(c *Codec, q *TableQuery) { q.Fields(c) })
}

// TableAnswers answers TableChecks, in its order.
type TableAnswers struct {
	Temporary bool // one of them could not be decided
	Found     []bool
}

// Fields implements Msg.
func (m *TableAnswers) Fields(c *Codec) {
	c.Bool(&m.Temporary)
	List(c, &m.Found, maxQueries, func(c *Codec, v *bool) { c.Bool(v) })
}

// TableCopy asks for all keys of a table that built-in filters ask often. smtp ->
// lookup; answered by TableCopied.
type TableCopy struct {
	Table      string
	Generation uint64 // of the configuration that the table belongs to
}

// Fields implements Msg.
func (m *TableCopy) Fields(c *Codec) { c.Name(&m.Table); Uint(c, &m.Generation) }

// TableCopied answers TableCopy: with the keys, each ended by NUL. Not OK: there
// are too many, or only asking could tell.
type TableCopied struct {
	OK   bool
	Keys []byte
}

// Fields implements Msg.
func (m *TableCopied) Fields(c *Codec) { c.Bool(&m.OK); c.Bytes(&m.Keys, MaxData) }

// TableStale says that a table was read again: copies of it are of no use any
// more. lookup -> smtp; answered by Done when none is used from then on.
type TableStale struct{ Table string }

// Fields implements Msg.
func (m *TableStale) Fields(c *Codec) { c.Name(&m.Table) }

// TableTally asks how often smtp answered from tables of its own since it was
// asked last. lookup -> smtp; answered by TableTallies.
type TableTally struct{}

// Fields implements Msg.
func (*TableTally) Fields(*Codec) {}

// MaxTallies is how many tables one TableTallies tells of.
const MaxTallies = maxQueries

// TableTallies answers TableTally: as many as MaxTallies may not be all.
type TableTallies struct{ Tables []TableCount }

// TableCount is how often a table was asked, and with what success.
type TableCount struct {
	Table                   string
	Generation              uint64 // of the configuration that the table belongs to
	Lookups, Misses, Errors uint64
}

// Fields implements Msg.
func (m *TableTallies) Fields(c *Codec) {
	List(c, &m.Tables, MaxTallies, func(c *Codec, t *TableCount) {
		c.Name(&t.Table)
		Uint(c, &t.Generation)
		Uint(c, &t.Lookups)
		Uint(c, &t.Misses)
		Uint(c, &t.Errors)
	})
}

// FilterStart asks for the program of a processor of the configuration to be
// started as another user; an earlier one of the same generation is ended. lookup -> parent;
// answered by FilterStarted.
type FilterStart struct {
	Proc       string
	Generation uint64 // of the configuration that says how
}

// Fields implements Msg.
func (m *FilterStart) Fields(c *Codec) { c.Name(&m.Proc); Uint(c, &m.Generation) }

// FilterStarted answers FilterStart: with the descriptor of the program's input
// and output, or an error.
type FilterStarted struct{ Error string }

// Fields implements Msg.
func (m *FilterStarted) Fields(c *Codec) { line(c, &m.Error, MaxText) }
