package mta

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// world is everything outside of an engine: names, tables, hosts and whoever
// wants to know. Hosts are functions on one end of a pipe, so that all of it
// runs in a synctest bubble.
type world struct {
	t   *testing.T
	cfg *config.Config
	dns map[string]fakeAnswer // "MX example.net" -> answer
	// secured are the questions whose answers DNSSEC vouches for.
	secured map[string]bool
	tables  map[string]map[string]string
	lists   map[string][]string
	certs   map[string]*tls.Certificate
	roots   *x509.CertPool
	hosts   map[string]func(*peer) // "192.0.2.1:25"; nil: never answers
	opt     Options

	mu       sync.Mutex
	dialed   []string
	lines    strings.Builder
	log      *log.Logger
	reports  []Report
	holds    map[uint64]int
	fetched  map[string]int
	gauges   map[string]int64
	trace    bool
	nextID   mail.MessageID
	opened   int
	openFail error
	arrived  chan struct{} // one for each report
}

type fakeAnswer struct {
	records []Record
	result  Result
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, cfg: config.Defaults(), dns: map[string]fakeAnswer{}, tables: map[string]map[string]string{},
		lists: map[string][]string{}, certs: map[string]*tls.Certificate{}, hosts: map[string]func(*peer){},
		holds: map[uint64]int{}, fetched: map[string]int{}, gauges: map[string]int64{},
		arrived: make(chan struct{}, 10000)}
	w.cfg.ServerName = "me.test"
	w.log = log.New(&w.lines, log.FormPlain)
	w.opt = Options{DNS: w, Tables: w, Dialer: w, Trust: w, Observer: w}
	return w
}

// mx makes a domain whose MX are "pref name address..." each.
func (w *world) mx(domain string, exchangers ...string) {
	var a fakeAnswer
	for _, x := range exchangers {
		f := strings.Fields(x)
		var pref uint16
		fmt.Sscan(f[0], &pref)
		a.records = append(a.records, Record{pref, f[1]})
		w.addr(f[1], f[2:]...)
	}
	w.dns["MX "+domain] = a
}

func (w *world) addr(name string, addrs ...string) {
	for _, text := range addrs {
		key := "A " + name
		if strings.Contains(text, ":") {
			key = "AAAA " + name
		}
		a := w.dns[key]
		a.records = append(a.records, Record{Data: text})
		w.dns[key] = a
	}
}

var typeNames = map[uint16]string{TypeA: "A", TypeAAAA: "AAAA", TypeMX: "MX", TypePTR: "PTR"}

func (w *world) Query(ctx context.Context, name string, qtype uint16) ([]Record, Result) {
	if a, ok := w.dns[typeNames[qtype]+" "+name]; ok {
		return a.records, a.result
	}
	for k := range w.dns { // the name exists when it has records of another type
		if strings.HasSuffix(k, " "+name) {
			return nil, DNSNoData
		}
	}
	return nil, DNSNoName
}

func (w *world) Secured(ctx context.Context, name string, qtype uint16) (bool, Result) {
	_, result := w.Query(ctx, name, qtype)
	return w.secured[typeNames[qtype]+" "+name], result
}

func (w *world) Lookup(_ context.Context, table, service, key string) (string, bool, error) {
	t, ok := w.tables[table]
	if !ok {
		return "", false, fmt.Errorf("no table %s for %s", table, service)
	}
	v, ok := t[key]
	return v, ok, nil
}

func (w *world) Fetch(_ context.Context, table, service string) (string, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lists[table]
	if len(l) == 0 {
		return "", false, fmt.Errorf("no table %s for %s", table, service)
	}
	n := w.fetched[table]
	w.fetched[table]++
	return l[n%len(l)], true, nil
}

func (w *world) Certificate(pki string) (*tls.Certificate, error) { return w.certs[pki], nil }
func (w *world) Roots(string) (*x509.CertPool, error)             { return w.roots, nil }

func (w *world) Done(r *Report) {
	w.mu.Lock()
	w.reports = append(w.reports, *r)
	w.mu.Unlock()
	w.arrived <- struct{}{}
}

func (w *world) Event(id mail.SessionID, what string, attrs ...slog.Attr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Event(id, what, attrs...)
}

func (w *world) Note(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log.Info(text)
}

func (w *world) Trace(_ mail.SessionID, line string) { w.Note("trace " + line) }
func (w *world) Tracing() bool                       { return w.trace }

func (w *world) Hold(key uint64, ids []mail.EnvelopeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holds[key] += len(ids)
	w.lines.WriteString(fmt.Sprintf("hold %d\n", len(ids)))
}

func (w *world) Release(key uint64, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines.WriteString(fmt.Sprintf("release %d\n", n))
}

func (w *world) Retry(ids []mail.EnvelopeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines.WriteString(fmt.Sprintf("retry %v\n", ids))
}

func (w *world) Gauge(name string, v int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gauges[name] = v
}

// text is the log so far.
func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines.String()
}

// count is how often a regular expression is found in the log.
func (w *world) count(re string) int {
	return len(regexp.MustCompile("(?m)"+re).FindAllString(w.text(), -1))
}

type localConn struct {
	net.Conn
	local net.Addr
}

func (c localConn) LocalAddr() net.Addr { return c.local }

func (w *world) Dial(ctx context.Context, src netip.Addr, dst netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialed = append(w.dialed, dst.String())
	serve, ok := w.hosts[dst.String()]
	w.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	if serve == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if !src.IsValid() {
		src = netip.MustParseAddr("192.0.2.200")
	}
	a, b := net.Pipe()
	buffered := newBufferedConn(b)
	p := &peer{t: w.t, conn: buffered, in: bufio.NewReaderSize(b, 1<<20)}
	go func() {
		serve(p)
		p.conn.Close()
	}()
	return localConn{a, net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 40000))}, nil
}

// bufferedConn is a pipe's end whose Write does not wait for the reader, as a
// socket's does not.
type bufferedConn struct {
	net.Conn
	mu     sync.Mutex
	cond   *sync.Cond
	out    []byte
	closed bool
}

func newBufferedConn(c net.Conn) *bufferedConn {
	b := &bufferedConn{Conn: c}
	b.cond = sync.NewCond(&b.mu)
	go b.pump()
	return b
}

func (b *bufferedConn) pump() {
	for {
		b.mu.Lock()
		for len(b.out) == 0 && !b.closed {
			b.cond.Wait()
		}
		out := b.out
		b.out = nil
		b.mu.Unlock()
		if len(out) == 0 {
			b.Conn.Close()
			return
		}
		b.Conn.Write(out)
	}
}

func (b *bufferedConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, net.ErrClosed
	}
	b.out = append(b.out, p...)
	b.cond.Signal()
	return len(p), nil
}

// Close ends the connection once all is written.
func (b *bufferedConn) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.cond.Signal()
	return nil
}

// peer is the host's end of a connection.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

// say writes a line, or what is given when it has line ends.
func (p *peer) say(s string) {
	if !strings.HasSuffix(s, "\n") {
		s += "\r\n"
	}
	io.WriteString(p.conn, s)
}

// hear reads one line.
func (p *peer) hear() string {
	s, err := p.in.ReadString('\n')
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(s, "\r\n")
}

// body reads to the final dot, as it came.
func (p *peer) body() string {
	var b strings.Builder
	for {
		s, err := p.in.ReadString('\n')
		if err != nil || s == ".\r\n" {
			return b.String()
		}
		b.WriteString(s)
	}
}

// play acts a script: "S: ..." is said, "C: ..." expected (a regular
// expression), "D" takes a body, "hang" waits for the end, "drop" ends.
func play(script string) func(*peer) {
	return func(p *peer) {
		for line := range strings.SplitSeq(strings.TrimSpace(script), "\n") {
			line = strings.TrimSpace(line)
			switch word, rest, _ := strings.Cut(line, " "); word {
			case "S:":
				p.say(strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00").Replace(rest))
			case "C:":
				if got := p.hear(); !regexp.MustCompile("^(?:" + rest + ")$").MatchString(got) {
					p.t.Errorf("host heard %q, want %q", got, rest)
					return
				}
			case "D":
				p.body()
			case "hang":
				io.Copy(io.Discard, p.in)
				return
			case "drop":
				return
			default:
				p.t.Errorf("script: %q", line)
			}
		}
		p.in.Peek(1) // QUIT, or the end
	}
}

// goodHost is a host that takes mail.
type goodHost struct {
	ext    []string
	rcpt   func(addr string) string // reply; nil: 250
	data   func(body string) string // reply to the dot; nil: 250
	mail   func(line string) string
	lmtp   bool
	mu     sync.Mutex
	conns  int
	peak   int
	now    int
	bodies []string
	lines  []string
}

func (h *goodHost) serve(p *peer) {
	h.mu.Lock()
	h.conns++
	h.now++
	h.peak = max(h.peak, h.now)
	h.mu.Unlock()
	leave := sync.OnceFunc(func() {
		h.mu.Lock()
		h.now--
		h.mu.Unlock()
	})
	defer leave()
	p.say("220 mx ESMTP")
	h.dialogue(p, leave)
}

// serveFrom goes on where the greeting is over, inside TLS.
func (h *goodHost) serveFrom(p *peer) { h.dialogue(p, func() {}) }

func (h *goodHost) dialogue(p *peer, leave func()) {
	accepted := 0
	open := false // there is a sender, as hosts have it that refuse a text without recipients
	for {
		line := p.hear()
		h.mu.Lock()
		h.lines = append(h.lines, line)
		h.mu.Unlock()
		verb := strings.ToUpper(line)
		if len(verb) > 4 {
			verb = verb[:4]
		}
		switch verb {
		case "":
			return
		case "EHLO", "LHLO":
			out := ""
			for _, x := range append([]string{"mx"}, h.ext...) {
				out += "250-" + x + "\r\n"
			}
			p.say(out + "250 HELP\r\n")
		case "MAIL":
			reply := "250 2.1.0 ok"
			if h.mail != nil {
				reply = h.mail(line)
			}
			if open {
				p.say("503 5.5.1 sender already given")
				continue
			}
			accepted, open = 0, reply[0] == '2'
			p.say(reply)
		case "RCPT":
			reply := "250 2.1.5 ok"
			if h.rcpt != nil {
				reply = h.rcpt(line)
			}
			if reply[0] == '2' {
				accepted++
			}
			p.say(reply)
		case "DATA":
			if accepted == 0 {
				p.say("503 5.5.1 no recipients")
				continue
			}
			p.say("354 go")
			body := p.body()
			open = false
			h.mu.Lock()
			h.bodies = append(h.bodies, body)
			h.mu.Unlock()
			for n := 0; n < accepted; n++ {
				reply := "250 2.0.0 queued as ABC123"
				if h.data != nil {
					reply = h.data(body)
				}
				p.say(reply)
				if !h.lmtp {
					break
				}
			}
		case "BDAT":
			var n int
			fmt.Sscan(line[4:], &n)
			text := make([]byte, n)
			if _, err := io.ReadFull(p.in, text); err != nil {
				return
			}
			if accepted == 0 {
				p.say("503 5.5.1 no recipients")
				continue
			}
			h.mu.Lock()
			h.bodies = append(h.bodies, string(text))
			h.mu.Unlock()
			reply := "250 2.0.0 queued as ABC123"
			if h.data != nil {
				reply = h.data(string(text))
			}
			accepted, open = 0, false
			p.say(reply)
		case "RSET":
			accepted, open = 0, false
			p.say("250 2.0.0 ok")
		case "NOOP":
			p.say("250 2.0.0 ok")
		case "QUIT":
			leave()
			p.say("221 2.0.0 bye")
			return
		default:
			p.say("502 5.5.1 what")
		}
	}
}

// run makes an engine, lets do act, and stops the engine. It is a bubble: time
// passes when everybody waits.
func (w *world) run(do func(e *Engine)) {
	synctest.Test(w.t, func(t *testing.T) {
		w.t = t
		w.arrived = make(chan struct{}, 10000)
		e := New(w.cfg, w.opt)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { e.Run(ctx) })
		do(e)
		cancel()
		wg.Wait()
	})
}

// message is a message from a@b.test to the recipients.
func (w *world) message(a *config.Relay, rcpts ...string) *Message {
	w.mu.Lock()
	w.nextID++
	m := &Message{ID: w.nextID, Action: &config.Action{Name: "out", Method: config.MethodRelay, Relay: a}, Size: 24}
	w.mu.Unlock()
	for i, r := range rcpts {
		to := mail.SplitAddress(r)
		m.Envelopes = append(m.Envelopes, mail.Envelope{ID: m.ID.Envelope(uint32(i + 1)), Kind: mail.KindMTA,
			Dispatcher: "out", Sender: mail.SplitAddress("a@b.test"), Rcpt: to, Dest: to, Created: time.Now()})
	}
	m.Open = func(context.Context) (Text, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.opened++
		return Text{Data: []byte("Subject: x\r\n\r\nhello\r\n.\r\n")}, w.openFail
	}
	return m
}

// wait waits until n envelopes have been reported, in all.
func (w *world) wait(n int) {
	for {
		w.mu.Lock()
		have := len(w.reports)
		w.mu.Unlock()
		if have >= n {
			return
		}
		<-w.arrived
	}
}

// pass lets time go by. It is called in the bubble, where that takes none.
func (w *world) pass(d time.Duration) { time.Sleep(d) }

// results are the reports as "recipient: code stat", in order of envelopes.
func (w *world) results() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for _, r := range w.reports {
		fmt.Fprintf(&b, "%s %d %s\n", r.Envelope.Dest, r.Status.Code, r.Stat)
	}
	return b.String()
}
