package scheduler

import (
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// removal is a remove command under way. It is answered once the queue has
// said of each envelope that it is gone: who then asks for a list must not see
// it.
type removal struct {
	left  map[mail.EnvelopeID]struct{}
	n     int64
	reply func(imsg.Msg)
}

// remove takes envelopes out; the answer follows with the queue's word.
func (s *state) remove(m *imsg.SchedCommand, reply func(imsg.Msg)) {
	r := &removal{left: map[mail.EnvelopeID]struct{}{}, reply: reply}
	s.each(m, func(id mail.EnvelopeID) {
		if s.runq.Remove(id) {
			r.left[id] = struct{}{}
		}
	})
	if r.n = int64(len(r.left)); r.n == 0 {
		reply(&imsg.Count{})
		return
	}
	s.removals = append(s.removals, r)
}

// removed notes that envelopes are gone and answers who waited for that.
func (s *state) removed(ids []mail.EnvelopeID) {
	waiting := s.removals[:0]
	for _, r := range s.removals {
		for _, id := range ids {
			delete(r.left, id)
		}
		if len(r.left) > 0 {
			waiting = append(waiting, r)
			continue
		}
		r.reply(&imsg.Count{N: r.n})
	}
	clear(s.removals[len(waiting):])
	s.removals = waiting
}

// abandonRemovals answers with what is known to be gone when the queue is lost:
// its successor is told nothing of the rest.
func (s *state) abandonRemovals() {
	for _, r := range s.removals {
		r.reply(&imsg.Count{N: r.n - int64(len(r.left))})
	}
	s.removals = nil
}
