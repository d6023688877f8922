package control

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

// house is a running control process with made-up neighbours.
type house struct {
	t      *testing.T
	socket string
	links  map[imsg.Role]*ipc.Link // the neighbours' ends
	now    time.Time
	logged *lockedBuffer

	mu    sync.Mutex
	asked []imsg.Msg // what the neighbours were asked, stats aside
}

// answers is what a neighbour answers; nil: nothing ever.
type answers func(imsg.Msg) (imsg.Msg, *os.File)

// start runs control. Roles that are not in peers answer only StatsGet; roles
// in dead are not there at all.
func start(t *testing.T, unprivileged bool, peers map[imsg.Role]answers, dead ...imsg.Role) *house {
	t.Helper()
	h := &house{t: t, links: map[imsg.Role]*ipc.Link{}, now: time.Unix(1795217035, 0), logged: &lockedBuffer{}}
	near := map[imsg.Role]*ipc.Link{}
	for _, role := range append(imsg.Neighbours(imsg.Control), imsg.Parent) {
		near[role] = ipc.NewLink(imsg.Control, role)
		if slices.Contains(dead, role) {
			continue
		}
		far := ipc.NewLink(role, imsg.Control)
		far.Serve(h.handler(role, peers[role]), nil, nil)
		if err := ipc.Connect(near[role], far); err != nil {
			t.Fatal(err)
		}
		h.links[role] = far
	}
	near[imsg.Parent].Serve(func(*ipc.Request) {}, nil, nil)

	conf := make(chan *config.Config, 1)
	c := config.Defaults()
	c.ServerName = "mx.example.org"
	conf <- c
	sockets := make(chan privsep.Socket, 1)
	h.socket = filepath.Join(t.TempDir(), "sock")
	sockets <- privsep.Socket{File: h.listen(), Last: true}
	ready := make(chan struct{})
	clock := h.now.Add(-65 * time.Second) // when control started
	var mu sync.Mutex
	env := &privsep.Env{
		Role: imsg.Control, Log: log.New(h.logged, log.FormPlain), Stat: &stat.Set{},
		Now: func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			defer func() { clock = h.now }()
			return clock
		},
		Config: conf, Switches: make(chan *imsg.Switches), Sockets: sockets, Parent: near[imsg.Parent],
		Unprivileged: unprivileged, Ready: sync.OnceFunc(func() { close(ready) }),
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, env, Peers{
			Keys: near[imsg.Keys], Lookup: near[imsg.Lookup], SMTP: near[imsg.SMTP], Queue: near[imsg.Queue],
			Scheduler: near[imsg.Scheduler], MTA: near[imsg.MTA], MDA: near[imsg.MDA],
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, l := range near {
			l.Close()
		}
	})
	<-ready
	return h
}

func (h *house) listen() *os.File {
	h.t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socket, Net: "unix"})
	if err != nil {
		h.t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

func (h *house) handler(role imsg.Role, a answers) ipc.Handler {
	return func(r *ipc.Request) {
		if _, ok := r.Msg.(*imsg.StatsGet); ok {
			r.Reply(&imsg.Stats{Values: []imsg.Stat{
				{Name: role.String() + ".x", Value: int64(role)}, {Name: "shared", Value: 1}}}, nil)
			return
		}
		h.mu.Lock()
		h.asked = append(h.asked, r.Msg)
		h.mu.Unlock()
		if a == nil {
			return
		}
		if m, f := a(r.Msg); m != nil {
			r.Reply(m, f)
		}
	}
}

func (h *house) dial() *ctl.Client {
	h.t.Helper()
	c, err := ctl.Dial(context.Background(), h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

// heard reports whether the neighbours were asked m and nothing else.
func (h *house) heard(m imsg.Msg) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) != 1 || !same(h.asked[0], m) {
		h.t.Errorf("asked %+v; want %+v", h.asked, m)
	}
}

// do runs one request; rows are joined by bars, data is as it is.
func (h *house) do(request ...string) (rows []string, text string, err error) {
	h.t.Helper()
	c := h.dial()
	defer c.Close()
	text, err = c.Do(func(f ctl.Frame) error { rows = append(rows, strings.Join(f.Fields, "|")); return nil }, request...)
	return rows, text, err
}

// lockedBuffer is a bytes.Buffer for several writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func reason(err error) string {
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return "failed: " + f.Reason
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func always(m imsg.Msg) answers { return func(imsg.Msg) (imsg.Msg, *os.File) { return m, nil } }

func TestRequests(t *testing.T) {
	// Each its own: to write an imsg touches it.
	done := func() answers { return always(&imsg.Done{OK: true}) }
	failed := func() answers { return always(&imsg.Done{Text: "why"}) }
	env := mail.Envelope{ID: 0x0000000100000002, Kind: mail.KindMTA, Dispatcher: "out"}
	tests := map[string]struct {
		peers   map[imsg.Role]answers
		request []string
		rows    []string
		text    string
		fail    string
		asked   imsg.Msg
	}{
		"status": {peers: map[imsg.Role]answers{imsg.Parent: always(&imsg.Switches{PauseMTA: true})},
			request: []string{"status"}, rows: []string{"MDA|running", "MTA|paused", "SMTP|running"}},
		"pause mta": {peers: map[imsg.Role]answers{imsg.Parent: done()}, request: []string{"switch", "mta", "on"},
			asked: &imsg.Switch{Name: "mta", On: true}},
		"resume again": {peers: map[imsg.Role]answers{imsg.Parent: always(&imsg.Done{})}, request: []string{"switch", "mta", "off"},
			asked: &imsg.Switch{Name: "mta"}, fail: "failed: "},
		"trace": {peers: map[imsg.Role]answers{imsg.Parent: done()}, request: []string{"switch", "trace smtp", "on"},
			asked: &imsg.Switch{Name: "trace smtp", On: true}},
		"unknown switch": {request: []string{"switch", "off", "on"}, fail: "failed: unknown switch"},
		"reload":         {peers: map[imsg.Role]answers{imsg.Parent: failed()}, request: []string{"reload"}, fail: "failed: why"},
		"update":         {peers: map[imsg.Role]answers{imsg.Lookup: done()}, request: []string{"update", "aliases"}, asked: &imsg.TableUpdate{Table: "aliases"}},
		"schedule all": {peers: map[imsg.Role]answers{imsg.Scheduler: always(&imsg.Count{N: 10})}, request: []string{"schedule", "all"},
			text: "10", asked: &imsg.SchedCommand{Op: imsg.OpSchedule, All: true}},
		"remove message": {peers: map[imsg.Role]answers{imsg.Scheduler: always(&imsg.Count{})}, request: []string{"remove", "deadbeef"},
			text: "0", asked: &imsg.SchedCommand{Op: imsg.OpRemove, Message: 0xdeadbeef}},
		"pause envelope": {peers: map[imsg.Role]answers{imsg.Scheduler: always(&imsg.Count{N: 1})}, request: []string{"pause", "7f5a56b65f591e71"},
			text: "1", asked: &imsg.SchedCommand{Op: imsg.OpPause, Envelope: 0x7f5a56b65f591e71}},
		"discover all": {peers: map[imsg.Role]answers{imsg.Scheduler: always(&imsg.Count{N: 5})}, request: []string{"discover", "all"},
			text: "5", asked: &imsg.SchedCommand{Op: imsg.OpDiscover, All: true}},
		"bad id": {request: []string{"remove", "xyz"}, fail: "failed: invalid id"},
		"no id":  {request: []string{"remove"}, fail: "failed: invalid id"},
		"block": {peers: map[imsg.Role]answers{imsg.MTA: done()}, request: []string{"block", "127.0.0.1", "Remote.Test"},
			asked: &imsg.RouteCommand{Block: true, Source: "127.0.0.1", Domain: "remote.test"}},
		"unblock": {peers: map[imsg.Role]answers{imsg.MTA: failed()}, request: []string{"unblock", "127.0.0.1", "remote.test"}, fail: "failed: why"},
		"unknown route": {peers: map[imsg.Role]answers{imsg.MTA: failed()}, request: []string{"route", "99"},
			asked: &imsg.RouteCommand{Resume: 99}},
		"no route": {request: []string{"route", "0"}, fail: "failed: invalid route"},
		"lookup": {peers: map[imsg.Role]answers{imsg.Lookup: always(&imsg.TableAnswer{Found: true, Value: "bob"})},
			request: []string{"lookup", "aliases", "alias", "root"}, rows: []string{"found|bob|0|"},
			asked: &imsg.TableQuery{Table: "aliases", Service: "alias", Key: "root"}},
		"lookup, not now": {peers: map[imsg.Role]answers{imsg.Lookup: always(&imsg.TableAnswer{Temporary: true, Reason: "down"})},
			request: []string{"lookup", "t", "alias", "root"}, rows: []string{"temporary failure||0|down"}},
		"lookup, too long": {request: []string{"lookup", "t", "alias", strings.Repeat("k", 5000)}, fail: "failed: the question is too long"},
		"envelope": {peers: map[imsg.Role]answers{imsg.Queue: always(&imsg.QueueListing{Envelopes: []mail.Envelope{env}, End: true})},
			request: []string{"envelope", "0000000100000002"}, rows: []string{ctl.EnvelopeText(&env)}},
		"no envelope": {peers: map[imsg.Role]answers{imsg.Queue: always(&imsg.QueueListing{End: true})},
			request: []string{"envelope", "0000000100000003"}, fail: "failed: " + ctl.ReasonMissing},
		"message": {peers: map[imsg.Role]answers{imsg.Queue: always(&imsg.Body{Status: mail.Status{Code: 250}, Inline: []byte("body\n")})},
			request: []string{"message", "00000001"}, rows: []string{"body\n"}},
		"no message": {peers: map[imsg.Role]answers{imsg.Queue: always(&imsg.Body{Status: mail.Status{Code: 550}})},
			request: []string{"message", "00000001"}, fail: "failed: " + ctl.ReasonMissing},
		"message, not now": {peers: map[imsg.Role]answers{imsg.Queue: always(&imsg.Body{Status: *mail.LocalError()})},
			request: []string{"message", "00000001"}, fail: "failed: Temporary failure"},
		"show nothing": {request: []string{"show", "passwords"}, fail: "failed: nothing of that name to show"},
		"unknown":      {request: []string{"frobnicate"}, fail: "failed: unknown request"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, true, tt.peers)
			rows, text, err := h.do(tt.request...)
			if got := reason(err); got != tt.fail {
				t.Errorf("error: got %q; want %q", got, tt.fail)
			}
			if text != tt.text || !slices.Equal(rows, tt.rows) {
				t.Errorf("got %q, %q; want %q, %q", rows, text, tt.rows, tt.text)
			}
			if tt.asked != nil {
				h.heard(tt.asked)
			}
		})
	}
}

func same(a, b imsg.Msg) bool {
	x, errx := imsg.Append(nil, a)
	y, erry := imsg.Append(nil, b)
	return a.Type() == b.Type() && errx == nil && erry == nil && string(x) == string(y)
}

// Large bodies come from the queue's descriptor.
func TestMessageFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "body")
	want := strings.Repeat("0123456789abcde\n", 20000)
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	h := start(t, true, map[imsg.Role]answers{imsg.Queue: func(imsg.Msg) (imsg.Msg, *os.File) {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
		}
		return &imsg.Body{Status: mail.Status{Code: 250}, InFile: true, Size: int64(len(want))}, f
	}})
	rows, _, err := h.do("message", "00000001")
	if got := strings.Join(rows, ""); got != want || err != nil {
		t.Errorf("got %d octets, %v; want %d", len(got), err, len(want))
	}
}

func TestShowInParts(t *testing.T) {
	h := start(t, true, map[imsg.Role]answers{imsg.MTA: func(m imsg.Msg) (imsg.Msg, *os.File) {
		skip := m.(*imsg.Show).Skip
		return &imsg.Lines{Text: []byte("a\nb\n"), More: skip < 4}, nil
	}})
	rows, _, err := h.do("show", "mta paused")
	if got := strings.Join(rows, ""); got != "a\nb\na\nb\na\nb\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// A command under way has no lines for a while.
func TestShowUnderWay(t *testing.T) {
	var n atomic.Int32
	h := start(t, true, map[imsg.Role]answers{imsg.Queue: func(imsg.Msg) (imsg.Msg, *os.File) {
		if n.Add(1) == 1 {
			return &imsg.Lines{More: true}, nil
		}
		return &imsg.Lines{Text: []byte("done\n")}, nil
	}})
	rows, _, err := h.do("show", "queue verify")
	if got := strings.Join(rows, ""); got != "done\n" || err != nil || n.Load() != 2 {
		t.Errorf("got %q, %v after %d questions", got, err, n.Load())
	}
}

// A process that is dead must not keep the others' counters.
func TestStats(t *testing.T) {
	h := start(t, true, nil, imsg.MTA)
	rows, _, err := h.do("stats")
	want := []string{"control.session|1", "keys.x|2", "lookup.x|4", "mda.x|9", "queue.x|6", "scheduler.x|7",
		"shared|6", "smtp.x|5", "uptime|65", "uptime.human|1m5s"}
	if !slices.Equal(rows, want) || err != nil {
		t.Errorf("got %q, %v; want %q", rows, err, want)
	}
}

// store answers as queue and scheduler with n envelopes, two per message.
func store(n int) map[imsg.Role]answers {
	return map[imsg.Role]answers{
		imsg.Queue: func(m imsg.Msg) (imsg.Msg, *os.File) {
			q := m.(*imsg.QueueList)
			a := &imsg.QueueListing{End: true}
			for i := range n {
				id := mail.MessageID(i/2 + 1).Envelope(uint32(i % 2))
				if id <= q.After {
					continue
				}
				if len(a.Envelopes) == q.Max {
					a.End = false
					break
				}
				a.Envelopes = append(a.Envelopes, mail.Envelope{ID: id, Kind: mail.KindMTA})
			}
			return a, nil
		},
		imsg.Scheduler: func(m imsg.Msg) (imsg.Msg, *os.File) {
			a := &imsg.SchedStates{}
			for _, id := range m.(*imsg.SchedGet).IDs {
				a.States = append(a.States, imsg.SchedState{
					Known: id.Message()%3 != 0, Inflight: id.Message()%3 == 1, Suspend: id&1 == 1, Since: time.Unix(1795217000, 0)})
			}
			return a, nil
		},
	}
}

func list(t *testing.T, h *house, args ...string) []*ctl.Entry {
	t.Helper()
	c := h.dial()
	defer c.Close()
	var list []*ctl.Entry
	_, err := c.Do(func(f ctl.Frame) error {
		e, err := ctl.ParseEntry(f.Fields)
		list = append(list, e)
		return err
	}, append([]string{ctl.ReqQueue}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestQueue(t *testing.T) {
	const n = 2*listSlice + 501
	h := start(t, true, store(n))
	all := list(t, h)
	if len(all) != n {
		t.Fatalf("got %d envelopes; want %d", len(all), n)
	}
	states := []ctl.State{ctl.StateInvalid, ctl.StateInflight, ctl.StatePending}
	for i, e := range all {
		if i > 0 && all[i-1].Envelope.ID >= e.Envelope.ID {
			t.Fatal("not in order of ids")
		}
		if want := states[e.Envelope.ID.Message()%3]; e.State != want {
			t.Errorf("%s: got %s; want %s", e.Envelope.ID, e.State, want)
		}
		if got, want := e.Envelope.Flags&mail.FlagSuspended != 0, e.Envelope.ID&1 == 1; got != want {
			t.Errorf("%s: suspended: got %v; want %v", e.Envelope.ID, got, want)
		}
	}
	for id, want := range map[string]int{"00000007": 2, "00000001": 2, "deadbeef": 0} {
		if got := len(list(t, h, id)); got != want {
			t.Errorf("message %s: got %d envelopes; want %d", id, got, want)
		}
	}
}

func TestSelection(t *testing.T) {
	const n = listSlice + 200 // two slices; a third of the messages is unknown, pending or in flight each
	peers := store(n)
	get := peers[imsg.Scheduler]
	peers[imsg.Scheduler] = func(m imsg.Msg) (imsg.Msg, *os.File) {
		if c, ok := m.(*imsg.SchedCommand); ok {
			return &imsg.Count{N: int64(len(c.IDs) / 2)}, nil // half of them have changed
		}
		return get(m)
	}
	tests := map[string]struct {
		request string
		rows    int
		text    string
		fail    string
	}{
		"list":    {request: "queue where state=pending", rows: 400},
		"none":    {request: "queue where from=x@y", rows: 0},
		"dry run": {request: "remove where dry-run state=pending flag=suspend", text: "200"},
		"remove":  {request: "remove where  state=pending", text: "200"},
		"bad":     {request: "remove where  colour=red", fail: `failed: "colour=red": there is no condition colour=`},
		"nothing": {request: "remove where", fail: "failed: invalid selection"},
		"list of": {request: "queue where", fail: "failed: a selection has 1 to 16 conditions"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, true, peers)
			rows, text, err := h.do(strings.Split(tt.request, " ")...)
			if len(rows) != tt.rows || text != tt.text || reason(err) != tt.fail {
				t.Errorf("got %d rows, %q, %q; want %d, %q, %q", len(rows), text, reason(err), tt.rows, tt.text, tt.fail)
			}
		})
	}
}

func TestQueueWithoutScheduler(t *testing.T) {
	peers := store(3)
	peers[imsg.Scheduler] = always(&imsg.SchedStates{}) // does not say
	h := start(t, true, peers)
	for _, e := range list(t, h) {
		if e.State != ctl.StateOffline {
			t.Errorf("%s: got %s; want offline", e.Envelope.ID, e.State)
		}
	}
}

func TestSubmit(t *testing.T) {
	tests := map[string]struct {
		smtp answers
		fail string
	}{
		"session": {smtp: func(imsg.Msg) (imsg.Msg, *os.File) {
			a, b, err := ipc.Socketpair()
			if err != nil {
				t.Error(err)
				return nil, nil
			}
			_, err = a.WriteString("220 hi\r\n")
			if err != nil {
				t.Error(err)
			}
			a.Close()
			return &imsg.SessionOpened{OK: true}, b
		}},
		"paused": {smtp: always(&imsg.SessionOpened{}), fail: "failed: " + ctl.ReasonRefused},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, false, map[imsg.Role]answers{imsg.SMTP: tt.smtp})
			conn, server, err := h.dial().Submit()
			if got := reason(err); got != tt.fail {
				t.Fatalf("got %q; want %q", got, tt.fail)
			}
			h.heard(&imsg.SessionOpen{UID: uint32(os.Getuid())})
			if err != nil {
				return
			}
			defer conn.Close()
			if b, err := io.ReadAll(conn); string(b) != "220 hi\r\n" || err != nil || server != "mx.example.org" {
				t.Errorf("got %q, %v from %q", b, err, server)
			}
		})
	}
}

// Who may ask for what, without a process of another user at hand.
func TestTrusted(t *testing.T) {
	tests := map[string]struct {
		unprivileged bool
		uid          uint32
		want         bool
	}{
		"root": {false, 0, true}, "root, unprivileged daemon": {true, 0, true},
		"own user": {false, 77, false}, "own user, unprivileged daemon": {true, 77, true},
		"other": {true, 78, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &server{env: &privsep.Env{Unprivileged: tt.unprivileged}, self: 77}
			if got := s.trusted(tt.uid); got != tt.want {
				t.Errorf("got %v; want %v", got, tt.want)
			}
		})
	}
	t.Run("every request", func(t *testing.T) {
		for _, name := range []string{"queue", "envelope", "message", "stats", "status", "show", "schedule", "remove", "pause",
			"resume", "discover", "switch", "block", "unblock", "route", "update", "reload", "lookup"} {
			r := &request{server: &server{env: &privsep.Env{}, self: 77}, uid: 78}
			if _, err := r.dispatch(name); !errors.Is(err, errNotPermitted) {
				t.Errorf("%s: got %v; want refusal", name, err)
			}
		}
	})
}

func TestTooManyConnections(t *testing.T) {
	h := start(t, true, nil)
	for range ctl.MaxConnPerUID {
		h.dial()
	}
	_, err := h.dial().Do(nil, ctl.ReqStats)
	if got := reason(err); got != "failed: "+ctl.ReasonBusy {
		t.Errorf("got %q; want busy", got)
	}
	if !strings.Contains(h.logged.String(), "warn: too many connections to control socket from user with uid ") {
		t.Errorf("logged %q", h.logged.String())
	}
}

func TestUsersTogether(t *testing.T) {
	s := &server{env: &privsep.Env{Stat: &stat.Set{}}, conns: map[uint32]int{}}
	for i := range maxUserConns {
		if !s.enter(uint32(1000 + i)) {
			t.Fatal("refused too early")
		}
	}
	if s.enter(5) {
		t.Error("an ordinary user came in although there is no room")
	}
	if !s.enter(0) {
		t.Error("root was locked out")
	}
	s.leave(1000)
	if !s.enter(5) {
		t.Error("refused although there is room again")
	}
}

// What is not the protocol ends the connection, and only that.
func TestHostileClient(t *testing.T) {
	h := start(t, true, nil)
	for name, text := range map[string]string{
		"text": "GET / HTTP/1.0\r\n\r\n", "huge": "\xff\xff\xff\x7f", "nothing": "",
		"request first": "\x06\x00\x00\x00\x02\x01\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("unix", h.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, conn)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("control does not hang up")
			}
		})
	}
	if _, _, err := h.do(ctl.ReqStats); err != nil {
		t.Error(err)
	}
}
