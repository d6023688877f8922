package mta

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

// bound is how long a test waits for what must come.
const bound = 10 * time.Second

// house is an mta process with its neighbours, all in this process.
type house struct {
	t       testing.TB
	conf    *config.Config
	confs   chan *config.Config
	queue   *ipc.Link // queue's end
	mta     *ipc.Link // mta's end of the same
	control *ipc.Link
	log     *logBuffer
	done    chan error
	cancel  context.CancelFunc
	attempt uint16 // of what is transferred

	mu       sync.Mutex
	results  []imsg.Result
	order    []string // what came to queue, by type
	inflight []mail.EnvelopeID
	held     []mail.EnvelopeID
	released int
	retried  []mail.EnvelopeID
	refuse   bool // Results are not taken
	body     []byte
	changed  chan struct{}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs the process; sink is where the action "out" relays to.
func start(t testing.TB, sink string) *house {
	h := &house{t: t, log: &logBuffer{}, done: make(chan error, 1), changed: make(chan struct{}, 1000),
		confs: make(chan *config.Config, 1), attempt: 3}
	c := config.Defaults()
	c.ServerName = "me.test"
	c.Tables["<dynamic:1>"] = &config.Table{Name: "<dynamic:1>", Backend: "static", Type: config.TableList,
		List: []string{"smtp+notls://" + sink}}
	c.Actions["out"] = &config.Action{Name: "out", Method: config.MethodRelay, Relay: &config.Relay{Host: "<dynamic:1>"}}
	c.Actions["mx"] = &config.Action{Name: "mx", Method: config.MethodRelay, Relay: &config.Relay{}}
	h.conf = c
	h.confs <- c

	h.queue, h.mta = ipc.NewLink(imsg.Queue, imsg.MTA), ipc.NewLink(imsg.MTA, imsg.Queue)
	lookup, toLookup := ipc.NewLink(imsg.Lookup, imsg.MTA), ipc.NewLink(imsg.MTA, imsg.Lookup)
	control, toControl := ipc.NewLink(imsg.Control, imsg.MTA), ipc.NewLink(imsg.MTA, imsg.Control)
	h.control = control
	h.queue.Serve(h.serveQueue, nil, nil)
	lookup.Serve(func(r *ipc.Request) {
		switch m := r.Msg.(type) {
		case *imsg.DNSQuery:
			a := &imsg.DNSAnswer{Result: 1}
			if m.Name == "nullmx.test" {
				a = &imsg.DNSAnswer{Records: []imsg.DNSRecord{{Data: "."}}}
			}
			r.Reply(a, nil)
		case *imsg.TableQuery:
			r.Reply(&imsg.TableAnswer{Temporary: true}, nil)
		}
	}, nil, nil)
	control.Serve(func(*ipc.Request) {}, nil, nil)
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	ready := make(chan struct{})
	env := &privsep.Env{Role: imsg.MTA, Log: log.New(h.log, log.FormPlain), Stat: &stat.Set{}, Now: time.Now,
		Config: h.confs, Switches: make(chan *imsg.Switches), Ready: func() { close(ready) }}
	keys := ipc.NewLink(imsg.MTA, imsg.Keys)
	go func() {
		h.done <- Run(ctx, env, Peers{Queue: h.mta, Lookup: toLookup, Keys: keys, Control: toControl})
	}()
	<-ready
	for _, pair := range [][2]*ipc.Link{{h.mta, h.queue}, {toLookup, lookup}, {toControl, control}} {
		if err := ipc.Connect(pair[0], pair[1]); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		h.stop()
		for _, l := range []*ipc.Link{h.mta, h.queue, toLookup, lookup, toControl, control} {
			l.Close()
		}
	})
	return h
}

// stop ends the process and waits for it.
func (h *house) stop() {
	h.cancel()
	select {
	case err := <-h.done:
		if err != nil {
			h.t.Error(err)
		}
		h.done <- nil
	case <-time.After(bound):
		h.t.Error("Run does not end")
	}
}

func (h *house) serveQueue(r *ipc.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.order = append(h.order, fmt.Sprintf("%T", r.Msg))
	switch m := r.Msg.(type) {
	case *imsg.Results:
		if h.refuse {
			r.Reply(&imsg.Done{}, nil)
			break
		}
		h.results = append(h.results, m.Results...)
		r.Reply(&imsg.Done{OK: true}, nil)
	case *imsg.Inflight:
		h.inflight = append(h.inflight, m.IDs...)
	case *imsg.Hold:
		h.held = append(h.held, m.IDs...)
	case *imsg.Release:
		h.released++
	case *imsg.Retry:
		h.retried = append(h.retried, m.IDs...)
	case *imsg.BodyOpen:
		h.sendBody(r)
	}
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *house) sendBody(r *ipc.Request) {
	f, err := os.CreateTemp(h.t.TempDir(), "body")
	if err != nil {
		h.t.Error(err)
		return
	}
	if _, err := f.Write(h.body); err != nil {
		h.t.Error(err)
	}
	r.Reply(&imsg.Body{Status: mail.Status{Code: 250}, InFile: true, Size: int64(len(h.body))}, f)
}

// until waits until ok, which runs with the lock held, is true.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.After(bound)
	for {
		h.mu.Lock()
		yes := ok()
		h.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-h.changed:
		case <-deadline:
			h.t.Fatalf("waited for %s; log:\n%s", what, h.log)
		}
	}
}

// transfer leases n envelopes of one message to the process.
func (h *house) transfer(id mail.MessageID, action, domain string, n int, inline bool) {
	m := &imsg.Transfer{Message: id, Size: int64(len(h.body))}
	if inline {
		m.Inline = h.body
	}
	for i := range n {
		to := mail.Address{User: fmt.Sprintf("u%d", i), Domain: domain}
		m.Envelopes = append(m.Envelopes, mail.Envelope{ID: id.Envelope(uint32(i + 1)), Kind: mail.KindMTA,
			Dispatcher: action, Sender: mail.SplitAddress("a@b.test"), Rcpt: to, Dest: to,
			Created: time.Now(), Retry: h.attempt})
	}
	if err := h.queue.Send(m, nil); err != nil {
		h.t.Fatal(err)
	}
}

// sink takes mail on a loopback port: u1 is refused, u3 deferred, everything else
// taken.
type sink struct {
	ln     net.Listener
	mu     sync.Mutex
	bodies []string
	stall  chan struct{} // the reply to the dot waits for it, when set
	once   sync.Once
	got    chan struct{} // one for each body, as far as there is room
}

// release lets the stalled replies go.
func (s *sink) release() {
	s.once.Do(func() {
		if s.stall != nil {
			close(s.stall)
		}
	})
}

func newSink(t *testing.T) *sink {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{ln: ln, got: make(chan struct{}, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() { s.release(); ln.Close(); wg.Wait() })
	return s
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	fmt.Fprint(c, "220 sink\r\n")
	for {
		c.SetDeadline(time.Now().Add(bound))
		line, err := in.ReadString('\n')
		switch {
		case err != nil:
			return
		case strings.HasPrefix(line, "EHLO"):
			fmt.Fprint(c, "250-sink\r\n250 PIPELINING\r\n")
		case strings.HasPrefix(line, "RCPT TO:<u1@"):
			fmt.Fprint(c, "550 5.1.1 no such user\r\n")
		case strings.HasPrefix(line, "RCPT TO:<u3@"):
			fmt.Fprint(c, "451 4.7.1 later\r\n")
		case strings.HasPrefix(line, "DATA"):
			fmt.Fprint(c, "354 go\r\n")
			var b strings.Builder
			for line != ".\r\n" && err == nil {
				if line, err = in.ReadString('\n'); line != ".\r\n" {
					b.WriteString(line)
				}
			}
			s.mu.Lock()
			s.bodies = append(s.bodies, b.String())
			stall := s.stall
			s.mu.Unlock()
			select {
			case s.got <- struct{}{}:
			default:
			}
			if stall != nil {
				<-stall
			}
			fmt.Fprint(c, "250 2.0.0 queued\r\n")
		case strings.HasPrefix(line, "QUIT"):
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "250 ok\r\n")
		}
	}
}

func TestRelay(t *testing.T) {
	tests := map[string]struct {
		size   int
		inline bool
	}{
		"with the lease": {4000, true},
		"from a file":    {300_000, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSink(t)
			h := start(t, s.ln.Addr().String())
			h.body = []byte("Subject: x\r\n\r\n" + strings.Repeat("0123456789abcdef0123456789abcd\r\n", tt.size/32))
			h.transfer(7, "out", "d.test", 3, tt.inline)
			h.until("3 results", func() bool { return len(h.results) == 3 })
			slices.SortFunc(h.results, func(a, b imsg.Result) int { return int(a.ID) - int(b.ID) })
			for i, code := range []int{250, 550, 250} {
				r := h.results[i]
				if r.Status.Code != code || r.Attempt != 3 || r.Remote != "[127.0.0.1]" {
					t.Errorf("result %d: got %+v, want code %d", i, r, code)
				}
			}
			if h.results[1].Line != "550 5.1.1 no such user" {
				t.Errorf("line: got %q", h.results[1].Line)
			}
			s.mu.Lock()
			if len(s.bodies) != 1 || s.bodies[0] != string(h.body) {
				t.Errorf("%d bodies; the text was changed on its way", len(s.bodies))
			}
			s.mu.Unlock()
			if h.order[0] != "*imsg.Inflight" {
				t.Errorf("queue heard %v, want Inflight first", h.order)
			}
			port := s.ln.Addr().(*net.TCPAddr).Port
			for _, want := range []string{
				fmt.Sprintf(" mta connecting address=smtp+notls://127.0.0.1:%d host=127.0.0.1\n", port),
				" mta connected\n",
				` mta delivery evpid=0000000700000002 from=<a@b.test> to=<u1@d.test> rcpt=<-> source="127.0.0.1" relay="127.0.0.1 (127.0.0.1)" delay=0s result="PermFail" stat="550 5.1.1 no such user"` + "\n",
				` mta delivery evpid=0000000700000003 from=<a@b.test> to=<u2@d.test> rcpt=<-> source="127.0.0.1" relay="127.0.0.1 (127.0.0.1)" delay=0s result="Ok" stat="250 2.0.0 queued"` + "\n",
			} {
				if !strings.Contains(h.log.String(), want) {
					t.Errorf("log has no %q:\n%s", want, h.log)
				}
			}
			h.stop()
			if !strings.Contains(h.log.String(), "mta disconnected reason=quit messages=1\n") {
				t.Errorf("log has no disconnect:\n%s", h.log)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	const refused = "Network error on destination MXs: [127.0.0.1]: IO Error: Connection refused"
	tests := map[string]struct{ action, domain, want, log string }{
		"null MX":        {"mx", "nullmx.test", "Domain does not accept mail", `0000000000000000 mta delivery evpid=0000000700000001 from=<a@b.test> to=<u0@nullmx.test> rcpt=<-> source="-" relay="nullmx.test" delay=0s result="PermFail" stat="Domain does not accept mail"`},
		"unknown domain": {"mx", "no.test", "Domain does not exist", "smtp-out: Failed to resolve MX for [relay:no.test,smtp]: Domain does not exist"},
		"no action":      {"gone", "d.test", "No such action: gone", ""},
		"refused":        {"out", "d.test", refused, "mta error reason=IO Error: Connection refused\n"},
		"its cause": {"out", "d.test", refused, "0000000000000000 mta cause evpid=0000000700000001 reason=" + refused + "\n" +
			`0000000000000000 mta delivery evpid=0000000700000001 from=<a@b.test> to=<u0@d.test> rcpt=<-> source="-" relay="127.0.0.1" delay=0s result="TempFail" stat="Network error on destination MXs"` + "\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, "127.0.0.1:1")
			h.transfer(7, tt.action, tt.domain, 1, true)
			h.until("a result", func() bool { return len(h.results) == 1 })
			if got := h.results[0].Line; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if !strings.Contains(h.log.String(), tt.log) {
				t.Errorf("log has no %q:\n%s", tt.log, h.log)
			}
		})
	}
}

func TestQueueReplaced(t *testing.T) {
	s := newSink(t)
	s.stall = make(chan struct{})
	h := start(t, s.ln.Addr().String())
	h.body = []byte("x\r\n")
	h.transfer(7, "out", "d.test", 1, true)
	h.until("the first Inflight", func() bool { return len(h.order) > 0 })
	h.untilSunk(s)
	h.mu.Lock()
	h.refuse = true
	h.mu.Unlock()
	h.queue.Close()
	if err := ipc.Connect(h.mta, h.queue); err != nil {
		t.Fatal(err)
	}
	h.until("the second Inflight", func() bool { return len(h.inflight) == 1 })
	if h.inflight[0] != mail.MessageID(7).Envelope(1) {
		t.Errorf("in flight: %v", h.inflight)
	}
	s.release()
	h.until("refused results", func() bool { return slices.Contains(h.order, "*imsg.Results") })
	h.mu.Lock()
	h.refuse = false
	h.mu.Unlock()
	h.until("a result", func() bool { return len(h.results) == 1 })
	if h.results[0].Status.Code != 250 {
		t.Errorf("result: %+v", h.results[0])
	}
}

// TestRetry: another attempt at what was deferred is asked for when queue has
// the result of the last one, not before.
func TestRetry(t *testing.T) {
	s := newSink(t)
	h := start(t, s.ln.Addr().String())
	h.body, h.attempt = []byte("x\r\n"), 0
	h.mu.Lock()
	h.refuse = true
	h.mu.Unlock()
	late := mail.MessageID(7).Envelope(4)
	h.transfer(7, "out", "d.test", 4, true)
	h.until("the deferral", func() bool { return strings.Contains(h.log.String(), "451 4.7.1 later") })
	h.untilSunk(s)
	h.transfer(8, "out", "d.test", 1, true)
	h.untilSunk(s)
	h.mu.Lock()
	if len(h.retried) > 0 {
		t.Error("wanted again before its result was taken")
	}
	h.refuse = false
	h.mu.Unlock()
	h.until("another attempt", func() bool { return len(h.retried) > 0 })
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.retried, []mail.EnvelopeID{late}) {
		t.Errorf("wanted again: %v, want %s", h.retried, late)
	}
	if !slices.ContainsFunc(h.results, func(r imsg.Result) bool { return r.ID == late }) {
		t.Error("wanted again without a result")
	}
}

// untilSunk waits until the sink has a body.
func (h *house) untilSunk(s *sink) {
	h.t.Helper()
	select {
	case <-s.got:
	case <-time.After(bound):
		h.t.Fatalf("waited for a body; log:\n%s", h.log)
	}
}

func TestStop(t *testing.T) {
	s := newSink(t)
	s.stall = make(chan struct{})
	h := start(t, s.ln.Addr().String())
	h.body = []byte("x\r\n")
	h.transfer(7, "out", "d.test", 1, true)
	h.untilSunk(s)
	h.cancel()
	s.release()
	h.stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.results) != 1 || h.results[0].Status.Code != 250 {
		t.Errorf("results: %+v, want the one under way", h.results)
	}
}

func TestShow(t *testing.T) {
	h := start(t, "127.0.0.1:1")
	h.transfer(7, "out", "d.test", 1, true)
	h.until("a result", func() bool { return len(h.results) == 1 })
	ask := func(what string) string {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		a, err := ipc.Ask[*imsg.Lines](ctx, h.control, &imsg.Show{What: what})
		if err != nil {
			t.Fatal(err)
		}
		return string(a.Text)
	}
	for what, want := range map[string]string{
		"hosts":  "127.0.0.1 127.0.0.1 refcount=2 nconn=0 lastconn=0s\n",
		"routes": "1. [] <-> 127.0.0.1 (127.0.0.1) ND-- nconn=0 nerror=1 penalty=1 timeout=14s\n",
		"relays": "[relay:127.0.0.1,port=1,smtp+notls,mx] refcount=1 ntask=0 nconn=0 lastconn=0s timeout=- wait=\n" +
			"  connector [] refcount=0 nconn=0 lastconn=0s timeout=- flags=ERROR_ROUTE_NET\n",
		"mta paused": "",
		"tls x.test": "action mx: when offered, not verified: nothing asks for more\n  with REQUIRETLS: mail is refused: the message asks for REQUIRETLS, and neither DNSSEC nor MTA-STS secures the mail exchangers\n  Domain does not exist\n" +
			"action out: never: the relay URL says smtp+notls\n  with REQUIRETLS: mail is put off: tls is asked for, but the relay URL says smtp+notls\n  0 127.0.0.1 127.0.0.1: in clear\n",
	} {
		if got := ask(what); got != want {
			t.Errorf("show %s: got\n%swant\n%s", what, got, want)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	for _, c := range []*imsg.RouteCommand{{Resume: 1}, {Block: true, Source: "127.0.0.1", Domain: "D.test"}} {
		if a, err := ipc.Ask[*imsg.Done](ctx, h.control, c); err != nil || !a.OK {
			t.Errorf("%+v: %+v, %v", c, a, err)
		}
	}
	if got := ask("mta paused"); got != "127.0.0.1 -> d.test\n" {
		t.Errorf("mta paused: %q", got)
	}
	if !strings.Contains(h.log.String(), "smtp-out: Enabling route [] <-> 127.0.0.1 (127.0.0.1)\n") {
		t.Errorf("log:\n%s", h.log)
	}
	a, err := ipc.Ask[*imsg.Stats](ctx, h.control, &imsg.StatsGet{})
	if err != nil || !slices.Contains(a.Values, imsg.Stat{Name: "mta.relay", Value: 1}) {
		t.Errorf("stats: %+v, %v", a, err)
	}
}

// BenchmarkProcess relays mails of 4 KB from leases to results.
func BenchmarkProcess(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go willing(c)
		}
	}()
	h := start(b, ln.Addr().String())
	h.body = []byte("Subject: x\r\n\r\n" + strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 64))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		h.transfer(mail.MessageID(i+1), "out", "d.test", 1, true)
	}
	h.until("all results", func() bool { return len(h.results) == b.N })
}

// willing takes every mail, with as few system calls as can be.
func willing(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	fmt.Fprint(c, "220 sink\r\n")
	data := false
	for {
		if in.Buffered() == 0 {
			out.Flush()
		}
		line, err := in.ReadSlice('\n')
		switch {
		case err != nil:
			return
		case data:
			if string(line) == ".\r\n" {
				data = false
				out.WriteString("250 2.0.0 queued\r\n")
			}
		case bytes.HasPrefix(line, []byte("EHLO")):
			out.WriteString("250-sink\r\n250 PIPELINING\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			data = true
			out.WriteString("354 go\r\n")
		default:
			out.WriteString("250 2.0.0 ok\r\n")
		}
	}
}
