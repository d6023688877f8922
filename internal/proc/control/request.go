package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// Time limits for what other processes are asked. Ours: an operator waits for
// the answer, and a process that was killed is back within a second.
const (
	callTimeout    = 10 * time.Second
	statsTimeout   = time.Second      // a dead process must not block the others' counters
	explainTimeout = 45 * time.Second // tables of others may be slow; lookup itself gives up before
	reloadTimeout  = time.Minute      // reads tables and certificates anew
)

// request is one conversation under way.
type request struct {
	*server
	ctx  context.Context
	c    *ctl.Conn
	uid  uint32
	args []string // without the request's name
}

// request answers one request. Its error is that of the connection; what the
// other processes fail to do becomes a Fail.
func (s *server) request(ctx context.Context, c *ctl.Conn, uid uint32, fields []string) error {
	if len(fields) == 0 {
		return ctl.ErrFrame
	}
	r := &request{server: s, ctx: ctx, c: c, uid: uid, args: fields[1:]}
	text, err := r.dispatch(fields[0])
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return errors.Join(c.Send(ctl.KindFail, f.Reason), c.Flush())
	}
	if err != nil {
		return err
	}
	return errors.Join(c.Send(ctl.KindOK, text), c.Flush())
}

var errNotPermitted = &ctl.Failure{Reason: "not permitted"}

func (r *request) dispatch(name string) (string, error) {
	if name == ctl.ReqSubmit {
		return r.submit()
	}
	if !r.trusted(r.uid) {
		return "", errNotPermitted
	}
	switch name {
	case ctl.ReqQueue:
		return r.queue()
	case ctl.ReqEnvelope:
		return r.envelope()
	case ctl.ReqMessage:
		return r.message()
	case ctl.ReqStats:
		return r.stats()
	case ctl.ReqStatus:
		return r.status()
	case ctl.ReqShow:
		return r.show()
	case ctl.ReqSchedule, ctl.ReqRemove, ctl.ReqPause, ctl.ReqResume, ctl.ReqDiscover:
		return r.schedule(schedOps[name])
	case ctl.ReqRelease:
		return r.release()
	case ctl.ReqSwitch:
		return r.change()
	case ctl.ReqBlock, ctl.ReqUnblock:
		return r.done(r.peers.MTA, callTimeout,
			&imsg.RouteCommand{Block: name == ctl.ReqBlock, Source: r.arg(0), Domain: strings.ToLower(r.arg(1))})
	case ctl.ReqRoute:
		return r.route()
	case ctl.ReqUpdate:
		return r.done(r.peers.Lookup, callTimeout, &imsg.TableUpdate{Table: r.arg(0)})
	case ctl.ReqReload:
		return r.reload()
	case ctl.ReqLookup:
		return r.lookup()
	case ctl.ReqExplain:
		return r.explain()
	}
	return "", &ctl.Failure{Reason: "unknown request"}
}

// schedOps are the requests that the scheduler carries out.
var schedOps = map[string]imsg.SchedOp{
	ctl.ReqSchedule: imsg.OpSchedule, ctl.ReqRemove: imsg.OpRemove, ctl.ReqPause: imsg.OpPause,
	ctl.ReqResume: imsg.OpResume, ctl.ReqDiscover: imsg.OpDiscover,
}

func (r *request) arg(n int) string {
	if n < len(r.args) {
		return r.args[n]
	}
	return ""
}

// ask is a call with a time limit; that it failed is a Failure.
func ask[A imsg.Msg](r *request, l *ipc.Link, limit time.Duration, m imsg.Msg) (A, error) {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	a, err := ipc.Ask[A](ctx, l, m)
	return a, r.unanswered(l, err)
}

func (r *request) unanswered(l *ipc.Link, err error) error {
	if err == nil {
		return nil
	}
	r.env.Log.Debug(fmt.Sprintf("debug: control: %s: %v", l.Peer, err))
	return &ctl.Failure{Reason: "no answer from " + l.Peer.String()}
}

// done asks for what is answered by success or failure only.
func (r *request) done(l *ipc.Link, limit time.Duration, m imsg.Msg) (string, error) {
	d, err := ask[*imsg.Done](r, l, limit, m)
	if err == nil && !d.OK {
		err = &ctl.Failure{Reason: d.Text}
	}
	return "", err
}

// reload answers with the warnings of the configuration that is in force now.
func (r *request) reload() (string, error) {
	d, err := ask[*imsg.Done](r, r.env.Parent, reloadTimeout, &imsg.Reload{})
	switch {
	case err != nil:
		return "", err
	case !d.OK:
		return "", &ctl.Failure{Reason: d.Text}
	}
	return d.Text, nil
}

// submit hands the client its end of a session with the local listener.
func (r *request) submit() (string, error) {
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	m, f, err := ipc.AskFile[*imsg.SessionOpened](ctx, r.peers.SMTP, &imsg.SessionOpen{UID: r.uid})
	if err != nil {
		_ = r.unanswered(r.peers.SMTP, err)
		return "", &ctl.Failure{Reason: ctl.ReasonBusy}
	}
	defer closeFile(f)
	if !m.OK || f == nil {
		return "", &ctl.Failure{Reason: ctl.ReasonRefused}
	}
	name := ""
	if conf := r.conf.Load(); conf != nil {
		name = conf.ServerName
	}
	return name, r.c.SendFile(f)
}

func (r *request) envelope() (string, error) {
	id, err := mail.ParseEnvelopeID(r.arg(0))
	if err != nil {
		return "", &ctl.Failure{Reason: ctl.ReasonMissing}
	}
	l, err := ask[*imsg.QueueListing](r, r.peers.Queue, callTimeout, &imsg.EnvelopeGet{ID: id})
	if err != nil {
		return "", err
	}
	if len(l.Envelopes) == 0 {
		return "", &ctl.Failure{Reason: ctl.ReasonMissing}
	}
	return "", r.c.Send(ctl.KindData, ctl.EnvelopeText(&l.Envelopes[0]))
}

func (r *request) message() (string, error) {
	id, err := mail.ParseMessageID(r.arg(0))
	if err != nil {
		return "", &ctl.Failure{Reason: ctl.ReasonMissing}
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	b, f, err := ipc.AskFile[*imsg.Body](ctx, r.peers.Queue, &imsg.BodyOpen{Message: id})
	if err := r.unanswered(r.peers.Queue, err); err != nil {
		return "", err
	}
	defer closeFile(f)
	switch {
	case b.Status.Permanent():
		return "", &ctl.Failure{Reason: ctl.ReasonMissing}
	case !b.Status.OK() || b.InFile && f == nil:
		return "", &ctl.Failure{Reason: b.Status.Text}
	case b.InFile:
		return "", r.copyFile(f)
	}
	return "", r.c.Send(ctl.KindData, string(b.Inline))
}

// copyFile sends what f holds, in parts.
func (r *request) copyFile(f *os.File) error {
	buf := make([]byte, ctl.MaxData/4)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := r.c.Send(ctl.KindData, string(buf[:n])); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &ctl.Failure{Reason: "read message: " + err.Error()}
		}
	}
}

func (r *request) schedule(op imsg.SchedOp) (string, error) {
	if r.arg(0) == ctl.Where {
		return r.selected(op)
	}
	m := &imsg.SchedCommand{Op: op}
	var err error
	switch what := r.arg(0); len(what) {
	case 8:
		m.Message, err = mail.ParseMessageID(what)
	case 16:
		m.Envelope, err = mail.ParseEnvelopeID(what)
	default:
		m.All = what == "all"
		if !m.All {
			err = ctl.ErrFrame
		}
	}
	if err != nil {
		return "", &ctl.Failure{Reason: "invalid id"}
	}
	n, err := ask[*imsg.Count](r, r.peers.Scheduler, callTimeout, m)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(n.N, 10), nil
}

// commandSlice is how many envelopes of a selection go into one command.
const commandSlice = 1000

// selected applies an operation to each envelope of a selection, or only counts
// them.
func (r *request) selected(op imsg.SchedOp) (string, error) {
	if op == imsg.OpDiscover || len(r.args) < 2 {
		return "", &ctl.Failure{Reason: "invalid selection"}
	}
	sel, err := ctl.ParseSelection(r.args[2:])
	if err != nil {
		return "", &ctl.Failure{Reason: err.Error()}
	}
	var ids []mail.EnvelopeID
	now := r.env.Now()
	err = r.each(0, func(e *ctl.Entry) error {
		if sel.Match(e, now) {
			ids = append(ids, e.Envelope.ID)
		}
		return nil
	})
	if err != nil || r.arg(1) == ctl.DryRun {
		return strconv.Itoa(len(ids)), err
	}
	n, err := r.apply(op, ids)
	return strconv.FormatInt(n, 10), err
}

// release has held mail for domains leave now, and for a time that of the
// future too.
func (r *request) release() (string, error) {
	domain := strings.ToLower(r.arg(0))
	sec, err := strconv.ParseUint(r.arg(1), 10, 31)
	if domain == "" || len(domain) > mail.MaxDomain || err != nil {
		return "", &ctl.Failure{Reason: "invalid domain or time"}
	}
	m := &imsg.SchedCommand{Op: imsg.OpRelease, Domain: domain, Time: time.Duration(sec) * time.Second}
	kept, err := ask[*imsg.Count](r, r.peers.Scheduler, callTimeout, m)
	if err != nil {
		return "", err
	}
	if kept.N == 0 {
		return "", &ctl.Failure{Reason: "the queue could not keep the release, or has too many"}
	}
	var ids []mail.EnvelopeID
	err = r.each(0, func(e *ctl.Entry) error {
		held := e.Wait == mail.WaitRelease || e.Wait == mail.WaitWindow
		if held && mail.MatchPattern(domain, strings.ToLower(e.Envelope.Dest.Domain)) {
			ids = append(ids, e.Envelope.ID)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	n, err := r.apply(imsg.OpSchedule, ids)
	return strconv.FormatInt(n, 10), err
}

func (r *request) apply(op imsg.SchedOp, ids []mail.EnvelopeID) (total int64, err error) {
	for part := range slices.Chunk(ids, commandSlice) {
		n, err := ask[*imsg.Count](r, r.peers.Scheduler, callTimeout, &imsg.SchedCommand{Op: op, IDs: part})
		if err != nil {
			return total, err
		}
		total += n.N
	}
	return total, nil
}

func (r *request) status() (string, error) {
	sw, err := ask[*imsg.Switches](r, r.env.Parent, callTimeout, &imsg.StatusGet{})
	if err != nil {
		return "", err
	}
	word := map[bool]string{true: "paused", false: "running"}
	return "", errors.Join(
		r.c.Send(ctl.KindRow, "MDA", word[sw.PauseMDA]),
		r.c.Send(ctl.KindRow, "MTA", word[sw.PauseMTA]),
		r.c.Send(ctl.KindRow, "SMTP", word[sw.PauseSMTP]))
}

// change is a switch. Pausing what is paused fails; the other switches may be
// set to what they are.
func (r *request) change() (string, error) {
	name := r.arg(0)
	word, _, _ := strings.Cut(name, " ")
	if !slices.Contains([]string{"verbose", "mta", "mda", "smtp", "trace", "profile"}, word) {
		return "", &ctl.Failure{Reason: "unknown switch"}
	}
	text, err := r.done(r.env.Parent, callTimeout, &imsg.Switch{Name: name, On: r.arg(1) == "on"})
	return text, err
}

func (r *request) route() (string, error) {
	id, err := strconv.ParseUint(r.arg(0), 10, 64)
	if err != nil || id == 0 {
		return "", &ctl.Failure{Reason: "invalid route"}
	}
	// An unknown route is no failure: it is as enabled as it can be.
	_, err = ask[*imsg.Done](r, r.peers.MTA, callTimeout, &imsg.RouteCommand{Resume: id})
	return "", err
}

func (r *request) lookup() (string, error) {
	q := &imsg.TableQuery{Table: r.arg(0), Service: r.arg(1), Key: r.arg(2), Fetch: len(r.args) == 2}
	if len(q.Table) > imsg.MaxName || len(q.Service) > imsg.MaxName || len(q.Key) > imsg.MaxText {
		return "", &ctl.Failure{Reason: "the question is too long"}
	}
	start := r.env.Now()
	a, err := ask[*imsg.TableAnswer](r, r.peers.Lookup, callTimeout, q)
	if err != nil {
		return "", err
	}
	result := "not found"
	switch {
	case a.Temporary:
		result = "temporary failure"
	case a.Found:
		result = "found"
	}
	took := strconv.FormatInt(r.env.Now().Sub(start).Microseconds(), 10)
	return "", r.c.Send(ctl.KindRow, result, a.Value, took, a.Reason)
}

// explain asks what becomes of a mail. The first argument is "text" or "json",
// the others are facts; the row is the exit status and what to print.
func (r *request) explain() (string, error) {
	if len(r.args) < 2 || len(r.args)-1 > imsg.MaxFacts {
		return "", &ctl.Failure{Reason: "no facts, or too many"}
	}
	m := &imsg.Explain{Facts: r.args[1:], JSON: r.arg(0) == "json"}
	for _, f := range m.Facts {
		if len(f) > imsg.MaxText {
			return "", &ctl.Failure{Reason: "a fact is too long"}
		}
	}
	a, err := ask[*imsg.Explained](r, r.peers.Lookup, explainTimeout, m)
	switch {
	case err != nil:
		return "", err
	case a.Fail:
		return "", &ctl.Failure{Reason: string(a.Text)}
	}
	return "", r.c.Send(ctl.KindRow, strconv.Itoa(int(a.Exit)), string(a.Text))
}
