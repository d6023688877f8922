package scheduler

import (
	"slices"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// holdOf says whether an action holds its mail back, and until when that stays
// so.
func holdOf(c *config.Config, action string, now time.Time) (held bool, until time.Time) {
	a := c.Actions[action]
	if a == nil || a.Relay == nil || a.Relay.Hold == nil {
		return false, time.Time{}
	}
	open, until := a.Relay.Hold.Open(now.Local())
	return !open, until
}

// maxReleases bounds the domains that are released for a time. Ours.
const maxReleases = 1000

// release is a domain whose mail an operator lets leave for a time.
type release struct {
	domain string // a pattern
	until  time.Time
}

// release lets the mail of domains leave for a time, or no longer, and says how
// many patterns that are let. What waits already is scheduled by who asks.
func (s *state) release(now time.Time, domain string, d time.Duration) int64 {
	s.releases = slices.DeleteFunc(s.releases, func(r release) bool { return r.domain == domain || !r.until.After(now) })
	if d > 0 && len(s.releases) < maxReleases {
		s.releases = append(s.releases, release{domain, now.Add(d)})
	}
	return int64(len(s.releases))
}

// isReleased reports whether mail for a domain may leave for now.
func (s *state) isReleased(now time.Time, domain string) bool {
	return slices.ContainsFunc(s.releases, func(r release) bool {
		return now.Before(r.until) && mail.MatchPattern(r.domain, domain)
	})
}
