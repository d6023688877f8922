package mta

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"smtpd/internal/mail"
)

// Told is told what happens on one connection, in the events and fields that
// smtpd-filters(7) has for smtp-out. It must not block. Its methods are called
// by one goroutine.
type Told interface {
	Tell(event string, fields ...string)

	// Close says that no more comes.
	Close()
}

// Events of smtpd-filters(7).
const (
	toldConnect    = "link-connect"
	toldGreeting   = "link-greeting"
	toldIdentify   = "link-identify"
	toldTLS        = "link-tls"
	toldAuth       = "link-auth"
	toldDisconnect = "link-disconnect"
	toldBegin      = "tx-begin"
	toldMail       = "tx-mail"
	toldRcpt       = "tx-rcpt"
	toldEnvelope   = "tx-envelope"
	toldData       = "tx-data"
	toldCommit     = "tx-commit"
	toldRollback   = "tx-rollback"
	toldReset      = "tx-reset"
	toldClient     = "protocol-client"
	toldServer     = "protocol-server"
	toldTimeout    = "timeout"
)

// filtersKey is how the filters of an action stand in the key of a relay:
// connections are shared only by mails whose connections the same programs are
// told of.
func filtersKey(names []string) string { return strings.Join(names, "\x00") }

// tellConnect begins to tell of the connection. What is told is the dialogue as
// it goes back and forth, so there are no commands ahead of their turn then.
func (s *session) tellConnect(conn net.Conn) {
	if s.relay.filters == "" || s.e.opt.Tell == nil {
		return
	}
	if s.told = s.e.opt.Tell(strings.Split(s.relay.filters, "\x00"), s.id); s.told == nil {
		return
	}
	name := s.e.nameOf(s.route.host)
	if name == addrText(s.route.host.addr) {
		name = "<unknown>"
	}
	to := netip.AddrPortFrom(s.route.host.addr, s.route.key.port)
	s.told.Tell(toldConnect, name, "pass", conn.LocalAddr().String(), to.String())
}

// tellDisconnect ends it.
func (s *session) tellDisconnect() {
	if s.told == nil {
		return
	}
	s.tellEnd(false)
	s.told.Tell(toldDisconnect)
	s.told.Close()
	s.told = nil
}

// tellReply tells of a reply, or that there was none in time.
func (s *session) tellReply(rep *reply, err error) {
	switch {
	case s.told == nil:
	case err == errTimeout:
		s.told.Tell(toldTimeout)
	case err == nil:
		code := strconv.Itoa(rep.code)
		for i, line := range rep.lines {
			sep := "-"
			if i == len(rep.lines)-1 {
				sep = " "
			}
			s.told.Tell(toldServer, code+sep+mail.Clean(line, maxReplyLine))
		}
	}
}

// tellGreeting tells the name by which the host greets.
func (s *session) tellGreeting(rep *reply) {
	if s.told == nil {
		return
	}
	word, _, _ := strings.Cut(string(rep.text), " ")
	name, ok := hostName(word)
	if !ok {
		name = ""
	}
	s.told.Tell(toldGreeting, name)
}

// tellIdentify tells how we introduce ourselves, and the cipher when this is the
// first word inside TLS.
func (s *session) tellIdentify(word, name string) {
	if s.told == nil {
		return
	}
	s.told.Tell(toldIdentify, word, name)
	if s.tls != nil && s.relay.policy.need != tlsImplicit {
		s.told.Tell(toldTLS, cipherText(s.tls))
	}
}

// tellAuth tells how a login ended.
func (s *session) tellAuth(err error) {
	if s.told == nil {
		return
	}
	result := "pass"
	if se, ok := errors.AsType[*setupError](err); ok && se.blame == blameRoute {
		result = "error" // the connection has broken
	} else if err != nil {
		result = "fail"
	}
	s.told.Tell(toldAuth, result, s.secret.user)
}

// tellMail tells that a transaction has begun.
func (s *session) tellMail(x *transaction) {
	if s.told == nil {
		return
	}
	s.telling = x
	id := x.task.msg.ID.String()
	s.told.Tell(toldBegin, id)
	s.told.Tell(toldMail, id, "ok", x.task.sender.String())
}

// tellRcpt tells the answer about a recipient; the refusal of the only one is
// the end of the transaction instead.
func (s *session) tellRcpt(x *transaction, env *mail.Envelope, rep *reply) {
	if s.told == nil || (!rep.ok() && len(x.accepted)+len(x.rcpts) == 0) {
		return
	}
	s.told.Tell(toldRcpt, x.task.msg.ID.String(), answerWord(rep, rep.ok()), env.Dest.String())
}

// tellData tells the answer to DATA.
func (s *session) tellData(x *transaction, rep *reply) {
	if s.told != nil && s.telling == x {
		s.told.Tell(toldData, x.task.msg.ID.String(), answerWord(rep, rep.code == 354))
	}
}

// tellEnd tells how the transaction ended, once.
func (s *session) tellEnd(committed bool) {
	if s.told == nil || s.telling == nil {
		return
	}
	id := s.telling.task.msg.ID.String()
	if committed {
		s.told.Tell(toldCommit, id, strconv.FormatInt(s.w.size, 10))
	} else {
		s.told.Tell(toldRollback, id)
	}
	s.told.Tell(toldReset, id)
	s.telling = nil
}

// answerWord is an answer as events have it.
func answerWord(rep *reply, ok bool) string {
	switch {
	case ok:
		return "ok"
	case rep.code/100 == 5:
		return "permfail"
	}
	return "tempfail"
}
