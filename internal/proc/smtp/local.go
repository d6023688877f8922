package smtp

import (
	"errors"
	"net"
	"net/netip"
	"os"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	engine "smtpd/internal/smtp"
)

// openLocal makes a session for sendmail: control passes the client's end on.
func (s *server) openLocal(r *ipc.Request) {
	s.mu.Lock()
	c := s.socket
	ok := c != nil && !s.paused && !s.stopping && len(s.sessions) < s.max
	if ok {
		s.gens.enter(generationOf(c))
	}
	s.mu.Unlock()
	if !ok {
		r.Reply(&imsg.SessionOpened{}, nil)
		return
	}
	conn, theirs, err := localPair()
	if err != nil {
		s.dropGeneration(c)
		s.env.Log.Warn("warn: smtp: local session: " + err.Error())
		r.Reply(&imsg.SessionOpened{}, nil)
		return
	}
	r.Reply(&imsg.SessionOpened{OK: true}, theirs)
	sess := engine.New(c, conn, netip.AddrPort{}, netip.AddrPort{})
	s.enter(sess, generationOf(c), netip.Addr{})
	s.start(sess, netip.Addr{})
}

// localPair is both ends of a local session.
func localPair() (net.Conn, *os.File, error) {
	ours, theirs, err := ipc.Socketpair()
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// dropGeneration counts somebody out who was counted in and has no session.
func (s *server) dropGeneration(c *engine.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gens.drop(generationOf(c)) {
		s.tellLookup()
	}
}

// inject enters a notice of queue as a local session would.
func (s *server) inject(r *ipc.Request) {
	m, ok := r.Msg.(*imsg.Inject)
	if !ok {
		return
	}
	answer := &imsg.Injected{Status: *mail.LocalError()}
	defer func() { r.Reply(answer, nil) }()
	s.mu.Lock()
	c, stopping := s.socket, s.stopping
	if c == nil || stopping {
		s.mu.Unlock()
		return
	}
	s.gens.enter(generationOf(c))
	s.mu.Unlock()
	defer s.dropGeneration(c)
	s.env.Stat.Add("smtp.session.local", 1)
	id, err := engine.Inject(s.ctx, c, engine.Notice{Rcpt: m.Rcpt, Data: m.Data, UTF8: m.UTF8, RequireTLS: m.RequireTLS})
	if err == nil {
		answer.Status = mail.Status{Code: 250, Enh: [3]uint8{2, 0, 0}, Text: "Ok"}
		answer.ID = id
		return
	}
	if st, ok := errors.AsType[*mail.Status](err); ok {
		answer.Status = *st
	}
}
