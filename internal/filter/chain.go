package filter

import (
	"context"
	"fmt"

	"smtpd/internal/config"
)

// Decider is a built-in kind of filter. It is asked at its phases only. An error
// means that nothing can be said now.
//
// Kinds to come (block lists, greylisting, ...) implement it and are put into a
// chain by compile; the chain need not know them.
type Decider interface {
	// At are the phases at which it decides.
	At() Set

	// Prepare names what it will ask of tables at a phase; all filters of a
	// chain are asked together.
	Prepare(p Phase, f *Facts) []Query

	// Decide decides, given the answers to what Prepare named.
	Decide(ctx context.Context, p Phase, f *Facts, answers []bool) (Decision, error)
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

// Prepare implements Decider.
func (r *Rule) Prepare(_ Phase, f *Facts) []Query {
	if q, need, _ := r.query(f); need {
		return []Query{q}
	}
	return nil
}

// Decide implements Decider.
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
	var answers [][]bool
	if w.chain.built.Has(uint8(p)) {
		var err error
		if answers, err = w.prepare(ctx, links, p); err != nil {
			return Verdict{Failed, ReplyFailed}
		}
	}
	var room [8]int
	run := room[:0]
	for i, l := range links {
		if l.member >= 0 {
			if w.out.Wants(l.member).Has(uint8(p)) {
				run = append(run, l.member)
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
		v, goOn := w.decide(ctx, i, &l, p, answers)
		if !goOn {
			return v
		}
	}
	if len(run) == 0 {
		return Verdict{}
	}
	return w.out.Programs(ctx, run, p, param)
}

// prepare asks the tables for all that the built-in filters will want to know,
// at once.
func (w *Walk) prepare(ctx context.Context, links []link, p Phase) ([][]bool, error) {
	var few [4]Query
	queries, counts := few[:0], make([]int, len(links))
	for i, l := range links {
		if l.decider != nil && l.decider.At().Has(uint8(p)) {
			n := len(queries)
			queries = append(queries, l.decider.Prepare(p, &w.Facts)...)
			counts[i] = len(queries) - n
		}
	}
	if len(queries) == 0 {
		return make([][]bool, len(links)), nil
	}
	found, err := w.out.Check(ctx, queries)
	if err != nil {
		return nil, err
	}
	answers := make([][]bool, len(links))
	for i := range links {
		answers[i], found = found[:counts[i]], found[counts[i]:]
	}
	return answers, nil
}

// decide has one built-in filter decide.
func (w *Walk) decide(ctx context.Context, i int, l *link, p Phase, answers [][]bool) (v Verdict, goOn bool) {
	d, err := l.decider.Decide(ctx, p, &w.Facts, answers[i])
	if err != nil {
		return Verdict{Failed, ReplyFailed}, false
	}
	if d.Report != "" {
		w.out.Note(FilterReport, Tail("builtin", l.name, d.Report))
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
