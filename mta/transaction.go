package mta

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"smtpd/internal/mail"
)

// transaction is one task on its way over a session.
type transaction struct {
	task     *task
	text     Text
	utf8     bool             // MAIL asks for SMTPUTF8
	convert  *sevenBit        // how the text is converted; nil: it is not
	rcpts    []*mail.Envelope // asked for, in order
	accepted []*mail.Envelope
	later    []*mail.Envelope // too many for this transaction
	answered bool             // the host has said something about it
	mailOK   bool
	dataSent bool // DATA, or all of the text with BDAT, is on its way
	chunked  bool // the text goes with BDAT, behind the commands
	reset    bool // RSET stands in front of it
}

// transaction carries out what begin has begun. When the host takes commands
// ahead of its replies, the next task may be begun behind the end of this one;
// it is in s.begun then. An error ends the session; every envelope of x has
// been settled or put back by then.
func (s *session) transaction(x *transaction) error {
	defer s.closeText(x)
	if err := s.envelope(x); err != nil {
		return s.abandon(x, err)
	}
	if len(x.accepted) == 0 {
		return s.nothingAccepted(x)
	}
	if err := s.content(x); err != nil {
		return s.abandon(x, err)
	}
	s.finish(x)
	return nil
}

// finish ends a transaction that went to its end. Recipients that were too many
// for it make one of their own.
func (s *session) finish(x *transaction) {
	s.worked = true
	if len(x.later) == 0 {
		s.e.finished()
		return
	}
	s.e.requeue(s.relay, &task{msg: x.task.msg, sender: x.task.sender, envs: x.later})
}

// abandon settles what a broken session leaves behind. A task that the host has
// said nothing about, on a connection that was good before, is put back.
func (s *session) abandon(x *transaction, err error) error {
	t := x.task
	if s.mayRequeue(x) {
		t.requeued++
		t.envs = x.rcpts
		s.e.requeue(s.relay, t)
		return err
	}
	f := failSession(err)
	if errors.Is(err, errText) {
		f = failText
	}
	s.failAll(x, x.accepted, f)
	s.failAll(x, x.rcpts, f)
	s.failAll(x, x.later, f)
	s.e.finished()
	return err
}

// mayRequeue: a text that has left with BDAT may have been taken, unless the
// host said before that it takes no more.
func (s *session) mayRequeue(x *transaction) bool {
	return !x.answered && s.worked && x.task.requeued < maxRequeue && (!x.chunked || s.gone)
}

// popBegun is the next of the tasks that were begun ahead; nil: none.
func (s *session) popBegun() *transaction {
	if len(s.begun) == 0 {
		return nil
	}
	x := s.begun[0]
	s.begun = append(s.begun[:0], s.begun[1:]...)
	return x
}

// dropBegun gives up the tasks that were begun behind the last one.
func (s *session) dropBegun(err error) {
	for x := s.popBegun(); x != nil; x = s.popBegun() {
		s.closeText(x)
		s.abandon(x, err)
	}
}

func (s *session) closeText(x *transaction) {
	if x.text.File != nil {
		x.text.File.Close()
	}
	x.text = Text{}
}

// begin gathers the commands that open a transaction; all of them when the host
// takes them in one go. Nil: every envelope was settled without asking.
func (s *session) begin(t *task) *transaction {
	s.starting = t
	x := s.open(t)
	s.starting = nil
	return x
}

func (s *session) open(t *task) *transaction {
	x := &transaction{task: t}
	f := s.unsendable(t)
	if f == nil {
		var err error
		if x.text, err = t.msg.Open(s.e.soft); err != nil {
			f = &failText
		}
	}
	if f == nil {
		x.utf8, f = s.needUTF8(t, &x.text)
	}
	if f == nil && !s.ext.eightBit {
		var err error
		if x.convert, err = needSevenBit(&x.text); err != nil {
			f = &failText
		}
	}
	if f == nil && s.mailCommand(t, x.utf8) != nil {
		f = &failSender
	}
	if f != nil {
		s.failAll(x, t.envs, *f)
		s.closeText(x)
		s.e.finished()
		return nil
	}
	if !s.ext.pipelining {
		x.rcpts = t.envs
		return x
	}
	for _, env := range t.envs {
		if s.rcptCommand(env, x.utf8) != nil {
			s.fail(x, env, failRcpt)
			continue
		}
		x.rcpts = append(x.rcpts, env)
	}
	switch {
	case len(x.rcpts) == 0:
	case s.mayChunk(x):
		s.chunk(x)
	default:
		s.dataCommand(x)
	}
	return x
}

// maxChunk bounds a text that goes with BDAT, in octets: those that come with
// the task. A longer one waits for the recipients, and then DATA does as well.
const maxChunk = 64 << 10

// mayChunk reports whether BDAT pays (RFC 3030): a short text leaves together
// with the commands, without a round trip for the reply to DATA, and what is
// sent stands behind them.
func (s *session) mayChunk(x *transaction) bool {
	return s.ext.chunking && !s.relay.lmtp && x.convert == nil && x.text.File == nil &&
		len(x.text.Data) <= maxChunk
}

// chunk gathers the whole text as one BDAT.
func (s *session) chunk(x *transaction) {
	x.chunked, x.dataSent = true, true
	s.w.chunk(x.text.Data)
	if s.tracing {
		s.traceOut("BDAT " + strconv.Itoa(wireSize(x.text.Data)) + " LAST")
	}
}

func (s *session) dataCommand(x *transaction) {
	s.w.out = append(s.w.out, "DATA\r\n"...)
	s.traceOut("DATA")
	x.dataSent = true
}

// unsendable says why a task cannot go over this session at all.
func (s *session) unsendable(t *task) *failure {
	if s.ext.hasSize && s.ext.size > 0 && t.msg.Size > s.ext.size {
		return &failSize
	}
	if s.relay.requireTLS && !s.ext.requireTLS {
		return &failRequireTLS
	}
	return nil
}

// envelope sends what is left to send of MAIL, RCPT and DATA, and takes the
// replies.
func (s *session) envelope(x *transaction) error {
	t := s.e.opt.Timeouts
	if x.chunked {
		s.beginNext(x)
	}
	if err := s.w.flush(t.Block); err != nil {
		return s.unheard(x, err)
	}
	rep, err := s.reply(t.Mail)
	if err == nil && x.reset && rep.code != 421 {
		if !rep.ok() {
			return rejected("RSET", &rep)
		}
		rep, err = s.reply(t.Mail)
	}
	if err != nil {
		return err
	}
	if rep.code == 421 {
		return s.goesAway(x, &rep)
	}
	x.answered = true
	if x.mailOK = rep.ok(); !x.mailOK {
		st := rep.status()
		for _, env := range x.rcpts {
			s.settle(x, env, st)
		}
		skip := len(x.rcpts)
		x.rcpts = nil
		if x.dataSent {
			return s.skipReplies(x, skip)
		}
		return nil
	}
	s.tellMail(x)
	if err := s.recipients(x); err != nil {
		return err
	}
	if len(x.accepted) == 0 {
		s.tellEnd(false)
	}
	if !x.dataSent {
		if len(x.accepted) == 0 {
			return nil
		}
		s.dataCommand(x)
		if err := s.w.flush(t.Block); err != nil {
			return err
		}
	}
	if x.chunked {
		return nil
	}
	return s.dataReply(x)
}

// unheard is the end of a session that broke while commands went out: a host
// that ends it may have said why.
func (s *session) unheard(x *transaction, err error) error {
	if !x.chunked {
		return err
	}
	rep, rerr := s.reply(s.e.opt.Timeouts.TextError)
	if rerr != nil || rep.code != 421 {
		return err
	}
	return s.goesAway(x, &rep)
}

// goesAway is 421: the host ends the session (RFC 5321 section 3.8). What it
// did not answer before is settled by it, or put back when this is how it turns
// an old connection down.
func (s *session) goesAway(x *transaction, rep *reply) error {
	st := rep.status()
	err := said(st.String())
	s.gone = true
	if s.mayRequeue(x) {
		return err // abandon puts it back
	}
	x.answered = true
	for _, list := range []*[]*mail.Envelope{&x.accepted, &x.rcpts, &x.later} {
		for _, env := range *list {
			s.settle(x, env, st)
		}
		*list = nil
	}
	return err
}

// skipReplies reads the replies to RCPT and DATA after MAIL was refused.
func (s *session) skipReplies(x *transaction, rcpts int) error {
	for range rcpts {
		if _, err := s.reply(s.e.opt.Timeouts.Rcpt); err != nil {
			return err
		}
	}
	if x.chunked {
		return s.chunkReply()
	}
	return s.dataReply(x)
}

// chunkReply reads the reply to a BDAT that nobody waits for.
func (s *session) chunkReply() error {
	rep, err := s.reply(s.e.opt.Timeouts.End)
	if err == nil && rep.code == 421 {
		s.gone, err = true, said(rep.status().String())
	}
	return err
}

// recipients takes the replies to RCPT, and sends the commands one by one when
// the host wants it so.
func (s *session) recipients(x *transaction) error {
	t := s.e.opt.Timeouts
	for len(x.rcpts) > 0 {
		env := x.rcpts[0]
		if !x.dataSent {
			if s.tooManyRefused() {
				s.failAll(x, x.rcpts, failTooMany)
				x.rcpts = nil
				return nil
			}
			if s.rcptCommand(env, x.utf8) != nil {
				s.fail(x, env, failRcpt)
				x.rcpts = x.rcpts[1:]
				continue
			}
			if err := s.w.flush(t.Block); err != nil {
				return err
			}
		}
		rep, err := s.reply(t.Rcpt)
		if err != nil {
			return err
		}
		if rep.code == 421 {
			return s.goesAway(x, &rep)
		}
		x.rcpts = x.rcpts[1:]
		s.tellRcpt(x, env, &rep)
		switch {
		case rep.ok():
			x.accepted = append(x.accepted, env)
			s.e.accepts(env, time.Now())
			s.refused = 0
		case rep.code == 452 && len(x.accepted) > 0:
			x.later = append(x.later, env) // RFC 5321 section 4.5.3.1.10
		default:
			s.refused++
			s.settle(x, env, rep.status())
		}
	}
	return nil
}

// dataReply takes the reply to DATA. On anything but 354 the recipients that
// were accepted are settled by it.
func (s *session) dataReply(x *transaction) error {
	rep, err := s.reply(s.e.opt.Timeouts.Data)
	if err != nil {
		return err
	}
	if rep.code == 421 {
		return s.goesAway(x, &rep)
	}
	s.tellData(x, &rep)
	if rep.code != 354 {
		s.tellEnd(false)
		x.dataSent = false
		st := rep.status()
		if rep.ok() { // no reply to DATA is 2xx
			return badReply(st.String())
		}
		for _, env := range append(x.accepted, x.later...) {
			s.settle(x, env, st)
		}
		x.accepted, x.later = nil, nil
	}
	return nil
}

// nothingAccepted ends a transaction without recipients. A host that asked for
// the text nevertheless gets an empty one (RFC 2920 section 3.1). One that has
// refused a BDAT may still have the sender (RFC 3030 section 2).
func (s *session) nothingAccepted(x *transaction) error {
	s.rejected++
	s.finish(x)
	t := s.e.opt.Timeouts
	var rep reply
	var err error
	if x.chunked && x.mailOK { // else skipReplies has read it
		if err = s.chunkReply(); err != nil {
			return err
		}
	}
	switch {
	case x.chunked && len(s.begun) > 0: // RSET is on its way
	case x.dataSent && !x.chunked:
		s.w.out = append(s.w.out, ".\r\n"...)
		if err = s.w.flush(t.Block); err == nil {
			rep, err = s.reply(t.End)
		}
	case x.mailOK:
		s.w.out = append(s.w.out, "RSET\r\n"...)
		s.traceOut("RSET")
		rep, err = s.exchange(t.Mail, false)
	}
	if err == nil && rep.code == 421 {
		err = said(rep.status().String())
	}
	return err
}

// errText says that the text could not be read to its end.
const errText said = "message text could not be read"

// content sends the text, the commands of a next task behind it when the host
// takes that, and settles the recipients by the reply, or in LMTP by the
// replies (RFC 2033 section 4.2).
func (s *session) content(x *transaction) error {
	t := s.e.opt.Timeouts
	if !x.chunked {
		if err := s.sendText(x); err != nil {
			return s.lastWords(x, err)
		}
		if s.told != nil {
			s.told.Tell(toldClient, ".")
		}
		s.beginNext(x)
		if err := s.w.flush(t.Block); err != nil {
			return s.lastWords(x, err)
		}
	}
	ok := false
	for len(x.accepted) > 0 {
		rep, err := s.reply(t.End)
		if err != nil {
			return err
		}
		if rep.code == 421 {
			return s.goesAway(x, &rep)
		}
		st := rep.status()
		settled := x.accepted
		if s.relay.lmtp {
			settled = x.accepted[:1]
		}
		x.accepted = x.accepted[len(settled):]
		for _, env := range settled {
			s.settle(x, env, st)
		}
		ok = ok || rep.ok()
	}
	s.tellEnd(ok)
	if ok {
		s.mails++
		s.rejected = 0
	} else {
		s.rejected++
	}
	return nil
}

// lastWords reads what the host said before it stopped to take the text.
func (s *session) lastWords(x *transaction, err error) error {
	if errors.Is(err, errText) {
		return err
	}
	rep, rerr := s.reply(s.e.opt.Timeouts.TextError)
	if rerr != nil || rep.code < 400 {
		return err
	}
	st := rep.status()
	for _, env := range append(x.accepted, x.later...) {
		s.settle(x, env, st)
	}
	x.accepted, x.later = nil, nil
	return said(st.String())
}

// maxAhead is how many tasks are under way on a connection behind the one
// whose replies are read. Ours: what is ahead when a connection breaks has to be
// tried again, though the host may have taken it.
const maxAhead = 1

// beginNext begins the next task behind the text of this one (RFC 2920 section
// 3.1 allows MAIL after the final dot), so that it costs no round trip. Behind a
// BDAT stands RSET first: if all recipients are refused, hosts refuse the text
// and keep the sender, and would take the next mail for one of his.
func (s *session) beginNext(last *transaction) {
	for s.mayBegin() {
		t, _ := s.e.take(s, false)
		if t == nil {
			return
		}
		before := len(s.w.out)
		if last.chunked {
			s.w.out = append(s.w.out, "RSET\r\n"...)
			s.traceOut("RSET")
		}
		x := s.begin(t)
		if x == nil {
			s.w.out = s.w.out[:before]
			continue
		}
		x.reset = last.chunked
		s.begun = append(s.begun, x)
		last = x
	}
}

// mayBegin: DATA is the last command of a group.
func (s *session) mayBegin() bool {
	n := len(s.begun)
	if n > 0 && (n == maxAhead || !s.begun[n-1].chunked) || s.rejected >= maxRejects || s.tooManyRefused() {
		return false
	}
	max := s.limits.SessionMailMax
	return s.ext.pipelining && !s.relay.lmtp && s.limits.SessionTransactionDelay == 0 &&
		(max == 0 || s.mails+n+1 < max)
}

// readSize is how much of a large text is read at a time.
const readSize = 64 << 10

var textBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// sendText gathers and writes the text with its final dot; the last part stays
// gathered.
func (s *session) sendText(x *transaction) error {
	text := &x.text
	s.w.begin(s.e.opt.Timeouts.Block)
	if x.convert != nil {
		return s.sendConverted(text, x.convert)
	}
	if text.File == nil {
		if err := s.w.text(text.Data); err != nil {
			return err
		}
		s.w.end()
		return nil
	}
	buf := textBuffers.Get().(*[readSize]byte)
	defer textBuffers.Put(buf)
	for off := int64(0); off < text.Size; {
		n, err := text.File.ReadAt(buf[:min(readSize, text.Size-off)], off)
		if n == 0 && err != nil {
			return errText
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return errText
		}
		if err := s.w.text(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	s.w.end()
	return nil
}

// settle reports what the host said about an envelope.
func (s *session) settle(x *transaction, env *mail.Envelope, st *mail.Status) {
	line := st.String()
	s.e.remember(env, st, line, time.Now())
	r := &Report{Session: s.id, Envelope: env, Sender: x.task.sender, Source: s.source, Relay: s.peer,
		Status: *st, Stat: line, Line: line, Remote: remoteName(s.to.name, s.e.nameOf(s.route.host), s.route.host.addr)}
	switch {
	case st.OK():
		r.Line = ""
		r.Relayed = env.DSN.Notify&mail.NotifySuccess != 0 && !s.ext.dsn
	case st.Permanent():
		r.Loop = st.Enh == [3]uint8{5, 4, 6}
	}
	s.e.done(r)
}

// fail reports a failure that no host spoke of.
func (s *session) fail(x *transaction, env *mail.Envelope, f failure) {
	s.e.done(&Report{Session: s.id, Envelope: env, Sender: x.task.sender, Source: s.source, Relay: s.peer,
		Status: f.status(), Stat: f.text, Line: f.line(), NoTry: f.noTry})
}

func (s *session) failAll(x *transaction, envs []*mail.Envelope, f failure) {
	for _, env := range envs {
		s.fail(x, env, f)
	}
}
