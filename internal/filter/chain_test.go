package filter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"smtpd/internal/config"
)

// outside answers for tables and programs, and writes down what was asked.
type outside struct {
	has   map[string]string // "service table" -> key
	wants map[int]Set
	log   []string
}

func (o *outside) Check(_ context.Context, q []Query, found []bool) error {
	for i, one := range q {
		if one.Table == "broken" {
			return errors.New("broken")
		}
		found[i] = o.has[one.Service+" "+one.Table] == one.Key
	}
	return nil
}

func (o *outside) Programs(_ context.Context, members []int, p Phase, param string) Verdict {
	o.log = append(o.log, fmt.Sprintf("ask %v %s %s", members, p, param))
	return Verdict{}
}

func (o *outside) Wants(member int) Set { return o.wants[member] }

func (o *outside) Note(e Event, tail string) {
	if e == FilterReport {
		o.log = append(o.log, "report "+tail)
	}
}

// Each condition, plain, negated, with a table and a regular expression.
func TestConditions(t *testing.T) {
	known := Facts{Host: "mx.a.org", FCrDNS: "pass", Source: "192.0.2.1", Helo: "helo.org", User: "bob", Sender: "s@a.org", Rcpt: "r@b.org"}
	unknown := Facts{Host: "<unknown>", FCrDNS: "fail", Source: "192.0.2.9", Helo: "other", Sender: "", Rcpt: "x@y.org"}
	literal := known
	literal.Host, literal.FCrDNS = "[192.0.2.1]", "error"
	tables := map[string]string{"domain t-rdns": "mx.a.org", "netaddr t-src": "192.0.2.1", "domain t-helo": "helo.org",
		"string t-auth": "bob", "mailaddr t-mail-from": "s@a.org", "mailaddr t-rcpt-to": "r@b.org",
		"regex r-rdns": "mx.a.org", "regex r-src": "192.0.2.1", "regex r-helo": "helo.org", "regex r-auth": "bob",
		"regex r-mail-from": "s@a.org", "regex r-rcpt-to": "r@b.org"}
	type holds struct{ known, unknown, literal bool }
	tests := map[string]holds{"fcrdns": {true, false, false}, "rdns": {true, false, false}, "auth": {true, false, true}}
	for _, c := range []string{"src", "helo", "auth", "mail-from", "rcpt-to"} {
		tests[c+" t-"+c], tests[c+" r-"+c] = holds{true, false, true}, holds{true, false, true}
	}
	tests["rdns t-rdns"], tests["rdns r-rdns"] = holds{true, false, false}, holds{true, false, false}
	for name, want := range tests {
		for _, not := range []bool{false, true} {
			cond, table, _ := strings.Cut(name, " ")
			c := &config.Config{Filters: map[string]*config.Filter{"f": {Name: "f", Phase: "rcpt-to", Cond: cond, Decision: "reject", Text: "550 no",
				Match: config.Match{Not: not, Table: table, Regex: strings.HasPrefix(table, "r-")}}}}
			for i, f := range []Facts{known, unknown, literal} {
				chain, err := Compile(c, []string{"f"})
				if err != nil {
					t.Fatal(err)
				}
				w := chain.Walk(&outside{has: tables})
				w.Facts = f
				got := w.Ask(t.Context(), RcptTo, "").Action == Reject
				if w := []bool{want.known, want.unknown, want.literal}[i]; got != (w != not) {
					t.Errorf("%s, not %v, facts %d: %v", name, not, i, got)
				}
				if v := w.Ask(t.Context(), MailFrom, ""); v.Action != Proceed {
					t.Errorf("%s decides at another phase: %v", name, v)
				}
			}
		}
	}
}

// Each decision, and what is asked after it in this phase and later.
func TestDecisions(t *testing.T) {
	tests := map[string]struct {
		phase, decision, text string
		want                  Verdict
		log                   string // MAIL, RCPT, then MAIL of the next transaction, where the rule does not hold
	}{
		"reject":     {"mail-from", "reject", "550 no", Verdict{Reject, "550 no"}, "ask [0] mail-from x | ask [0 1] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"421":        {"mail-from", "reject", "421 no", Verdict{Disconnect, "421 no"}, "ask [0] mail-from x | ask [0 1] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"disconnect": {"mail-from", "disconnect", "550 no", Verdict{Disconnect, "550 no"}, "ask [0] mail-from x | ask [0 1] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"junk":       {"mail-from", "junk", "", Verdict{Action: Junk}, "ask [0] mail-from x | ask [0 1] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"rewrite":    {"mail-from", "rewrite", "<a@b>", Verdict{Rewrite, "<a@b>"}, "ask [0] mail-from x | ask [0 1] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"report": {"mail-from", "report", "hm", Verdict{}, "ask [0] mail-from x; report builtin|f|hm; ask [1] mail-from x | ask [0 1] rcpt-to x | " +
			"ask [0] mail-from x; ask [1] mail-from x"},
		"bypass":         {"mail-from", "bypass", "", Verdict{}, "ask [0] mail-from x | ask [0] rcpt-to x | ask [0] mail-from x; ask [1] mail-from x"},
		"bypass session": {"connect", "bypass", "", Verdict{}, "ask [0] mail-from x | ask [0] rcpt-to x | ask [0] mail-from x"},
		"no bypass":      {"commit", "report", "x", Verdict{}, "ask [0 1] mail-from x | ask [0 1] rcpt-to x | ask [0 1] mail-from x"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := &config.Config{Procs: map[string]*config.Proc{}, Filters: map[string]*config.Filter{
				"p0": {Name: "p0", Proc: "p0"}, "p1": {Name: "p1", Proc: "p1"},
				"f": {Name: "f", Phase: tt.phase, Cond: "fcrdns", Decision: tt.decision, Text: tt.text},
				"c": {Name: "c", Chain: []string{"p0", "f", "p1"}}}}
			chain, err := Compile(c, []string{"c"})
			if err != nil {
				t.Fatal(err)
			}
			o := &outside{wants: map[int]Set{0: 1<<MailFrom | 1<<RcptTo | 1<<DataLine, 1: 1<<MailFrom | 1<<RcptTo | 1<<DataLine}}
			w := chain.Walk(o)
			w.Facts.FCrDNS = "pass"
			w.Ask(t.Context(), Connect, "h|a")
			var parts []string
			for i, p := range []Phase{MailFrom, RcptTo, MailFrom} {
				o.log = nil
				if v := w.Ask(t.Context(), p, "x"); i == 0 && v != tt.want {
					t.Errorf("got %v, want %v", v, tt.want)
				}
				parts = append(parts, strings.Join(o.log, "; "))
				if i == 1 {
					lines := []int{0, 1}
					if tt.decision == "bypass" {
						lines = lines[:1]
					}
					if got := w.Lines(); !slices.Equal(got, lines) {
						t.Errorf("lines go to %v", got)
					}
					w.EndTransaction()
					w.Facts.FCrDNS = "fail" // the rule does not hold any more
				}
			}
			if got := strings.Join(parts, " | "); got != tt.log {
				t.Errorf("got  %s\nwant %s", got, tt.log)
			}
		})
	}
	c := &config.Config{Filters: map[string]*config.Filter{"f": {Name: "f", Phase: "connect", Cond: "src", Decision: "junk", Match: config.Match{Table: "broken"}}}}
	chain, err := Compile(c, []string{"f"})
	if err != nil {
		t.Fatal(err)
	}
	if v := chain.Walk(&outside{}).Ask(t.Context(), Connect, ""); v.Action != Failed {
		t.Errorf("a table that cannot tell: %v", v)
	}
}

// slow is a built-in kind that has to ask elsewhere, as block lists do: it
// begins at once and waits for its answer when its turn comes.
type slow struct {
	name   string
	answer chan Decision
	log    chan string
}

func (s *slow) At() Set { return 1 << Connect }

func (s *slow) Begin(ctx context.Context, _ Phase, f *Facts, q []Query) ([]Query, Turn) {
	s.log <- s.name + " begins for " + f.Source
	ctx, cancel := context.WithCancel(ctx)
	return append(q, Query{"exempt", "netaddr", f.Source}), &slowTurn{s, ctx, cancel}
}

// slowTurn is one question of it under way.
type slowTurn struct {
	*slow
	ctx  context.Context
	stop context.CancelFunc
}

func (t *slowTurn) Decide(ctx context.Context, _ Phase, _ *Facts, answers []bool) (Decision, error) {
	defer t.stop()
	if answers[0] {
		return Decision{GoOn: true}, nil
	}
	t.log <- t.name + " waits"
	select {
	case d := <-t.answer:
		return d, nil
	case <-ctx.Done():
		return Decision{}, ctx.Err()
	}
}

func (t *slowTurn) Drop() {
	t.stop()
	t.log <- t.name + " is dropped"
}

// Kinds that have to wait fit a chain as they are: all begin before the first is
// waited for, rules and programs stand between them, who is not asked any more is
// told, and a session that ends waits for nobody.
func TestSlowDecider(t *testing.T) {
	type test struct {
		first, second Decision
		exempt        string
		leaves        bool
		want          Verdict
		log           string
	}
	goOn, no := Decision{GoOn: true}, Decision{Verdict: Verdict{Reject, "550 listed"}}
	const begin = "a begins for 192.0.2.1; b begins for 192.0.2.1; "
	tests := map[string]test{
		"both go on":    {goOn, goOn, "", false, Verdict{}, begin + "a waits; b waits"},
		"first refuses": {no, goOn, "", false, no.Verdict, begin + "a waits; b is dropped"},
		"last refuses":  {goOn, no, "", false, no.Verdict, begin + "a waits; b waits"},
		"exempt":        {no, no, "192.0.2.1", false, Verdict{}, strings.TrimSuffix(begin, "; ")},
		"client leaves": {goOn, goOn, "", true, Verdict{Failed, ReplyFailed}, begin + "a waits; b is dropped"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			log := make(chan string, 16)
			a := &slow{"a", make(chan Decision, 1), log}
			b := &slow{"b", make(chan Decision, 1), log}
			ch := &Chain{links: []link{{"a", -1, a}, {"p", 0, nil}, {"b", -1, b}}, Members: []string{"p"}, Procs: []string{"p"}, built: 1 << Connect}
			o := &outside{has: map[string]string{"netaddr exempt": tt.exempt}, wants: map[int]Set{0: 1 << Connect}}
			w := ch.Walk(o)
			w.Facts.Source = "192.0.2.1"
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.leaves {
				cancel()
			} else {
				a.answer <- tt.first
				b.answer <- tt.second
			}
			if got := w.Ask(ctx, Connect, "h|192.0.2.1"); got != tt.want {
				t.Errorf("got %v; want %v", got, tt.want)
			}
			close(log)
			var said []string
			for s := range log {
				said = append(said, s)
			}
			if got := strings.Join(said, "; "); got != tt.log {
				t.Errorf("got  %s\nwant %s", got, tt.log)
			}
			if asked := len(o.log) == 1; asked != (tt.want.Action == Proceed || name == "last refuses") {
				t.Errorf("program: %v", o.log)
			}
		})
	}
}
