package mda

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/proc/deliver"
	"smtpd/internal/stat"
)

var now = time.Now

// house is the process under test with neighbours played by the test.
type house struct {
	t     testing.TB
	state *state
	env   *privsep.Env
	confs chan *config.Config
	queue *ipc.Link // our end
	peers Peers
	log   *buffer
	stop  func()

	unprivileged bool

	mu       sync.Mutex
	changed  *sync.Cond // what follows has
	refused  int
	inflight []imsg.Inflight
	held     []mail.EnvelopeID
	key      uint64
	releases []imsg.Release
	results  map[mail.EnvelopeID]imsg.Result
	repeats  int
	refuse   func(*imsg.Results) bool // queue does not take them
	users    map[string]imsg.UserInfo
	asked    int
	bodies   map[mail.MessageID][]byte
	started  []imsg.DeliverStart
	workers  []*ipc.Link // mda's worker, the far end of each
	starter  func(*imsg.DeliverStart) string
}

// buffer is a log that can be waited for.
type buffer struct {
	mu      sync.Mutex
	changed *sync.Cond
	b       bytes.Buffer
}

func newBuffer() *buffer {
	b := &buffer{}
	b.changed = sync.NewCond(&b.mu)
	return b
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changed.Broadcast()
	return b.b.Write(p)
}

// wait waits until the log holds text.
func (b *buffer) wait(t testing.TB, text string) {
	t.Helper()
	await(t, b.changed, "a line of the log: "+text, func() bool { return bytes.Contains(b.b.Bytes(), []byte(text)) })
}

// await waits until ok, which is asked with the lock of changed held.
func await(t testing.TB, changed *sync.Cond, what string, ok func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(waitLimit, func() {
		changed.L.Lock()
		defer changed.L.Unlock()
		late = true
		changed.Broadcast()
	})
	defer timer.Stop()
	changed.L.Lock()
	defer changed.L.Unlock()
	for !ok() {
		if late {
			t.Fatalf("waited too long for %s", what)
		}
		changed.Wait()
	}
}

// waitLimit bounds the wait for one event.
const waitLimit = 20 * time.Second

// pipe is a named pipe that a command and the test meet at.
type pipe struct {
	t testing.TB
	f *os.File
}

func newPipe(t testing.TB, path string) *pipe {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) // both ends: nobody waits to open it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &pipe{t, f}
}

// heard waits for so many lines of commands.
func (p *pipe) heard(lines int) {
	p.t.Helper()
	if err := p.f.SetReadDeadline(time.Now().Add(waitLimit)); err != nil {
		p.t.Fatal(err)
	}
	for b := make([]byte, 1); lines > 0; {
		if _, err := p.f.Read(b); err != nil {
			p.t.Fatalf("waiting for a command: %v", err)
		}
		if b[0] == '\n' {
			lines--
		}
	}
}

// say lets a command go on that reads a line.
func (p *pipe) say() {
	p.t.Helper()
	if _, err := p.f.WriteString("go\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newHouse(t testing.TB, change func(*config.Config, *house)) *house {
	t.Helper()
	h := &house{t: t, confs: make(chan *config.Config, 1), log: newBuffer(), results: map[mail.EnvelopeID]imsg.Result{},
		users: map[string]imsg.UserInfo{}, bodies: map[mail.MessageID][]byte{}}
	h.changed = sync.NewCond(&h.mu)
	conf := config.Defaults()
	conf.ServerName = "mx.example.org"
	conf.Actions["md"] = &config.Action{Name: "md", Method: config.MethodMaildir}
	conf.Actions["run"] = &config.Action{Name: "run", Method: config.MethodMDA, Command: "cat >%{user.username}.out"}
	h.users["alice"] = imsg.UserInfo{Found: true, Name: "alice", UID: uint32(os.Getuid()) + 1000, GID: 1000, Home: t.TempDir()}
	if change != nil {
		change(conf, h)
	}
	parent := ipc.NewLink(imsg.MDA, imsg.Parent)
	h.env = &privsep.Env{Role: imsg.MDA, Log: log.New(h.log, log.FormPlain), Stat: &stat.Set{}, Now: now,
		Config: h.confs, Switches: make(chan *imsg.Switches), Parent: parent, Ready: func() {},
		Unprivileged: h.unprivileged}
	h.queue = h.newQueue()
	lookup, control := ipc.NewLink(imsg.Lookup, imsg.MDA), ipc.NewLink(imsg.Control, imsg.MDA)
	far := ipc.NewLink(imsg.Parent, imsg.MDA)
	h.peers = Peers{Queue: ipc.NewLink(imsg.MDA, imsg.Queue), Lookup: ipc.NewLink(imsg.MDA, imsg.Lookup), Control: ipc.NewLink(imsg.MDA, imsg.Control)}
	parent.Serve(func(*ipc.Request) {}, nil, nil)
	lookup.Serve(h.asLookup, nil, nil)
	control.Serve(func(*ipc.Request) {}, nil, nil)
	far.Serve(h.asParent, nil, nil)
	for _, pair := range [][2]*ipc.Link{{h.queue, h.peers.Queue}, {lookup, h.peers.Lookup}, {control, h.peers.Control}, {far, parent}} {
		if err := ipc.Connect(pair[0], pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	h.state = newState(h.env, h.peers, conf)
	go func() { done <- h.state.serve(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(15 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(h.stop)
	h.wait("the first Inflight", func() bool { return len(h.inflight) > 0 })
	return h
}

// newQueue is our end of the channel to queue; what an earlier one hears is lost.
func (h *house) newQueue() *ipc.Link {
	link := ipc.NewLink(imsg.Queue, imsg.MDA)
	link.Serve(func(r *ipc.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if link == h.queue {
			h.asQueue(r)
			h.changed.Broadcast()
		}
	}, nil, nil)
	return link
}

func (h *house) asQueue(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.Inflight:
		h.inflight = append(h.inflight, *m)
	case *imsg.Results:
		if len(h.inflight) == 0 || !h.inflight[len(h.inflight)-1].Last {
			h.t.Error("results before Inflight")
		}
		if h.refuse != nil && h.refuse(m) {
			h.refused++
			r.Reply(&imsg.Done{}, nil)
			return
		}
		for _, res := range m.Results {
			if _, again := h.results[res.ID]; again {
				h.repeats++
			}
			h.results[res.ID] = res
		}
		r.Reply(&imsg.Done{OK: true}, nil)
	case *imsg.Hold:
		h.held = append(h.held, m.IDs...)
		h.key = m.Key
	case *imsg.Release:
		h.releases = append(h.releases, *m)
	case *imsg.BodyOpen:
		b, ok := h.bodies[m.Message]
		if !ok {
			r.Reply(&imsg.Body{Status: mail.Status{Code: 451, Text: "gone"}}, nil)
			return
		}
		f, err := os.CreateTemp(h.t.TempDir(), "body")
		if err != nil {
			h.t.Error(err)
		}
		_, _ = f.Write(b)
		r.Reply(&imsg.Body{Status: mail.Status{Code: 250}, InFile: true, Size: int64(len(b))}, f)
	}
}

func (h *house) asLookup(r *ipc.Request) {
	q, ok := r.Msg.(*imsg.UserbaseQuery)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	name := q.User
	if q.Table != "" {
		name = q.Table + ":" + q.User
	}
	info := h.users[name]
	r.Reply(&info, nil)
}

// asParent starts workers within this process.
func (h *house) asParent(r *ipc.Request) {
	m, ok := r.Msg.(*imsg.DeliverStart)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, *m)
	if h.starter != nil {
		if text := h.starter(m); text != "" {
			r.Reply(&imsg.DeliverStarted{Error: text}, nil)
			return
		}
	}
	near, far, err := ipc.Socketpair()
	if err != nil {
		h.t.Fatal(err)
	}
	conn, err := ipc.Conn(far)
	if err != nil {
		h.t.Fatal(err)
	}
	link := ipc.NewLink(imsg.Deliver, imsg.MDA)
	link.Attach(conn)
	h.workers = append(h.workers, link)
	go func() { _ = deliver.Run(context.Background(), link, log.Discard()) }()
	r.Reply(&imsg.DeliverStarted{}, near)
}

// worker is the far end of the worker that was started as number i.
func (h *house) worker(i int) *ipc.Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.workers[i]
}

// starts is what parent was asked to start so far.
func (h *house) starts() []imsg.DeliverStart {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.started)
}

// wait waits for what queue hears.
func (h *house) wait(what string, ok func() bool) {
	h.t.Helper()
	await(h.t, h.changed, what, ok)
}

const text = "Subject: x\n\nhello\n"

func envelope(id mail.EnvelopeID, action, user string) mail.Envelope {
	return mail.Envelope{ID: id, Kind: mail.KindMDA, Dispatcher: action, User: user, Created: time.Now(), TTL: time.Hour,
		Sender: mail.Address{User: "a", Domain: "b.org"}, Rcpt: mail.Address{User: "r" + user, Domain: "example.org"},
		Dest: mail.Address{User: user, Domain: "example.org"}}
}

func (h *house) transfer(envs ...mail.Envelope) {
	h.t.Helper()
	m := &imsg.Transfer{Message: envs[0].ID.Message(), Envelopes: envs, Size: int64(len(text)), Inline: []byte(text)}
	if err := h.queue.Send(m, nil); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) result(id mail.EnvelopeID) imsg.Result {
	h.t.Helper()
	h.wait(fmt.Sprintf("the result of %v", id), func() bool { _, ok := h.results[id]; return ok })
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.results[id]
}

func (h *house) files(user, folder string) []string {
	files, _ := filepath.Glob(filepath.Join(h.users[user].Home, folder, "*"))
	return files
}

func TestDelivers(t *testing.T) {
	h := newHouse(t, nil)
	h.transfer(envelope(0x100000001, "md", "alice"))
	if r := h.result(0x100000001); !r.Status.OK() || r.Line != "" {
		t.Errorf("result %+v", r)
	}
	files := h.files("alice", "Maildir/new")
	if len(files) != 1 {
		t.Fatalf("files: %v", files)
	}
	got, _ := os.ReadFile(files[0])
	if want := "Return-Path: <a@b.org>\nDelivered-To: ralice@example.org\n" + text; string(got) != want {
		t.Errorf("got %q; want %q", got, want)
	}
	line := regexp.MustCompile(`^[0-9a-f]{16} mda delivery evpid=0000000100000001 from=<a@b.org> to=<alice@example.org> rcpt=<ralice@example.org> user=alice delay=0s result=Ok stat=Delivered\n$`)
	if !line.MatchString(h.log.String()) {
		t.Errorf("logged %q", h.log)
	}
	// The account and the worker are known now.
	for i := range 20 {
		h.transfer(envelope(mail.EnvelopeID(0x200000001+i<<32), "md", "alice"))
	}
	for i := range 20 {
		h.result(mail.EnvelopeID(0x200000001 + i<<32))
	}
	if h.asked != 1 || len(h.started) != 1 {
		t.Errorf("asked %d times, started %d workers", h.asked, len(h.started))
	}
	want := imsg.DeliverStart{User: "alice", UID: h.users["alice"].UID, GID: 1000, Home: h.users["alice"].Home}
	if h.started[0] != want {
		t.Errorf("started %+v; want %+v", h.started[0], want)
	}
	h.stop()
	all := h.env.Stat.All()
	for _, gauge := range []string{"mda.envelope", "mda.pending", "mda.running"} {
		if all[gauge] != 0 {
			t.Errorf("%s = %d at the end", gauge, all[gauge])
		}
	}
}

func TestFailures(t *testing.T) {
	tests := map[string]struct {
		change func(*config.Config, *house)
		env    func(*mail.Envelope)
		code   int
		line   string
		stat   string // in the log
	}{
		"action gone": {env: func(e *mail.Envelope) { e.Dispatcher = "old" }, code: 451, line: "No such action: old",
			stat: "result=TempFail stat=Error (No such action: old)"},
		"relay": {change: func(c *config.Config, _ *house) {
			c.Actions["md"] = &config.Action{Method: config.MethodRelay, Relay: &config.Relay{}}
		}, code: 451, line: "No such action: md"},
		"expand-only": {change: func(c *config.Config, _ *house) { c.Actions["md"].Method = config.MethodExpandOnly },
			code: 451, line: "the action md does not deliver"},
		"unknown user": {env: func(e *mail.Envelope) { e.User = "nobody" }, code: 550, line: "Permanent failure in user lookup",
			stat: "user=nobody delay=0s result=PermFail stat=Permanent failure in user lookup"},
		"lookup fails": {change: func(_ *config.Config, h *house) { h.users["alice"] = imsg.UserInfo{Temporary: true} },
			code: 451, line: "Temporary failure in user lookup"},
		"unknown delivery user": {change: func(c *config.Config, _ *house) { c.Actions["md"].User = "vmail" },
			code: 550, line: "delivery user 'vmail' does not exist"},
		"root": {change: func(_ *config.Config, h *house) { h.users["alice"] = imsg.UserInfo{Found: true, Name: "root"} },
			code: 550, line: "MDA not allowed to deliver to: root", stat: "stat=Error (MDA not allowed to deliver to: root)"},
		"root's mailbox": {change: func(c *config.Config, h *house) {
			h.users["alice"] = imsg.UserInfo{Found: true, Name: "root"}
			c.Actions["md"].Method = config.MethodMbox
		}, code: 550, line: "MDA not allowed to deliver to: root"},
		"root by a command": {change: func(c *config.Config, h *house) {
			h.users["alice"] = imsg.UserInfo{Found: true, Name: "root"}
			c.Actions["md"].Method = config.MethodMbox
		}, env: func(e *mail.Envelope) { e.Exec = "|cat" }, code: 550, line: "MDA not allowed to deliver to: root"},
		"no worker": {change: func(_ *config.Config, h *house) {
			h.starter = func(*imsg.DeliverStart) string { return "too many delivery processes" }
		}, code: 451, line: "no delivery process: too many delivery processes"},
		"wrapper gone": {change: func(c *config.Config, _ *house) { c.Actions["md"].Wrapper = "w" },
			env: func(e *mail.Envelope) { e.Exec = "|cat" }, code: 451, line: "No such wrapper: w"},
		"strange item": {env: func(e *mail.Envelope) { e.Exec = "x" }, code: 451, line: "no such way to deliver: x"},
		"command": {env: func(e *mail.Envelope) { e.Exec = "|echo no such thing; exit 1" }, code: 550, line: `"no such thing"`,
			stat: `result=PermFail stat=Error ("no such thing")`},
		"file": {env: func(e *mail.Envelope) { e.Exec = "/dev/null/x" }, code: 451, line: `"mail.mboxfile: Not a directory"`,
			stat: `result=TempFail stat=Error (temporary failure: "mail.mboxfile: Not a directory")`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, tt.change)
			e := envelope(0x100000001, "md", "alice")
			if tt.env != nil {
				tt.env(&e)
			}
			h.transfer(e)
			r := h.result(e.ID)
			if r.Status.Code != tt.code || r.Line != tt.line || !strings.Contains(h.log.String(), tt.stat) {
				t.Errorf("got %+v, logged %s", r, h.log)
			}
		})
	}
}

func TestUnprivileged(t *testing.T) {
	h := newHouse(t, func(c *config.Config, h *house) {
		h.unprivileged = true
		c.Actions["store"] = &config.Action{Name: "store", Method: config.MethodLMTP, Dest: "/no/store"}
		me := h.users["alice"]
		me.UID, me.Name = uint32(os.Getuid()), "me"
		h.users["me"] = me
	})
	h.transfer(envelope(0x100000001, "md", "alice"), envelope(0x100000002, "md", "me"))
	if r := h.result(0x100000001); r.Status.Code != 451 || !strings.Contains(r.Line, "cannot deliver as alice") {
		t.Errorf("another: %+v", r)
	}
	// To a store it is handed by whoever we are.
	h.transfer(envelope(0x200000001, "store", "alice"))
	if r := h.result(0x200000001); r.Status.Code != 451 || !strings.Contains(r.Line, "connect: No such file") {
		t.Errorf("another's by LMTP: %+v", r)
	}
	if all := h.starts(); len(all) == 0 || int(all[len(all)-1].UID) != os.Getuid() {
		t.Errorf("started %+v", all)
	}
	want := 250
	if os.Getuid() == 0 {
		want = 550 // MDA not allowed to deliver to: me
	}
	if r := h.result(0x100000002); r.Status.Code != want {
		t.Errorf("oneself: %+v", r)
	}
}

func TestAccounts(t *testing.T) {
	h := newHouse(t, func(c *config.Config, h *house) {
		c.Actions["v"] = &config.Action{Method: config.MethodMDA, Command: "echo $USER $HOME >>$HOME/out; cat >>$HOME/out", User: "alice", Userbase: "ignored"}
		c.Actions["t"] = &config.Action{Method: config.MethodMDA, Command: "echo $USER $HOME >>$HOME/out", Userbase: "base"}
		h.users["base:virt"] = imsg.UserInfo{Found: true, Name: "virt", UID: 5000, GID: 5000, Home: t.TempDir()}
	})
	e := envelope(0x100000001, "v", "bob")
	e.Home = "/nowhere"
	h.transfer(e)
	f := envelope(0x200000001, "t", "virt")
	f.Home = t.TempDir()
	h.transfer(f)
	for _, id := range []mail.EnvelopeID{e.ID, f.ID} {
		if r := h.result(id); !r.Status.OK() {
			t.Errorf("got %+v", r)
		}
	}
	home := h.users["alice"].Home
	if got, _ := os.ReadFile(home + "/out"); !strings.HasPrefix(string(got), "alice "+home+"\n") {
		t.Errorf("user U: %q", got)
	}
	if got, _ := os.ReadFile(f.Home + "/out"); string(got) != "virt "+f.Home+"\n" {
		t.Errorf("userbase: %q", got)
	}
}

// Three recipients that end in one mailbox are one copy: also the one with a
// tag, for which there is no folder.
func TestOneCopy(t *testing.T) {
	h := newHouse(t, nil)
	a, b, c := envelope(0x100000001, "md", "alice"), envelope(0x100000002, "md", "alice"), envelope(0x100000003, "md", "alice")
	b.Rcpt.User = "team"
	c.Dest.User = "alice+tag"
	h.transfer(a, b, c)
	for _, e := range []mail.Envelope{a, b, c} {
		if r := h.result(e.ID); !r.Status.OK() {
			t.Errorf("%+v", r)
		}
	}
	if files := h.files("alice", "Maildir/new"); len(files) != 1 {
		t.Errorf("files: %v", files)
	}
	if n := strings.Count(h.log.String(), "result=Ok"); n != 3 {
		t.Errorf("%d lines: %s", n, h.log)
	}
}

func TestBodyFromQueue(t *testing.T) {
	h := newHouse(t, nil)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 10000)
	h.mu.Lock()
	h.bodies[1] = append([]byte("Subject: big\n\n"), big...)
	h.mu.Unlock()
	m := &imsg.Transfer{Message: 1, Size: int64(len(big)) + 14,
		Envelopes: []mail.Envelope{envelope(0x100000001, "md", "alice"), envelope(0x100000002, "run", "alice")}}
	if err := h.queue.Send(m, nil); err != nil {
		t.Fatal(err)
	}
	for _, e := range m.Envelopes {
		if r := h.result(e.ID); !r.Status.OK() {
			t.Errorf("%+v", r)
		}
	}
	for _, path := range append(h.files("alice", "Maildir/new"), h.users["alice"].Home+"/alice.out") {
		if got, err := os.ReadFile(path); !bytes.HasSuffix(got, h.bodies[1]) {
			t.Errorf("%s: %d octets, %v", path, len(got), err)
		}
	}
	m.Message, m.Envelopes = 2, []mail.Envelope{envelope(0x200000001, "md", "alice")}
	if err := h.queue.Send(m, nil); err != nil {
		t.Fatal(err)
	}
	if r := h.result(0x200000001); r.Status.Code != 451 || !strings.Contains(r.Line, "cannot be read") {
		t.Errorf("no body: %+v", r)
	}
}

// TestWorkerDies checks that what a dead worker held fails for now, and that
// what comes later gets another.
func TestWorkerDies(t *testing.T) {
	h := newHouse(t, nil)
	e := envelope(0x100000001, "md", "alice")
	e.Exec = "|echo x >started; sleep 60"
	started := newPipe(t, h.users["alice"].Home+"/started")
	h.transfer(e)
	started.heard(1)
	h.worker(0).Close()
	if r := h.result(e.ID); r.Status.Code != 451 || r.Line != "the delivery process died" {
		t.Errorf("got %+v", r)
	}
	if !strings.Contains(h.log.String(), "has died") {
		t.Errorf("logged %s", h.log)
	}
	h.transfer(envelope(0x200000001, "md", "alice"))
	if r := h.result(0x200000001); !r.Status.OK() || len(h.starts()) != 2 {
		t.Errorf("got %+v, %d workers", r, len(h.starts()))
	}
	// One that left while it had nothing to do is no reason to fail.
	h.env.Log.SetVerbose(true)
	h.worker(1).Close()
	h.log.wait(t, "debug: mda: the delivery process of uid "+fmt.Sprint(h.users["alice"].UID)+" has ended")
	h.transfer(envelope(0x300000001, "md", "alice"))
	if r := h.result(0x300000001); !r.Status.OK() {
		t.Errorf("got %+v", r)
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// TestQueueRestarts checks that a new queue is told what is held before it gets
// results, and that results are repeated until one takes them.
func TestQueueRestarts(t *testing.T) {
	h := newHouse(t, nil)
	h.mu.Lock()
	h.refuse = func(*imsg.Results) bool { return true }
	h.mu.Unlock()
	h.transfer(envelope(0x100000001, "md", "alice"))
	h.wait("the result", func() bool { return h.refused > 0 })
	e := envelope(0x200000001, "md", "alice")
	e.Exec = "|cat >/dev/null; read line <go"
	command := newPipe(t, h.users["alice"].Home+"/go")
	h.transfer(e)
	old, fresh := h.queue, h.newQueue()
	h.mu.Lock()
	h.queue, h.inflight, h.refuse = fresh, nil, nil
	h.mu.Unlock()
	old.Close()
	if err := ipc.Connect(fresh, h.peers.Queue); err != nil {
		t.Fatal(err)
	}
	h.wait("Inflight", func() bool { return len(h.inflight) == 1 && h.inflight[0].Last })
	if !slices.Contains(h.inflight[0].IDs, 0x100000001) {
		t.Errorf("held: %v", h.inflight[0].IDs)
	}
	// The same envelope again is not delivered again.
	h.transfer(envelope(0x100000001, "md", "alice"))
	command.say()
	if r := h.result(0x100000001); !r.Status.OK() {
		t.Errorf("got %+v", r)
	}
	if slices.Contains(h.inflight[0].IDs, e.ID) {
		if r := h.result(e.ID); !r.Status.OK() {
			t.Errorf("got %+v", r)
		}
	}
	if n := len(h.files("alice", "Maildir/new")); n != 1 || h.repeats != 0 {
		t.Errorf("%d files, %d repeats", n, h.repeats)
	}
}

func TestCommandsAtATime(t *testing.T) {
	h := newHouse(t, func(c *config.Config, _ *house) { c.MDA.MaxSessionPerUser = 2 })
	home := h.users["alice"].Home
	started := newPipe(t, home+"/started")
	var ids []mail.EnvelopeID
	var goOn []*pipe
	for i := range 6 {
		e := envelope(mail.EnvelopeID(0x100000001+i<<32), "md", "alice")
		e.Exec = fmt.Sprintf("|echo >run.%d; ls run.* | wc -l >>most; echo >started; read line <go.%d; rm run.%d", i, i, i)
		goOn = append(goOn, newPipe(t, fmt.Sprint(home, "/go.", i)))
		h.transfer(e)
		ids = append(ids, e.ID)
	}
	h.transfer(envelope(0x900000001, "md", "alice")) // is not held up
	h.result(0x900000001)
	started.heard(2)
	if !exists(home+"/run.0") || !exists(home+"/run.1") || exists(home+"/run.2") {
		t.Error("not the first two run, but others")
	}
	for _, p := range goOn {
		p.say()
	}
	for _, id := range ids {
		if r := h.result(id); !r.Status.OK() {
			t.Errorf("got %+v", r)
		}
	}
	most, _ := os.ReadFile(home + "/most")
	for _, n := range strings.Fields(string(most)) {
		if n > "2" {
			t.Errorf("at a time: %q", most)
		}
	}
}

// TestHold gives one user more than may wait: the rest goes back to queue, and
// is asked for when there is room.
func TestHold(t *testing.T) {
	h := newHouse(t, func(c *config.Config, _ *house) {
		c.MDA = config.MDA{MaxSession: 10, MaxSessionPerUser: 1, TaskHiwat: 5, TaskLowat: 3, TaskRelease: 2}
	})
	first := envelope(0x100000000, "md", "alice")
	first.Exec = "|echo >started; read line <go"
	home := h.users["alice"].Home
	started, command := newPipe(t, home+"/started"), newPipe(t, home+"/go")
	h.transfer(first)
	started.heard(1)
	for i := 1; i <= 10; i++ {
		e := envelope(mail.EnvelopeID(0x100000000+i<<32), "md", "alice")
		e.Exec = fmt.Sprintf("|echo %d >>done", i)
		h.transfer(e)
	}
	h.wait("what is over", func() bool { return len(h.held) == 5 })
	if h.held[0] != 0x700000000 || h.key>>63 != 1 || len(h.releases) != 0 {
		t.Errorf("held %v under %x, released %v", h.held, h.key, h.releases)
	}
	command.say()
	h.wait("all to be wanted", func() bool {
		n := 0
		for _, r := range h.releases {
			n += r.Count
		}
		return n == 5
	})
	h.wait("all to be wanted again", func() bool { return h.releases[len(h.releases)-1].Count == 0 })
	for _, r := range h.releases {
		if r.Key != h.key || r.Count > 2 {
			t.Errorf("released %+v", r)
		}
	}
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	for _, id := range held {
		e := envelope(id, "md", "alice")
		e.Exec = "|echo x >>done"
		h.transfer(e)
	}
	for i := range 11 {
		if r := h.result(mail.EnvelopeID(0x100000000 + i<<32)); !r.Status.OK() {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if got, _ := os.ReadFile(home + "/done"); strings.Count(string(got), "\n") != 10 {
		t.Errorf("done: %q", got)
	}
}

// TestMoreUsersThanPlaces gives 20 users three workers: there are never more, and
// everybody's turn comes.
func TestMoreUsersThanPlaces(t *testing.T) {
	most := 0
	h := newHouse(t, func(c *config.Config, h *house) {
		c.MDA.MaxSession = 3
		h.starter = func(*imsg.DeliverStart) string {
			h.state.pool.mu.Lock()
			defer h.state.pool.mu.Unlock()
			most = max(most, h.state.pool.live)
			return ""
		}
		for i := range 20 {
			h.users[fmt.Sprint("u", i)] = imsg.UserInfo{Found: true, Name: fmt.Sprint("u", i), UID: uint32(5000 + i), Home: t.TempDir()}
		}
	})
	id := mail.EnvelopeID(0x100000001)
	for round := range 3 {
		for u := range 20 {
			h.transfer(envelope(id, []string{"md", "run"}[round&1], fmt.Sprint("u", u)))
			id += 1 << 32
		}
	}
	for id -= 1 << 32; id > 0x100000000; id -= 1 << 32 {
		if r := h.result(id); !r.Status.OK() {
			t.Errorf("got %+v", r)
		}
	}
	h.stop()
	if most != 3 {
		t.Errorf("%d workers at a time; want 3", most)
	}
	for u := range 20 {
		if n := len(h.files(fmt.Sprint("u", u), "Maildir/new")); n != 2 {
			t.Errorf("u%d has %d", u, n)
		}
	}
}

// TestIdleWorkers gives six users three rounds of mail and as many places: one
// worker each is enough.
func TestIdleWorkers(t *testing.T) {
	h := newHouse(t, func(c *config.Config, h *house) {
		c.MDA.MaxSession = 6
		for i := range 6 {
			h.users[fmt.Sprint("u", i)] = imsg.UserInfo{Found: true, Name: fmt.Sprint("u", i), UID: uint32(5000 + i), Home: t.TempDir()}
		}
	})
	id := mail.EnvelopeID(0x100000001)
	for round := range 3 {
		for u := range 6 {
			h.transfer(envelope(id, []string{"md", "run"}[round&1], fmt.Sprint("u", u)))
			id += 1 << 32
		}
		for last := range mail.EnvelopeID(6) {
			if r := h.result(id - (last+1)<<32); !r.Status.OK() {
				t.Errorf("got %+v", r)
			}
		}
	}
	if n := len(h.starts()); n != 6 {
		t.Errorf("%d workers started for 6 users", n)
	}
}

// TestRun is the process as main starts it: the first configuration comes with
// the others.
func TestRun(t *testing.T) {
	h := newHouse(t, nil)
	h.stop()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	h.env.Ready = func() { close(ready) }
	h.confs <- config.Defaults()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, h.env, h.peers) }()
	<-ready
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReload(t *testing.T) {
	h := newHouse(t, nil)
	h.transfer(envelope(0x100000001, "md", "alice"))
	h.result(0x100000001)
	conf := config.Defaults()
	conf.Actions["md"] = &config.Action{Method: config.MethodMaildir, Path: "~/other"}
	works := make(chan *config.Config, 1)
	h.env.Applied = func(c *config.Config) { works <- c }
	h.confs <- conf
	<-works
	h.transfer(envelope(0x200000001, "md", "alice"))
	h.result(0x200000001)
	if n := len(h.files("alice", "other/new")); n != 1 || h.asked != 2 {
		t.Errorf("%d files, asked %d times", n, h.asked)
	}
}

func TestStop(t *testing.T) {
	h := newHouse(t, nil)
	e := envelope(0x100000001, "md", "alice")
	e.Exec = "|echo >started; read line <go"
	home := h.users["alice"].Home
	started, command := newPipe(t, home+"/started"), newPipe(t, home+"/go")
	h.transfer(e)
	started.heard(1)
	go h.stop()
	command.say()
	if r := h.result(e.ID); !r.Status.OK() {
		t.Errorf("what runs is finished: %+v", r)
	}
	h.stop()
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", -time.Hour: "0s", 999 * time.Millisecond: "0s",
		70 * time.Second: "1m10s", 26 * time.Hour: "1d2h", time.Hour + time.Second: "1h1s"} {
		if got := durationText(d); got != want {
			t.Errorf("durationText(%v) = %s; want %s", d, got, want)
		}
	}
}
