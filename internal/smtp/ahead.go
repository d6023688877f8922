package smtp

import (
	"bytes"
	"context"
	"strings"

	"smtpd/internal/mail"
)

// maxAhead bounds the recipients asked about in one question. Ours: what a
// pipelining client has in one packet.
const maxAhead = 100

// known is the answer about a recipient whose turn has not come.
type known struct {
	to  mail.Address
	dsn mail.DSN
	Expansion
}

// expansion is what becomes of a recipient. With one question it asks for those
// that the client has sent already behind it (RFC 2920): their turn comes with
// all that belongs to a RCPT, only the answer is there.
func (s *Session) expansion(to mail.Address, dsn mail.DSN) ([]mail.Envelope, error) {
	tx := s.tx
	for i := range tx.ahead { // those that filters have refused meanwhile are passed over
		if k := &tx.ahead[i]; k.to == to && k.dsn == dsn {
			tx.ahead = tx.ahead[i+1:]
			return k.Envelopes, k.Err
		}
	}
	if len(tx.ahead) > 0 {
		tx.blind = true // a filter rewrites: what is asked ahead is asked in vain
	}
	tx.ahead = s.lookAhead()
	first := s.template(to, dsn)
	r := &Rcpt{Session: s.client.Session, Envelope: first, TLS: s.tls != nil, Local: s.isLocal()}
	if len(tx.ahead) > 0 {
		r.Next = make([]mail.Envelope, 0, len(tx.ahead))
	}
	for i := range tx.ahead {
		next := s.template(tx.ahead[i].to, tx.ahead[i].dsn)
		next.Created = first.Created
		r.Next = append(r.Next, next)
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookupTimeout)
	defer cancel()
	found := s.c.Backend.CheckRcpt(ctx, r)
	tx.ahead = tx.ahead[:min(len(tx.ahead), len(found)-1)]
	for i := range tx.ahead {
		tx.ahead[i].Expansion = found[i+1]
	}
	return found[0].Envelopes, found[0].Err
}

// lookAhead reads the RCPT commands that have come in and are next. Filters see
// them one by one, when their turn comes.
func (s *Session) lookAhead() []known {
	if s.tx.blind {
		return nil
	}
	const verb = "RCPT TO:"
	var list []known
	rest := s.wire.buffered()
	if n := bytes.Count(rest, []byte("\n")); n > 1 {
		list = make([]known, 0, min(n, maxAhead))
	}
	for len(list) < min(maxAhead, s.c.SMTP.MaxRcpt-len(s.tx.rcpts)-1) {
		line, more, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok || len(line) > maxCommand || len(line) < len(verb) || !strings.EqualFold(string(line[:len(verb)]), verb) {
			break
		}
		to, dsn, reply := s.parseRcpt(string(bytes.TrimRight(line[len(verb):], " \t")))
		if reply != "" {
			break
		}
		list = append(list, known{to: to, dsn: dsn})
		rest = more
	}
	return list
}
