package parser

import (
	"fmt"
	"net/netip"
	"strings"

	"smtpd/internal/config"
)

// lint warns of what is allowed and hardly meant.
func (c *checker) lint() {
	c.lintUnused()
	c.lintRules()
}

// lintUnused names what is declared and never used.
func (c *checker) lintUnused() {
	for _, st := range c.in.tree.stmts {
		switch n := st.node.(type) {
		case *tableStmt:
			if t := c.tables[n.name.text]; t != nil && !t.used {
				c.warnf(st.pos, "table %q is never used", n.name.text)
			}
		case *actionStmt:
			if c.cfg.Actions[n.name.text] != nil && !c.used["action "+n.name.text] {
				c.warnf(st.pos, "action %q is never used", n.name.text)
			}
		}
	}
}

// lintRules finds rules that an earlier one leaves nothing, and open relays.
// One line of an older file can stand for several rules, which are all looked
// at before anything is said of it.
func (c *checker) lintRules() {
	first := map[ruleKey]*config.Rule{}
	stmts := c.matchStmts()
	for i := 0; i < len(stmts); {
		at := stmts[i].pos
		var reachable bool
		var why string
		for ; i < len(stmts) && stmts[i].pos == at; i++ {
			r := c.cfg.Rules[i]
			k := keyOf(r)
			if by := covering(k, first); by == nil || by.Pos == r.Pos {
				reachable = true
			} else {
				why = coveredBy(r, by)
			}
			if first[k] == nil {
				first[k] = r
			}
			if c.openRelay(r) {
				c.warnf(at, "possible open relay: mail from anyone is sent on to any domain by action %q", r.Action)
			}
		}
		if !reachable {
			c.warnf(at, "this rule can never match: %s", why)
		}
	}
}

func coveredBy(r, by *config.Rule) string {
	if r.Auth != nil && by.Auth == nil && by.From.Kind == config.FromAny {
		return fmt.Sprintf("line %d, with from any, stands before this auth", by.Pos.Line)
	}
	return fmt.Sprintf("line %d is as wide", by.Pos.Line)
}

// matchStmts are the statements of the rules, in their order.
func (c *checker) matchStmts() []*stmt {
	out := make([]*stmt, 0, len(c.cfg.Rules))
	for _, st := range c.in.tree.stmts {
		if _, ok := st.node.(*matchStmt); ok {
			out = append(out, st)
		}
	}
	return out
}

// ruleKey is the conditions of a rule; two rules with the same hold for the
// same mail. conds are tag, helo, auth, tls, mail-from and rcpt-to.
type ruleKey struct {
	from, to string
	conds    [6]string
}

func keyOf(r *config.Rule) ruleKey {
	text := func(kind string, m config.Match) string {
		return fmt.Sprintf("%s %t %t %s", kind, m.Not, m.Regex, m.Table)
	}
	k := ruleKey{from: text(string(r.From.Kind), r.From.Match), to: text(string(r.For.Kind), r.For.Match)}
	for i, m := range []*config.Match{r.Tag, r.HELO, r.Auth, r.TLS, r.MailFrom, r.RcptTo} {
		if m != nil {
			k.conds[i] = text("", *m)
		}
	}
	return k
}

// covering finds an earlier rule whose conditions are the same or weaker: some
// left out, from any for from, for any for for.
func covering(k ruleKey, first map[ruleKey]*config.Rule) *config.Rule {
	const anything = "any false false "
	froms := []string{k.from, anything}
	if k.from == "socket false false " {
		froms = append(froms, "local false false ")
	}
	var best *config.Rule
	for set := range 1 << len(k.conds) {
		weaker := k
		skip := false
		for i := range k.conds {
			if set&(1<<i) != 0 {
				skip = skip || k.conds[i] == ""
				weaker.conds[i] = ""
			}
		}
		if skip {
			continue
		}
		for _, from := range froms {
			for _, to := range []string{k.to, anything} {
				weaker.from, weaker.to = from, to
				if r := first[weaker]; r != nil && (best == nil || r.Number < best.Number) {
					best = r
				}
			}
		}
	}
	return best
}

// openRelay reports whether a rule sends mail on for everyone to everywhere.
// What a client merely claims, its HELO name and sender, does not count.
func (c *checker) openRelay(r *config.Rule) bool {
	a := c.cfg.Actions[r.Action]
	if r.Reject || a == nil || a.IsLocal() || a.Relay.Backup {
		return false
	}
	holds := func(m *config.Match) bool { return m != nil && !m.Not }
	if holds(r.Auth) || holds(r.Tag) || holds(r.RcptTo) {
		return false
	}
	if r.For.Kind != config.ForAny && !r.For.Not {
		return false
	}
	switch r.From.Kind {
	case config.FromAny:
		return true
	case config.FromSrc:
		return !r.From.Not && !r.From.Regex && c.everyone(r.From.Table)
	}
	return false
}

// everyone reports whether a list of networks holds all addresses.
func (c *checker) everyone(name string) bool {
	t := c.tables[name]
	if t == nil || t.inline == nil {
		return false
	}
	for _, k := range t.inline.keys {
		p, err := netip.ParsePrefix(strings.Trim(k.text, "[]"))
		if err == nil && p.Bits() == 0 {
			return true
		}
	}
	return false
}
