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
		looked := 0
		for d, s := range e.stats { // in random order: one goes, and old ones with it
			if looked++; looked > 100 {
				break
			}
			if looked == 1 || now.Sub(s.at) > hoststatKeep {
				delete(e.stats, d)
			}
		}
	}
	e.stats[domain] = hoststat{now, line}
}
