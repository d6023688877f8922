package mta

import (
	"slices"
	"time"

	"smtpd/internal/mail"
)

// Bounds of what is remembered about destinations.
const (
	hoststatKeep = 4 * time.Hour
	// maxHoststats is ours: what fits a few megabytes.
	maxHoststats = 20000
	// maxDeferred bounds the deferred envelopes of all domains. Ours, likewise.
	maxDeferred = 100000
	// retryRest is how long an envelope is let alone after its second attempt,
	// and that by the square of their number later: the success of others is of
	// no use to one whose mailbox is full. Ours.
	retryRest = 10 * time.Second
	// maxRest bounds the square: nothing is remembered for longer.
	maxRest = 40
)

// hoststat is the last thing a domain's host said.
type hoststat struct {
	at   time.Time
	line string
	// deferred are envelopes that are worth another attempt when the domain
	// takes one: those that it deferred, each with the time until which it rests.
	deferred []deferred
}

type deferred struct {
	id   mail.EnvelopeID
	rest time.Time
}

func domainKey(env *mail.Envelope) string {
	return lower(mail.Clean(env.Dest.Domain, mail.MaxDomain))
}

// remember keeps the last status of a destination domain, and the envelope it
// was about when it is deferred.
func (e *Engine) remember(env *mail.Envelope, st *mail.Status, line string, now time.Time) {
	domain := domainKey(env)
	e.mu.Lock()
	defer e.mu.Unlock()
	h, known := e.stats[domain]
	if !known && len(e.stats) >= maxHoststats {
		e.thinStats(now)
	}
	h.at, h.line = now, line
	if st.Temporary() && len(h.deferred) < e.cfg.MTA.MaxDeferred && e.ndeferred < maxDeferred {
		n := time.Duration(min(env.Retry, maxRest))
		h.deferred = append(h.deferred, deferred{env.ID, now.Add(n * n * retryRest)})
		e.ndeferred++
	}
	e.stats[domain] = h
}

// thinStats makes room: one domain goes, and old ones with it.
func (e *Engine) thinStats(now time.Time) {
	looked := 0
	for d, s := range e.stats { // in random order
		if looked++; looked > 100 {
			break
		}
		if looked == 1 || now.Sub(s.at) > hoststatKeep {
			e.ndeferred -= len(s.deferred)
			delete(e.stats, d)
		}
	}
}

// accepts tells that a host took the recipient of env: what its domain deferred
// is worth another attempt.
func (e *Engine) accepts(env *mail.Envelope, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ndeferred == 0 {
		return
	}
	domain := domainKey(env)
	h, ok := e.stats[domain]
	if !ok || len(h.deferred) == 0 {
		return
	}
	var ids []mail.EnvelopeID
	h.deferred = slices.DeleteFunc(h.deferred, func(d deferred) bool {
		if d.rest.After(now) {
			return false
		}
		ids = append(ids, d.id)
		return true
	})
	e.stats[domain] = h
	e.ndeferred -= len(ids)
	if len(ids) > 0 {
		e.opt.Observer.Retry(ids)
	}
}

// undefer forgets an envelope that is tried again. The lock is held.
func (e *Engine) undefer(domain string, id mail.EnvelopeID) {
	h, ok := e.stats[domain]
	if !ok {
		return
	}
	n := len(h.deferred)
	h.deferred = slices.DeleteFunc(h.deferred, func(d deferred) bool { return d.id == id })
	e.ndeferred -= n - len(h.deferred)
	e.stats[domain] = h
}
