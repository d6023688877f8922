package mda

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// Methods of items that come from aliases and .forward files, as imsg.DeliverRun
// names them.
const (
	methodFile = "file"
	methodPipe = "pipe"
)

// job is one delivery, from Transfer to its result.
type job struct {
	env     *mail.Envelope
	twins   []*mail.Envelope // the same mailbox: one copy serves them all
	conf    *config.Config
	act     *config.Action
	body    *body
	session mail.SessionID
	run     imsg.DeliverRun
	user    imsg.UserInfo
	as      imsg.UserInfo // what the worker runs as
	again   int           // times that its worker was gone before it began

	// answer makes it a question to the store, of which nothing is logged or kept.
	answer func(*imsg.DeliverResult)
}

// plan fills in what the worker is told, but for the user; a result is the end
// of it.
func (j *job) plan() *imsg.DeliverResult {
	a, e := j.act, j.env
	m := &j.run
	m.Envelope, m.Method, m.Junk, m.RcptTo = *e, string(a.Method), a.Junk, a.RcptTo
	m.Original, m.Verify = a.OriginalTo, j.answer != nil
	m.Delim, m.Hostname = j.conf.SMTP.SubAddrDelim, j.conf.ServerName
	switch {
	case strings.HasPrefix(e.Exec, "/"):
		m.Method, m.Path = methodFile, e.Exec
	case strings.HasPrefix(e.Exec, "|"):
		m.Method, m.Command = methodPipe, e.Exec[1:]
	case e.Exec != "":
		return tempfail("no such way to deliver: " + mail.Clean(e.Exec, 64))
	case a.Method == config.MethodMaildir:
		m.Path = a.Path
	case a.Method == config.MethodLMTP:
		m.Path = a.Dest
	case a.Method == config.MethodMDA:
		m.Command = a.Command
	case a.Method != config.MethodMbox:
		return tempfail(fmt.Sprintf("the action %s does not deliver", mail.Clean(a.Name, 64)))
	}
	if a.Wrapper != "" && j.answer == nil && m.Method != string(config.MethodMbox) {
		if m.Wrapper = j.conf.Wrappers[a.Wrapper]; m.Wrapper == "" {
			return tempfail("No such wrapper: " + mail.Clean(a.Wrapper, 64))
		}
	}
	return nil
}

// isCommand tells the deliveries that run a command: these have a limit of
// their own.
func (j *job) isCommand() bool {
	return j.run.Wrapper != "" || j.run.Method == methodPipe || j.run.Method == string(config.MethodMDA)
}

// mailbox names where a delivery ends, as far as that can be told here; empty:
// nowhere that another of the same message could.
func (j *job) mailbox() string {
	if j.act == nil || j.act.Wrapper != "" {
		return ""
	}
	e, tag, path := j.env, "", boxPath(j)
	switch {
	case strings.HasPrefix(e.Exec, "/"), e.Exec == "" && j.act.Method == config.MethodMbox:
	case e.Exec != "":
		return ""
	case j.act.Method == config.MethodMaildir:
		if tag = e.SubAddr; tag == "" {
			_, tag = e.Dest.SplitTag(j.conf.SMTP.SubAddrDelim)
		}
	case j.act.Method == config.MethodLMTP && !j.act.RcptTo:
	default:
		return ""
	}
	if p := strings.ToLower(path); strings.Contains(p, "%{rcpt") || strings.Contains(p, "%{dest") {
		return ""
	}
	return e.Dispatcher + "\x00" + e.User + "\x00" + path + "\x00" + tag
}

func boxPath(j *job) string {
	if j.env.Exec != "" {
		return j.env.Exec
	}
	return j.act.Path + j.act.Dest
}

// oneCopy joins the deliveries of one message that end in one mailbox.
func oneCopy(jobs []*job) []*job {
	if len(jobs) < 2 {
		return jobs
	}
	first := map[string]*job{}
	kept := jobs[:0]
	for _, j := range jobs {
		box := j.mailbox()
		if other := first[box]; box != "" && other != nil {
			other.twins = append(other.twins, j.env)
			continue
		}
		first[box] = j
		kept = append(kept, j)
	}
	return kept
}

// maxHeldInline bounds the bodies kept in memory while their deliveries wait,
// in octets. Ours; what does not fit is asked for again when it is needed.
const maxHeldInline = 32 << 20

// budget counts those octets.
type budget struct{ used atomic.Int64 }

// body is the text of one Transfer, shared by its deliveries.
type body struct {
	queue  *ipc.Link
	id     mail.MessageID
	size   int64
	budget *budget
	refs   atomic.Int32

	mu     sync.Mutex
	inline []byte
	file   *os.File
	asked  bool
}

// newBody is held once, by who made it.
func (s *state) newBody(t *imsg.Transfer) *body {
	b := &body{queue: s.peers.Queue, id: t.Message, size: t.Size, budget: &s.inline}
	b.refs.Store(1)
	n := int64(len(t.Inline))
	if n == t.Size && s.inline.used.Add(n) <= maxHeldInline {
		b.inline, b.asked = t.Inline, true
	} else if n == t.Size {
		s.inline.used.Add(-n)
	}
	return b
}

func (b *body) retain() { b.refs.Add(1) }

func (b *body) release() {
	if b.refs.Add(-1) > 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.budget.used.Add(-int64(len(b.inline)))
	b.inline = nil
	if b.file != nil {
		b.file.Close()
		b.file = nil
	}
}

var errNoBody = errors.New("the message cannot be read")

// open gives the text, or a descriptor of its own for the caller.
func (b *body) open(ctx context.Context) ([]byte, *os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.asked {
		if err := b.ask(ctx); err != nil {
			return nil, nil, err
		}
	}
	if b.file == nil {
		return b.inline, nil, nil
	}
	fd, err := unix.Dup(int(b.file.Fd()))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errNoBody, err)
	}
	unix.CloseOnExec(fd)
	return nil, os.NewFile(uintptr(fd), "body"), nil
}

func (b *body) ask(ctx context.Context) error {
	a, f, err := ipc.AskFile[*imsg.Body](ctx, b.queue, &imsg.BodyOpen{Message: b.id})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoBody, err)
	}
	if !a.Status.OK() || a.InFile != (f != nil) {
		if f != nil {
			f.Close()
		}
		return fmt.Errorf("%w: %s", errNoBody, a.Status.Text)
	}
	b.budget.used.Add(int64(len(a.Inline)))
	b.inline, b.file, b.size, b.asked = a.Inline, f, a.Size, true
	if f == nil {
		b.size = int64(len(a.Inline))
	}
	return nil
}
