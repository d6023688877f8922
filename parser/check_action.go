package parser

import (
	"net"
	"strings"

	"smtpd/internal/config"
	"smtpd/table"
)

// action compiles one action.
func (c *checker) action(st *stmt, n *actionStmt) {
	name := n.name.text
	if old := c.cfg.Actions[name]; old != nil {
		c.errorf(n.name.pos, "dispatcher already declared with that name: %s, in line %d", name, old.Pos.Line)
		return
	}
	a := &config.Action{Pos: c.at(st.pos), Name: name, Method: config.Method(n.method.text)}
	if n.ttl != nil {
		a.TTL, _ = c.delay(n.ttl, "ttl delay %q is invalid")
	}
	if a.Method == config.MethodRelay {
		n = presentURLs(n, func(t *token, u config.RelayURL) {
			c.warnf(t.pos, "%s is written as in an older release, read as %s", t.text, u)
		})
		a.Relay = &config.Relay{}
		r := &relaying{c: c, r: a.Relay, seen: &once{}}
		for _, o := range n.opts {
			if o.key == "retry" {
				c.actionRetry(a, o, r.seen)
			} else {
				r.option(o)
			}
		}
		r.finish()
	} else {
		c.localMethod(a, n)
		seen := &once{}
		for _, o := range n.opts {
			if o.key == "retry" {
				c.actionRetry(a, o, seen)
			} else {
				c.localOption(a, o, seen)
			}
		}
		c.identityOf(st, a)
	}
	c.cfg.Actions[name] = a
}

func (c *checker) actionRetry(a *config.Action, o *option, seen *once) {
	if c.once(seen, o.key, o.pos, " for this dispatcher") {
		a.Retry = c.retry(o.list, o.sub != "")
	}
}

func (c *checker) localMethod(a *config.Action, n *actionStmt) {
	if n.arg == nil {
		return
	}
	c.format(n.arg, false)
	switch a.Method {
	case config.MethodMaildir:
		a.Path = n.arg.text
		if a.Path == "" {
			c.errorf(n.arg.pos, "maildir: the path is empty")
		}
	case config.MethodLMTP:
		a.Dest = n.arg.text
		if !validLMTP(a.Dest) {
			c.errorf(n.arg.pos, "invalid lmtp destination: %s, expected host:port or /path/of/socket", a.Dest)
		}
	case config.MethodMDA:
		a.Command = n.arg.text
		if strings.TrimSpace(a.Command) == "" {
			c.errorf(n.arg.pos, "mda: the command is empty")
		}
	}
}

// validLMTP reports whether s can be the destination of LMTP. What a format makes
// of it is seen when there is mail.
func validLMTP(s string) bool {
	i := strings.LastIndexByte(s, ':')
	switch {
	case strings.HasPrefix(s, "/"):
		return true
	case i <= 0 || i == len(s)-1:
		return false
	case strings.Contains(s, "%{"):
		return true
	}
	port, err := net.LookupPort("tcp", s[i+1:])
	return err == nil && port > 0
}

func (c *checker) localOption(a *config.Action, o *option, seen *once) {
	const where = " for this dispatcher"
	if !c.once(seen, o.key, o.pos, where) {
		return
	}
	switch o.key {
	case "junk":
		a.Junk = true
	case "rcpt-to":
		a.RcptTo = true
	case "verify-rcpt":
		a.VerifyRcpt = true
	case "x-original-to":
		a.OriginalTo = true
	case "user":
		switch a.Method {
		case config.MethodMbox, config.MethodForwardOnly, config.MethodExpandOnly:
			c.errorf(o.pos, "user may not be specified for %s", a.Method)
			return
		}
		a.User = o.arg.text
		if !c.o.System.HasUser(a.User) {
			c.notKnown("user", o.arg, c.o.System.Users)
		}
	case "alias", "virtual":
		if seen.has("alias") && seen.has("virtual") {
			c.errorf(o.pos, "alias and virtual may not be specified together for a dispatcher")
			return
		}
		t := c.table(o.table, use{what: "alias", hash: true, service: "alias"})
		if o.key == "alias" {
			a.Alias = t
		} else {
			a.Virtual = t
		}
	case "userbase":
		a.Userbase = c.table(o.table, use{what: "userbase", hash: true, service: "userinfo"})
	case "wrapper":
		if _, ok := c.cfg.Wrappers[o.arg.text]; !ok {
			c.noSuch("mda wrapper", o.arg, "no mda wrapper with that name: %s", near(c.cfg.Wrappers))
		}
		a.Wrapper = o.arg.text
	}
}

// identityOf refuses what an ordinary user cannot do: deliver as somebody else.
func (c *checker) identityOf(st *stmt, a *config.Action) {
	if !c.o.Unprivileged {
		return
	}
	self := c.o.System.CurrentUser()
	switch a.Method {
	case config.MethodForwardOnly, config.MethodExpandOnly, config.MethodLMTP:
		return
	case config.MethodMbox:
		name := self
		if a.Userbase != "" {
			name = "" // any
		}
		if err := c.o.System.Mailbox(name); err != nil {
			c.cannotf(st.pos, "action %q: an ordinary user (%s) cannot deliver there: %v", a.Name, self, err)
			return
		}
	}
	switch {
	case a.User != "" && a.User != self:
		c.cannotf(st.pos, "action %q delivers as user %s: an ordinary user (%s) cannot change identity", a.Name, a.User, self)
	case a.User != "":
	case a.Userbase != "":
		c.identitiesOf(st, a)
	default:
		c.warnf(st.pos, "action %q: as an ordinary user only mail for %s itself is delivered", a.Name, self)
	}
}

// identitiesOf does so for a userbase, as far as its entries are known.
func (c *checker) identitiesOf(st *stmt, a *config.Action) {
	t := c.tableNamed(a.Userbase)
	if t == nil {
		return // reported
	}
	known := t.entries
	switch {
	case t.cfg.Backend == "passwd":
		known = t.users
	case t.cfg.Backend == "db":
		known = c.mapEntries(t, st.pos)
	}
	for _, p := range t.cfg.Pairs {
		known = append(known, entry{key: p[0], value: p[1]})
	}
	self, uid := c.o.System.CurrentUser(), c.o.System.CurrentUID()
	for _, x := range known {
		if acc, err := table.ParseAccount(x.value); err == nil && acc.UID != uid {
			c.cannotf(st.pos, "action %q delivers to %s as uid %d: an ordinary user (%s) cannot change identity", a.Name, x.key, acc.UID, self)
			return
		}
	}
	if t.cfg.Type == config.TableDynamic || t.cfg.InFile() {
		c.warnf(st.pos, "action %q: as an ordinary user only mail for users with the identity of %s, uid %d, is delivered", a.Name, self, uid)
	}
}

// relaying gathers the options of one relay action.
type relaying struct {
	c     *checker
	r     *config.Relay
	seen  *once
	label *token // of a URL written here that names credentials
}

func (s *relaying) option(o *option) {
	c, r := s.c, s.r
	const where = " for this dispatcher"
	if !c.once(s.seen, o.key, o.pos, where) {
		return
	}
	switch o.key {
	case "helo":
		r.Helo = c.hostname(o.arg)
	case "helo-src":
		r.HeloSrc = c.table(o.table, use{what: "helo-src", hash: true, service: "addrname"})
	case "pki":
		r.PKI = strings.ToLower(o.arg.text)
		c.refs = append(c.refs, pkiRef{"pki", o.arg})
	case "ca":
		r.CA = strings.ToLower(o.arg.text)
		c.refs = append(c.refs, pkiRef{"ca", o.arg})
	case "ciphers":
		r.Ciphers = c.ciphers(o.arg)
	case "protocols":
		c.protocols(o.arg)
		r.Protocols = o.arg.text
	case "src":
		r.Src = c.table(o.table, use{what: "source", list: true, hash: true, service: "source"})
	case "mail-from":
		r.MailFrom = o.arg.text
		if strings.Trim(o.arg.text, "@ ") == "" || strings.ContainsAny(o.arg.text, " <>") {
			c.errorf(o.arg.pos, "mail-from: %q is no address", o.arg.text)
		}
	case "backup":
		s.backup(o)
	case "host", "domain", "by-sender":
		s.destination(o)
	case "tls":
		r.TLS, r.NoVerify = true, o.sub == "no-verify"
	case "auth":
		s.auth(o)
	case "filter":
		r.Filter = c.filterNames(o)
		c.relayFilter(r.Filter, o)
	case "hold":
		r.Hold = c.hold(o.list)
	case "prefer":
		r.Prefer = o.sub
	case "srs":
		r.SRS = true
		if c.cfg.SRS.Key == "" {
			c.errorf(o.pos, "an srs key is required for srs, write above: srs key \"SECRET\"")
		}
	}
}

// hold reads the windows in which held mail leaves.
func (c *checker) hold(list []*token) *config.Hold {
	h := &config.Hold{}
	for i, t := range list {
		w, err := config.ParseWindow(t.text)
		switch {
		case err != nil:
			c.errorf(t.pos, "hold: invalid window: %s, %v", t.text, err)
		case i == config.MaxWindows:
			c.errorf(t.pos, "hold: too many windows, at most %d", config.MaxWindows)
		case i < config.MaxWindows:
			h.Windows = append(h.Windows, w)
		}
	}
	return h
}

func (s *relaying) backup(o *option) {
	switch {
	case s.seen.has("host"):
		s.c.errorf(o.pos, "backup and host are mutually exclusive")
	case s.seen.has("domain"):
		s.c.errorf(o.pos, "backup and domain are mutually exclusive")
	case s.seen.has("by-sender"):
		s.c.errorf(o.pos, "backup and by-sender are mutually exclusive")
	}
	s.r.Backup = true
	if o.arg != nil {
		s.r.BackupMX = o.arg.text
	}
}

func (s *relaying) destination(o *option) {
	c := s.c
	switch {
	case s.seen.has("backup"):
		c.errorf(o.pos, "backup and %s are mutually exclusive", o.key)
		return
	case s.seen.has("host") && s.seen.has("domain"):
		c.errorf(o.pos, "host mapping already specified for this dispatcher")
		return
	}
	u := use{what: "relayhost", list: true, service: "relayhost"}
	if o.key != "host" {
		u = use{what: "relayhost", hash: true, service: "domainhost"}
	}
	t := c.table(o.table, u)
	switch o.key {
	case "domain":
		s.r.Domain = t
	case "by-sender":
		s.r.Sender = t
	default:
		s.r.Host = t
	}
	if info := c.tableNamed(t); info != nil && info.inline != nil {
		urls := info.inline.keys
		if o.key != "host" {
			urls = info.inline.values
		}
		for _, t := range urls {
			s.url(t)
		}
	}
}

// url notes what a URL written in the configuration asks of the action. That it
// is one has been checked with the table.
func (s *relaying) url(t *token) {
	u, err := config.ParseRelayURL(t.text)
	if err != nil {
		return
	}
	if u.Label != "" && s.label == nil {
		s.label = t
	}
	if config.IsOldRelayURL(t.text) {
		s.c.warnf(t.pos, "%s is written as in an older release, read as %s", t.text, u)
	}
}

func (s *relaying) auth(o *option) {
	c := s.c
	if !s.seen.has("host") && !s.seen.has("domain") && !s.seen.has("by-sender") {
		c.errorf(o.pos, "auth may not be specified without host, which stands before it")
		return
	}
	s.r.Auth = c.table(o.table, use{what: "auth", hash: true, service: "login"})
	c.secretTable(o.table)
}

func (s *relaying) finish() {
	if s.label != nil && !s.seen.has("auth") {
		s.c.errorf(s.label.pos, "invalid url: %s: a label needs credentials, add: auth <table>", s.label.text)
	}
}

// secretTable warns of passwords in a file that others can read.
func (c *checker) secretTable(e *tableExpr) {
	if e.ref == nil {
		c.secretInFile(e.pos)
		return
	}
	t := c.tables[e.ref.text]
	switch {
	case t == nil:
	case t.inline != nil:
		c.secretInFile(t.pos)
	case strings.HasPrefix(t.cfg.Param, "/"):
		fi, err := c.o.System.Stat(t.cfg.Param)
		if err == nil && fi.Mode.Perm()&0o004 != 0 {
			c.warnf(t.pos, "%s holds secrets and is readable by others (mode %04o), chmod 640 it",
				t.cfg.Param, fi.Mode.Perm())
		}
	}
}

// relayFilter warns of filters that have no part in a session to another host.
func (c *checker) relayFilter(names []string, o *option) {
	for _, n := range names {
		members := c.cfg.Filters[n].Chain
		if members == nil {
			members = []string{n}
		}
		for _, m := range members {
			if f := c.cfg.Filters[m]; f != nil && f.Phase != "" {
				c.warnf(o.pos, "filter %s decides in sessions with clients, it has no effect on relaying", m)
			}
		}
	}
}
