package expand

import (
	"strings"

	"smtpd/internal/mail"
	"smtpd/internal/ruleset"
)

// Trace tells an expansion step by step, for those who ask why.
type Trace struct{ Steps []Step }

// maxSteps bounds a trace. Ours: more than anybody reads.
const maxSteps = 2000

// Step is one step. Depth counts the nodes above it.
type Step struct {
	Depth int        `json:"depth"`
	Text  string     `json:"text"`
	Rules []RuleStep `json:"rules,omitempty"` // tried for an address
}

// RuleStep is one rule that was tried.
type RuleStep struct {
	Where   string `json:"where"` // file:line
	Rule    string `json:"rule"`  // as the modern language writes it
	Matched bool   `json:"matched"`
	Clause  string `json:"clause,omitempty"` // the option that failed
	Reason  string `json:"reason,omitempty"` // what it was compared with
	Error   string `json:"error,omitempty"`  // it could not be decided
}

// String is the trace as lines, indented by depth.
func (t *Trace) String() string {
	var b strings.Builder
	for _, s := range t.Steps {
		indent := strings.Repeat("  ", s.Depth)
		b.WriteString(indent + s.Text + "\n")
		for _, r := range s.Rules {
			b.WriteString(indent + "  " + r.String() + "\n")
		}
	}
	return b.String()
}

// String is the step in one line.
func (r RuleStep) String() string {
	line := r.Where + ": " + r.Rule + ": "
	switch {
	case r.Matched:
		return line + "matches"
	case r.Error != "":
		return line + "cannot tell: " + r.Clause + ": " + r.Error
	}
	return line + "no: " + r.Clause + " (" + r.Reason + ")"
}

// say adds a step below the node last entered.
func (e *expansion) say(text string) {
	if e.trace != nil && len(e.trace.Steps) < maxSteps {
		e.trace.Steps = append(e.trace.Steps, Step{Depth: e.depth + 1, Text: mail.Clean(text, 1024)})
	}
}

// sayRules adds the step of an address with the rules that were tried.
func (e *expansion) sayRules(addr mail.Address, tr *ruleset.Trace, decided bool) {
	if e.trace == nil || len(e.trace.Steps) >= maxSteps {
		return
	}
	s := Step{Depth: e.depth, Text: "address <" + mail.Clean(addr.String(), 512) + ">"}
	for _, st := range tr.Steps {
		r := RuleStep{Where: ruleset.Where(st.Rule), Rule: ruleset.Text(st.Rule), Matched: st.Matched,
			Clause: st.Clause, Reason: st.Reason}
		if st.Err != nil {
			r.Error = mail.Clean(st.Err.Error(), mail.MaxStatusText)
		}
		s.Rules = append(s.Rules, r)
	}
	e.trace.Steps = append(e.trace.Steps, s)
	if !decided {
		e.say("no rule matches")
	}
}
