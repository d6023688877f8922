package parser

import (
	"smtpd/internal/config"
)

// match compiles one rule.
func (c *checker) match(st *stmt, n *matchStmt) {
	r := &config.Rule{Pos: c.at(st.pos), Number: len(c.cfg.Rules) + 1, Reject: n.reject}
	r.From.Kind, r.For.Kind = config.FromLocal, config.ForLocal
	seen := &once{}
	for _, o := range n.opts {
		c.matchOption(r, o, seen)
	}
	if n.text != nil {
		r.Reply = n.text.text
		c.ruleReply(n.text)
	}
	if n.action != nil {
		r.Action = n.action.text
		c.used["action "+r.Action] = true
		if c.cfg.Actions[r.Action] == nil {
			c.noSuch("action", n.action, "no such dispatcher: %s", near(c.cfg.Actions))
		}
	}
	c.cfg.Rules = append(c.cfg.Rules, r)
}

// How tables are used by the options of a rule. A regular expression takes a
// plain list whatever the option.
func matchUse(key string, regex bool) use {
	if regex {
		return use{what: "regex", list: true, service: "regex"}
	}
	switch key {
	case "domain", "helo", "rdns":
		return use{what: "domain", list: true}
	case "src":
		return use{what: "netaddr", list: true, service: "netaddr"}
	case "tag":
		return use{what: "string", list: true}
	case "from auth":
		return use{what: "auth", list: true}
	case "auth":
		return use{what: "auth", list: true, hash: true}
	}
	return use{what: "mailaddr", list: true, hash: true, service: "mailaddr"} // mail-from, rcpt-to
}

func (c *checker) matchTable(o *option, key string) config.Match {
	m := config.Match{Not: o.not, Regex: o.regex}
	if o.table != nil {
		m.Table = c.table(o.table, matchUse(key, o.regex))
	}
	return m
}

func (c *checker) matchOption(r *config.Rule, o *option, seen *once) {
	const where = " for this rule"
	if !c.once(seen, o.key, o.pos, where) {
		return
	}
	switch o.key {
	case "from":
		c.matchFrom(r, o, seen)
		return
	case "for":
		if o.sub == "rcpt-to" {
			if c.once(seen, "rcpt-to", o.pos, where) {
				m := c.matchTable(o, "rcpt-to")
				r.RcptTo, r.For.Kind = &m, config.ForAny
			}
			return
		}
		r.For = config.For{Kind: config.ForKind(o.sub), Match: c.matchTable(o, o.sub)}
		return
	}
	m := c.matchTable(o, o.key)
	switch o.key {
	case "tls":
		r.TLS = &m
	case "auth":
		r.Auth = &m
	case "helo":
		r.HELO = &m
	case "tag":
		r.Tag = &m
	case "mail-from":
		r.MailFrom = &m
	case "rcpt-to":
		r.RcptTo = &m
	}
}

func (c *checker) matchFrom(r *config.Rule, o *option, seen *once) {
	switch o.sub {
	case "auth", "mail-from":
		key := o.sub
		if !c.once(seen, key, o.pos, " for this rule") {
			return
		}
		if key == "auth" {
			key = "from auth"
		}
		m := c.matchTable(o, key)
		r.From.Kind = config.FromAny
		if o.sub == "auth" {
			r.Auth = &m
		} else {
			r.MailFrom = &m
		}
	default:
		r.From = config.From{Kind: config.FromKind(o.sub), Match: c.matchTable(o, o.sub)}
	}
}
