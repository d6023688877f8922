package smtp

import (
	"slices"
	"time"

	"smtpd/internal/imsg"
	engine "smtpd/internal/smtp"
)

// generations counts who works by which configuration. A session ends by the
// one that it began with: lookup keeps its rules and tables until then. The zero
// value is ready; the server's lock guards it.
type generations struct {
	present  uint64
	users    map[uint64]int
	sessions map[*engine.Session]uint64
}

// generationOf is the configuration that c belongs to.
func generationOf(c *engine.Config) uint64 { return c.Backend.(*backend).generation }

// enter counts a user in, before a session for it is made.
func (g *generations) enter(generation uint64) {
	if g.users == nil {
		g.users, g.sessions = map[uint64]int{}, map[*engine.Session]uint64{}
	}
	g.users[generation]++
}

// is notes the session of somebody who was counted in.
func (g *generations) is(sess *engine.Session, generation uint64) { g.sessions[sess] = generation }

// leave counts a session out; it reports whether its configuration is of no use
// any more.
func (g *generations) leave(sess *engine.Session) bool {
	generation := g.sessions[sess]
	delete(g.sessions, sess)
	return g.drop(generation)
}

// drop counts a user out; see leave.
func (g *generations) drop(generation uint64) bool {
	if g.users[generation]--; g.users[generation] > 0 {
		return false
	}
	delete(g.users, generation)
	return generation != g.present
}

// begin makes a generation the present one. When sessions work by too many
// others, those of the oldest have to end.
func (g *generations) begin(present uint64) (end []*engine.Session) {
	g.present = present
	if used := g.used(); len(used) > 0 {
		end = g.before(used[0])
	}
	return end
}

// used are the generations before the present one that are of use, the newest
// of them, in order.
func (g *generations) used() []uint64 {
	var used []uint64
	for n := range g.users {
		if n != g.present {
			used = append(used, n)
		}
	}
	slices.Sort(used)
	return used[max(len(used)-imsg.MaxGenerations, 0):]
}

// before are the sessions of generations before one.
func (g *generations) before(generation uint64) (l []*engine.Session) {
	for sess, n := range g.sessions {
		if n < generation {
			l = append(l, sess)
		}
	}
	return l
}

// tellLookup says which configurations are of use, with the lock held.
func (s *server) tellLookup() {
	used := s.gens.used()
	s.copies.forget(func(k copyKey) bool { return k.generation != s.gens.present && !slices.Contains(used, k.generation) })
	// A lookup that is not there is told when it is.
	_ = s.lookup.link.Send(&imsg.Generations{Present: s.gens.present, Used: used}, nil)
}

// newLookup is told that a lookup is there. One in place of another has the
// present configuration only: sessions of others have to end.
func (s *server) newLookup() {
	s.copies.drop(func(copyKey) bool { return true }) // what it reads may be newer
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf == nil {
		return
	}
	for _, sess := range s.gens.before(s.gens.present) {
		sess.Shutdown(time.Now().Add(stopTime))
	}
	s.tellLookup()
}
