package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// keeper is what the store on disk can do besides being a Store.
type keeper interface {
	Corrupt(after string, max int) ([]queue.Aside, bool, error)
	Inspect(name string) (queue.Aside, []mail.Envelope, []byte, error)
	Return(ctx context.Context, name string) ([]mail.Envelope, error)
	Discard(ctx context.Context, name string) error
	Verify(ctx context.Context, report func(string)) (queue.VerifyResult, error)
	Compact(ctx context.Context) (before, after int64, err error)
}

// Bounds of long commands. Ours.
const (
	taskWait  = 2 * time.Second // how long an answer waits for a line
	maxShown  = 4096            // items of show corrupt
	maxSource = 64 << 10        // octets of a body that corrupt inspect shows
)

// tasks are the commands that take long, each with the lines it has said. One of
// a kind runs at a time. The zero value works.
type tasks struct {
	mu sync.Mutex
	m  map[string]*task
}

// task gathers lines while a command runs.
type task struct {
	mu      sync.Mutex
	lines   []string
	ended   bool
	changed chan struct{} // closed at each change, and made anew
}

func newTask() *task { return &task{changed: make(chan struct{})} }

func (t *task) line(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, mail.Clean(fmt.Sprintf(format, args...), imsg.MaxText))
	t.notify()
}

func (t *task) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.notify()
}

func (t *task) notify() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// from gives the lines behind skip; it waits a little when there are none. more:
// the command still runs, or more lines wait.
func (t *task) from(ctx context.Context, skip int) (text []byte, more bool) {
	timer := time.NewTimer(taskWait)
	defer timer.Stop()
	for {
		t.mu.Lock()
		lines, ended, changed := t.lines, t.ended, t.changed
		t.mu.Unlock()
		n := skip
		for ; n < len(lines) && len(text)+len(lines[n]) < imsg.MaxData; n++ {
			text = append(append(text, lines[n]...), '\n')
		}
		if n > skip || ended {
			return text, !ended || n < len(lines)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false
		case <-timer.C:
			t.line("...") // who asks takes no line for the end
		}
	}
}

// show answers with lines about the spool:
//
//	corrupt                 what was moved aside: name, time, envelopes, reason
//	corrupt inspect NAME    one of them
//	corrupt return NAME     puts it back as it is
//	corrupt remove NAME     forgets it
//	queue verify            reads everything
//	queue compact           writes the database anew
//	queue import [DIR]      takes over a spool of OpenSMTPD
func (s *state) show(r *ipc.Request, m *imsg.Show) {
	k, ok := s.store.(keeper)
	if !ok {
		r.Reply(&imsg.Lines{Text: []byte("this queue has nothing to show\n")}, nil)
		return
	}
	command := map[string]func(keeper, *task, string){
		"corrupt": s.listCorrupt, "corrupt inspect": s.showCorrupt, "corrupt return": s.returnCorrupt,
		"corrupt remove": s.removeCorrupt, "queue verify": s.verify, "queue compact": s.compact, "queue import": s.importOld,
	}
	words := strings.Fields(m.What)
	what := strings.Join(words[:min(len(words), 2)], " ")
	f := command[what]
	if f == nil || len(words) > 3 {
		r.Reply(&imsg.Lines{Text: []byte("not a command of the queue\n")}, nil)
		return
	}
	t := s.tasks.get(m.What, m.Skip)
	if t == nil {
		t = s.tasks.start(m.What)
		arg := strings.Join(words[min(len(words), 2):], " ")
		s.begin(func() { f(k, t, arg); t.end() })
	}
	text, more := t.from(s.ctx, m.Skip)
	if !more {
		s.tasks.forget(m.What, t)
	}
	r.Reply(&imsg.Lines{Text: text, More: more}, nil)
}

// get finds a command that runs. Asked for anew it begins anew, unless it runs.
func (ts *tasks) get(what string, skip int) *task {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.m[what]
	if t == nil || skip > 0 {
		return t
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil
	}
	return t
}

func (ts *tasks) start(what string) *task {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.m == nil {
		ts.m = map[string]*task{}
	}
	t := newTask()
	ts.m[what] = t
	return t
}

func (ts *tasks) forget(what string, t *task) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.m[what] == t {
		delete(ts.m, what)
	}
}

func (s *state) listCorrupt(k keeper, t *task, _ string) {
	after := ""
	for end := false; !end; {
		l, last, err := k.Corrupt(after, 100)
		if err != nil {
			t.line("error: %v", err)
			return
		}
		for _, a := range l {
			t.line("%s|%d|%d|%s", a.Name, a.When.Unix(), len(a.Envelopes), a.Reason)
			after = a.Name
		}
		end = last || len(t.lines) >= maxShown
	}
}

func (s *state) showCorrupt(k keeper, t *task, name string) {
	a, envs, body, err := k.Inspect(name)
	if err != nil {
		t.line("error: %s", reason(err))
		return
	}
	t.line("name: %s", a.Name)
	t.line("reason: %s", a.Reason)
	t.line("moved: %s", a.When.UTC().Format(time.RFC3339))
	for i := range envs {
		e := &envs[i]
		t.line("envelope: %s %s from=<%s> to=<%s> rcpt=<%s> created=%d", e.ID, e.Kind, e.Sender, e.Dest, e.Rcpt, e.Created.Unix())
	}
	if n := len(a.Envelopes) - len(envs); n > 0 {
		t.line("envelopes that cannot be read: %d", n)
	}
	if body != nil {
		t.line("")
		for line := range bytes.Lines(body[:min(len(body), maxSource)]) {
			t.line("%s", bytes.TrimRight(line, "\r\n"))
		}
	}
}

func (s *state) returnCorrupt(k keeper, t *task, name string) {
	envs, err := k.Return(s.work, name)
	if err != nil {
		t.line("error: %s", reason(err))
		return
	}
	for i := range envs {
		s.out.scheduled(schedOf(&envs[i], false))
	}
	t.line("%s returned", count(len(envs), "envelope"))
}

func (s *state) removeCorrupt(k keeper, t *task, name string) {
	if err := k.Discard(s.work, name); err != nil {
		t.line("error: %s", reason(err))
		return
	}
	t.line("%s removed", name)
}

// reason is an error for the operator.
func reason(err error) string {
	if errors.Is(err, queue.ErrNotFound) {
		return "no such item"
	}
	return err.Error()
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (s *state) verify(k keeper, t *task, _ string) {
	r, err := k.Verify(s.ctx, func(l string) { t.line("%s", l) })
	if err != nil {
		t.line("error: %v", err)
	}
	t.line("%s, %s, %d damaged", count(r.Messages, "message"), count(r.Envelopes, "envelope"), r.Bad)
}

func (s *state) compact(k keeper, t *task, _ string) {
	before, after, err := k.Compact(s.work)
	if err != nil {
		t.line("error: %v", err)
		return
	}
	t.line("from %d to %d octets", before, after)
}

// importOld takes over an old spool that lies below our own folder, which is
// the only one that this process sees; without a name it is the folder itself,
// where OpenSMTPD had its own.
func (s *state) importOld(_ keeper, t *task, dir string) {
	dir = filepath.Join(s.dir, path.Clean("/"+dir)) // never above our own
	im := &queue.Import{Dir: dir, Report: func(l string) { t.line("%s", l) },
		Edit: func(e *mail.Envelope) {
			if e.TTL <= 0 {
				e.TTL = s.ttl(e.Dispatcher)
			}
			if e.Kind == mail.KindBounce {
				e.TTL = noticeTTL
			}
		},
		Done: func(envs []mail.Envelope) {
			for i := range envs {
				s.out.scheduled(schedOf(&envs[i], false))
			}
		}}
	r, err := im.Run(s.ctx, s.store)
	actions := s.config.Load().Actions
	for _, d := range slices.Sorted(maps.Keys(r.Dispatchers)) {
		if actions[d] == nil {
			t.line("held: %s of action %q, which the configuration does not have", count(r.Dispatchers[d], "envelope"), d)
		}
	}
	if err != nil {
		t.line("error: %v", err)
	}
	t.line("%s, %s imported, %d left", count(r.Messages, "message"), count(r.Envelopes, "envelope"), r.Left)
}
