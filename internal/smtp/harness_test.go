package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/auth"
	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
	"smtpd/internal/stat"
)

// stored is a message as a fake queue keeps it.
type stored struct {
	id        mail.MessageID
	body      string
	size      int64
	envelopes []mail.Envelope
	inFile    bool
}

// fake is a Backend in memory: alice, bob, carol and anything at md.test exist.
type fake struct {
	mu        sync.Mutex
	next      mail.MessageID
	free      []mail.MessageID
	files     map[mail.MessageID]*bytes.Buffer
	open      int
	messages  []stored
	down      bool // the queue is
	deaf      bool // lookup is
	sender    string
	hostname  string
	verifiers map[string]*auth.Verifier
	inside    int   // clients behind a proxy
	asked     []int // recipients in each question
	filter    func(*Client) Filter
}

func (f *fake) ClientName(context.Context, netip.Addr) (string, string) { return "localhost", "pass" }

func (f *fake) Admit(a netip.Addr) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a == netip.MustParseAddr("192.0.2.66") {
		return "421 4.7.0 Too many connections from your address"
	}
	f.inside++
	return ""
}

func (f *fake) Leave(netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside--
}

func (f *fake) Hostname(context.Context, netip.Addr) string { return f.hostname }

func (f *fake) Authenticate(_ context.Context, user, password string) error {
	switch {
	case f.deaf:
		return errors.New("deaf")
	case user == "alice" && password == "secret":
		return nil
	}
	return ErrCredentials
}

func (f *fake) Verifier(_ context.Context, user string) (*auth.Verifier, error) {
	if f.deaf {
		return nil, errors.New("deaf")
	}
	if v := f.verifiers[user]; v != nil {
		return v, nil
	}
	return nil, ErrCredentials
}

func (f *fake) KnowsLogin(_ context.Context, user string) error {
	switch {
	case f.deaf:
		return errors.New("deaf")
	case user == "alice":
		return nil
	}
	return ErrCredentials
}

func (f *fake) CheckSender(_ context.Context, user string, sender mail.Address) error {
	if f.deaf {
		return errors.New("deaf")
	}
	if sender.String() == f.sender {
		return nil
	}
	return mail.NewStatus(550, [3]uint8{5, 7, 1}, "no")
}

// verdicts are the recipients with a fate of their own.
var verdicts = map[string]*mail.Status{
	"nosuch@example.org":          {Code: 550, Enh: [3]uint8{5, 1, 1}, Text: "Invalid recipient"},
	"alice@unknown.test":          {Code: 550, Enh: [3]uint8{5, 7, 1}, Text: "Invalid recipient"},
	"x@rejected.test":             {Code: 550, Enh: [3]uint8{5, 7, 1}, Text: "Invalid recipient"},
	"multi@sq.test":               {Code: 550, Enh: [3]uint8{5, 1, 1}, Text: "Invalid recipient"},
	"nosuch@sq.test":              {Code: 524, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"},
	"a@off.test":                  {Code: 550, Enh: [3]uint8{5, 7, 1}, Text: "Invalid recipient"},
	"bad@example.org":             {Code: 550, Enh: [3]uint8{5, 7, 1}, Text: "go away"},
	"badtmp@example.org":          {Code: 424, Enh: [3]uint8{4, 2, 4}, Text: "Mailing list expansion problem"},
	"loopa@example.org":           {Code: 524, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"},
	"tmp@example.org":             {Code: 451, Text: "Temporary failure"},
	"odd@example.org":             {Code: 250, Text: "a success that is none"},
	"wrongclass@example.org":      {Code: 550, Enh: [3]uint8{4, 1, 1}, Text: "mixed\r\nup"},
	"named@example.org":           {Code: 550, Enh: [3]uint8{5, 1, 1}, Text: "gone: <named@example.org>"},
	"invisible.log4j@example.org": {Code: 550, Text: strings.Repeat("x", 1000)},
}

func (f *fake) CheckRcpt(_ context.Context, r *Rcpt) []Expansion {
	list := []Expansion{f.expand(r.Envelope.Rcpt)}
	for _, to := range r.Next {
		list = append(list, f.expand(to.Address))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, len(list))
	return list
}

func (f *fake) expand(to mail.Address) Expansion {
	if f.deaf {
		return Expansion{Err: errors.New("deaf")}
	}
	if st := verdicts[to.String()]; st != nil {
		return Expansion{Err: st}
	}
	one := mail.Branch{Kind: mail.KindMDA, Dispatcher: "local", Dest: to, User: to.User}
	switch to.User {
	case "postmaster":
		one.User = "alice"
	case "team":
		two := one
		one.User, two.User = "alice", "bob"
		return Expansion{Branches: []mail.Branch{one, two}}
	}
	return Expansion{Branches: []mail.Branch{one}}
}

func (f *fake) ReserveID(context.Context) (mail.MessageID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return 0, errors.New("down")
	}
	if n := len(f.free); n > 0 {
		id := f.free[n-1]
		f.free = f.free[:n-1]
		return id, nil
	}
	f.next++
	return 0x102118df + f.next, nil
}

func (f *fake) ReleaseID(id mail.MessageID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = append(f.free, id)
}

type fakeFile struct {
	f    *fake
	b    *bytes.Buffer
	once sync.Once
}

func (w *fakeFile) Write(p []byte) (int, error) { return w.b.Write(p) }

func (w *fakeFile) Close() error {
	w.once.Do(func() { w.f.mu.Lock(); w.f.open--; w.f.mu.Unlock() })
	return nil
}

func (f *fake) CreateBody(_ context.Context, id mail.MessageID) (io.WriteCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, mail.NewStatus(452, [3]uint8{4, 3, 1}, "disk full")
	}
	if f.files == nil {
		f.files = map[mail.MessageID]*bytes.Buffer{}
	}
	b := new(bytes.Buffer)
	f.files[id] = b
	f.open++
	return &fakeFile{f: f, b: b}, nil
}

func (f *fake) AbortBody(id mail.MessageID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, id)
}

func (f *fake) Commit(_ context.Context, m *Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errors.New("down")
	}
	s := stored{id: m.ID, body: string(m.Inline), size: m.Size, envelopes: slices.Clone(m.Envelopes), inFile: m.InFile}
	if m.InFile {
		s.body = f.files[m.ID].String()
		delete(f.files, m.ID)
	}
	f.messages = append(f.messages, s)
	return nil
}

func (f *fake) Filter(c *Client) Filter {
	if f.filter == nil {
		return nil
	}
	return f.filter(c)
}

func (f *fake) stored() []stored {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]stored(nil), f.messages...)
}

// setup is what a test may change before its session begins.
type setup struct {
	c      *Config
	l      *config.Listener
	b      *fake
	client netip.AddrPort
	log    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var stamp = time.Date(2026, 11, 20, 23, 17, 50, 0, time.UTC)

func newSetup() *setup {
	l := &config.Listener{Name: "test", DSN: true, Addr: netip.MustParseAddrPort("127.0.0.1:25")}
	b := &fake{}
	lb := &syncBuffer{}
	sm := config.Defaults().SMTP
	sm.AuthDelay = 0
	sm.CommandTimeout, sm.DataTimeout = 20*time.Second, 20*time.Second
	var n atomic.Uint64
	n.Store(0x6212680100d3b740)
	c := &Config{Listener: l, SMTP: sm, Name: "mx.example.org", ADMD: "mx.example.org", Backend: b,
		Actions: map[string]*config.Action{"local": {Name: "local", Method: config.MethodMaildir}},
		Log:     log.New(lb, log.FormPlain), Stat: &stat.Set{},
		Now: func() time.Time { return stamp }, Rand: func() uint64 { return n.Add(1) }}
	return &setup{c: c, l: l, b: b, log: lb, client: netip.MustParseAddrPort("127.0.0.1:40000")}
}

// client is the test's end of a session.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
	done chan struct{}
	s    *Session
}

// dial runs a session and gives the other end of its connection.
func (u *setup) dial(t testing.TB) *client { return u.dialAs(t, nil) }

// dialAs is dial inside TLS, as far as the session knows.
func (u *setup) dialAs(t testing.TB, facts *tlsFacts) *client {
	t.Helper()
	ours, theirs := buffered()
	s := New(u.c, theirs, u.client, u.l.Addr)
	s.tls = facts
	c := &client{t: t, conn: ours, r: bufio.NewReader(ours), done: make(chan struct{}), s: s}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(c.done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		ours.Close()
		c.wait()
	})
	ours.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func (c *client) wait() {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(20 * time.Second):
		c.t.Fatal("the session does not end")
	}
}

func (c *client) send(s string) {
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Logf("send: %v", err)
	}
}

// reply reads one whole reply, its lines joined by LF; "" at the end of the
// connection.
func (c *client) reply() string {
	var lines []string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return strings.Join(lines, "\n")
		}
		if !strings.HasSuffix(line, "\r\n") {
			c.t.Errorf("reply line without CRLF: %q", line)
		}
		line = strings.TrimSuffix(line, "\r\n")
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(lines, "\n")
		}
	}
}

// cmd sends a command and gives its reply.
func (c *client) cmd(s string) string {
	c.send(s + "\r\n")
	return c.reply()
}

// must sends commands that have to succeed.
func (c *client) must(cmds ...string) {
	c.t.Helper()
	for _, cmd := range cmds {
		if got := c.cmd(cmd); got == "" || got[0] > '3' {
			c.t.Fatalf("%s: got %q", cmd, got)
		}
	}
}

// startTLS goes on inside TLS.
func (c *client) startTLS() {
	c.t.Helper()
	conn := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
}

// pair of connections with memory between them, so that neither end waits for
// the other to read.
func buffered() (a, b net.Conn) {
	x, y := newHalf(), newHalf()
	return &pipe{in: x, out: y}, &pipe{in: y, out: x}
}

type half struct {
	mu       sync.Mutex
	cond     *sync.Cond
	b        []byte
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

func newHalf() *half {
	h := &half{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

type pipe struct{ in, out *half }

func (p *pipe) Read(b []byte) (int, error) {
	h := p.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if !h.deadline.IsZero() && !time.Now().Before(h.deadline) {
			return 0, os.ErrDeadlineExceeded
		}
		if len(h.b) > 0 {
			n := copy(b, h.b)
			h.b = h.b[n:]
			h.cond.Broadcast()
			return n, nil
		}
		if h.closed {
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

const pipeSize = 256 << 10

func (p *pipe) Write(b []byte) (n int, err error) {
	h := p.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(b) > 0 {
		for len(h.b) >= pipeSize && !h.closed {
			h.cond.Wait()
		}
		if h.closed {
			return n, net.ErrClosed
		}
		m := min(len(b), pipeSize-len(h.b))
		h.b = append(h.b, b[:m]...)
		b, n = b[m:], n+m
		h.cond.Broadcast()
	}
	return n, nil
}

func (h *half) close() {
	h.mu.Lock()
	h.closed = true
	h.cond.Broadcast()
	h.mu.Unlock()
}

func (p *pipe) Close() error      { p.in.close(); p.out.close(); return nil }
func (p *pipe) CloseWrite() error { p.out.close(); return nil }

func (p *pipe) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (p *pipe) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func (p *pipe) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

func (p *pipe) SetWriteDeadline(time.Time) error { return nil }

func (p *pipe) SetReadDeadline(t time.Time) error {
	h := p.in
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deadline = t
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	if d := time.Until(t); !t.IsZero() {
		h.timer = time.AfterFunc(max(d, 0), func() { h.mu.Lock(); h.cond.Broadcast(); h.mu.Unlock() })
	}
	h.cond.Broadcast()
	return nil
}

// certificate makes one for the tests.
func certificate(t testing.TB, name string, isCA bool, parent *tls.Certificate) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	up, upKey := tmpl, any(key)
	if parent != nil {
		up, upKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, up, &key.PublicKey, upKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// withTLS gives the listener a certificate.
func (u *setup) withTLS(t testing.TB, mode config.TLSMode) *setup {
	u.l.TLS = mode
	u.c.TLS = &tls.Config{Certificates: []tls.Certificate{*certificate(t, "mx.example.org", false, nil)}}
	return u
}

// null is a backend that keeps nothing.
type null struct{ *fake }

func (null) Commit(context.Context, *Message) error { return nil }

var headerless = rfc5322.Options{}

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }
