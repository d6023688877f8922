package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
	engine "smtpd/internal/smtp"
)

// backend is what sessions of one listener ask: each method is a call to
// another process. While that is not there they wait a little, and then it is
// "try later".
type backend struct {
	s      *server
	l      *config.Listener
	limits *config.SMTP

	generation uint64 // of the configuration

	filters *filters // nil: none
}

// Admit implements engine.Backend.
func (b *backend) Admit(client netip.Addr) (refusal string) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	return b.s.places.enter(client, b.limits, b.s.env.Now())
}

// Leave implements engine.Backend.
func (b *backend) Leave(client netip.Addr) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.s.places.leave(client)
}

// ClientName implements engine.Backend.
func (b *backend) ClientName(ctx context.Context, addr netip.Addr) (host, fcrdns string) {
	n, err := askAgain[*imsg.ClientName](ctx, b.s.lookup, &imsg.ClientLookup{Addr: addr.String()})
	if err != nil || n.Host == "" {
		return "<unknown>", "error"
	}
	return n.Host, n.FCrDNS
}

// Hostname implements engine.Backend.
func (b *backend) Hostname(ctx context.Context, local netip.Addr) string {
	a, err := askAgain[*imsg.TableAnswer](ctx, b.s.lookup,
		&imsg.TableQuery{Table: b.l.Hostnames, Service: "addrname", Key: local.String(), Generation: b.generation})
	if err != nil || !a.Found {
		return ""
	}
	return a.Value
}

// Authenticate implements engine.Backend.
func (b *backend) Authenticate(ctx context.Context, user, password string) error {
	r, err := askAgain[*imsg.AuthResult](ctx, b.s.lookup,
		&imsg.AuthCheck{Table: b.l.AuthTable, User: user, Password: password, Generation: b.generation})
	switch {
	case err != nil:
		return err
	case r.OK:
		return nil
	case r.Temporary:
		return mail.LocalError()
	}
	return engine.ErrCredentials
}

// Verifier implements engine.Backend.
func (b *backend) Verifier(ctx context.Context, user string) (*auth.Verifier, error) {
	value, err := b.credentials(ctx, user)
	if err != nil {
		return nil, err
	}
	v, ok := parseVerifier(value)
	if !ok {
		return nil, engine.ErrCredentials
	}
	return v, nil
}

// KnowsLogin implements engine.Backend.
func (b *backend) KnowsLogin(ctx context.Context, user string) error {
	_, err := b.credentials(ctx, user)
	return err
}

// credentials is what the listener's table has of a login.
func (b *backend) credentials(ctx context.Context, user string) (string, error) {
	a, err := askAgain[*imsg.TableAnswer](ctx, b.s.lookup,
		&imsg.TableQuery{Table: b.l.AuthTable, Service: "credentials", Key: strings.ToLower(user), Generation: b.generation})
	switch {
	case err != nil:
		return "", err
	case a.Temporary:
		return "", mail.LocalError()
	case !a.Found:
		return "", engine.ErrCredentials
	}
	return a.Value, nil
}

// parseVerifier reads a verifier as an entry of a table holds it, with the user
// in front or without.
func parseVerifier(value string) (*auth.Verifier, bool) {
	if v, ok := auth.ParseVerifier(value); ok {
		return v, true
	}
	_, secret, _ := strings.Cut(value, ":")
	return auth.ParseVerifier(secret)
}

// scramTable reports whether a table holds what SCRAM needs for every login. Of
// a table that is not written out in the configuration nobody knows: it is for
// the listener to say.
func scramTable(t *config.Table) bool {
	if t == nil || len(t.Pairs) == 0 {
		return false
	}
	for _, p := range t.Pairs {
		if _, ok := parseVerifier(p[1]); !ok {
			return false
		}
	}
	return true
}

// CheckSender implements engine.Backend.
func (b *backend) CheckSender(ctx context.Context, user string, sender mail.Address) error {
	a, err := askAgain[*imsg.TableAnswer](ctx, b.s.lookup,
		&imsg.SenderCheck{Table: b.l.Senders, User: user, Sender: sender, Generation: b.generation})
	switch {
	case err != nil:
		return err
	case a.Temporary:
		return mail.LocalError()
	case !a.Found:
		return mail.NewStatus(550, [3]uint8{5, 7, 1}, "Sender rejected")
	}
	return nil
}

// maxExpansion bounds the branches taken from lookup for one recipient. Ours:
// the session takes no more for a whole message.
const maxExpansion = 20000

// CheckRcpt implements engine.Backend.
func (b *backend) CheckRcpt(ctx context.Context, r *engine.Rcpt) []engine.Expansion {
	a, err := askAgain[*imsg.RcptAnswer](ctx, b.s.lookup,
		&imsg.RcptCheck{Session: r.Session, Envelope: r.Envelope, Next: r.Next, TLS: r.TLS, Local: r.Local,
			Generation: b.generation})
	if err != nil {
		return []engine.Expansion{{Err: err}}
	}
	list := make([]engine.Expansion, 1, 1+len(a.Next))
	list[0] = b.expansion(ctx, r, r.Envelope.Rcpt, &a.RcptOutcome)
	for i := range min(len(a.Next), len(r.Next)) {
		list = append(list, b.expansion(ctx, r, r.Next[i].Address, &a.Next[i]))
	}
	return list
}

// expansion is what lookup said of one recipient, with what did not fit its
// answer.
func (b *backend) expansion(ctx context.Context, r *engine.Rcpt, to mail.Address, o *imsg.RcptOutcome) engine.Expansion {
	if log := b.s.env.Log; log.Verbose() {
		log.Debug(fmt.Sprintf("debug: smtp: %s: <%s>: rule %s: %s", r.Session, to, o.Rule, &o.Status))
	}
	if !o.Status.OK() && o.Own {
		return engine.Expansion{Err: &engine.OwnWords{Status: mail.NewStatus(o.Status.Code, o.Status.Enh, o.Status.Text)}}
	}
	if !o.Status.OK() {
		return engine.Expansion{Err: mail.NewStatus(o.Status.Code, o.Status.Enh, o.Status.Text)}
	}
	branches := o.Branches
	for token := o.More; token != 0; {
		a, err := ask[*imsg.RcptAnswer](ctx, b.s.lookup, &imsg.RcptMore{Token: token})
		if err != nil {
			return engine.Expansion{Err: fmt.Errorf("ask lookup for more: %w", err)}
		}
		if !a.Status.OK() || len(branches)+len(a.Branches) > maxExpansion {
			return engine.Expansion{Err: mail.NewStatus(452, [3]uint8{4, 5, 3}, "Too many recipients")}
		}
		branches = append(branches, a.Branches...)
		token = a.More
	}
	if len(branches) == 0 {
		return engine.Expansion{Err: errors.New("lookup: accepted, but for nobody")}
	}
	return engine.Expansion{Branches: branches}
}

// ReserveID implements engine.Backend.
func (b *backend) ReserveID(ctx context.Context) (mail.MessageID, error) { return b.s.ids.take(ctx) }

// ReleaseID implements engine.Backend.
func (b *backend) ReleaseID(id mail.MessageID) { b.s.ids.give(id) }

// CreateBody implements engine.Backend.
func (b *backend) CreateBody(ctx context.Context, id mail.MessageID) (io.WriteCloser, error) {
	m, f, err := askFile[*imsg.BodyCreated](ctx, b.s.queue, &imsg.BodyCreate{ID: id})
	switch {
	case err != nil:
		return nil, fmt.Errorf("open body: %w", err)
	case !m.Status.OK() || f == nil:
		if f != nil {
			f.Close()
		}
		return nil, temporary(&m.Status)
	}
	return bodyFile{f, b.s}, nil
}

// bodyFile is a body in a file of the queue. It is we who write it: that the
// disk is full is told as the queue tells it.
type bodyFile struct {
	*os.File
	s *server
}

// Write implements io.Writer. Its error is a *mail.Status with 452 when there is
// no room.
func (f bodyFile) Write(b []byte) (int, error) {
	n, err := f.File.Write(b)
	if err == nil {
		return n, nil
	}
	f.s.complain(err)
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, full) {
			err = mail.NewStatus(452, [3]uint8{4, 3, 1}, "Insufficient system storage")
		}
	}
	return n, err
}

// complainEvery bounds how often the log repeats that the disk fails. Ours.
const complainEvery = 10 * time.Second

// complain logs that the disk does not take a body: the client hears of it, and
// so must the operator.
func (s *server) complain(err error) {
	if p, ok := errors.AsType[*os.PathError](err); ok {
		err = p.Err // the name is of no use outside the queue's folder
	}
	s.mu.Lock()
	now := s.env.Now()
	quiet := !s.complained.IsZero() && now.Sub(s.complained) < complainEvery
	if !quiet {
		s.complained = now
	}
	s.mu.Unlock()
	if !quiet {
		s.env.Log.Warn("warn: smtp: the spool does not take a message: " + err.Error())
	}
}

// AbortBody implements engine.Backend. A queue that is gone has nothing to
// give up.
func (b *backend) AbortBody(id mail.MessageID) {
	_ = b.s.queue.link.Send(&imsg.BodyAbort{ID: id}, nil)
}

// errQueueReplaced is why a message that was handed over in parts is not
// accepted: the new queue did not see all of them.
var errQueueReplaced = errors.New("queue was replaced in mid message")

// Commit implements engine.Backend.
func (b *backend) Commit(ctx context.Context, m *engine.Message) error {
	ids := b.s.ids
	generation := ids.generation.Load()
	rest, err := b.commitParts(m)
	if err != nil {
		return err
	}
	if ids.generation.Load() != generation {
		return errQueueReplaced
	}
	r, err := ask[*imsg.Committed](ctx, b.s.queue, &imsg.Commit{
		ID: m.ID, Size: m.Size, Inline: m.Inline, InFile: m.InFile, Envelopes: rest, Total: len(m.Envelopes),
		Sessions: b.s.open(),
	})
	switch {
	case err != nil:
		return fmt.Errorf("commit %s: %w", m.ID, err)
	case !r.Status.OK():
		return temporary(&r.Status)
	case len(rest) != len(m.Envelopes) && ids.generation.Load() != generation:
		return errQueueReplaced
	}
	return nil
}

// commitParts sends ahead the envelopes that do not fit the Commit itself and
// gives the rest.
func (b *backend) commitParts(m *engine.Message) (rest []mail.Envelope, err error) {
	rest = m.Envelopes
	room := imsg.MaxFrame - len(m.Inline) - frameMargin
	for {
		n := fit(rest, room)
		if n == len(rest) {
			return rest, nil
		}
		n = fit(rest, imsg.MaxFrame-frameMargin)
		if err := b.s.queue.link.Send(&imsg.CommitPart{ID: m.ID, Envelopes: rest[:n]}, nil); err != nil {
			return nil, fmt.Errorf("commit %s: %w", m.ID, err)
		}
		rest = rest[n:]
	}
}

// frameMargin is room for the header of a frame and the small fields.
const frameMargin = 4096

// fit is how many envelopes go into so many octets, one at least.
func fit(l []mail.Envelope, room int) int {
	for i := range min(len(l), imsg.MaxItems) {
		if room -= encodedSize(&l[i]); room < 0 && i > 0 {
			return i
		}
	}
	return min(len(l), imsg.MaxItems)
}

// encodedSize is at least what an envelope takes in a frame: its texts, and
// 160 octets for all that has a bounded size.
func encodedSize(e *mail.Envelope) int {
	n := 160
	for _, s := range [...]string{e.Dispatcher, e.Tag, e.SMTPName, e.Helo, e.Host, e.Client, e.Username,
		e.Sender.User, e.Sender.Domain, e.Rcpt.User, e.Rcpt.Domain, e.Dest.User, e.Dest.Domain,
		e.DSN.EnvID, e.DSN.ORcpt, e.User, e.Home, e.Exec, e.SubAddr, e.LastStatus.Text, e.LastError, e.RemoteMTA} {
		n += len(s) + 3
	}
	return n
}

// temporary is a status of queue as the client sees it: that our disk is full
// or broken is no reason to give the mail up.
func temporary(st *mail.Status) error {
	if st.Temporary() && st.Code >= 400 && st.Code < 500 {
		return mail.NewStatus(st.Code, st.Enh, st.Text)
	}
	return mail.LocalError()
}
