// Package filter knows smtpd-filters(7): programs that are told what happens in
// a session and decide at its phases, in chains with rules that are built in. It
// owns the dialogue with a running program (Program), its restarts (Supervisor),
// the way of a message's lines through several programs (Stream) and the
// evaluation of built-in rules (Rule). It must never start a process by itself,
// believe what a program says beyond its own sessions, or hold more than its
// bounds of what a slow one has not read.
package filter

import (
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Protocol is the version of the protocol that lines carry.
const Protocol = "0.7"

// Direction is a subsystem by which lines are marked.
type Direction uint8

// The directions: sessions with clients, and sessions to other hosts, of which
// programs are only told.
const (
	In Direction = iota
	Out
)

// String is the direction as lines show it.
func (d Direction) String() string {
	if d == Out {
		return "smtp-out"
	}
	return "smtp-in"
}

// Phase is a point at which filters decide.
type Phase uint8

// The phases. Help and Wiz can be registered and never happen.
const (
	Connect Phase = iota
	Helo
	Ehlo
	StartTLS
	Auth
	MailFrom
	RcptTo
	Data
	DataLine
	Rset
	Quit
	Noop
	Help
	Wiz
	Commit
	phases // how many
)

var phaseNames = [phases]string{"connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data",
	"data-line", "rset", "quit", "noop", "help", "wiz", "commit"}

// String is the name in smtpd-filters(7).
func (p Phase) String() string {
	if p < phases {
		return phaseNames[p]
	}
	return "?"
}

// Shown is the name in the event filter-response, which differs for two.
func (p Phase) Shown() string {
	switch p {
	case Connect:
		return "connected"
	case StartTLS:
		return "tls"
	}
	return p.String()
}

// ParsePhase finds a phase by its name.
func ParsePhase(name string) (Phase, bool) {
	for i, n := range phaseNames {
		if n == name {
			return Phase(i), true
		}
	}
	return 0, false
}

// Event is something that programs are told.
type Event uint8

// The events.
const (
	LinkConnect Event = iota
	LinkGreeting
	LinkIdentify
	LinkTLS
	LinkAuth
	LinkDisconnect
	TxReset
	TxBegin
	TxMail
	TxRcpt
	TxEnvelope
	TxData
	TxCommit
	TxRollback
	ProtocolClient
	ProtocolServer
	FilterResponse
	FilterReport
	Timeout
	events // how many
)

var eventNames = [events]string{"link-connect", "link-greeting", "link-identify", "link-tls", "link-auth",
	"link-disconnect", "tx-reset", "tx-begin", "tx-mail", "tx-rcpt", "tx-envelope", "tx-data", "tx-commit",
	"tx-rollback", "protocol-client", "protocol-server", "filter-response", "filter-report", "timeout"}

// String is the name in smtpd-filters(7).
func (e Event) String() string {
	if e < events {
		return eventNames[e]
	}
	return "?"
}

// ParseEvent finds an event by its name.
func ParseEvent(name string) (Event, bool) {
	for i, n := range eventNames {
		if n == name {
			return Event(i), true
		}
	}
	return 0, false
}

// Set is a set of phases or events.
type Set uint32

// Has reports whether a phase or event is in the set.
func (s Set) Has(n uint8) bool { return s&(1<<n) != 0 }

func (s *Set) add(n uint8) { *s |= 1 << n }

const all Set = 1<<32 - 1

// Action is what was decided.
type Action uint8

// The decisions. Failed means that a program could not decide, and that the
// session is to be told to come back.
const (
	Proceed Action = iota
	Junk
	Reject
	Disconnect
	Rewrite
	Failed
)

var actionNames = [...]string{"proceed", "junk", "reject", "disconnect", "rewrite", "disconnect"}

// String is the decision as the event filter-response shows it.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return "?"
}

// Verdict is the decision on one phase. Text is the reply of Reject and
// Disconnect, the new argument of Rewrite.
type Verdict struct {
	Action Action
	Text   string
}

// Replies of our own.
const (
	ReplyFailed   = "421 4.3.0 Temporary Error"
	replyInternal = "421 Internal server error"
)

// MaxText bounds the text of a verdict, in octets. Ours: what a command line
// may hold.
const MaxText = 2047

// Checked is the verdict as it may be carried out: replies are of one line,
// have a 4xx or 5xx code or become our own, and 421 ends the session.
func (v Verdict) Checked() Verdict {
	switch v.Action {
	case Failed:
		return Verdict{Failed, ReplyFailed}
	case Reject, Disconnect:
		v.Text = mail.Clean(v.Text, MaxText)
		if !ValidReply(v.Text) {
			return Verdict{Disconnect, replyInternal}
		}
		if strings.HasPrefix(v.Text, "421") {
			v.Action = Disconnect
		}
	case Rewrite:
		v.Text = mail.Clean(v.Text, MaxText)
	default:
		v.Text = ""
	}
	return v
}

// ValidReply reports a reply of one line with a code of refusal.
func ValidReply(s string) bool {
	return len(s) > 3 && (s[0] == '4' || s[0] == '5') && digit(s[1]) && digit(s[2]) && s[3] == ' '
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// Response is the tail of the event filter-response.
func Response(p Phase, v Verdict) string {
	s := p.Shown() + "|" + v.Action.String()
	if v.Text != "" {
		s += "|" + v.Text
	}
	return s
}

// Tail joins the fields of an event as the line shows them.
func Tail(fields ...string) string { return strings.Join(fields, "|") }

// Note is one event of a session. Tail is what follows the session id.
type Note struct {
	Event Event
	Time  time.Time
	Tail  string
}
