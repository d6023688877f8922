package parser

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
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
	index := &ruleIndex{first: make(map[ruleKey]*config.Rule, len(c.cfg.Rules))}
	tags := c.listenerTags()
	stmts := c.matchStmts()
	for i := 0; i < len(stmts); {
		at := stmts[i].pos
		var reachable bool
		var why string
		for ; i < len(stmts) && stmts[i].pos == at; i++ {
			r := c.cfg.Rules[i]
			k := c.keyOf(r)
			by, never := index.covering(r, k), c.never(r, tags)
			switch {
			case never != "":
				why = never
			case by == nil || by.Pos == r.Pos:
				reachable = true
			default:
				why = coveredBy(r, by)
			}
			index.add(r, k)
			if c.openRelay(r) {
				c.warnf(at, "possible open relay: mail from anyone is sent on to any domain by action %q", r.Action)
			}
		}
		if !reachable {
			c.warnf(at, "this rule can never match: %s", why)
		}
	}
}

// listenerTags are those that a session can have, by how they are compared.
func (c *checker) listenerTags() map[string]string {
	tags := map[string]string{}
	for _, l := range append(c.cfg.Listeners, c.cfg.Socket) {
		if l.Tag != "" {
			tags[strings.ToLower(l.Tag)] = l.Tag
		}
	}
	return tags
}

// never says why no mail at all fits a rule; empty: some may.
func (c *checker) never(r *config.Rule, tags map[string]string) string {
	switch {
	case r.From.Kind == config.FromAny && r.From.Not:
		return "nobody is left by !from any"
	case r.For.Kind == config.ForAny && r.For.Not:
		return "no recipient is left by !for any"
	case r.Tag == nil || r.Tag.Not || r.Tag.Regex:
		return ""
	}
	t := c.tableNamed(r.Tag.Table)
	if t == nil || t.inline == nil || t.inline.values != nil {
		return ""
	}
	for _, k := range t.inline.keys {
		if tags[strings.ToLower(k.text)] != "" {
			return ""
		}
	}
	var known []string
	if len(tags) <= maxNear {
		known = slices.Collect(maps.Values(tags))
	}
	name := t.inline.keys[0].text
	return fmt.Sprintf("no listener has the tag %q%s", name, c.diags.suggestion(name, known))
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

// condID is one condition as a number: what kind it is, how its table is used,
// and which that is. 0 is no condition.
type condID uint64

// The kinds of conditions; what is asked otherwise has a place in ruleKey.
const (
	condAsked = iota + 1
	condAny
	condLocal
	condOther // of the one kind of from or for that takes a table, and one more
	condOther2
)

// condAnything is `any` without a word more.
const condAnything = condID(condAny)

// ruleKey is the conditions of a rule; two rules with the same hold for the
// same mail.
type ruleKey struct {
	from, to condID
	conds    [conditions]condID // tag, helo, auth, tls, mail-from, rcpt-to
}

const conditions = 6

// ruleIndex finds rules by their conditions.
type ruleIndex struct {
	first map[ruleKey]*config.Rule
	masks [1 << conditions]bool // which conditions rules so far ask for
}

func (c *checker) condID(kind int, m *config.Match) condID {
	id := uint64(kind)
	if m.Not {
		id |= 1 << 3
	}
	if m.Regex {
		id |= 1 << 4
	}
	if m.Table != "" {
		if t := c.tableNamed(m.Table); t != nil {
			id |= uint64(t.id+1) << 5
		}
	}
	return condID(id)
}

func (c *checker) keyOf(r *config.Rule) ruleKey {
	from, to := condOther, condOther
	switch r.From.Kind {
	case config.FromAny:
		from = condAny
	case config.FromLocal:
		from = condLocal
	case config.FromSocket:
		from = condAsked
	case config.FromRDNS:
		from = condOther2
	}
	switch r.For.Kind {
	case config.ForAny:
		to = condAny
	case config.ForLocal:
		to = condLocal
	}
	k := ruleKey{from: c.condID(from, &r.From.Match), to: c.condID(to, &r.For.Match)}
	for i, m := range [conditions]*config.Match{r.Tag, r.HELO, r.Auth, r.TLS, r.MailFrom, r.RcptTo} {
		if m != nil {
			k.conds[i] = c.condID(condAsked, m)
		}
	}
	return k
}

// mask has a bit for each condition.
func (k *ruleKey) mask() int {
	given := 0
	for i, c := range k.conds {
		if c != 0 {
			given |= 1 << i
		}
	}
	return given
}

func (x *ruleIndex) add(r *config.Rule, k ruleKey) {
	if x.first[k] == nil {
		x.first[k] = r
		x.masks[k.mask()] = true
	}
}

// covering finds an earlier rule whose conditions are the same or weaker: some
// left out, from any for from, for any for for.
func (x *ruleIndex) covering(r *config.Rule, k ruleKey) *config.Rule {
	froms := []condID{k.from, condAnything}
	if r.From.Kind == config.FromSocket && !r.From.Not {
		froms = append(froms, condLocal)
	}
	given := k.mask()
	var best *config.Rule
	for kept, there := range x.masks {
		if !there || kept&^given != 0 {
			continue
		}
		weaker := k
		for i := range k.conds {
			if kept&(1<<i) == 0 {
				weaker.conds[i] = 0
			}
		}
		for _, from := range froms {
			for _, to := range [2]condID{k.to, condAnything} {
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
	t := c.tableNamed(name)
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
