package filter

import (
	"context"
	"fmt"
	"slices"

	"smtpd/internal/config"
)

// Decider is a built-in kind of filter, shared by all sessions. Kinds to come
// (block lists, greylisting, ...) implement it and are put into a chain by
// compile; the chain need not know them.
type Decider interface {
	// At are the phases at which it decides.
	At() Set

	// Begin is called for all filters of a phase before any of them decides. It
	// adds to q what it will ask of tables, which are asked for all filters at
	// once, and may begin what takes time; it does not wait itself. ctx is that of
	// the session.
	Begin(ctx context.Context, p Phase, f *Facts, q []Query) ([]Query, Turn)
}

// Turn is what a Decider has begun for one phase of one session.
type Turn interface {
	// Decide is called when those before it have not ended the phase, with the
	// answers to what Begin has asked. It may wait, until ctx ends. An error
	// means that nothing can be said now.
	Decide(ctx context.Context, p Phase, f *Facts, answers []bool) (Decision, error)

	// Drop is called in place of Decide when nobody asks any more.
	Drop()
}

// Decision is what a Decider says.
type Decision struct {
	Verdict Verdict
	GoOn    bool   // the filters after it are asked as well
	Report  string // text that programs are told, or empty
	Bypass  bool   // the filters after it are not asked at later phases either
}

// At implements Decider.
func (r *Rule) At() Set { return 1 << r.phase }

// Begin implements Decider.
func (r *Rule) Begin(_ context.Context, _ Phase, f *Facts, q []Query) ([]Query, Turn) {
	if one, need, _ := r.query(f); need {
		q = append(q, one)
	}
	return q, r
}

// Drop implements Turn.
func (r *Rule) Drop() {}

// Decide implements Turn: a rule has nothing to wait for.
func (r *Rule) Decide(_ context.Context, _ Phase, f *Facts, answers []bool) (Decision, error) {
	_, need, holds := r.query(f)
	if need {
		holds = answers[0] != r.match.Not
	}
	if !holds {
		return Decision{GoOn: true}, nil
	}
	d := Decision{Bypass: r.decision == "bypass"}
	if d.Verdict, d.GoOn = r.verdict(); r.decision == "report" {
		d.Report = r.text
	}
	return d, nil
}

// link is one filter of a chain: a program, or built in.
type link struct {
	name    string
	member  int // among Chain.Members; -1: built in
	decider Decider
}

// Chain is the filters of a listener in their order. It is not changed once
// made.
type Chain struct {
	links   []link
	Members []string // filters that programs decide
	Procs   []string // the programs of Members
	built   Set      // phases at which built-in filters decide
}

// Compile makes the chain of the filters named; nil: there are none.
func Compile(c *config.Config, names []string) (*Chain, error) {
	ch := &Chain{}
	if err := ch.add(c, names, true); err != nil {
		return nil, err
	}
	if len(ch.links) == 0 {
		return nil, nil
	}
	return ch, nil
}

func (ch *Chain) add(c *config.Config, names []string, chains bool) error {
	for _, name := range names {
		f := c.Filters[name]
		switch {
		case f == nil:
			return fmt.Errorf("no filter %s", name)
		case len(f.Chain) > 0:
			if !chains {
				return fmt.Errorf("filter %s: a chain within a chain", name)
			}
			if err := ch.add(c, f.Chain, false); err != nil {
				return err
			}
		case f.Proc != "":
			ch.links = append(ch.links, link{name: name, member: len(ch.Members)})
			ch.Members, ch.Procs = append(ch.Members, name), append(ch.Procs, f.Proc)
		default:
			r, ok := NewRule(f)
			if !ok {
				return fmt.Errorf("filter %s: no phase %s", name, f.Phase)
			}
			ch.links = append(ch.links, link{name: name, member: -1, decider: r})
			ch.built |= r.At()
		}
	}
	return nil
}

// Outside is what a session's walk through a chain needs of others.
type Outside interface {
	Tables

	// Programs has members decide, in their order; see Session.Ask.
	Programs(ctx context.Context, members []int, p Phase, param string) Verdict

	// Wants are the phases of a member's program.
	Wants(member int) Set

	// Note tells the programs an event.
	Note(e Event, tail string)
}

// Walk is one session's way through a chain. Its methods are called by one
// goroutine at a time.
type Walk struct {
	Facts   Facts
	chain   *Chain
	out     Outside
	session int // links that the session passes from here on; -1: all
	tx      int // the same for the transaction

	// What a phase works with, kept for the next.
	queries []Query
	found   []bool
	turns   []turn
	run     []int
}

// turn is a built-in filter that will decide on the present phase, and where its
// part of the answers begins.
type turn struct {
	Turn
	from int
}

// Walk begins a session.
func (ch *Chain) Walk(out Outside) *Walk { return &Walk{chain: ch, out: out, session: -1, tx: -1} }

// EndTransaction ends what holds for the transaction only.
func (w *Walk) EndTransaction() { w.tx, w.Facts.Sender, w.Facts.Rcpt = -1, "", "" }

// links are the filters that are asked still.
func (w *Walk) links() []link {
	l := w.chain.links
	if w.session >= 0 {
		l = l[:w.session]
	}
	if w.tx >= 0 && w.tx < len(l) {
		l = l[:w.tx]
	}
	return l
}

// Lines are the members whose programs are asked for the lines of a message.
func (w *Walk) Lines() (members []int) {
	for _, l := range w.links() {
		if l.member >= 0 && w.out.Wants(l.member).Has(uint8(DataLine)) {
			members = append(members, l.member)
		}
	}
	return members
}

// Ask has the chain decide on a phase, and notes the decision.
func (w *Walk) Ask(ctx context.Context, p Phase, param string) Verdict {
	v := w.ask(ctx, p, param)
	if len(w.chain.Members) > 0 {
		w.out.Note(FilterResponse, Response(p, v))
	}
	return v
}

func (w *Walk) ask(ctx context.Context, p Phase, param string) Verdict {
	links := w.links()
	w.turns = w.turns[:0]
	turns := 0 // that have had their turn
	defer func() {
		for _, t := range w.turns[turns:] {
			t.Drop()
		}
	}()
	if w.chain.built.Has(uint8(p)) && w.begin(ctx, links, p) != nil {
		return Verdict{Failed, ReplyFailed}
	}
	run := w.run[:0]
	for i := range links {
		l := &links[i]
		if l.member >= 0 {
			if w.out.Wants(l.member).Has(uint8(p)) {
				run = append(run, l.member)
				w.run = run
			}
			continue
		}
		if !l.decider.At().Has(uint8(p)) {
			continue
		}
		if len(run) > 0 {
			if v := w.out.Programs(ctx, run, p, param); v.Action != Proceed {
				return v
			}
			run = run[:0]
		}
		turns++
		if v, goOn := w.decide(ctx, i, turns-1, p); !goOn {
			return v
		}
	}
	if len(run) == 0 {
		return Verdict{}
	}
	return w.out.Programs(ctx, run, p, param)
}

// begin has the built-in filters of a phase begin, and asks the tables for all
// that they want to know, at once.
func (w *Walk) begin(ctx context.Context, links []link, p Phase) error {
	w.queries = w.queries[:0]
	for i := range links {
		if d := links[i].decider; d != nil && d.At().Has(uint8(p)) {
			t := turn{from: len(w.queries)}
			w.queries, t.Turn = d.Begin(ctx, p, &w.Facts, w.queries)
			w.turns = append(w.turns, t)
		}
	}
	w.found = slices.Grow(w.found[:0], len(w.queries))[:len(w.queries)]
	clear(w.found)
	if len(w.queries) == 0 {
		return nil
	}
	return w.out.Check(ctx, w.queries, w.found)
}

// decide has one built-in filter decide: link i, the n-th of those that begin
// has begun.
func (w *Walk) decide(ctx context.Context, i, n int, p Phase) (v Verdict, goOn bool) {
	t, to := w.turns[n], len(w.found)
	if n+1 < len(w.turns) {
		to = w.turns[n+1].from
	}
	d, err := t.Decide(ctx, p, &w.Facts, w.found[t.from:to])
	if err != nil {
		return Verdict{Failed, ReplyFailed}, false
	}
	if d.Report != "" {
		w.out.Note(FilterReport, Tail("builtin", w.chain.links[i].name, d.Report))
	}
	if d.Bypass {
		if p >= MailFrom {
			w.tx = i
		} else {
			w.session = i
		}
	}
	return d.Verdict, d.GoOn
}
