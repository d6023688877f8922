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
	index := &ruleIndex{map[ruleKey]*config.Rule{}, map[condKey]uint32{}}
	stmts := c.matchStmts()
	for i := 0; i < len(stmts); {
		at := stmts[i].pos
		var reachable bool
		var why string
		for ; i < len(stmts) && stmts[i].pos == at; i++ {
			r := c.cfg.Rules[i]
			k := index.keyOf(r)
			if by := index.covering(r, k); by == nil || by.Pos == r.Pos {
				reachable = true
			} else {
				why = coveredBy(r, by)
			}
			if index.first[k] == nil {
				index.first[k] = r
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

// ruleKey is the conditions of a rule by number; two rules with the same hold
// for the same mail. 0 is no condition.
type ruleKey struct {
	from, to uint32
	conds    [6]uint32 // tag, helo, auth, tls, mail-from, rcpt-to
}

// condKey is one condition.
type condKey struct {
	kind string
	config.Match
}

// ruleIndex finds rules by their conditions.
type ruleIndex struct {
	first map[ruleKey]*config.Rule
	ids   map[condKey]uint32
}

func (x *ruleIndex) id(kind string, m config.Match) uint32 {
	k := condKey{kind, m}
	n, ok := x.ids[k]
	if !ok {
		n = uint32(len(x.ids) + 1)
		x.ids[k] = n
	}
	return n
}

func (x *ruleIndex) keyOf(r *config.Rule) ruleKey {
	k := ruleKey{from: x.id(string(r.From.Kind), r.From.Match), to: x.id(string(r.For.Kind), r.For.Match)}
	for i, m := range []*config.Match{r.Tag, r.HELO, r.Auth, r.TLS, r.MailFrom, r.RcptTo} {
		if m != nil {
			k.conds[i] = x.id("asked", *m)
		}
	}
	return k
}

// covering finds an earlier rule whose conditions are the same or weaker: some
// left out, from any for from, for any for for.
func (x *ruleIndex) covering(r *config.Rule, k ruleKey) *config.Rule {
	anything := x.id("any", config.Match{})
	froms := []uint32{k.from, anything}
	if r.From.Kind == config.FromSocket && !r.From.Not {
		froms = append(froms, x.id("local", config.Match{}))
	}
	given := 0 // a bit for each condition
	for i, c := range k.conds {
		if c != 0 {
			given |= 1 << i
		}
	}
	var best *config.Rule
	for set := range 1 << len(k.conds) {
		if set&^given != 0 {
			continue
		}
		weaker := k
		for i := range k.conds {
			if set&(1<<i) != 0 {
				weaker.conds[i] = 0
			}
		}
		for _, from := range froms {
			for _, to := range [2]uint32{k.to, anything} {
				weaker.from, weaker.to = from, to
				if r := x.first[weaker]; r != nil && (best == nil || r.Number < best.Number) {
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
