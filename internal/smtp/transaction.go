package smtp

import (
	"context"
	"errors"
	"hash/maphash"
	"strings"
	"sync"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// maxEnvelopes bounds what the recipients of one message expand to. Ours: a
// large list still goes out at once, and a thousand of them do not fill memory.
const maxEnvelopes = 20000

// transaction is from MAIL to the end of the message.
type transaction struct {
	id        mail.MessageID
	sender    mail.Address
	p         params
	rcpts     []rcpt
	pattern   mail.Envelope    // what envelopes begin with, as of the last question
	ahead     []mail.Recipient // asked about whose RCPT has its turn next
	found     []Expansion      // of those
	blind     bool             // nothing is asked ahead any more
	envelopes []mail.Envelope  // in room, as long as there is
	room      *[maxAhead + 1]mail.Envelope
	boxes     map[uint64]int // hash of where each goes -> its place in envelopes
	seed      maphash.Seed   // of boxes
	junk      bool
	msg       *message // BDAT has begun
	refused   bool     // BDAT has failed: the chunks that follow are dropped
	kept      bool     // the queue has, or may have, the message: its id is used up
}

// rcpt is one accepted RCPT.
type rcpt struct {
	addr mail.Address
	last int // number of its last envelope
}

// mail is MAIL FROM; text is what follows the colon.
func (s *Session) mail(text string) {
	switch {
	case s.helo == "" || s.tx != nil:
		s.refuse(replySequence)
		return
	case s.c.Listener.TLS == config.TLSRequired && s.tls == nil:
		s.refuse(replyNeedTLS)
		return
	case s.c.Listener.AuthRequired && !s.authed:
		s.refuse(replyNeedAuth)
		return
	case s.mails >= s.c.SMTP.MaxMails:
		s.refuse(replyTooManyMails)
		return
	}
	sender, p, reply := s.parseMail(text)
	if reply != "" {
		s.refuse(reply)
		return
	}
	v, ok := s.ask(PhaseMailFrom, s.argument(text))
	if !ok {
		return
	}
	shown := sender
	if v.Action == Rewrite {
		if sender, p, reply = s.parseMail(v.Text); reply != "" {
			s.refuse(reply)
			return
		}
	}
	if err := s.checkSender(sender); err != nil {
		s.refuseSender(err)
		return
	}
	s.begin(sender, shown, p, v.Action == Junk)
}

// argument is the address of a path as filters see it: without brackets, route
// and options.
func (s *Session) argument(text string) string {
	if s.filter != nil && strings.HasPrefix(text, "<") {
		if a, _, err := parsePath(text, true); err == nil {
			return a.String()
		}
	}
	return text
}

// parseMail reads what follows MAIL FROM:.
func (s *Session) parseMail(text string) (sender mail.Address, p params, reply string) {
	sender, rest, err := parsePath(text, s.offers(extUTF8))
	if err != nil {
		return sender, p, replySenderSyntax
	}
	if p, reply = s.mailParams(rest); reply != "" {
		return sender, p, reply
	}
	if !p.utf8 && !isASCII(sender.String()) {
		return sender, p, replySenderSyntax
	}
	s.completeDomain(&sender)
	return sender, p, ""
}

// completeDomain gives an address without a domain ours.
func (s *Session) completeDomain(a *mail.Address) {
	if a.User != "" && a.Domain == "" {
		a.Domain = s.name
	}
}

func (s *Session) checkSender(sender mail.Address) error {
	if s.c.Listener.Senders == "" || s.user == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, lookupTimeout)
	defer cancel()
	return s.c.Backend.CheckSender(ctx, s.user, sender)
}

// refuseSender says why a login may not use the reverse-path.
func (s *Session) refuseSender(err error) {
	if st, ok := errors.AsType[*mail.Status](err); ok && st.Permanent() {
		s.refuse(replySenderRejected)
		return
	}
	s.fail(err)
}

// begin opens the transaction and answers MAIL.
func (s *Session) begin(sender, shown mail.Address, p params, junk bool) {
	id, err := s.c.Backend.ReserveID(s.ctx)
	if err != nil {
		s.fail(err)
		return
	}
	s.tx = &transaction{id: id, sender: sender, p: p, junk: junk}
	s.say(replyOK)
	if s.heard {
		s.report(EventTxBegin, id.String())
		s.report(EventTxMail, id.String(), "ok", shown.String())
	}
}

// rollback ends the transaction, if there is one, without a message.
func (s *Session) rollback() {
	if s.tx == nil {
		return
	}
	tx := s.tx
	s.tx = nil
	begun := tx.msg != nil && tx.msg.store.begun
	if tx.msg != nil {
		tx.msg.abort()
	}
	tx.release()
	if !tx.kept && !begun {
		s.c.Backend.ReleaseID(tx.id)
	}
	if s.heard {
		s.report(EventTxRollback, tx.id.String())
	}
	s.reportReset(tx)
}

// rcpt is RCPT TO; text is what follows the colon.
func (s *Session) rcpt(text string) {
	switch {
	case s.tx == nil || s.tx.msg != nil || s.tx.refused:
		s.refuse(replySequence)
		return
	case len(s.tx.rcpts) >= s.c.SMTP.MaxRcpt || len(s.tx.envelopes) >= maxEnvelopes:
		s.refuse(replyTooManyRcpts)
		return
	}
	to, reply := s.parseRcpt(text)
	if reply != "" {
		s.refuse(reply)
		return
	}
	v, ok := s.ask(PhaseRcptTo, s.argument(text))
	if !ok {
		s.reportRcpt(to.Address, "permfail")
		return
	}
	shown := to.Address
	if v.Action == Rewrite {
		if to, reply = s.parseRcpt(v.Text); reply != "" {
			s.refuse(reply)
			return
		}
	}
	s.expand(to, shown)
}

func (s *Session) parseRcpt(text string) (to mail.Recipient, reply string) {
	addr, rest, err := parsePath(text, s.tx.p.utf8)
	if err != nil || addr.IsNull() {
		to.Address = addr
		return to, replyRcptSyntax
	}
	to.Address = addr
	if reply = s.rcptParams(rest, s.tx.p.utf8, &to.DSN); reply != "" {
		return to, reply
	}
	s.completeDomain(&to.Address)
	to.DSN.Ret, to.DSN.EnvID = s.tx.p.dsn.Ret, s.tx.p.dsn.EnvID
	return to, ""
}

// expand asks what becomes of a recipient and answers RCPT.
func (s *Session) expand(to mail.Recipient, shown mail.Address) {
	x := s.expansion(to)
	if x.Err != nil {
		s.refuseRcpt(to.Address, shown, x.Err)
		return
	}
	tx := s.tx
	if len(tx.envelopes)+len(x.Branches) > maxEnvelopes && len(tx.envelopes) > 0 {
		s.refuse(replyTooManyRcpts)
		return
	}
	last := tx.add(to, x.Branches, s.c)
	if tx.rcpts == nil {
		tx.rcpts = make([]rcpt, 0, 1+len(tx.ahead)) // those come next
	}
	tx.rcpts = append(tx.rcpts, rcpt{to.Address, last})
	if s.heard {
		for i := range x.Branches {
			n := len(tx.envelopes) - len(x.Branches) + i + 1
			s.report(EventTxEnvelope, tx.id.String(), tx.id.Envelope(uint32(max(n, 1))).String())
		}
	}
	s.say(replyRcptOK)
	s.reportRcpt(shown, "ok")
}

// refuseRcpt says why a recipient is not accepted, and names it.
func (s *Session) refuseRcpt(to, shown mail.Address, err error) {
	st, ok := errors.AsType[*mail.Status](err)
	if !ok {
		s.fail(err)
		s.reportRcpt(shown, "tempfail")
		return
	}
	named := *st
	if suffix := ": <" + to.String() + ">"; !strings.HasSuffix(named.Text, suffix) {
		named.Text += suffix
	}
	line := statusLine(&named)
	if own, ok := errors.AsType[*OwnWords](err); ok && (own.Status.Code/100 == 4 || own.Status.Permanent()) {
		line = own.Error()
	}
	errs := s.errs
	s.refuse(line)
	if s.authed {
		s.errs = errs // a list with dead addresses is no attack
	}
	s.reportRcpt(shown, outcome(st))
}

func (s *Session) reportReset(tx *transaction) {
	if s.filter != nil {
		s.report(EventTxReset, tx.id.String())
	}
}

func (s *Session) reportRcpt(to mail.Address, outcome string) {
	if s.heard {
		s.report(EventTxRcpt, s.tx.id.String(), outcome, to.String())
	}
}

// outcome is how filters are told of a status.
func outcome(st *mail.Status) string {
	switch {
	case st.OK():
		return "ok"
	case st.Permanent():
		return "permfail"
	}
	return "tempfail"
}

// template is what the envelopes of this transaction begin with.
func (s *Session) template() mail.Envelope {
	e := mail.Envelope{
		Tag:      s.c.Listener.Tag,
		SMTPName: s.name,
		Helo:     s.helo,
		Host:     s.client.Host,
		Client:   s.client.Text(),
		Username: s.user,
		Sender:   s.tx.sender,
		Created:  s.c.Now(),
	}
	if s.authed {
		e.Flags |= mail.FlagAuthenticated
	}
	if s.notice {
		e.Flags |= mail.FlagBounce
	}
	if s.tx.p.utf8 {
		e.Flags |= mail.FlagUTF8
	}
	if s.tx.p.eightBit {
		e.Flags |= mail.Flag8BitMIME
	}
	if s.tx.p.requireTLS {
		e.Flags |= mail.FlagRequireTLS
	}
	return e
}

// mailbox is where an envelope goes: two with the same one are one copy.
type mailbox struct {
	kind       mail.Kind
	dispatcher string
	user, exec string
	dest       mail.Address
	sub        string
}

// rooms are memory for the envelopes of a message to many.
var rooms = sync.Pool{New: func() any { return new([maxAhead + 1]mail.Envelope) }}

// release gives the memory of envelopes back, once nobody looks at them.
func (tx *transaction) release() {
	if tx.room != nil {
		clear(tx.room[:min(len(tx.envelopes), len(tx.room))])
		rooms.Put(tx.room)
	}
	tx.room, tx.envelopes, tx.boxes = nil, nil, nil
}

// add takes the envelopes of one recipient in, leaving out those that go where
// another one goes already, and gives the number of the last one's place.
func (tx *transaction) add(to mail.Recipient, branches []mail.Branch, c *Config) (last int) {
	if tx.envelopes == nil && len(branches)+len(tx.ahead) > 1 {
		tx.room = rooms.Get().(*[maxAhead + 1]mail.Envelope)
		tx.envelopes = tx.room[:0]
	}
	for i := range branches {
		tx.envelopes = append(tx.envelopes, tx.pattern)
		last = len(tx.envelopes)
		e := &tx.envelopes[last-1]
		e.Rcpt, e.DSN = to.Address, to.DSN
		e.Follow(&branches[i])
		if n := tx.twin(c); n != 0 {
			*e = mail.Envelope{}
			tx.envelopes = tx.envelopes[:last-1]
			last = n
		}
	}
	return last
}

// twin is the place of the envelope that goes where the last one goes; 0: there
// is none.
func (tx *transaction) twin(c *Config) int {
	n := len(tx.envelopes)
	if n == 1 { // as most mail is
		return 0
	}
	if tx.boxes == nil {
		tx.seed = maphash.MakeSeed()
		tx.boxes = make(map[uint64]int, n+len(tx.ahead)) // those come next
		tx.boxes[tx.box(0, c).hash(tx.seed)] = 1
	}
	box := tx.box(n-1, c)
	hash := box.hash(tx.seed)
	place, known := tx.boxes[hash]
	switch {
	case !known:
		tx.boxes[hash] = n
		return 0
	case tx.box(place-1, c) == box:
		return place
	}
	for i := range n - 1 { // two places with one hash
		if tx.box(i, c) == box {
			return i + 1
		}
	}
	return 0
}

// box is where an envelope goes.
func (tx *transaction) box(i int, c *Config) mailbox {
	e := &tx.envelopes[i]
	return mailboxOf(e, c.Actions[e.Dispatcher], c.SMTP.SubAddrDelim)
}

// hash tells mailboxes apart, mostly.
func (b mailbox) hash(seed maphash.Seed) uint64 { return maphash.Comparable(seed, b) }

// mailboxOf tells where an envelope goes. Local delivery is to the user, unless
// the action looks at the address or at what is behind the delimiter in it; all
// else is to the address.
func mailboxOf(e *mail.Envelope, a *config.Action, delim string) mailbox {
	box := mailbox{kind: e.Kind, dispatcher: e.Dispatcher, user: e.User, exec: e.Exec}
	if e.Kind != mail.KindMDA || a == nil || looksAtAddress(a, e) {
		box.dest = mail.Address{User: e.Dest.User, Domain: strings.ToLower(e.Dest.Domain)}
		box.sub = e.SubAddr
		return box
	}
	if strings.HasPrefix(e.Exec, "/") || (e.Exec == "" && a.Method == config.MethodMbox) {
		return box // one file, whatever the address was
	}
	if box.sub = e.SubAddr; box.sub == "" {
		_, box.sub = e.Dest.SplitTag(delim)
	}
	return box
}

// looksAtAddress reports whether the place of delivery may depend on more than
// the user and the sub-address. In doubt it does: a second copy is no loss.
func looksAtAddress(a *config.Action, e *mail.Envelope) bool {
	switch {
	case a.Wrapper != "":
		return true
	case strings.HasPrefix(e.Exec, "|"), strings.HasPrefix(e.Exec, "/"):
		return strings.Contains(e.Exec, "%{")
	case e.Exec != "":
		return true
	case a.Method == config.MethodMbox:
		return false
	case a.Method == config.MethodMaildir:
		return strings.Contains(a.Path, "%{")
	}
	return true
}
