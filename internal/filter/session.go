package filter

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/mail"
)

// Member is a filter of a session that a program decides.
type Member struct {
	Name    string        // of the filter
	Program *Program      // nil: there is none at present
	Pass    bool          // without the program the session goes on
	Timeout time.Duration // for each answer; 0: that of the program
}

// Session is one session as programs see it. Its methods but Close and Tell are
// called by one goroutine at a time.
type Session struct {
	ID mail.SessionID

	dir     Direction
	mu      sync.Mutex
	members []Member // Program is nil once it has failed here
}

// Enter begins a session with its programs. ok is false when one that must be
// there is not; the session can be used and closed all the same.
func Enter(id mail.SessionID, d Direction, members []Member) (s *Session, ok bool) {
	s = &Session{ID: id, dir: d, members: members}
	ok = true
	for i := range s.members {
		m := &s.members[i]
		if m.Program != nil && !m.Program.enter(s) {
			m.Program = nil
		}
		if m.Program == nil && !m.Pass {
			ok = false
		}
	}
	return s, ok
}

// member is one of the session's filters as it is now.
func (s *Session) member(i int) (m Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.members) {
		return Member{} // closed meanwhile
	}
	return s.members[i]
}

// Wants are the phases that the program of a member decides.
func (s *Session) Wants(i int) Set {
	if p := s.member(i).Program; p != nil {
		return p.Wants()
	}
	return 0
}

// Holds reports whether all of which are members.
func (s *Session) Holds(which []int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range which {
		if i < 0 || i >= len(s.members) {
			return false
		}
	}
	return true
}

// Hears are the events that any of the programs is told.
func (s *Session) Hears() (e Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.members {
		if p := s.members[i].Program; p != nil {
			e |= p.Hears(s.dir)
		}
	}
	return e
}

// Tell tells the programs what has happened. It does not wait.
func (s *Session) Tell(notes []Note) { s.tell(nil, notes) }

func (s *Session) tell(not *Program, notes []Note) {
	if len(notes) == 0 {
		return
	}
	s.mu.Lock()
	var few [4]*Program
	to := few[:0]
	for i := range s.members {
		if p := s.members[i].Program; p != nil && p != not {
			to = append(to, p)
		}
	}
	s.mu.Unlock()
	for _, p := range to {
		p.tell(s.dir, s.ID, notes)
	}
}

// overheard passes the report of one program on to the others.
func (s *Session) overheard(from *Program, text string) {
	name := from.o.Name
	s.mu.Lock()
	for i := range s.members {
		if s.members[i].Program == from {
			name = s.members[i].Name
		}
	}
	s.mu.Unlock()
	s.tell(from, []Note{{FilterReport, from.o.Now(), Tail("proc", name, mail.Clean(text, MaxText))}})
}

// lost makes a member one without a program, and says whether the session may
// go on.
func (s *Session) lost(i int) (pass bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.members) {
		return false // closed meanwhile
	}
	s.members[i].Program = nil
	return s.members[i].Pass
}

// Ask has members decide on a phase, in their order; those that have not
// registered it are left out. The first decision other than Proceed ends it.
func (s *Session) Ask(ctx context.Context, which []int, ph Phase, param string) Verdict {
	for _, i := range which {
		m := s.member(i)
		if m.Program == nil {
			if !m.Pass {
				return Verdict{Failed, ReplyFailed}
			}
			continue
		}
		if !m.Program.Wants().Has(uint8(ph)) {
			continue
		}
		v, ok := m.Program.ask(ctx, &m, s.ID, ph, param)
		if !ok {
			if s.lost(i) {
				continue
			}
			return Verdict{Failed, ReplyFailed}
		}
		if v.Action != Proceed {
			return v.Checked()
		}
	}
	return Verdict{}
}

// Close ends the session: what programs still say of it is dropped.
func (s *Session) Close() {
	s.mu.Lock()
	members := s.members
	s.members = nil
	s.mu.Unlock()
	for _, m := range members {
		if m.Program != nil {
			m.Program.forget(s.ID)
		}
	}
}
