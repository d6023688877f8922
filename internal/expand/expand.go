// Package expand turns one recipient into envelopes: rules, aliases, virtual
// users, .forward files and lists, until every branch ends in a relay or in a
// delivery, or one of them fails and with it the recipient. It is pure but for
// what it is given to ask. It owns nothing, starts nothing and opens nothing.
package expand

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
	"smtpd/table"
)

// Bounds of one expansion.
const (
	MaxDepth     = 10      // nodes above one another, as in OpenSMTPD
	MaxNodes     = 20000   // ours: nodes in all; a list of that many recipients wants a list manager
	MaxForward   = 100     // items of a .forward file, as in OpenSMTPD
	MaxEnvelopes = 10000   // ours: envelopes of one recipient
	MaxInclude   = 4 << 20 // ours: octets of an included file
)

// MinUID is the least uid whose user data (.forward) may name files and
// commands; those below are accounts of the system. Ours: what adduser of all
// supported systems begins with.
const MinUID = 1000

// User is a local user.
type User struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Forward is the answer to the question for a user's .forward file.
type Forward struct {
	Present bool
	Data    []byte
	Refuse  *mail.Status // not nil: the recipient gets this
	Reason  string       // for the log
}

// Tables answers questions to tables; *table.Set does.
type Tables interface {
	ruleset.Tables
	// Lookup is the value of key, or table.ErrNotFound. Any other error means
	// that it could not be told now.
	Lookup(ctx context.Context, name string, s table.Service, key string) (string, error)
}

// System is what expansion asks of the host.
type System interface {
	// User finds an account, or gives table.ErrNotFound.
	User(ctx context.Context, name string) (User, error)
	// Forward opens ~/.forward of a user, with every check of its owner and mode.
	Forward(ctx context.Context, u User) (Forward, error)
	// Include reads a file that an alias names, at most MaxInclude octets of it.
	Include(ctx context.Context, path string) (string, error)
}

// Expander expands recipients by one configuration. It is safe for concurrent
// use when what it is given is.
type Expander struct {
	Config *config.Config
	Tables Tables
	System System
	Now    func() time.Time

	// Daemon is the user that the daemon runs as, and with it commands and files
	// of aliases that have no user above them.
	Daemon User
	// Unprivileged: mail can be delivered as Daemon only, or by LMTP.
	Unprivileged bool
}

// Note is a line for the log.
type Note struct {
	Warn bool // severity err, else info
	Text string
}

// Result is what becomes of a recipient.
type Result struct {
	Status   mail.Status   // 250, or what to refuse the recipient with
	Rule     *config.Rule  // that decided first; nil: none did
	Branches []mail.Branch // when 250: at least one
	Notes    []Note
}

// Request is a recipient with what is known of its session. Rcpt of Envelope is
// expanded.
type Request struct {
	Envelope mail.Envelope
	TLS      bool
	Local    bool // came through the socket
}

// facts are those of the request for the rules.
func (q *Request) facts() ruleset.Facts {
	e := &q.Envelope
	f := ruleset.Facts{Client: e.Client, Socket: q.Local, Host: e.Host, Helo: e.Helo, Tag: e.Tag,
		TLS: q.TLS, Authenticated: e.Flags&mail.FlagAuthenticated != 0, Username: e.Username, Sender: e.Sender}
	if a, err := table.ParseAddr(e.Client); err == nil {
		f.Addr = a
	}
	return f
}

// Expand expands q.Envelope.Rcpt. It never fails without a Status. trace may be
// nil.
func (x *Expander) Expand(ctx context.Context, q *Request, trace *Trace) *Result {
	e := expansions.Get().(*expansion)
	*e = expansion{Expander: x, ctx: ctx, q: q, facts: q.facts(), trace: trace, result: &Result{}}
	r := e.run()
	*e = expansion{}
	expansions.Put(e)
	return r
}

// expansions is the memory of those that have ended: most recipients need
// nothing else.
var expansions = sync.Pool{New: func() any { return new(expansion) }}

// run does it.
func (e *expansion) run() *Result {
	err := e.recipient()
	if err == nil && len(e.result.Branches) == 0 {
		err = e.dead("nothing is left of it")
	}
	e.result.Status = mail.Status{Code: 250, Enh: [3]uint8{2, 1, 5}, Text: "Destination address valid: Recipient ok"}
	if err != nil {
		e.result.Branches = nil
		st, ok := errors.AsType[*mail.Status](err)
		if !ok {
			e.note(true, "warn: "+mail.Clean(err.Error(), mail.MaxStatusText))
			st = e.status(451, [3]uint8{4, 3, 0}, "Temporary failure")
		}
		e.result.Status = *st
	}
	return e.result
}

// expansion is the state of one.
type expansion struct {
	*Expander
	ctx    context.Context
	q      *Request
	facts  ruleset.Facts
	trace  *Trace
	result *Result
	nodes  int
	depth  int             // of the node last entered, for the trace
	done   map[string]bool // addresses that were expanded: false while they are
	first  node            // of the first branch
	boxes  map[string]bool // where all lead; nil: there is one at most
}

// place is an address that is being expanded, with the rule that took it.
type place struct {
	addr     mail.Address
	internal bool
	rule     *config.Rule
	action   *config.Action
	seen     map[string]bool // items that were expanded below it
}

// node is where an item stands.
type node struct {
	*place
	depth     int
	parent    string // the name whose items these are, "" none
	forwarded bool   // they come from a .forward file
	user      *User  // whose .forward file; nil: an alias
	sub       string // sub-address of the item that led to the user
}

// recipient begins at the top: an address that a notice comes back to is
// decoded first.
func (e *expansion) recipient() error {
	addr, internal := e.q.Envelope.Rcpt, false
	if e.q.Envelope.Sender.IsNull() && e.Config.SRS.Key != "" && isSRS(addr.User) {
		back, err := srsDecode(&e.Config.SRS, addr, e.Now())
		if err != nil {
			e.note(true, "SRS failed to decode: "+mail.Clean(addr.String(), mail.MaxStatusText))
			return e.unknown("srs: " + err.Error())
		}
		e.say("srs: " + back.String())
		addr, internal = back, true
	}
	return e.address(addr, 0, internal)
}

// address finds the rule for an address and follows its action.
func (e *expansion) address(addr mail.Address, depth int, internal bool) error {
	var key string
	if e.done != nil {
		key = doneKey(addr)
		if ended, begun := e.done[key]; ended {
			return nil // it has given its branches already
		} else if begun {
			e.say("loop at " + addr.String()) // which only a file of a user may name
			return e.dead("it leads back to itself")
		}
	}
	if err := e.enter(depth); err != nil {
		return err
	}
	p, err := e.rule(addr, internal)
	relay := err == nil && p.action.Method == config.MethodRelay
	if relay && depth == 0 {
		return e.relay(p) // that was all
	}
	if e.done == nil {
		e.done, key = map[string]bool{}, doneKey(addr)
	}
	e.done[key] = false
	if relay {
		err = e.relay(p)
	} else if err == nil && p.action.Virtual != "" {
		err = e.virtual(p, depth)
	} else if err == nil {
		err = e.username(table.Fold(addr.User), node{place: p, depth: depth + 1})
	}
	e.done[key] = true
	return err
}

// doneKey is what an address is known by.
func doneKey(a mail.Address) string { return a.User + "@" + strings.ToLower(a.Domain) }

// enter counts a node and bounds depth and number.
func (e *expansion) enter(depth int) error {
	if e.depth = depth; depth >= MaxDepth {
		return e.dead("too deep")
	}
	if e.nodes++; e.nodes > MaxNodes {
		return e.trouble("too many nodes")
	}
	return nil
}

// rule finds the rule for an address.
func (e *expansion) rule(addr mail.Address, internal bool) (*place, error) {
	e.facts.Dest, e.facts.Internal = addr, internal
	var tr *ruleset.Trace
	if e.trace != nil {
		tr = &ruleset.Trace{}
	}
	r, err := ruleset.Evaluate(e.ctx, e.Config, e.Tables, &e.facts, tr)
	e.sayRules(addr, tr, r != nil || err != nil)
	if err != nil {
		return nil, err
	}
	if e.result.Rule == nil {
		e.result.Rule = r
	}
	if r != nil && r.Reject {
		if st, ok := mail.ParseStatus(r.Reply); ok && r.Reply != "" {
			return nil, st
		}
	}
	if r == nil || r.Reject {
		return nil, e.status(550, [3]uint8{5, 7, 1}, "Invalid recipient")
	}
	a := e.Config.Actions[r.Action]
	if a == nil {
		return nil, fmt.Errorf("rule %s: no action %q", ruleset.Where(r), r.Action)
	}
	return &place{addr: addr, internal: internal, rule: r, action: a}, nil
}

// relay ends a branch: the address is sent on.
func (e *expansion) relay(p *place) error {
	if e.trace != nil {
		e.say("relay to " + p.addr.String() + " by action " + p.action.Name)
	}
	return e.submit(&node{place: p}, mail.KindMTA, "", "")
}

// submit adds a branch, unless one leads to the same place already.
func (e *expansion) submit(n *node, kind mail.Kind, user, exec string) error {
	p := n.place
	if len(e.result.Branches) == 0 {
		e.first = *n // mostly the only one
	} else {
		if e.boxes == nil {
			b := &e.result.Branches[0]
			e.boxes = map[string]bool{e.box(&e.first, b.Kind, b.User, b.Exec): true}
		}
		box := e.box(n, kind, user, exec)
		if e.boxes[box] {
			e.say("the same as before")
			return nil
		}
		e.boxes[box] = true
	}
	if len(e.result.Branches) >= MaxEnvelopes {
		return e.trouble("too many envelopes")
	}
	b := mail.Branch{Kind: kind, Internal: p.internal, Dispatcher: p.action.Name, Dest: p.addr,
		User: user, Exec: exec, SubAddr: n.sub, TTL: p.action.TTL}
	if b.TTL == 0 {
		b.TTL = e.Config.Queue.TTL
	}
	e.result.Branches = append(e.result.Branches, b)
	return nil
}

// box names where a branch leads: two with the same name would be one copy
// too many. The destination counts as far as the action can tell it apart: by
// its sub-address, or wholly when it is named to somebody.
func (e *expansion) box(n *node, kind mail.Kind, user, exec string) string {
	p, a := n.place, n.action
	var dest string
	switch _, tag := p.addr.SplitTag(e.Config.SMTP.SubAddrDelim); {
	case kind == mail.KindMTA:
		dest = p.addr.User + "@" + strings.ToLower(p.addr.Domain)
	case a.RcptTo || namesDest(a.Path) || namesDest(a.Command) || namesDest(a.Dest) || namesDest(e.Config.Wrappers[a.Wrapper]):
		dest = strings.ToLower(p.addr.String()) + "\x00" + n.sub
	case n.sub != "":
		dest = n.sub
	default:
		dest = tag
	}
	return strings.Join([]string{a.Name, user, exec, dest}, "\x00")
}

// namesDest reports a format that holds the destination.
func namesDest(format string) bool {
	return strings.Contains(format, "%{") && strings.Contains(strings.ToLower(format), "%{dest")
}

// status is a refusal of the recipient; its text ends in the address.
func (e *expansion) status(code int, enh [3]uint8, text string) *mail.Status {
	return mail.NewStatus(code, enh, text+": <"+e.q.Envelope.Rcpt.String()+">")
}

// unknown, dead and trouble are the ways in which expansion fails: there is no
// such recipient; it leads nowhere; it cannot be carried out now. why is for
// the trace.
func (e *expansion) unknown(why string) error {
	e.say(why)
	return e.status(550, [3]uint8{5, 1, 1}, "Invalid recipient")
}

func (e *expansion) dead(why string) error {
	return e.problem(550, [3]uint8{5, 2, 4}, why)
}

func (e *expansion) trouble(why string) error {
	return e.problem(451, [3]uint8{4, 2, 4}, why)
}

// problem ends the expansion with words that say nothing to a stranger; why is for
// the log, unless that has been told more.
func (e *expansion) problem(code int, enh [3]uint8, why string) error {
	e.say(why)
	if len(e.result.Notes) == 0 {
		e.note(false, mail.Clean("info: expansion of <"+e.q.Envelope.Rcpt.String()+">: "+why, 1024))
	}
	return e.status(code, enh, "Mailing list expansion problem")
}

func (e *expansion) note(warn bool, text string) {
	e.result.Notes = append(e.result.Notes, Note{warn, text})
}
