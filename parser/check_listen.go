package parser

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"smtpd/internal/config"
	"smtpd/table"
)

// Bounds of a listener, those of OpenSMTPD.
const (
	maxTag = 32
	maxPKI = 32
)

// listen resolves where a listener listens and what it offers.
func (c *checker) listen(ctx context.Context, st *stmt, n *listenStmt) {
	l := &config.Listener{Pos: c.at(st.pos), Name: n.on.text, DSN: true, IsSocket: n.socket}
	s := &listening{c: c, l: l, seen: &once{}, port: -1}
	for _, o := range n.opts {
		s.option(o)
	}
	if n.socket {
		if c.socketAt.line != 0 {
			c.errorf(st.pos, "socket listener already configured in line %d", c.socketAt.line)
			return
		}
		c.socketAt = st.pos
		c.cfg.Socket = l
		return
	}
	s.consistent(n)
	if s.port < 0 {
		s.port = 25
		if l.TLS == config.TLSImplicit {
			s.port = 465
		}
	}
	addrs := c.resolve(ctx, n.on, s.family)
	if addrs == nil && c.mayWait(n.on.text) {
		c.cfg.Pending = append(c.cfg.Pending, &config.Pending{Listener: l, Port: uint16(s.port), Family: s.family})
	}
	for _, a := range addrs {
		c.bind(l, netip.AddrPortFrom(a, uint16(s.port)), n.on)
	}
}

// bind adds one address of a listener. One that is taken already is left out,
// as it could not be opened twice.
func (c *checker) bind(l *config.Listener, at netip.AddrPort, on *token) {
	if c.o.Unprivileged && !c.o.Given && !c.o.System.MayListen(at.Port()) {
		c.cannotf(on.pos, "port %d: an ordinary user (%s) cannot open it on this system", at.Port(), c.o.System.CurrentUser())
	}
	key := at.String()
	if first, ok := c.bound[key]; ok {
		c.warnf(on.pos, "%s is listened on by line %d already, which alone counts", key, first.line)
		return
	}
	c.bound[key] = on.pos
	one := *l
	one.Addr = at
	c.cfg.Listeners = append(c.cfg.Listeners, &one)
}

// finishListeners opens each address itself where a wildcard would be in the
// way of a listener on one address with the same port.
func (c *checker) finishListeners() {
	var out []*config.Listener
	for _, l := range c.cfg.Listeners {
		if l.TLS != config.TLSNone && l.Ciphers == "" {
			l.Ciphers = c.cfg.SMTP.Ciphers
		}
		if !l.Addr.Addr().IsUnspecified() || !c.sharesPort(l) {
			out = append(out, l)
			continue
		}
		for _, a := range c.cfg.LocalAddrs {
			at := netip.AddrPortFrom(a, l.Addr.Port())
			if _, taken := c.bound[at.String()]; taken || a.Is4() != l.Addr.Addr().Is4() ||
				a.IsLinkLocalUnicast() && a.Is6() {
				continue
			}
			one := *l
			one.Addr = at
			out = append(out, &one)
		}
	}
	c.cfg.Listeners = out
}

func (c *checker) sharesPort(wild *config.Listener) bool {
	return slices.ContainsFunc(c.cfg.Listeners, func(l *config.Listener) bool {
		return l != wild && l.Addr.Port() == wild.Addr.Port() &&
			l.Addr.Addr().Is4() == wild.Addr.Addr().Is4()
	})
}

// listening gathers the options of one listener.
type listening struct {
	c      *checker
	l      *config.Listener
	seen   *once
	family string
	port   int
	tls    pos // of the option that says how
	auth   pos
	pki    pos
}

func (s *listening) once(what string, o *option) bool { return s.c.once(s.seen, what, o.pos, "") }

func (s *listening) option(o *option) {
	c, l := s.c, s.l
	if o.key == "pki" {
		s.pkiName(o)
		return
	}
	what := o.key
	switch o.key {
	case "inet4", "inet6":
		what = "address family"
	case "tls", "tls-require", "smtps":
		what = "TLS mode"
	case "auth", "auth-optional":
		what = "auth"
	}
	if !s.once(what, o) {
		return
	}
	switch o.key {
	case "inet4", "inet6":
		s.family = o.key
	case "port":
		s.port = c.port(o.arg)
	case "filter":
		l.Filter = c.filterNames(o)
	case "tls", "tls-require", "smtps":
		l.TLS, s.tls = config.TLSMode(o.key), o.pos
		l.VerifyPeer = o.sub == "verify"
	case "ciphers":
		l.Ciphers = c.ciphers(o.arg)
	case "protocols":
		c.protocols(o.arg)
		l.Protocols = o.arg.text
	case "ca":
		l.CA = strings.ToLower(o.arg.text)
		c.refs = append(c.refs, pkiRef{"ca", o.arg})
	case "auth", "auth-optional":
		s.authentication(o)
	case "tag":
		l.Tag = c.tag(o.arg)
	case "hostname":
		l.Hostname = c.hostname(o.arg)
	case "hostnames":
		l.Hostnames = c.table(o.table, use{what: "HOSTNAMES", hash: true, service: "addrname"})
	case "senders":
		l.Senders = c.table(o.table, use{what: "SENDERS", hash: true, service: "senders"})
		l.Masquerade = o.sub == "masquerade"
	case "mask-src":
		l.MaskSource = true
	case "received-auth":
		l.ReceivedAuth = true
	case "no-dsn":
		l.DSN = false
	case "proxy-v2":
		l.ProxyV2 = true
		l.ProxyFrom = s.networks(o.list)
	case "repair-newlines":
		l.Repair = true
	case "log-conversation":
		l.LogConversation = true
	case "without":
		l.Without = s.extensions(o.list)
	}
}

// networks are those whose clients may speak for others.
func (s *listening) networks(list []*token) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range list {
		text := strings.NewReplacer("[", "", "]", "").Replace(t.text)
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			s.c.errorf(t.pos, "invalid address or network: %s", t.text)
			continue
		}
		out = append(out, p.Masked())
	}
	return out
}

// canLeaveOut are the extensions that a listener may do without.
var canLeaveOut = []string{"8BITMIME", "SIZE", "DSN", "PIPELINING", "CHUNKING", "BINARYMIME",
	"SMTPUTF8", "REQUIRETLS", "LIMITS", "ENHANCEDSTATUSCODES"}

func (s *listening) extensions(list []*token) []string {
	var out []string
	for _, t := range list {
		name := strings.ToUpper(t.text)
		switch {
		case !slices.Contains(canLeaveOut, name):
			s.c.errorf(t.pos, "unknown extension %q%s, expected one of %s", t.text,
				suggestion(name, canLeaveOut), strings.Join(canLeaveOut, ", "))
		case !slices.Contains(out, name):
			out = append(out, name)
		}
	}
	return out
}

func (s *listening) pkiName(o *option) {
	l := s.l
	name := strings.ToLower(o.arg.text)
	switch {
	case slices.Contains(l.PKI, name):
		s.c.warnf(o.pos, "pki %s is given twice", o.arg.text)
	case len(l.PKI) == maxPKI:
		s.c.errorf(o.pos, "too many pki options, at most %d", maxPKI)
	default:
		s.pki = o.pos
		l.PKI = append(l.PKI, name)
		s.c.refs = append(s.c.refs, pkiRef{"pki", o.arg})
	}
}

func (s *listening) authentication(o *option) {
	s.auth = o.pos
	s.l.Auth, s.l.AuthRequired = true, o.key == "auth"
	switch t := o.table; {
	case t == nil:
	case t.one != nil:
		s.c.errorf(t.pos, "%s takes <table>, found %q, expected <%s>", o.key, t.one.text, t.one.text)
	default:
		s.l.AuthTable = s.c.table(t, use{what: "auth", hash: true, service: "password"})
		s.c.secretTable(t)
	}
}

// consistent checks options against each other.
func (s *listening) consistent(n *listenStmt) {
	switch l := s.l; {
	case l.TLS != config.TLSNone && len(l.PKI) == 0:
		s.c.errorf(n.on.pos, "pki required for tls/smtps, give the listener one: pki NAME")
	case l.TLS == config.TLSNone && l.Auth:
		s.c.errorf(s.auth, "auth requires tls/smtps")
	case l.TLS == config.TLSNone && len(l.PKI) > 0:
		s.c.errorf(s.pki, "pki requires tls/smtps")
	}
}

// builtinPorts are known wherever /etc/services is not.
var builtinPorts = map[string]int{"smtp": 25, "smtps": 465, "submissions": 465, "submission": 587, "lmtp": 24}

// port reads a number or the name of a service.
func (c *checker) port(t *token) int {
	if t.kind == tokNumber || allDigits(t.text) {
		if n := t.number(); n >= 1 && n <= 65535 {
			return int(n)
		}
		c.errorf(t.pos, "invalid port: %s, expected 1 to 65535", t.text)
		return 25
	}
	if c.services == nil {
		c.readServices()
	}
	if n, ok := c.services[t.text]; ok {
		return n
	}
	c.errorf(t.pos, "invalid port: %s is no service that is known here%s", t.text,
		suggestion(t.text, keys(builtinPorts)))
	return 25
}

func (c *checker) readServices() {
	c.services = map[string]int{}
	data, _ := c.o.System.ReadFile("/etc/services", 16<<20) // missing: the built-in names hold
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		number, proto, _ := strings.Cut(f[1], "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || proto != "tcp" {
			continue
		}
		for _, name := range append(f[:1:1], f[2:]...) {
			c.services[name] = int(n)
		}
	}
	for name, n := range builtinPorts {
		c.services[name] = n
	}
}

func (c *checker) tag(t *token) string {
	if len(t.text) > maxTag {
		c.errorf(t.pos, "tag name too long: %q, at most %d characters", t.text, maxTag)
	}
	return t.text
}

func (c *checker) hostname(t *token) string {
	if _, err := table.ParseAddr(t.text); err != nil && !validName(t.text) {
		c.warnf(t.pos, "%q is not a host name", t.text)
	}
	return t.text
}

// tlsProtocols are what protocols may list.
var tlsProtocols = []string{"all", "default", "secure", "legacy", "tlsv1", "tlsv1.0",
	"tlsv1.1", "tlsv1.2", "tlsv1.3"}

// ciphers checks a list of ciphers: something must be left of it.
func (c *checker) ciphers(t *token) string {
	list, err := config.ParseCiphers(t.text)
	for _, w := range list.Unknown {
		c.warnf(t.pos, "unknown cipher %q%s", w, c.diags.suggestion(strings.ToUpper(strings.TrimLeft(w, "!-+")), config.CipherWords()))
	}
	if err != nil {
		c.errorf(t.pos, "invalid ciphers: %v", err)
	}
	return t.text
}

func (c *checker) protocols(t *token) {
	for _, p := range strings.FieldsFunc(t.text, func(r rune) bool { return strings.ContainsRune(",: ", r) }) {
		if !slices.Contains(tlsProtocols, strings.ToLower(strings.TrimPrefix(p, "!"))) {
			c.errorf(t.pos, "invalid protocol: %q%s", p, suggestion(strings.ToLower(p), tlsProtocols))
		}
	}
}

// resolve gives the addresses of what is listened on: an interface or group,
// an address, or a host name. None is an error.
func (c *checker) resolve(ctx context.Context, on *token, family string) []netip.Addr {
	out, addrs := c.addresses(ctx, on, family)
	if len(out) > 0 {
		return out
	}
	var names []string
	words := []string{"egress", "all", "lo0", "localhost", "socket"}
	for _, in := range c.ifs {
		names = append(names, in.Name)
		words = append(append(words, in.Name), in.Groups...)
	}
	why := ""
	switch {
	case len(addrs) > 0:
		why = fmt.Sprintf(", it has no %s address", family)
	case slices.Contains(names, on.text):
		why = ", the interface has no address"
	case on.text == "egress":
		why = ", no interface holds a default route"
	default:
		why = suggestion(on.text, words)
	}
	if c.mayWait(on.text) {
		c.warnf(on.pos, "invalid virtual ip or interface: %s%s; waiting for it", on.text, why)
		return nil
	}
	c.errorf(on.pos, "invalid virtual ip or interface: %s%s", on.text, why)
	return nil
}

func (c *checker) mayWait(word string) bool { return c.o.Wait != nil && c.o.Wait(word) }

// addresses gives those of a family that a word of `listen on` stands for, and
// all of them.
func (c *checker) addresses(ctx context.Context, on *token, family string) (out, addrs []netip.Addr) {
	addrs = c.interfaceAddrs(on.text)
	if addrs == nil {
		if a, err := netip.ParseAddr(strings.Trim(on.text, "[]")); err == nil {
			addrs = []netip.Addr{a.Unmap()}
			if !a.IsUnspecified() && !a.IsLoopback() && !slices.Contains(c.cfg.LocalAddrs, a.Unmap()) {
				c.warnf(on.pos, "no interface has the address %s", a)
			}
		} else if validName(on.text) {
			addrs, _ = c.o.System.LookupHost(ctx, on.text) // not found: reported below
			addrs = c.existing(addrs)
		}
	}
	for _, a := range addrs {
		wrong := family == "inet4" && !a.Is4() || family == "inet6" && a.Is4()
		if !wrong && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, addrs
}

// interfaceAddrs gives the addresses of an interface or group of interfaces;
// nil when the word names neither.
func (c *checker) interfaceAddrs(name string) []netip.Addr {
	var out []netip.Addr
	found := false
	take := func(in *Interface) {
		found = true
		out = append(out, listenable(in)...)
	}
	for i := range c.ifs {
		if in := &c.ifs[i]; in.Name == name || slices.Contains(in.Groups, name) {
			take(in)
		}
	}
	for i := range c.ifs {
		in := &c.ifs[i]
		if !found && name == "lo0" && in.Loopback || name == "egress" && in.Egress && !slices.Contains(in.Groups, name) {
			out = append(out, listenable(in)...)
		}
	}
	if name == "all" && !found {
		out = append(out, netip.IPv4Unspecified())
		if c.hasIPv6() {
			out = append(out, netip.IPv6Unspecified())
		}
	}
	return out
}

func (c *checker) hasIPv6() bool {
	return slices.ContainsFunc(c.cfg.LocalAddrs, netip.Addr.Is6)
}

// listenable leaves out link-local addresses where there are others: they can
// still be tentative, and nobody sends mail to them.
func listenable(in *Interface) []netip.Addr {
	global := slices.ContainsFunc(in.Addrs, func(a netip.Addr) bool {
		return a.Is6() && !a.IsLinkLocalUnicast()
	})
	var out []netip.Addr
	for _, a := range in.Addrs {
		if !(a.Is6() && a.IsLinkLocalUnicast() && global) {
			out = append(out, a)
		}
	}
	return out
}

// existing leaves out loopback addresses that no interface has, as where IPv6
// is off and /etc/hosts does not know it.
func (c *checker) existing(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if !a.IsLoopback() || a.Is4() || slices.Contains(c.cfg.LocalAddrs, a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return addrs
	}
	return out
}
