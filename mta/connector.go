package mta

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// connector opens the connections of one relay from one source.
type connector struct {
	conns
	relay  *relay
	source *source
	flags  flags // why the last look found no route
	stale  bool  // the source is no longer wanted
}

// drain gives the tasks of a relay to its idle sessions, and opens connections
// for the rest as limits allow. It is called after whatever may have changed
// what the relay can do.
func (e *Engine) drain(r *relay) {
	now := time.Now()
	for len(r.idle) > 0 {
		t := e.popTask(r)
		if t == nil {
			break
		}
		s := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		e.start(s, t)
	}
	for !e.stopping && r.wantsConnection() && !r.preparing {
		switch {
		case r.failed != nil && r.until.After(now) && r.n == 0:
			e.failTasks(r, *r.failed)
		case r.notBefore.After(now):
			e.wakeLater(r, r.notBefore, now)
			return
		case r.mayMail(now).After(now.Add(slowConnect)):
			e.wakeLater(r, r.mayMail(now), now)
			return
		case r.prepared.IsZero() || now.Sub(r.prepared) > refresh:
			e.prepare(r)
		case !e.connect(r, now):
			e.shelve(r)
			return
		}
	}
	e.shelve(r)
	if r.tasks.n == 0 {
		e.dropIfDone(r, now)
	}
}

// wantsConnection reports whether another connection would be of use: there
// are tasks that no connection, ready or on its way, is there for. From the
// third on, a connection is worth it for two tasks.
func (r *relay) wantsConnection() bool {
	free := r.n - r.ready - r.slow + len(r.idle)
	return r.tasks.n > free && (r.n <= 2 || r.tasks.n/2 > r.n)
}

// connect opens one connection, from the source that has the fewest. When there
// is no way, now or soon, and nothing under way, the tasks fail. It reports
// whether to go on.
func (e *Engine) connect(r *relay, now time.Time) bool {
	var best *connector
	var way *route
	var to candidate
	var at time.Time
	all := flags(0)
	for _, c := range r.connectors {
		if c.stale || (best != nil && c.n >= best.n) {
			continue
		}
		rt, cand, g := e.findRoute(r, c, now)
		c.flags = g.flags
		if rt != nil {
			best, way, to = c, rt, cand
			continue
		}
		all |= g.flags
		if g.flags&waits != 0 && (at.IsZero() || g.at.Before(at)) {
			at = g.at
		}
	}
	if best != nil {
		e.open(r, best, way, to, now)
		return true
	}
	if all&waits != 0 {
		e.wakeLater(r, at, now)
		return false
	}
	if r.n > 0 {
		return false // what is open or on its way may take the tasks
	}
	f := e.noRoute(r, all)
	for _, c := range r.connectors {
		e.opt.Observer.Note("smtp-out: No valid route for " + connectorName(c.source, r))
	}
	e.failTasks(r, f)
	return false
}

// noRoute is the failure that the flags of all connectors add up to.
func (e *Engine) noRoute(r *relay, all flags) failure {
	switch {
	case all&errFamily != 0 && all&^errFamily == 0:
		return failFamily
	case all&(errRouteNet|errRouteSMTP) != 0:
		f := failNetwork
		f.detail, f.enh = e.causes(r)
		return f
	case all&errBlocked != 0:
		return failBlocked
	case all&errMX != 0:
		detail, _ := e.causes(r)
		return failRequireTLS.with(detail)
	}
	return failNoRoute
}

// maxCauses is how many hosts a failure names. Ours: it is one line.
const maxCauses = 4

// causes says of the hosts of a relay that are out of use why, "mx.example.net
// (192.0.2.1): IO Error: Connection refused; ...", and the code of the best of
// them. Another relay may have found it.
func (e *Engine) causes(r *relay) (string, [3]uint8) {
	var all []string
	var enh [3]uint8
	for _, cand := range r.candidates {
		for _, c := range r.connectors {
			why, out := r.unfit[cand.addr]
			if rt := e.routes[r.routeKey(c, cand)]; !out && rt != nil && rt.disabled {
				why, out = rt.cause, true
			}
			line := remoteName(cand.name, e.hosts[cand.addr].name(), cand.addr) + ": " + why.text
			if !out || c.stale || slices.Contains(all, line) {
				continue
			}
			if all = append(all, line); len(all) == 1 {
				enh = why.enh
			}
		}
	}
	if more := len(all) - maxCauses; more > 0 {
		all = append(all[:maxCauses], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(all, "; "), enh
}

// wakeLater looks at the relay again at that time, or when a limit may have
// room.
func (e *Engine) wakeLater(r *relay, at, now time.Time) {
	if !at.After(now) {
		at = now.Add(limitPoll)
	}
	if !r.wakeAt.IsZero() && !r.wakeAt.After(at) {
		return
	}
	r.wakeAt = at
	e.agenda.add(at, func(now time.Time) {
		if !r.wakeAt.IsZero() && !r.wakeAt.After(now) {
			r.wakeAt = time.Time{}
			e.drain(r)
		}
	})
}

// findRoute picks where c connects to next: of the best preference that has
// anything to offer, the host with the fewest connections. Worse preferences
// are for when the better ones are out of use, not for when they are busy.
func (e *Engine) findRoute(r *relay, c *connector, now time.Time) (*route, candidate, gate) {
	g := relayGate(r, c, now)
	if !g.open() {
		if g.flags&limitSource != 0 {
			c.source.waiters.add(r)
			r.crowded = true
			if !now.Before(r.startup) {
				e.spare(r)
			}
			e.makeRoom(func(s *session) bool { return s.connector.source == c.source })
		}
		if g.flags&limitGroup != 0 {
			r.group.waiters.add(r)
			e.makeRoom(func(s *session) bool { return s.group == r.group })
		}
		if g.flags&limitDomain != 0 {
			r.dom.waiters.add(r)
			e.makeRoom(func(s *session) bool { return s.relay.dom == r.dom })
		}
		return nil, candidate{}, g
	}
	if e.blocked(c.source.addr, r.domain) {
		return nil, candidate{}, gate{flags: errBlocked}
	}
	var best *host
	var to candidate
	for i, cand := range r.candidates {
		if i > 0 && cand.rank != r.candidates[i-1].rank && (best != nil || g.flags&waits != 0) {
			break
		}
		if !familyFits(c.source.addr, cand.addr, r.limits.Family) {
			g.flags |= errFamily
			continue
		}
		if _, unfit := r.unfit[cand.addr]; unfit {
			g.flags |= errMX
			continue
		}
		h := e.hosts[cand.addr] // the relay has a reference on it
		rt := e.routes[r.routeKey(c, cand)]
		rg := routeGate(rt, h, r.limits, now)
		if rg.open() {
			if best == nil || h.n < best.n {
				best, to = h, cand
			}
			continue
		}
		e.waitFor(r, rt, h, rg.flags)
		g.flags |= rg.flags
		if !rg.at.IsZero() && (g.at.IsZero() || rg.at.Before(g.at)) {
			g.at = rg.at
		}
	}
	if best != nil {
		return e.route(r.routeKey(c, to)), to, gate{}
	}
	return nil, to, g
}

func (r *relay) routeKey(c *connector, to candidate) routeKey {
	k := routeKey{src: c.source.addr, dst: to.addr, port: r.port, need: r.policy.need, verify: r.policy.verify}
	if k.need == tlsRequired || k.need == tlsImplicit {
		k.tls = tlsTerms{ca: r.ca, pki: r.pki, ciphers: r.ciphers, protocols: r.protocols}
	}
	if k.verify {
		k.tls.name = to.name
	}
	return k
}

// waitFor has the relay wait for a place on a route or at a host, and makes one
// if it can.
func (e *Engine) waitFor(r *relay, rt *route, h *host, f flags) {
	if f&(limitRoute|probing) != 0 {
		rt.waiters.add(r)
		e.makeRoom(func(s *session) bool { return s.route == rt })
	}
	if f&limitHost != 0 {
		h.waiters.add(r)
		e.makeRoom(func(s *session) bool { return s.route.host == h })
	}
}

// makeRoom ends one idle connection that stands in the way of another relay.
func (e *Engine) makeRoom(inTheWay func(*session) bool) {
	for s := range e.idle {
		if inTheWay(s) {
			e.unidle(s)
			e.start(s, nil)
			return
		}
	}
}
