package mta

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// DurationText is "1d2h3m4s" without zero parts, "0s" for less than a second.
func DurationText(d time.Duration) string {
	s := int64(d / time.Second)
	if s <= 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		n    int64
		name string
	}{{86400, "d"}, {3600, "h"}, {60, "m"}, {1, "s"}} {
		if s >= u.n {
			fmt.Fprintf(&b, "%d%s", s/u.n, u.name)
			s %= u.n
		}
	}
	return b.String()
}

// since is how long ago t was; "-" for never.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return DurationText(now.Sub(t))
}

// until is how far away t is; "-" when it is not planned.
func until(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return DurationText(t.Sub(now))
}

// ShowHosts are the lines of `smtpctl show hosts`.
func (e *Engine) ShowHosts() []string {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, a := range slices.SortedFunc(maps.Keys(e.hosts), netip.Addr.Compare) {
		h := e.hosts[a]
		name := h.ptr
		if name == "" && h.asked {
			name = addrText(a)
		}
		if name == "" {
			name = "(null)"
		}
		lines = append(lines, fmt.Sprintf("%s %s refcount=%d nconn=%d lastconn=%s",
			addrText(a), name, h.refs, h.n, since(h.last, now)))
	}
	return lines
}

// ShowHoststats are the lines of `smtpctl show hoststats`.
func (e *Engine) ShowHoststats() []string {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, d := range slices.Sorted(maps.Keys(e.stats)) {
		if s := e.stats[d]; now.Sub(s.at) <= hoststatKeep {
			lines = append(lines, fmt.Sprintf("%s|%d|%s", d, s.at.Unix(), s.line))
		}
	}
	return lines
}

// ShowRelays are the lines of `smtpctl show relays`.
func (e *Engine) ShowRelays() []string {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, r := range slices.SortedFunc(maps.Values(e.relays), func(a, b *relay) int { return cmp.Compare(a.id, b.id) }) {
		wait := ""
		switch {
		case r.preparing && r.authLabel != "":
			wait = "secret"
		case r.preparing && r.isHost:
			wait = "preference"
		case r.preparing:
			wait = "MX"
		case r.tasks.n > 0:
			wait = "connector"
		}
		if r.held > 0 {
			wait += "ONHOLD"
		}
		lines = append(lines, fmt.Sprintf("%s refcount=%d ntask=%d nconn=%d lastconn=%s timeout=%s wait=%s",
			r.name, r.n+1, r.tasks.n, r.n, since(r.last, now), until(r.wakeAt, now), wait))
		for _, a := range slices.SortedFunc(maps.Keys(r.connectors), netip.Addr.Compare) {
			c := r.connectors[a]
			lines = append(lines, fmt.Sprintf("  connector %s refcount=%d nconn=%d lastconn=%s timeout=- flags=%s",
				c.source, c.n, c.n, since(c.last, now), c.flags))
		}
	}
	return lines
}

// ShowWaits says of each relay that has tasks waiting what they wait for, and
// which envelopes they are: lines "reason: id id ...", each of one relay and of
// at most waitsPerLine envelopes.
func (e *Engine) ShowWaits() []string {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, r := range slices.SortedFunc(maps.Values(e.relays), func(a, b *relay) int { return cmp.Compare(a.id, b.id) }) {
		var ids []string
		for t := r.tasks.first; t != nil; t = t.next {
			for _, v := range t.envs {
				ids = append(ids, v.ID.String())
			}
		}
		why := r.waitsFor(now)
		for part := range slices.Chunk(ids, waitsPerLine) {
			lines = append(lines, why+": "+strings.Join(part, " "))
		}
	}
	return lines
}

// waitsPerLine bounds a line of ShowWaits. Ours.
const waitsPerLine = 100

// waitsFor says in a few words why the tasks of a relay wait: for a table, the
// name system, a limit, a time or a route. There is no colon in it.
func (r *relay) waitsFor(now time.Time) string {
	var all flags
	for _, c := range r.connectors {
		if !c.stale {
			all |= c.flags
		}
	}
	switch limits := all &^ (delayed | probing) & waits; {
	case r.preparing && r.authLabel != "":
		return "a table, with credentials for " + r.name
	case r.preparing:
		return "the name system, about " + r.name
	case r.notBefore.After(now) || r.mayMail(now).After(now):
		return "a limit, the time between mails to " + r.name
	case limits != 0:
		return "a limit, " + limits.String() + " of " + r.name
	case r.n > 0:
		return "a limit, a free connection to " + r.name
	case all&waits != 0:
		return "a limit, the time between connections to " + r.name
	}
	return "a route to " + r.name
}

// ShowRoutes are the lines of `smtpctl show routes`.
func (e *Engine) ShowRoutes() []string {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, rt := range slices.SortedFunc(maps.Values(e.routes), func(a, b *route) int { return cmp.Compare(a.id, b.id) }) {
		mark := func(on bool, c string) string {
			if on {
				return c
			}
			return "-"
		}
		when := "-"
		if rt.disabled {
			when = until(rt.until, now)
		}
		lines = append(lines, fmt.Sprintf("%d. %s %s%s%s%s nconn=%d nerror=%d penalty=%d timeout=%s", rt.id, rt,
			mark(rt.fresh, "N"), mark(rt.disabled, "D"), mark(rt.disabled && rt.n > 0, "Q"),
			mark(rt.dropping && rt.n == 0, "K"), rt.n, rt.errors, rt.penalty, when))
	}
	return lines
}

// ShowBlocks are the lines of `smtpctl show mta paused`.
func (e *Engine) ShowBlocks() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for b := range e.blocks {
		d := b.domain
		if d == "" {
			d = "*"
		}
		lines = append(lines, addrText(b.source)+" -> "+d)
	}
	slices.Sort(lines)
	return lines
}

// ShowTLS explains how mail for a domain would use TLS under each relay action.
// It asks tables and the name system, and so may block until ctx ends.
func (e *Engine) ShowTLS(ctx context.Context, domain string) []string {
	e.mu.Lock()
	actions := e.cfg.Actions
	e.mu.Unlock()
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(actions)) {
		if a := actions[name]; a.Relay != nil {
			lines = append(lines, e.explainTLS(ctx, name, a.Relay, lower(domain))...)
		}
	}
	return lines
}

func (e *Engine) explainTLS(ctx context.Context, name string, a *config.Relay, domain string) []string {
	facts := tlsFacts{scheme: config.SchemeSMTP, tls: a.TLS, noVerify: a.NoVerify}
	d := destination{name: domain}
	u, isHost, fail := e.smarthost(ctx, a, domain, mail.Address{})
	if fail == nil && !isHost {
		facts.host, _ = e.trustIn(ctx, domain) // why not is said by resolve
		facts.domain, fail = e.tlsWish(ctx, domain)
	}
	if fail != nil {
		return []string{"action " + name + ": " + fail.line()}
	}
	if isHost {
		facts.scheme, d = u.Scheme, destination{name: u.Host, isHost: true}
	}
	p, fail := decideTLS(facts)
	if fail != nil {
		return []string{"action " + name + ": mail is put off: " + p.why}
	}
	lines := []string{"action " + name + ": " + p.String() + ": " + p.why}
	facts.requireTLS = true
	switch q, fail := decideTLS(facts); {
	case fail != nil && fail.code/100 == 5:
		lines = append(lines, "  with REQUIRETLS: mail is refused: "+q.why)
	case fail != nil:
		lines = append(lines, "  with REQUIRETLS: mail is put off: "+q.why)
	case q != p:
		lines = append(lines, "  with REQUIRETLS: "+q.String()+", to hosts that offer it")
	}
	found, fail := resolve(ctx, e.opt.DNS, d)
	if fail != nil {
		return append(lines, "  "+fail.line())
	}
	for _, c := range found {
		check := "any certificate"
		switch {
		case p.need == tlsNever:
			check = "in clear"
		case p.verify:
			check = "certificate must be for " + c.name
		}
		lines = append(lines, fmt.Sprintf("  %d %s %s: %s", c.pref, c.name, addrText(c.addr), check))
	}
	return lines
}
