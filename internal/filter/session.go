package filter

import (
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
func (s *Session) Tell(notes []Note) { s.tell(nil, notes, true) }

func (s *Session) tell(not *Program, notes []Note, now bool) {
	if len(notes) == 0 {
		return
	}
	for _, p := range s.programs(not) {
		p.tell(s.dir, s.ID, notes, now)
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
	s.tell(from, []Note{{FilterReport, from.o.Now(), Tail("proc", name, mail.Clean(text, MaxText))}}, true)
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

// Ask has members decide on a phase, in their order, after they have been told
// notes; those that have not registered it are left out. The first decision
// other than Proceed ends it. done is called once with what was decided, by
// whoever learns of it: it must not wait.
func (s *Session) Ask(which []int, ph Phase, param string, notes []Note, done func(Verdict)) {
	s.tell(nil, notes, false)
	a := &asking{s: s, which: which, phase: ph, param: param, done: done}
	a.next(nil)
}

// asking is a phase on its way through the members.
type asking struct {
	s     *Session
	which []int // still to be asked
	phase Phase
	param string
	done  func(Verdict)
}

// next asks the next member that has something to say; by is as for answerFunc.
func (a *asking) next(by *Program) {
	for len(a.which) > 0 {
		m := a.s.member(a.which[0])
		switch {
		case m.Program == nil && !m.Pass:
			a.finish(by, Verdict{Failed, ReplyFailed})
			return
		case m.Program == nil, !m.Program.Wants().Has(uint8(a.phase)):
			a.which = a.which[1:]
			continue
		}
		if m.Program.ask(by, &m, a.s.ID, a.phase, a.param, a.answer) {
			return
		}
		if !a.without(by) {
			return
		}
	}
	a.finish(by, Verdict{})
}

// without goes on without the member that was to be asked, if that may be.
func (a *asking) without(by *Program) bool {
	if !a.s.lost(a.which[0]) {
		a.finish(by, Verdict{Failed, ReplyFailed})
		return false
	}
	a.which = a.which[1:]
	return true
}

// answer takes what a program has said; it is an answerFunc.
func (a *asking) answer(by *Program, v Verdict, ok bool) {
	switch {
	case !ok:
		if a.without(by) {
			a.next(by)
		}
	case v.Action == Proceed:
		a.which = a.which[1:]
		a.next(by)
	default:
		a.finish(by, v.Checked())
	}
}

// finish tells what was decided; programs that were not asked get their notes.
func (a *asking) finish(by *Program, v Verdict) {
	a.done(v)
	for _, p := range a.s.programs(nil) {
		if by != nil {
			by.dirty[p] = true
		} else {
			p.flushed()
		}
	}
}

// Flush sends what waits for the programs.
func (s *Session) Flush() {
	for _, p := range s.programs(nil) {
		p.flushed()
	}
}

// programs are those that take part, but for one.
func (s *Session) programs(not *Program) []*Program {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := make([]*Program, 0, len(s.members))
	for i := range s.members {
		if p := s.members[i].Program; p != nil && p != not {
			l = append(l, p)
		}
	}
	return l
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
