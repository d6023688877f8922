package queue

import (
	"errors"
	"fmt"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// results makes the ends of attempts durable, all in one transaction, and only
// then answers. A result told twice changes nothing the second time.
func (a *agent) results(r *ipc.Request, results []imsg.Result) {
	s := a.s
	now := s.now()
	var changes []queue.Change
	var of []*imsg.Result
	for i := range results {
		res := &results[i]
		if l, ok := s.store.LeaseOf(res.ID); ok && l.Owner != a.owner {
			continue // somebody else has it
		}
		clean(res)
		changes = append(changes, queue.Change{ID: res.ID, Attempt: int(res.Attempt), Edit: a.edit(res, now)})
		of = append(of, res)
	}
	out, err := s.store.Apply(s.work, changes)
	if err != nil {
		s.complain("results", err)
		r.Reply(&imsg.Done{Text: "not durable"}, nil)
		return
	}
	r.Reply(&imsg.Done{OK: true}, nil)
	for i := range out {
		s.store.EndLeases(a.owner, []mail.EnvelopeID{of[i].ID})
		a.settled(of[i].ID)
		a.settle(&out[i], of[i])
	}
}

// clean makes what an agent says fit to be stored.
func clean(r *imsg.Result) {
	r.Line = mail.Clean(r.Line, imsg.MaxText)
	r.Remote = mail.Clean(r.Remote, imsg.MaxName)
	r.Status.Text = mail.Clean(r.Status.Text, mail.MaxStatusText)
	if r.Line == "" && !r.Status.OK() {
		r.Line = r.Status.String()
	}
}

// edit is what a result makes of its envelope.
func (a *agent) edit(r *imsg.Result, now time.Time) func(*mail.Envelope) queue.Verdict {
	return func(e *mail.Envelope) queue.Verdict {
		if e.Kind != a.kind || (r.NoTry && r.Status.Temporary()) {
			return queue.Verdict{} // not its own, or not tried
		}
		e.LastTry, e.LastStatus, e.LastError, e.RemoteMTA = now, r.Status, r.Line, r.Remote
		switch {
		case r.Status.OK():
			return queue.Verdict{Delete: true, Add: notice(e, success(a.kind, r), now)}
		case r.Status.Permanent():
			return queue.Verdict{Delete: true, Add: notice(e, mail.NoticeFailed, now)}
		}
		e.Retry += uint16(min(1, ^e.Retry)) // never around
		return queue.Verdict{}
	}
}

// success is the notice of a delivery, for those who asked; 0: none. After a
// relay that knows DSN itself it is not ours to tell.
func success(k mail.Kind, r *imsg.Result) mail.NoticeKind {
	switch {
	case k == mail.KindMDA:
		return mail.NoticeDelivered
	case r.Relayed:
		return mail.NoticeRelayed
	}
	return 0
}

// settle tells of the end of an attempt.
func (a *agent) settle(o *queue.Outcome, r *imsg.Result) {
	s := a.s
	switch {
	case errors.Is(o.Err, queue.ErrNotFound) || errors.Is(o.Err, queue.ErrCorrupt):
		s.out.gone(mail.GoneRemoved, r.ID)
		return
	case o.Err != nil: // told twice, and tried again since, perhaps
		if o.Envelope.ID == r.ID && !s.leased(&o.Envelope) {
			s.out.scheduled(schedOf(&o.Envelope, false))
		}
		return
	}
	why := mail.GoneDelivered
	if !r.Status.OK() {
		why = mail.GoneFailed
		if r.Loop {
			why = mail.GoneLoop
		}
	}
	if o.Deleted && r.Status.Permanent() {
		s.unnoticed(o, mail.NoticeFailed)
	}
	s.tell(o, why)
}

// notice is the envelope that reports an end to the sender of e, or nil when
// nothing is to be reported: RFC 3461 section 4.1 says what is wanted, and
// RFC 5321 section 4.5.5 that nothing is told to the null reverse-path.
func notice(e *mail.Envelope, kind mail.NoticeKind, now time.Time) *mail.Envelope {
	if kind == 0 || e.Kind == mail.KindBounce || e.Sender.IsNull() || !wanted(e.DSN.Notify, kind) {
		return nil
	}
	n := *e
	n.Kind, n.Notice = mail.KindBounce, kind
	n.Flags &^= mail.FlagSuspended | mail.FlagHold
	n.Created, n.TTL = now, noticeTTL
	n.Retry, n.DelayNotices, n.NoticeDelay = 0, 0, 0
	return &n
}

// wanted reports whether NOTIFY asks for a notice.
func wanted(n mail.Notify, kind mail.NoticeKind) bool {
	if n == 0 { // not given: failures and, as local policy, delays
		n = mail.NotifyFailure | mail.NotifyDelay
	}
	bit := map[mail.NoticeKind]mail.Notify{mail.NoticeFailed: mail.NotifyFailure, mail.NoticeDelayed: mail.NotifyDelay,
		mail.NoticeDelivered: mail.NotifySuccess, mail.NoticeRelayed: mail.NotifySuccess}[kind]
	return n&mail.NotifyNever == 0 && n&bit != 0
}

// unnoticed logs that a failure could not be told to anybody.
func (s *state) unnoticed(o *queue.Outcome, kind mail.NoticeKind) {
	switch e := &o.Envelope; {
	case o.Added != nil:
	case e.Kind == mail.KindBounce:
		s.log.Warn("warn: queue: double bounce!")
	case e.Sender.IsNull() && wanted(e.DSN.Notify, kind):
		s.log.Warn("warn: queue: no return path!")
	}
}

// logEnd logs an end that was not the end of an attempt.
func (s *state) logEnd(e *mail.Envelope, what, stat string) {
	subsystem := map[mail.Kind]string{mail.KindMDA: "delivery", mail.KindMTA: "relay", mail.KindBounce: "bounce"}[e.Kind]
	rcpt := "-"
	if e.Rcpt != e.Dest {
		rcpt = e.Rcpt.String()
	}
	s.log.Info(fmt.Sprintf("%s: %s for %s: from=<%s>, to=<%s>, rcpt=<%s>, delay=%s, stat=%s",
		subsystem, what, e.ID, e.Sender, e.Dest, rcpt, ctl.Duration(s.now().Sub(e.Created)), stat))
}
