package smtp

import "context"

// Phase is a point at which filters decide, by its name in smtpd-filters(7).
type Phase string

// The phases, in the order of a session. Lines of the message are not a phase:
// see Filter.Lines.
const (
	PhaseConnect  Phase = "connect" // "rdns|address"
	PhaseHelo     Phase = "helo"    // argument
	PhaseEhlo     Phase = "ehlo"    // argument
	PhaseStartTLS Phase = "starttls"
	PhaseAuth     Phase = "auth"      // argument in clear
	PhaseMailFrom Phase = "mail-from" // address without brackets
	PhaseRcptTo   Phase = "rcpt-to"   // address without brackets
	PhaseData     Phase = "data"
	PhaseRset     Phase = "rset"
	PhaseQuit     Phase = "quit"
	PhaseNoop     Phase = "noop"
	PhaseCommit   Phase = "commit"
)

// Action is what a filter decided.
type Action uint8

// The decisions. Reject and Disconnect carry the reply, Rewrite the new
// argument.
const (
	Proceed Action = iota
	Junk
	Reject
	Disconnect
	Rewrite
)

// Verdict is the answer of the filters to one phase.
type Verdict struct {
	Action Action
	Text   string
}

// Event is something that filters are told, by its name in smtpd-filters(7).
type Event string

// The events.
const (
	EventConnect    Event = "link-connect"    // rdns, fcrdns, source, destination
	EventGreeting   Event = "link-greeting"   // our name
	EventIdentify   Event = "link-identify"   // HELO or EHLO, argument
	EventTLS        Event = "link-tls"        // cipher
	EventAuth       Event = "link-auth"       // pass, fail or error; user
	EventDisconnect Event = "link-disconnect" //
	EventTxBegin    Event = "tx-begin"        // msgid
	EventTxMail     Event = "tx-mail"         // msgid; ok, permfail or tempfail; address
	EventTxRcpt     Event = "tx-rcpt"         // msgid; ok, permfail or tempfail; address
	EventTxEnvelope Event = "tx-envelope"     // msgid, evpid
	EventTxData     Event = "tx-data"         // msgid; ok, permfail or tempfail
	EventTxCommit   Event = "tx-commit"       // msgid, size
	EventTxRollback Event = "tx-rollback"     // msgid
	EventTxReset    Event = "tx-reset"        // msgid
	EventClient     Event = "protocol-client" // command, secrets masked
	EventServer     Event = "protocol-server" // reply line
	EventTimeout    Event = "timeout"         //
)

// Filter is what stands between one client and its commands. Its methods are
// called by the session's goroutine only, except that lines come out of Lines
// on any goroutine.
type Filter interface {
	// Ask waits for the decision on one phase. A filter that is gone or late is
	// a Disconnect or Reject with a reply of its own choice.
	Ask(ctx context.Context, p Phase, param string) Verdict

	// Report tells an event; it does not wait.
	Report(e Event, fields ...string)

	// Hears reports whether anybody is told events; nobody being, Report is
	// called for EventIdentify, EventAuth and EventTxReset only.
	Hears() bool

	// Idle says that the session waits for the client now.
	Idle()

	// Lines opens the way of one message through the filters that asked for its
	// lines; nil: none did. What comes out is given to out, one call at a time,
	// until Close has returned.
	Lines(ctx context.Context, out func(line []byte)) Lines

	// Close ends the session's part; no method is called after it.
	Close()
}

// Lines takes the lines of a message, dot-stuffed, without line ends.
type Lines interface {
	// Write gives one line; it may wait for a slow filter. The line is copied.
	Write(line []byte) error

	// Close says that the message is whole, or given up, and waits until the
	// last line has come out. An error means that some may be missing.
	Close(whole bool) error
}

// ask has the filters decide. It reports whether the command goes on; if it
// does, param is the argument to go on with, and rewritten says it is theirs.
func (s *Session) ask(p Phase, param string) (v Verdict, ok bool) {
	if s.filter == nil {
		return Verdict{}, true
	}
	v = s.filter.Ask(s.ctx, p, param)
	switch v.Action {
	case Junk:
		switch {
		case s.tx != nil:
			s.tx.junk = true
		case p != PhaseMailFrom: // which is about the transaction that it begins
			s.junk = true
		}
	case Reject:
		s.refuse(v.Text)
		return v, false
	case Disconnect:
		s.refuse(v.Text)
		s.close("quit")
		return v, false
	}
	return v, true
}

func (s *Session) report(e Event, fields ...string) {
	if s.filter != nil {
		s.filter.Report(e, fields...)
	}
}
