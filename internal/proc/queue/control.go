package queue

import (
	"errors"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// fromControl answers what operators want to know.
func (s *state) fromControl(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.StatsGet:
		s.env.AnswerStats(r)
	case *imsg.QueueList:
		s.begin(func() { s.list(r, m) })
	case *imsg.EnvelopeGet:
		s.begin(func() { s.envelope(r, m.ID) })
	case *imsg.BodyOpen:
		s.begin(func() { s.openBody(r, m.Message) })
	case *imsg.Show:
		s.begin(func() { s.show(r, m) })
	}
}

// list answers with as many envelopes as fit a frame: at least one, unless
// there are no more.
func (s *state) list(r *ipc.Request, m *imsg.QueueList) {
	l, end, err := s.store.List(m.After, max(m.Max, 1))
	if err != nil {
		s.complain("list", err)
		l, end = nil, true
	}
	room := frameRoom
	for i := range l {
		if room -= envelopeSize(&l[i]); room < 0 && i > 0 {
			l, end = l[:i], false
			break
		}
	}
	r.Reply(&imsg.QueueListing{Envelopes: l, End: end}, nil)
}

func (s *state) envelope(r *ipc.Request, id mail.EnvelopeID) {
	a := &imsg.QueueListing{End: true}
	e, err := s.store.Load(id)
	if err == nil {
		a.Envelopes = []mail.Envelope{e}
	} else if !errors.Is(err, queue.ErrNotFound) && !errors.Is(err, queue.ErrCorrupt) {
		s.complain("load", err)
	}
	r.Reply(a, nil)
}
