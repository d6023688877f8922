package queue

import (
	"errors"
	"sync"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// intake is what smtp has begun and not committed. The zero value works.
type intake struct {
	mu     sync.Mutex
	parts  map[mail.MessageID][]mail.Envelope
	bodies map[mail.MessageID]bool
}

// fromSMTP takes what smtp says. Everything that may wait for the disk runs on
// a goroutine of its own; smtp's sessions, and the calls that a link allows,
// bound their number.
func (s *state) fromSMTP(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.ReserveIDs:
		s.begin(func() { s.reserve(r, m) })
	case *imsg.BodyCreate:
		s.begin(func() { s.createBody(r, m) })
	case *imsg.BodyAbort:
		s.begin(func() { s.abortBody(m.ID) })
	case *imsg.CommitPart:
		s.part(m)
	case *imsg.Commit:
		envs, ok := s.intake.take(m)
		s.begin(func() { s.commit(r, m, envs, ok) })
	}
}

func (s *state) reserve(r *ipc.Request, m *imsg.ReserveIDs) {
	n := min(max(m.Count, 1), queue.MaxReserve)
	first, err := s.store.Reserve(s.ctx, n)
	if err != nil {
		s.complain("ids", err)
		n = 0
	}
	r.Reply(&imsg.ReservedIDs{First: first, Count: n}, nil)
}

func (s *state) createBody(r *ipc.Request, m *imsg.BodyCreate) {
	f, err := s.store.NewBody(m.ID)
	if err != nil {
		s.complain("body of "+m.ID.String(), err)
		r.Reply(&imsg.BodyCreated{Status: statusOf(err)}, nil)
		return
	}
	s.intake.mu.Lock()
	if s.intake.bodies == nil {
		s.intake.bodies = map[mail.MessageID]bool{}
	}
	s.intake.bodies[m.ID] = true
	s.intake.mu.Unlock()
	if !s.peers.SMTP.Up() { // it went meanwhile: nobody writes this body
		s.abortBody(m.ID)
	}
	r.Reply(&imsg.BodyCreated{Status: mail.Status{Code: 250}}, f)
}

func (s *state) abortBody(id mail.MessageID) {
	s.intake.mu.Lock()
	had := s.intake.bodies[id]
	delete(s.intake.bodies, id)
	delete(s.intake.parts, id)
	s.intake.mu.Unlock()
	if had {
		s.store.DropBody(id)
	}
}

// part keeps envelopes until their Commit comes. Over the bounds they are
// dropped, and so the commit fails.
func (s *state) part(m *imsg.CommitPart) {
	in := &s.intake
	in.mu.Lock()
	defer in.mu.Unlock()
	have, begun := in.parts[m.ID]
	if !begun && len(in.parts) >= maxParts {
		return
	}
	if in.parts == nil {
		in.parts = map[mail.MessageID][]mail.Envelope{}
	}
	if len(have) > queue.MaxRecipients {
		return
	}
	in.parts[m.ID] = append(have, m.Envelopes...)
}

// take gives all envelopes of a message that is committed.
func (in *intake) take(m *imsg.Commit) (envs []mail.Envelope, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if envs = m.Envelopes; len(in.parts[m.ID]) > 0 {
		envs = append(in.parts[m.ID], envs...)
	}
	delete(in.parts, m.ID)
	delete(in.bodies, m.ID)
	whole := m.Total == 0 || m.Total == len(envs) // a part may have been dropped, or died with an earlier queue
	return envs, whole && len(envs) > 0 && len(envs) <= queue.MaxRecipients
}

var errIncomplete = errors.New("a commit without recipients, with too many, or with some missing")

func (s *state) commit(r *ipc.Request, m *imsg.Commit, envs []mail.Envelope, ok bool) {
	err := errIncomplete
	if ok {
		now := s.now()
		for i := range envs {
			if err := s.admit(&envs[i]); err != nil {
				s.commitFailed(r, m, err)
				return
			}
			if envs[i].Created.IsZero() {
				envs[i].Created = now
			}
		}
		err = s.store.Accept(s.work, &queue.Message{ID: m.ID, Arrival: now, Body: m.Inline,
			InFile: m.InFile, Size: m.Size, Envelopes: envs, Crowd: m.Sessions})
	}
	if err != nil {
		s.commitFailed(r, m, err)
		return
	}
	r.Reply(&imsg.Committed{Status: mail.Status{Code: 250}}, nil)
	s.out.accepted(envs)
}

func (s *state) commitFailed(r *ipc.Request, m *imsg.Commit, err error) {
	s.complain("commit of "+m.ID.String(), err)
	if m.InFile {
		s.store.DropBody(m.ID)
	}
	r.Reply(&imsg.Committed{Status: statusOf(err)}, nil)
}

var errKind = errors.New("an envelope of a kind that smtp may not make")

// admit makes an envelope from smtp fit to be kept: only the kinds that are
// delivered, nothing of a fate yet, and a time to live.
func (s *state) admit(e *mail.Envelope) error {
	if e.Kind != mail.KindMDA && e.Kind != mail.KindMTA {
		return errKind
	}
	e.Retry, e.DelayNotices, e.Notice, e.NoticeDelay = 0, 0, 0, 0
	e.Flags &^= mail.FlagSuspended
	if e.TTL <= 0 {
		e.TTL = s.ttl(e.Dispatcher)
	}
	return nil
}

// smtpLost gives up what the smtp that is gone had begun.
func (s *state) smtpLost() {
	in := &s.intake
	in.mu.Lock()
	bodies := in.bodies
	in.bodies, in.parts = nil, nil
	in.mu.Unlock()
	s.begin(func() {
		for id := range bodies {
			s.store.DropBody(id)
		}
	})
}
