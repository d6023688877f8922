package smtp

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
)

// submissionPort is where clients hand in mail that is not complete yet (RFC
// 6409 section 3.1).
const submissionPort = 587

// maxDiscard is how many times the size limit a message may be that is read
// only to be refused. Ours: the client learns why; one that goes on for ever is
// cut off.
const maxDiscard = 10

// data is DATA.
func (s *Session) data(arg string) {
	switch {
	case arg != "":
		s.refuse(replyNoArguments)
		return
	case s.tx == nil || s.tx.msg != nil || s.tx.refused:
		s.refuse(replySequence)
		return
	case s.tx.p.binary:
		s.refuse(replyNeedBDAT)
		return
	case len(s.tx.rcpts) == 0:
		s.refuse(replyNoRcpt)
		return
	}
	if !s.openData(true) {
		return
	}
	if err := s.readData(s.tx.msg); err != nil {
		s.broken(err) // whatever the client says next is no command
		return
	}
	s.lastWord = "."
	s.finish(".")
}

// openData answers DATA and reports whether the text is to come.
func (s *Session) openData(dots bool) bool {
	if _, ok := s.ask(PhaseData, ""); !ok {
		s.reportTx(EventTxData, "permfail")
		return false
	}
	s.openMessage(dots)
	s.say(replyData)
	s.reportTx(EventTxData, "ok")
	return true
}

func (s *Session) reportTx(e Event, outcome string) {
	if s.heard {
		s.report(e, s.tx.id.String(), outcome)
	}
}

// openMessage makes the transaction ready for its text and writes our own
// fields on top.
func (s *Session) openMessage(dots bool) {
	tx := s.tx
	o := s.headerOptions()
	var m *message
	var lines Lines
	if s.filter != nil {
		lines = s.filter.Lines(s.ctx, func(line []byte) { m.store.filtered(line) })
	}
	var guard rfc5322.Guard
	if lines != nil {
		guard = rfc5322.NewGuard(o.AuthServIDs)
		o.Own, o.AuthServIDs = 1, nil // filters write them in our name
	}
	m = newMessage(s.ctx, s.c.Backend, tx.id, o)
	m.lines, m.guard = lines, guard
	if m.max = s.c.SMTP.MaxMessageSize; s.notice {
		m.max = math.MaxInt64 // its size is our own affair
	}
	m.maxLine = s.c.SMTP.MaxLine
	m.repair = s.repairs()
	m.dots = dots
	tx.msg = m
	own := m.store.out
	if s.junk || tx.junk {
		own = append(own, "X-Spam: Yes\n"...)
	}
	own = s.received().Append(own)
	if m.lines == nil {
		m.store.out = own
		return
	}
	for line := range strings.Lines(string(own)) {
		if err := m.lines.Write([]byte(strings.TrimSuffix(line, "\n"))); err != nil {
			m.err = err
		}
	}
}

// headerOptions says what happens to the header of the present message.
func (s *Session) headerOptions() rfc5322.Options {
	o := rfc5322.Options{
		Domain:      s.name,
		AuthServIDs: s.servIDs(),
		MaxBytes:    s.c.SMTP.MaxHeader,
		MaxFields:   s.c.SMTP.MaxHeaderFields,
	}
	if s.isLocal() || s.client.Local.Addr().IsLoopback() || s.client.Local.Port() == submissionPort {
		o.Date = s.c.Now()
		o.MessageID = messageID(s.c.Rand(), s.name)
	}
	if s.c.Listener.Masquerade && s.user != "" && !s.tx.sender.IsNull() {
		o.Masquerade = &s.tx.sender
	}
	return o
}

// servIDs are the names in which only we may write Authentication-Results: that
// of the administrative domain, and what this host and listener are called.
func (s *Session) servIDs() []string {
	if s.ids == nil {
		for _, id := range []string{s.c.ADMD, s.c.Name, s.name} {
			if id != "" && !slices.Contains(s.ids, id) {
				s.ids = append(s.ids, id)
			}
		}
	}
	return s.ids
}

func messageID(n uint64, host string) string {
	return "<" + mail.SessionID(n).String() + "@" + host + ">"
}

// received is our trace field for the present message.
func (s *Session) received() *rfc5322.Received {
	r := &rfc5322.Received{
		Helo: s.helo, Host: s.client.Host, Addr: s.client.Text(), Mask: s.c.Listener.MaskSource,
		By: s.name, Proto: s.protocol(), ID: s.tx.id, Date: s.c.Now(),
		ShowAuth: s.c.Listener.ReceivedAuth, User: s.user,
	}
	if s.tls != nil {
		r.TLS, r.Verified = s.tls.cipher, s.tls.verified
	}
	if len(s.tx.rcpts) == 1 {
		r.For = s.tx.rcpts[0].addr
	}
	return r
}

// protocol is the word of the trace field (RFC 3848, RFC 6531 section 4.3).
func (s *Session) protocol() string {
	word := "SMTP"
	switch {
	case s.tx.p.utf8:
		word = "UTF8SMTP"
	case s.esmtp:
		word = "ESMTP"
	}
	if s.tls != nil {
		word += "S"
	}
	if s.authed {
		word += "A"
	}
	return word
}

// readData reads to the end of the data. Any error ends the session.
func (s *Session) readData(m *message) error {
	w := s.wire
	start := time.Now()
	for {
		n, done, err := m.eat(w.buffered())
		if err != nil {
			return err
		}
		w.skip(n)
		if done {
			w.shrink()
			return nil
		}
		if m.count > discardable(m.max) {
			return errTooMuch
		}
		if w.full() {
			if err := s.makeRoom(m); err != nil {
				return err
			}
		}
		if err := s.fillBody(start, m.count); err != nil {
			return err
		}
	}
}

// discardable is how long a message may be that is read to be refused.
func discardable(max int64) int64 {
	if max > math.MaxInt64/maxDiscard {
		return math.MaxInt64
	}
	return maxDiscard * max
}

var errTooMuch = errors.New("message far too big")

// makeRoom is for a line that fills the buffer.
func (s *Session) makeRoom(m *message) error {
	if s.wire.large == nil {
		s.wire.grow()
		return nil
	}
	if err := m.stash(s.wire.buffered()); err != nil {
		return err
	}
	s.wire.skip(len(s.wire.buffered()))
	return nil
}

// fillBody reads more of a message that began at start and of which count
// octets have come. The whole may take DataTime, and must come at MinRate after
// the first DataTimeout.
func (s *Session) fillBody(start time.Time, count int64) error {
	for {
		now := time.Now()
		c := &s.c.SMTP
		until, why := now.Add(c.DataTimeout), slowSilence
		if c.MinRate > 0 {
			floor := start.Add(c.DataTimeout + time.Duration(count/int64(c.MinRate))*time.Second)
			if floor.Before(until) {
				until, why = floor, slowRate
			}
		}
		if end := start.Add(c.DataTime); c.DataTime > 0 && end.Before(until) {
			until, why = end, slowTotal
		}
		stop := s.stopAt.Load()
		if stop != 0 {
			until = earlier(until, time.Unix(0, stop))
		}
		switch err := s.fill(until, stop); err {
		case errStopping: // and gets its time
		case errTimeout:
			if stop != 0 && !time.Now().Before(time.Unix(0, stop)) {
				return errStopping
			}
			return why
		default:
			return err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// finish decides on the message that has come in whole, and answers. Filters
// hear of the word with which the client ended it, if it had one, once the
// lines before it have come out of them.
func (s *Session) finish(word string) {
	m := s.tx.msg
	m.end()
	if word != "" {
		s.report(EventClient, word)
	}
	switch {
	case m.refuse != "":
		s.refuse(m.refuse)
	case m.err != nil:
		s.fail(m.err)
	default:
		if _, ok := s.ask(PhaseCommit, ""); ok {
			s.commit(m)
			return
		}
	}
	s.reportTx(EventTxData, "permfail")
	s.rollback()
}

// commit hands the message over and answers once it is safe.
func (s *Session) commit(m *message) {
	tx := s.tx
	ctx, cancel := context.WithTimeout(s.ctx, commitTimeout)
	defer cancel()
	msg := &Message{
		ID:        tx.id,
		Size:      m.store.size + int64(len(m.store.out)),
		InFile:    m.store.file != nil,
		Envelopes: tx.envelopes,
	}
	if !msg.InFile {
		msg.Inline = m.store.out
	}
	m.store.file, m.store.begun, tx.kept = nil, false, true // it is the queue's from here on, whatever it says
	if err := s.c.Backend.Commit(ctx, msg); err != nil {
		s.fail(err)
		s.rollback()
		return
	}
	m.free()
	tx.release()
	s.tx, s.errs, s.idle = nil, 0, 0
	s.mails++
	s.say("250 2.0.0 " + tx.id.String() + " Message accepted for delivery")
	if !s.wire.waiting() {
		s.wire.flush() // the client need not wait for our log
	}
	s.logMessage(tx, msg.Size)
	if s.heard {
		s.report(EventTxCommit, tx.id.String(), strconv.FormatInt(msg.Size, 10))
	}
	s.reportReset(tx)
}

func (s *Session) logMessage(tx *transaction, size int64) {
	proto := "SMTP"
	if s.esmtp {
		proto = "ESMTP"
	}
	l, id := s.c.Log.Batch(), s.client.Session
	defer l.Flush()
	l.Event(id, "smtp message", slog.String("msgid", tx.id.String()), slog.Int64("size", size),
		slog.Int("nrcpt", len(tx.rcpts)), slog.String("proto", proto))
	attrs := []slog.Attr{1: slog.String("from", "<"+tx.sender.String()+">"), 2: {}}
	for i := range tx.rcpts {
		r := &tx.rcpts[i]
		to := "<" + r.addr.User + "@" + r.addr.Domain + ">"
		if r.addr.Domain == "" {
			to = "<" + r.addr.User + ">"
		}
		attrs[0] = slog.String("evpid", tx.id.Envelope(uint32(r.last)).String())
		attrs[2] = slog.String("to", to)
		l.Event(id, "smtp envelope", attrs...)
	}
}

// tlsCounter is the gauge that this session's TLS counts in.
func (s *Session) tlsCounter() string {
	if s.c.Listener.TLS == config.TLSImplicit {
		return "smtp.smtps"
	}
	return "smtp.tls"
}
