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

// expansion is what becomes of a recipient. With one question it asks for those
// that the client has sent already behind it (RFC 2920): their turn comes with
// all that belongs to a RCPT, only the answer is there.
func (s *Session) expansion(to mail.Recipient) Expansion {
	tx := s.tx
	for i := range tx.ahead { // those that filters have refused meanwhile are passed over
		if tx.ahead[i] == to {
			x := tx.found[i]
			tx.ahead, tx.found = tx.ahead[i+1:], tx.found[i+1:]
			return x
		}
	}
	if len(tx.ahead) > 0 {
		tx.blind = true // a filter rewrites: what is asked ahead is asked in vain
	}
	tx.ahead = s.lookAhead()
	tx.pattern = s.template()
	r := &Rcpt{Session: s.client.Session, Envelope: tx.pattern, Next: tx.ahead, TLS: s.tls != nil, Local: s.isLocal()}
	r.Envelope.Rcpt, r.Envelope.Dest, r.Envelope.DSN = to.Address, to.Address, to.DSN
	ctx, cancel := context.WithTimeout(s.ctx, lookupTimeout)
	defer cancel()
	found := s.c.Backend.CheckRcpt(ctx, r)
	n := min(len(tx.ahead), len(found)-1)
	tx.ahead, tx.found = tx.ahead[:n], found[1:n+1]
	return found[0]
}

// lookAhead reads the RCPT commands that have come in and are next. Filters see
// them one by one, when their turn comes.
func (s *Session) lookAhead() []mail.Recipient {
	if s.tx.blind {
		return nil
	}
	const verb = "RCPT TO:"
	var list []mail.Recipient
	rest := s.wire.buffered()
	if n := bytes.Count(rest, []byte("\n")); n > 1 {
		list = make([]mail.Recipient, 0, min(n, maxAhead))
	}
	for len(list) < min(maxAhead, s.c.SMTP.MaxRcpt-len(s.tx.rcpts)-1) {
		line, more, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok || len(line) > maxCommand || len(line) < len(verb) || !strings.EqualFold(string(line[:len(verb)]), verb) {
			break
		}
		to, reply := s.parseRcpt(string(bytes.TrimRight(line[len(verb):], " \t")))
		if reply != "" {
			break
		}
		list = append(list, to)
		rest = more
	}
	return list
}
