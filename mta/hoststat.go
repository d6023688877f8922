package mta

import (
	"time"

	"smtpd/internal/mail"
)

// Bounds of what is remembered about destinations.
const (
	hoststatKeep = 4 * time.Hour
	// maxHoststats is ours: what fits a few megabytes.
	maxHoststats = 20000
)

// hoststat is the last thing a domain's host said.
type hoststat struct {
	at   time.Time
	line string
}

// remember keeps the last status of a destination domain.
func (e *Engine) remember(domain, line string, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	domain = lower(mail.Clean(domain, mail.MaxDomain))
	if _, known := e.stats[domain]; !known && len(e.stats) >= maxHoststats {
		for d, s := range e.stats {
			if now.Sub(s.at) > hoststatKeep || len(e.stats) >= maxHoststats {
				delete(e.stats, d)
			}
		}
	}
	e.stats[domain] = hoststat{now, line}
}
