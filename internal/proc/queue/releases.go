package queue

import (
	"fmt"
	"strings"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// releasesNote is the note of the store that has the domains which an operator
// released for a time: a line for each, when that ends and the pattern.
const releasesNote = "releases"

// keepReleases makes the last of several lists durable and says so.
func (s *state) keepReleases(l []*imsg.Releases) bool {
	m := l[len(l)-1]
	var b strings.Builder
	for _, r := range m.List {
		fmt.Fprintf(&b, "%d %s\n", r.Until.UnixNano(), r.Domain)
	}
	if err := s.store.Note(s.work, releasesNote, []byte(b.String())); err != nil {
		s.complain("releases", err)
		return false
	}
	s.out.send(m)
	return true
}

// tellReleases tells a scheduler of what was kept.
func (s *state) tellReleases() {
	text, err := s.store.Noted(releasesNote)
	if err != nil {
		s.log.Warn("warn: queue: the released domains are lost: " + mail.Clean(err.Error(), imsg.MaxText))
	}
	m := &imsg.Releases{}
	for line := range strings.Lines(string(text)) {
		var nano int64
		var domain string
		if n, _ := fmt.Sscanf(line, "%d %s\n", &nano, &domain); n == 2 && len(m.List) < imsg.MaxReleases {
			m.List = append(m.List, imsg.DomainRelease{Domain: domain, Until: time.Unix(0, nano)})
		}
	}
	if len(m.List) > 0 {
		s.out.send(m)
	}
}
