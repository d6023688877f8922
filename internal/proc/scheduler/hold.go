package scheduler

import (
	"slices"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
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

// release is a command to release a domain for a time, or no longer, that
// counts once the queue has made it durable.
type release struct {
	imsg.Releases
	reply func(imsg.Msg)
}

// release has the queue keep that mail of a domain may leave for a time, or no
// longer. What waits already is scheduled by who asks.
func (s *state) release(now time.Time, m *imsg.SchedCommand, reply func(imsg.Msg)) {
	list := s.releases
	if n := len(s.releasing); n > 0 {
		list = s.releasing[n-1].List
	}
	list = slices.DeleteFunc(slices.Clone(list), func(r imsg.DomainRelease) bool { return r.Domain == m.Domain || !r.Until.After(now) })
	if m.Time > 0 {
		list = append(list, imsg.DomainRelease{Domain: m.Domain, Until: now.Add(m.Time)})
	}
	if !s.toldReleases || len(list) > imsg.MaxReleases {
		reply(&imsg.Count{})
		return
	}
	if len(list) == 0 && len(s.releases) == 0 && len(s.releasing) == 0 {
		reply(&imsg.Count{N: 1}) // nothing was kept, and nothing is to be
		return
	}
	// The number tells answers to us from those to who was here before.
	s.lastRelease = max(s.lastRelease+1, uint64(now.UnixNano()))
	r := release{imsg.Releases{Number: s.lastRelease, List: list}, reply}
	s.releasing = append(s.releasing, r)
	s.out = append(s.out, &r.Releases)
}

// releasesKept takes what the queue has kept: from before, when it is new to us
// or we to it, and what we had it keep.
func (s *state) releasesKept(m *imsg.Releases) {
	if m.Number == 0 && !s.toldReleases {
		s.releases, s.toldReleases = m.List, true
	}
	for i, r := range s.releasing {
		if r.Number == m.Number {
			s.releases = m.List
			for _, r := range s.releasing[:i+1] { // it holds those before
				r.reply(&imsg.Count{N: 1})
			}
			s.releasing = slices.Delete(s.releasing, 0, i+1)
			return
		}
	}
}

// abandonReleases answers those who wait that theirs is not known to be kept.
func (s *state) abandonReleases() {
	for _, r := range s.releasing {
		r.reply(&imsg.Count{})
	}
	s.releasing, s.releases, s.toldReleases = nil, nil, false
}

// isReleased reports whether mail for a domain may leave for now.
func (s *state) isReleased(now time.Time, domain string) bool {
	return slices.ContainsFunc(s.releases, func(r imsg.DomainRelease) bool {
		return now.Before(r.Until) && mail.MatchPattern(r.Domain, domain)
	})
}
