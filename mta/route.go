package mta

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Penalties of routes that fail.
const (
	penaltyBase = 15 * time.Second
	penaltyMax  = time.Hour
	// routeKeep is how long an unused route is remembered as good. Ours.
	routeKeep = time.Minute
)

// conns counts connections and remembers when the last was begun.
type conns struct {
	n       int
	slow    int       // of them, those that are not counted against a limit
	last    time.Time // zero: never
	waiters waitList  // for a place
}

func (c *conns) open(now time.Time) { c.n++; c.last = now }

// host is an address we send to.
type host struct {
	conns
	addr  netip.Addr
	ptr   string // reverse name; empty: not asked yet, or none
	asked bool
	refs  int // relays and routes that know it
}

// String is "192.0.2.1 (mx.example.net)".
func (h *host) String() string { return addrText(h.addr) + " (" + h.name() + ")" }

// name is the reverse name, or the address when there is none.
func (h *host) name() string {
	if h.ptr == "" {
		return addrText(h.addr)
	}
	return h.ptr
}

// remoteName is what a notice calls a host that was found by a name and has an
// address: both, the address in RFC 3464's comment. One that was given by its
// address has its reverse name, if any.
func remoteName(name, reverse string, addr netip.Addr) string {
	if _, err := netip.ParseAddr(strings.TrimPrefix(strings.Trim(name, "[]"), "IPv6:")); err == nil {
		name = reverse
	}
	if name != addrText(addr) {
		return name + " (" + addr.String() + ")"
	}
	if addr.Is6() {
		return "[IPv6:" + addr.String() + "]"
	}
	return "[" + addr.String() + "]"
}

// addrText is an address as the log has it: IPv6 in brackets.
func addrText(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// source is an address we send from; not valid: the system's choice.
type source struct {
	conns
	addr netip.Addr
	refs int // connectors that use it
}

// String is the address, or "[]".
func (s *source) String() string {
	if !s.addr.IsValid() {
		return "[]"
	}
	return addrText(s.addr)
}

// routeKey is all that a failure may depend on.
type routeKey struct {
	src, dst netip.Addr
	port     uint16
	need     tlsNeed
	verify   bool
	tls      tlsTerms
}

// tlsTerms is what else a relay that has to have TLS asks of it: a host that
// does not meet it may do for others.
type tlsTerms struct {
	name                        string // of the certificate, when it is verified
	ca, pki, ciphers, protocols string
}

// route is the way from a source to a host.
type route struct {
	conns
	key      routeKey
	id       uint64
	src      *source
	host     *host
	fresh    bool // was never ready: one connection at a time
	ready    int  // connections that got ready and are open
	disabled bool
	smtp     bool // disabled because of what the host said
	until    time.Time
	penalty  int
	errors   int
	lastdisc time.Time
	dropping bool // on the agenda to be forgotten
	cause    cause
	cap      int // connections the host has shown to bear; 0: not known
}

// String is "[] <-> 192.0.2.1 (mx.example.net)".
func (r *route) String() string { return r.src.String() + " <-> " + r.host.String() }

func (e *Engine) host(addr netip.Addr) *host {
	h := e.hosts[addr]
	if h == nil {
		h = &host{addr: addr}
		e.hosts[addr] = h
		e.gauge("mta.host", len(e.hosts))
	}
	return h
}

func (e *Engine) releaseHost(h *host) {
	if h.refs--; h.refs == 0 {
		delete(e.hosts, h.addr)
		e.gauge("mta.host", len(e.hosts))
	}
}

func (e *Engine) source(addr netip.Addr) *source {
	s := e.sources[addr]
	if s == nil {
		s = &source{addr: addr}
		e.sources[addr] = s
		e.gauge("mta.source", len(e.sources))
	}
	return s
}

func (e *Engine) releaseSource(s *source) {
	if s.refs--; s.refs == 0 {
		delete(e.sources, s.addr)
		e.gauge("mta.source", len(e.sources))
	}
}

// route finds or makes a route.
func (e *Engine) route(key routeKey) *route {
	rt := e.routes[key]
	if rt == nil {
		e.lastRoute++
		rt = &route{key: key, id: e.lastRoute, src: e.source(key.src), host: e.host(key.dst), fresh: true}
		rt.src.refs++
		rt.host.refs++
		e.routes[key] = rt
		e.gauge("mta.route", len(e.routes))
	}
	return rt
}

// disable takes a route out of use after a failure, the longer the more often
// it failed.
func (e *Engine) disable(rt *route, why cause, smtp bool, now time.Time) {
	rt.penalty++
	delay := min(penaltyBase*time.Duration(rt.penalty*rt.penalty), penaltyMax)
	rt.cause, rt.smtp, rt.cap = why, smtp, 0
	if until := now.Add(delay); until.After(rt.until) {
		rt.until = until
	}
	if rt.disabled {
		return
	}
	rt.disabled = true
	e.opt.Observer.Note(fmt.Sprintf("smtp-out: Disabling route %s for %s", rt, DurationText(delay)))
	e.planEnable(rt)
}

func (e *Engine) planEnable(rt *route) {
	e.agenda.add(rt.until, func(now time.Time) {
		switch {
		case !rt.disabled:
		case rt.until.After(now): // failed again, or was resumed and failed
			e.planEnable(rt)
		default:
			e.enable(rt, now)
		}
	})
}

// enable takes a route back into use; the next connection is a probe.
func (e *Engine) enable(rt *route, now time.Time) {
	if !rt.disabled {
		return
	}
	rt.disabled, rt.fresh, rt.errors = false, true, 0
	rt.until = time.Time{}
	if rt.penalty > 0 {
		rt.penalty--
	}
	e.opt.Observer.Note("smtp-out: Enabling route " + rt.String())
	e.planDrop(rt, now)
	e.wake(&rt.conns)
}

// planDrop has a route forgotten some time after its last use.
func (e *Engine) planDrop(rt *route, now time.Time) {
	if rt.dropping || rt.n > 0 || rt.disabled {
		return
	}
	rt.dropping = true
	e.agenda.add(now.Add(routeKeep), func(now time.Time) {
		rt.dropping = false
		if rt.n > 0 || rt.disabled {
			return
		}
		if now.Sub(rt.lastdisc) < routeKeep {
			e.planDrop(rt, now)
			return
		}
		delete(e.routes, rt.key)
		e.gauge("mta.route", len(e.routes))
		e.releaseHost(rt.host)
		e.releaseSource(rt.src)
	})
}

// block is what `smtpctl pause mta from SOURCE for DOMAIN` blocks; an empty
// domain means all.
type block struct {
	source netip.Addr
	domain string
}

// Block stops, or allows again, the relaying from a source address to a domain;
// an empty domain means all.
func (e *Engine) Block(on bool, src netip.Addr, domain string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	b := block{src.Unmap(), lower(domain)}
	if on {
		e.blocks[b] = struct{}{}
		return
	}
	delete(e.blocks, b)
	for _, r := range e.relays {
		e.drain(r)
	}
}

func (e *Engine) blocked(src netip.Addr, domain string) bool {
	if len(e.blocks) == 0 {
		return false
	}
	_, all := e.blocks[block{src, ""}]
	_, one := e.blocks[block{src, domain}]
	return all || one
}

// Resume takes the route of that number, as Routes prints it, back into use.
func (e *Engine) Resume(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, rt := range e.routes {
		if rt.id == id {
			e.enable(rt, time.Now())
		}
	}
}
