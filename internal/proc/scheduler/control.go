package scheduler

import (
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// fromControl answers what an operator asks or commands, mostly at once.
func (s *state) fromControl(m imsg.Msg, reply func(imsg.Msg)) {
	switch m := m.(type) {
	case *imsg.SchedGet:
		reply(s.states(m))
	case *imsg.SchedCommand:
		s.command(m, reply)
	}
}

func (s *state) states(m *imsg.SchedGet) *imsg.SchedStates {
	a := &imsg.SchedStates{States: make([]imsg.SchedState, len(m.IDs))}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, id := range m.IDs {
		if st, ok := s.runq.State(id); ok {
			a.States[i] = imsg.SchedState{Known: true, Inflight: st.Inflight,
				Since: st.Since, Wait: st.Wait, Suspend: st.Suspended}
		}
	}
	return a
}

// command carries a SchedCommand out and counts what it changed. Without a
// queue nothing changes: it could not be kept.
func (s *state) command(m *imsg.SchedCommand, reply func(imsg.Msg)) {
	now := s.now()
	s.mu.Lock()
	defer s.notify()
	defer s.mu.Unlock()
	if !s.queue.Up() {
		reply(&imsg.Count{})
		return
	}
	n := int64(0)
	switch m.Op {
	case imsg.OpSchedule:
		s.each(m, func(id mail.EnvelopeID) {
			if s.runq.Schedule(now, id) {
				n++
			}
		})
	case imsg.OpRemove:
		s.remove(m, reply)
		return
	case imsg.OpPause, imsg.OpResume:
		n = s.suspend(now, m)
	case imsg.OpRelease:
		s.release(now, m, reply)
		return
	case imsg.OpDiscover:
		s.discover(m, reply)
		return
	}
	reply(&imsg.Count{N: n})
}

// each calls f for the envelopes that a command is about.
func (s *state) each(m *imsg.SchedCommand, f func(mail.EnvelopeID)) {
	switch {
	case m.All:
		s.runq.All(f)
	case m.Envelope != 0:
		f(m.Envelope)
	case len(m.IDs) > 0:
		for _, id := range m.IDs {
			f(id)
		}
	default:
		s.runq.Of(m.Message, f)
	}
}

// suspend pauses or resumes envelopes, and has the queue keep it.
func (s *state) suspend(now time.Time, m *imsg.SchedCommand) int64 {
	on := m.Op == imsg.OpPause
	var ids []mail.EnvelopeID
	s.each(m, func(id mail.EnvelopeID) {
		if s.runq.Suspend(now, id, on) {
			ids = append(ids, id)
		}
	})
	for i := 0; i < len(ids); i += s.maxList {
		s.out = append(s.out, &imsg.Suspend{IDs: ids[i:min(i+s.maxList, len(ids))], On: on})
	}
	return int64(len(ids))
}

// discovery is a discover command under way: the queue names all it has, and
// what the command is about is counted, whether it was known before or not.
type discovery struct {
	all      bool
	message  mail.MessageID
	envelope mail.EnvelopeID
	ids      map[mail.EnvelopeID]struct{}
	reply    func(imsg.Msg)
}

// found counts an envelope that is there.
func (d *discovery) found(id mail.EnvelopeID) {
	if d.all || id == d.envelope || (d.envelope == 0 && id.Message() == d.message) {
		d.ids[id] = struct{}{}
	}
}

// discover begins a discovery.
func (s *state) discover(m *imsg.SchedCommand, reply func(imsg.Msg)) {
	s.discovers = append(s.discovers, &discovery{all: m.All, message: m.Message, envelope: m.Envelope,
		ids: map[mail.EnvelopeID]struct{}{}, reply: reply})
	s.out = append(s.out, &imsg.LoadAll{})
	s.loads++
}

func (s *state) finishDiscoveries() {
	for _, d := range s.discovers {
		d.reply(&imsg.Count{N: int64(len(d.ids))})
	}
	s.discovers = nil
}

// abandonDiscoveries answers what will not be known.
func (s *state) abandonDiscoveries() {
	s.finishDiscoveries()
	s.loads = 0
}
