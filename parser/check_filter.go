package parser

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// proc declares a filter program.
func (c *checker) proc(at pos, name, command *token, opts []*option) bool {
	if c.cfg.Procs[name.text] != nil {
		c.errorf(name.pos, "processor already exists with that name: %s", name.text)
		return false
	}
	p := &config.Proc{Pos: c.at(at), Name: name.text, Command: command.text}
	seen := &once{}
	for _, o := range opts {
		if !c.once(seen, o.key, o.pos, " for this processor") {
			continue
		}
		v := ""
		if o.arg != nil {
			v = o.arg.text
		}
		switch o.key {
		case "timeout", "on-failure":
			c.patience(o, &p.Timeout, &p.OnFailure)
			continue
		case "user":
			p.User = v
			if !c.o.System.HasUser(v) {
				c.notKnown("user", o.arg, c.o.System.Users)
			}
		case "group":
			p.Group = v
			if !c.o.System.HasGroup(v) {
				c.notKnown("group", o.arg, c.o.System.Groups)
			}
		case "chroot":
			p.Chroot = v
		}
		if c.o.Unprivileged && (o.key != "user" || p.User != c.o.System.CurrentUser()) {
			c.cannotf(o.pos, "processor %s asks for %s %s: an ordinary user (%s) cannot change identity",
				name.text, o.key, o.arg.text, c.o.System.CurrentUser())
		}
	}
	c.filterProgram(command)
	c.cfg.Procs[p.Name] = p
	return true
}

// patience takes the options that say what happens when a program fails.
func (c *checker) patience(o *option, timeout *time.Duration, on *config.OnFailure) {
	if o.key == "timeout" {
		*timeout, _ = c.delay(o.arg, "invalid timeout: %s")
		return
	}
	switch v := config.OnFailure(o.arg.text); v {
	case config.FailPass, config.FailTemp:
		*on = v
	default:
		c.errorf(o.arg.pos, "invalid on-failure: %s%s, expected pass or tempfail", o.arg.text,
			suggestion(o.arg.text, []string{string(config.FailPass), string(config.FailTemp)}))
	}
}

// filterProgram warns when the program is not there: it may be installed
// later.
func (c *checker) filterProgram(command *token) {
	f := strings.Fields(command.text)
	if len(f) == 0 {
		c.errorf(command.pos, "the command is empty")
		return
	}
	places := []string{f[0]}
	if !strings.HasPrefix(f[0], "/") {
		places = nil
		for _, d := range c.libexecDirs() {
			places = append(places, path.Join(d, f[0]))
		}
	}
	for _, p := range places {
		if fi, err := c.o.System.Stat(p); err == nil && fi.Mode.IsRegular() && fi.Mode.Perm()&0o111 != 0 {
			return
		}
	}
	c.warnf(command.pos, "no program %s", strings.Join(places, ", "))
}

// filter declares a filter.
func (c *checker) filter(st *stmt, n *filterStmt) {
	name := n.name.text
	if old := c.cfg.Filters[name]; old != nil {
		c.errorf(n.name.pos, "filter already exists with that name: %s, in line %d", name, old.Pos.Line)
		return
	}
	f := &config.Filter{Pos: c.at(st.pos), Name: name}
	ok := true
	switch n.kind {
	case "proc":
		f.Proc = n.arg.text
		seen := &once{}
		for _, o := range n.opts {
			if c.once(seen, o.key, o.pos, " for this filter") {
				c.patience(o, &f.Timeout, &f.OnFailure)
			}
		}
		if c.cfg.Procs[f.Proc] == nil {
			c.noSuch("proc", n.arg, "no processor exist with that name: %s", near(c.cfg.Procs))
			ok = false
		}
	case "proc-exec":
		f.Proc = name
		ok = c.proc(st.pos, n.name, n.arg, n.opts)
	case "chain":
		ok = c.chain(f, n.chain)
	case "phase":
		ok = c.builtin(f, n)
	}
	if !ok {
		c.unknown["filter "+name] = true
		return
	}
	c.cfg.Filters[name] = f
}

// chain puts filters in a row: no chain, no filter and no processor twice.
func (c *checker) chain(f *config.Filter, names []*token) bool {
	ok := true
	filters, procs := map[string]bool{}, map[string]bool{}
	for _, n := range names {
		g := c.cfg.Filters[n.text]
		switch {
		case g == nil:
			c.noSuch("filter", n, "no filter exist with that name: %s", near(c.cfg.Filters))
			ok = false
			continue
		case g.Chain != nil:
			c.errorf(n.pos, "no filter chain allowed within a filter chain: %s", n.text)
			ok = false
		case filters[n.text]:
			c.errorf(n.pos, "no filter allowed twice within a filter chain: %s", n.text)
			ok = false
		case g.Proc != "" && procs[g.Proc]:
			c.errorf(n.pos, "no proc allowed twice within a filter chain: %s", g.Proc)
			ok = false
		}
		filters[n.text], procs[g.Proc] = true, true
		f.Chain = append(f.Chain, n.text)
	}
	return ok
}

// filterConds are the conditions that a phase can ask for, in the order in
// which a session makes them known.
var filterConds = map[string][]string{
	"connect":   {"fcrdns", "rdns", "src"},
	"helo":      {"fcrdns", "rdns", "src", "helo"},
	"ehlo":      {"fcrdns", "rdns", "src", "helo"},
	"auth":      {"fcrdns", "rdns", "src", "helo", "auth"},
	"mail-from": {"fcrdns", "rdns", "src", "helo", "auth", "mail-from"},
	"rcpt-to":   {"fcrdns", "rdns", "src", "helo", "auth", "mail-from", "rcpt-to"},
	"data":      {"fcrdns", "rdns", "src", "helo", "auth", "mail-from"},
	"commit":    {"fcrdns", "rdns", "src", "helo", "auth", "mail-from"},
}

// builtin compiles a filter that decides by itself.
func (c *checker) builtin(f *config.Filter, n *filterStmt) bool {
	f.Phase, f.Cond, f.Decision = n.arg.text, n.cond.key, n.decision.text
	ok := true
	if conds := filterConds[f.Phase]; !slices.Contains(conds, f.Cond) {
		c.errorf(n.cond.pos, "syntax error: %s", notAtPhase(f.Cond, f.Phase, conds))
		ok = false
	}
	if f.Phase == "commit" && (f.Decision == "junk" || f.Decision == "bypass") {
		c.errorf(n.decision.pos, "syntax error: %s is too late at phase commit, expected "+
			"\"reject\", \"disconnect\", \"rewrite\" or \"report\"", f.Decision)
		ok = false
	}
	use := matchUse(f.Cond, n.cond.regex)
	if f.Cond == "auth" {
		use.hash = true
	}
	f.Match = config.Match{Not: n.cond.not, Regex: n.cond.regex}
	if n.cond.table != nil {
		f.Match.Table = c.table(n.cond.table, use)
		ok = ok && f.Match.Table != ""
	}
	if n.text != nil {
		f.Text = n.text.text
		if (f.Decision == "reject" || f.Decision == "disconnect") && !validReply(f.Text) {
			c.errorf(n.text.pos, "the message of %s must begin with a 4xx or 5xx code and a blank, found %q",
				f.Decision, f.Text)
			ok = false
		} else if f.Decision == "reject" || f.Decision == "disconnect" {
			ok = c.reply(n.text) && ok
		}
	}
	return ok
}

func notAtPhase(cond, phase string, conds []string) string {
	return fmt.Sprintf("%s is not known at phase %s, expected %s", cond, phase, orList(conds, nil))
}

func validReply(s string) bool {
	return len(s) > 4 && (s[0] == '4' || s[0] == '5') && isDigit(int(s[1])) && isDigit(int(s[2])) &&
		s[3] == ' '
}

// reply checks the rest of a message that clients are shown: its enhanced code
// is of the class of the code, and it is one line of text that can be sent.
func (c *checker) reply(t *token) bool {
	word, _, _ := strings.Cut(t.text[4:], " ")
	switch n := strings.Split(word, "."); {
	case len(n) == 3 && numbers(n) && n[0] != t.text[:1]:
		c.errorf(t.pos, "the enhanced code %s does not agree with the code %s, expected %s.%s.%s",
			word, t.text[:3], t.text[:1], n[1], n[2])
	case len(t.text)-4 > mail.MaxStatusText:
		c.errorf(t.pos, "the message is too long: %d octets, at most %d", len(t.text)-4, mail.MaxStatusText)
	case mail.Clean(t.text, len(t.text)) != t.text:
		c.errorf(t.pos, "the message holds a control character, or is not UTF-8")
	default:
		return true
	}
	return false
}

func numbers(words []string) bool {
	for _, w := range words {
		if w == "" || len(w) > 3 || strings.Trim(w, "0123456789") != "" {
			return false
		}
	}
	return true
}

// ruleReply checks the message of a rule.
func (c *checker) ruleReply(t *token) {
	switch {
	case !validReply(t.text):
		c.errorf(t.pos, "the message of reject must begin with a 4xx or 5xx code and a blank, found %q", t.text)
	case strings.HasPrefix(t.text, "421"):
		c.errorf(t.pos, "421 ends a session, which a rule does not, expected another code such as 450 or 550")
	default:
		c.reply(t)
	}
}

// filterNames resolves the filters of a listener or action.
func (c *checker) filterNames(o *option) []string {
	list := o.list
	if o.arg != nil {
		list = []*token{o.arg}
	}
	var names []string
	seen := map[string]bool{}
	for _, t := range list {
		switch f := c.cfg.Filters[t.text]; {
		case f == nil:
			c.noSuch("filter", t, "no filter exist with that name: %s", near(c.cfg.Filters))
			continue
		case o.list != nil && f.Chain != nil:
			c.errorf(t.pos, "no filter chain allowed within a filter chain: %s", t.text)
		case seen[t.text]:
			c.errorf(t.pos, "no filter allowed twice within a filter chain: %s", t.text)
		}
		seen[t.text] = true
		c.used["filter "+t.text] = true
		names = append(names, t.text)
	}
	return names
}
