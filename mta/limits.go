package mta

import (
	"net/netip"
	"time"

	"smtpd/internal/config"
)

// limitPoll is when a relay looks again that was stopped by a number of
// connections. Most are woken before, by the end of a connection.
const limitPoll = 5 * time.Second

// flags say why a connector or a candidate cannot be used at the moment, in
// the words of `smtpctl show relays`.
type flags uint16

const (
	errFamily flags = 1 << iota
	errSource
	errMX
	errRouteNet
	errRouteSMTP
	errBlocked
	limitHost
	limitRoute
	limitSource
	limitRelay
	limitConn
	limitDomain
	limitGroup
	delayed // a minimum gap has not passed yet
	probing // a new route has its one connection
)

// waits are the flags that pass by themselves: a relay with one of them waits.
const waits = limitHost | limitRoute | limitSource | limitRelay | limitConn | limitDomain | limitGroup | delayed | probing

var flagNames = []struct {
	f    flags
	name string
}{
	{delayed | probing, "WAIT"}, {errFamily, "ERROR_FAMILY"}, {errSource, "ERROR_SOURCE"},
	{errMX, "ERROR_MX"}, {errRouteNet, "ERROR_ROUTE_NET"}, {errRouteSMTP, "ERROR_ROUTE_SMTP"},
	{errBlocked, "ERROR_BLOCKED"}, {limitHost, "LIMIT_HOST"}, {limitRoute, "LIMIT_ROUTE"},
	{limitSource, "LIMIT_SOURCE"}, {limitRelay, "LIMIT_RELAY"}, {limitConn, "LIMIT_CONN"},
	{limitDomain, "LIMIT_DOMAIN"}, {limitGroup, "LIMIT_GROUP"},
}

func (f flags) String() string {
	s := ""
	for _, n := range flagNames {
		if f&n.f != 0 {
			if s != "" {
				s += ","
			}
			s += n.name
		}
	}
	return s
}

// gate collects why something cannot be done now, and when it can at last.
type gate struct {
	flags flags
	at    time.Time // the latest of the delays; zero: none
}

// check closes the gate when c is at its limit, or was used too short ago.
func (g *gate) check(c *conns, limit int, f flags, delay time.Duration, now time.Time) {
	if limit > 0 && c.n-c.slow >= limit {
		g.flags |= f
	}
	if delay > 0 && !c.last.IsZero() {
		if next := c.last.Add(delay); next.After(now) {
			g.flags |= delayed
			if next.After(g.at) {
				g.at = next
			}
		}
	}
}

func (g *gate) open() bool { return g.flags == 0 }

// relayGate says whether the relay may have another connection from c.
func relayGate(r *relay, c *connector, now time.Time) gate {
	l := r.limits
	var g gate
	g.check(&r.conns, l.MaxConnPerRelay, limitRelay, l.ConnDelayRelay, now)
	g.check(&r.dom.conns, l.MaxConnPerDomain, limitDomain, l.ConnDelayDomain, now)
	g.check(&c.conns, l.MaxConnPerConnector, limitConn, l.ConnDelayConnector, now)
	g.check(&c.source.conns, l.MaxConnPerSource, limitSource, l.ConnDelaySource, now)
	// What the operator asked for holds for connections that are being made too.
	if l.SourceLimitGiven && l.MaxConnPerSource > 0 && c.source.n >= l.MaxConnPerSource {
		g.flags |= limitSource
	}
	if r.group != nil {
		g.check(&r.group.conns, l.MaxConnPerGroup, limitGroup, 0, now)
	}
	return g
}

// routeGate says whether a route to h may have another connection; nil is one
// that was not used yet.
func routeGate(rt *route, h *host, l *config.MTALimits, now time.Time) gate {
	var g gate
	g.check(&h.conns, l.MaxConnPerHost, limitHost, l.ConnDelayHost, now)
	if rt == nil {
		return g
	}
	if rt.disabled {
		if rt.smtp {
			return gate{flags: errRouteSMTP}
		}
		return gate{flags: errRouteNet}
	}
	limit := l.MaxConnPerRoute
	if rt.cap > 0 && (limit == 0 || rt.cap < limit) {
		limit = rt.cap
	}
	g.check(&rt.conns, limit, limitRoute, l.ConnDelayRoute, now)
	if rt.fresh && rt.n > 0 {
		g.flags |= probing
	}
	if rt.errors > 0 && l.ReconnDelayRoute > 0 && rt.n == 0 {
		if next := rt.lastdisc.Add(l.ReconnDelayRoute); next.After(now) {
			g.flags |= delayed
			g.at = next
		}
	}
	return g
}

// waitList is relays that wait for a place, in the order they came.
type waitList struct {
	list []*relay
	in   map[*relay]struct{}
}

// maxWoken is how many relays look again when a place becomes free. Ours: some
// of them may no longer want it.
const maxWoken = 8

func (l *waitList) add(r *relay) {
	if _, waits := l.in[r]; waits {
		return
	}
	if l.in == nil {
		l.in = map[*relay]struct{}{}
	}
	l.in[r] = struct{}{}
	l.list = append(l.list, r)
}

// first is the first relay that still has something to do; nil: none.
func (l *waitList) first() *relay {
	for len(l.list) > 0 && l.list[0].tasks.n == 0 {
		l.drop()
	}
	if len(l.list) == 0 {
		return nil
	}
	return l.list[0]
}

func (l *waitList) drop() {
	delete(l.in, l.list[0])
	l.list[0] = nil
	if l.list = l.list[1:]; len(l.list) == 0 {
		*l = waitList{}
	}
}

// wake has some of those who wait for a place look again.
func (e *Engine) wake(c *conns) {
	for range maxWoken {
		r := c.waiters.first()
		if r == nil {
			return
		}
		c.waiters.drop()
		e.drain(r)
	}
}

// familyFits reports whether a source can reach an address, and the limits
// allow its family.
func familyFits(src, dst netip.Addr, family string) bool {
	switch {
	case family == "inet4" && !dst.Is4(), family == "inet6" && !dst.Is6():
		return false
	}
	return !src.IsValid() || src.Is4() == dst.Is4()
}
