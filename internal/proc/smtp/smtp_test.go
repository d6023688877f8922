package smtp

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
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

const patience = 20 * time.Second

// world is the process with neighbours that a test plays.
type world struct {
	room     int // sessions at most; 0: as in life
	t        *testing.T
	env      *privsep.Env
	config   chan *config.Config
	switches chan *imsg.Switches
	sockets  chan privsep.Socket
	ready    chan struct{}
	cancel   context.CancelFunc
	done     chan error
	log      *lines

	conf   *config.Config
	addr   string
	ours   Peers // the process's ends
	lookup *ipc.Link
	queue  *ipc.Link
	keys   *ipc.Link
	ctl    *ipc.Link
	key    crypto.Signer
	dir    string

	mu       sync.Mutex
	commits  []*imsg.Commit
	parts    map[mail.MessageID][]mail.Envelope
	bodies   map[mail.MessageID]string
	asked    []*imsg.RcptCheck
	reserved int
	full     bool
	swap     bool          // the queue is replaced at the next CommitPart
	bad      string        // the one key of every table
	checks   int           // questions to tables of filters
	copying  chan struct{} // not nil: TableCopy is answered after a value comes
	wanted   int           // such copies
}

// lines is a log that can be waited for.
type lines struct {
	mu   sync.Mutex
	b    strings.Builder
	more chan struct{} // closed at the next line
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.more)
	l.more = make(chan struct{})
	return l.b.Write(p)
}

func (l *lines) String() string {
	s, _ := l.now()
	return s
}

func (l *lines) now() (string, chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String(), l.more
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, config: make(chan *config.Config, 1), switches: make(chan *imsg.Switches, 1),
		sockets: make(chan privsep.Socket, 8), ready: make(chan struct{}), done: make(chan error, 1), log: &lines{more: make(chan struct{})},
		parts: map[mail.MessageID][]mail.Envelope{}, bodies: map[mail.MessageID]string{}, dir: t.TempDir()}
	var once sync.Once
	w.env = &privsep.Env{Role: imsg.SMTP, Log: log.New(w.log, log.FormPlain), Stat: &stat.Set{}, Now: time.Now,
		Config: w.config, Switches: w.switches, Sockets: w.sockets, Ready: func() { once.Do(func() { close(w.ready) }) }}
	w.lookup, w.ours.Lookup = w.edge(imsg.Lookup, w.fromLookup)
	w.queue, w.ours.Queue = w.edge(imsg.Queue, w.fromQueue)
	w.keys, w.ours.Keys = w.edge(imsg.Keys, w.fromKeys)
	w.ctl, w.ours.Control = w.edge(imsg.Control, func(*ipc.Request) {})
	w.conf = config.Defaults()
	w.conf.ServerName = "mx.example.org"
	w.conf.SMTP.AuthDelay = 0
	return w
}

func (w *world) edge(peer imsg.Role, h ipc.Handler) (theirs, ours *ipc.Link) {
	theirs, ours = ipc.NewLink(peer, imsg.SMTP), ipc.NewLink(imsg.SMTP, peer)
	theirs.Serve(h, nil, nil)
	if err := ipc.Connect(theirs, ours); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { theirs.Close(); ours.Close() })
	return theirs, ours
}

// replace gives the edge a new peer, as the parent does when one died.
func (w *world) replace(theirs, ours *ipc.Link) {
	if err := ipc.Connect(theirs, ours); err != nil {
		w.t.Error(err)
	}
}

func (w *world) fromLookup(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.ClientLookup:
		r.Reply(&imsg.ClientName{Host: "localhost", FCrDNS: "pass"}, nil)
	case *imsg.AuthCheck:
		r.Reply(&imsg.AuthResult{OK: m.User == "alice" && m.Password == "secret"}, nil)
	case *imsg.SenderCheck:
		r.Reply(&imsg.TableAnswer{Found: m.Sender.User == "alice"}, nil)
	case *imsg.TableQuery:
		r.Reply(&imsg.TableAnswer{Found: true, Value: "named.example.org"}, nil)
	case *imsg.TableChecks, *imsg.TableCopy:
		w.fromFilter(r)
	case *imsg.RcptMore:
		w.expansion(r, m.Token)
	case *imsg.RcptCheck:
		w.mu.Lock()
		w.asked = append(w.asked, m)
		w.mu.Unlock()
		switch m.Envelope.Rcpt.User {
		case "nosuch":
			r.Reply(&imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: mail.Status{Code: 550, Enh: [3]uint8{5, 1, 1}, Text: "Invalid recipient"}}}, nil)
		case "list":
			w.expansion(r, 1)
		case "gone":
			w.lookup.Close()
		default:
			to := m.Envelope.Rcpt
			b := mail.Branch{Kind: mail.KindMDA, Dispatcher: "local", Dest: to, User: to.User}
			r.Reply(&imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: mail.Status{Code: 250}, Branches: []mail.Branch{b}}}, nil)
		}
	}
}

// listParts and listSize make an expansion that needs several frames each way.
const listParts, listSize = 3, 2000

func (w *world) expansion(r *ipc.Request, token uint64) {
	a := &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: mail.Status{Code: 250}}}
	for i := range listSize {
		user := fmt.Sprintf("u%d-%d", token, i)
		a.Branches = append(a.Branches, mail.Branch{Kind: mail.KindMTA, Dispatcher: "relay", Exec: strings.Repeat(string(rune('a'+i%20)), 200),
			Dest: mail.Address{User: user, Domain: "list.test"}})
	}
	if token < listParts {
		a.More = token + 1
	}
	r.Reply(a, nil)
}

func (w *world) fromQueue(r *ipc.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := r.Msg.(type) {
	case *imsg.ReserveIDs:
		w.reserved++
		r.Reply(&imsg.ReservedIDs{First: mail.MessageID(w.reserved * 0x1000), Count: 2}, nil)
	case *imsg.BodyCreate:
		name := filepath.Join(w.dir, m.ID.String())
		f, err := os.Create(name)
		if err != nil {
			w.t.Error(err)
		}
		r.Reply(&imsg.BodyCreated{Status: mail.Status{Code: 250}}, f)
	case *imsg.BodyAbort:
		os.Remove(filepath.Join(w.dir, m.ID.String()))
	case *imsg.CommitPart:
		if w.swap {
			w.swap = false
			w.replace(w.queue, w.ours.Queue) // here: the old one must not answer the Commit
			return
		}
		w.parts[m.ID] = append(w.parts[m.ID], m.Envelopes...)
	case *imsg.Commit:
		if w.full {
			r.Reply(&imsg.Committed{Status: mail.Status{Code: 452, Enh: [3]uint8{4, 3, 1}, Text: "disk full"}}, nil)
			return
		}
		w.commits = append(w.commits, m)
		w.bodies[m.ID] = string(m.Inline)
		if m.InFile {
			b, err := os.ReadFile(filepath.Join(w.dir, m.ID.String()))
			if err != nil {
				w.t.Error(err)
			}
			w.bodies[m.ID] = string(b)
		}
		r.Reply(&imsg.Committed{Status: mail.Status{Code: 250}}, nil)
	}
}

func (w *world) fromKeys(r *ipc.Request) {
	m, ok := r.Msg.(*imsg.Sign)
	if !ok {
		return
	}
	var opts crypto.SignerOpts = crypto.Hash(m.Hash)
	if m.PSSSalt != imsg.NoPSS {
		opts = &rsa.PSSOptions{SaltLength: int(m.PSSSalt), Hash: crypto.Hash(m.Hash)}
	}
	w.mu.Lock()
	key := w.key
	w.mu.Unlock()
	sig, err := key.Sign(rand.Reader, m.Digest, opts)
	if err != nil {
		w.t.Error(err)
	}
	r.Reply(&imsg.Signature{Data: sig}, nil)
}

// listen makes a socket and its listener.
func (w *world) listen() *config.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = ln.Addr().String()
	l := &config.Listener{Name: "lo", DSN: true, Addr: netip.MustParseAddrPort(w.addr)}
	w.conf.Listeners = append(w.conf.Listeners, l)
	w.sockets <- privsep.Socket{Addr: w.addr, File: f, Last: true}
	return l
}

// start runs the process until the test ends.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.config <- w.conf
	w.switches <- &imsg.Switches{}
	go func() { w.done <- run(ctx, w.env, w.ours, 200*time.Millisecond, cmp.Or(w.room, maxSessions())) }()
	w.t.Cleanup(w.stop)
	select {
	case <-w.ready:
	case <-time.After(patience):
		w.t.Fatal("not ready")
	}
}

func (w *world) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.cancel = nil
	select {
	case err := <-w.done:
		if err != nil {
			w.t.Error(err)
		}
	case <-time.After(patience):
		w.t.Fatal("does not stop")
	}
}

func (w *world) has(text string) {
	w.t.Helper()
	late := time.After(patience)
	for {
		s, more := w.log.now()
		if strings.Contains(s, text) {
			return
		}
		select {
		case <-more:
		case <-late:
			w.t.Fatalf("log lacks %q:\n%s", text, s)
		}
	}
}

type dialogue struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func (w *world) dial() *dialogue {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	return talk(w.t, conn)
}

func talk(t *testing.T, conn net.Conn) *dialogue {
	conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return &dialogue{t, conn, bufio.NewReader(conn)}
}

func (d *dialogue) reply() string {
	last := ""
	for {
		line, err := d.r.ReadString('\n')
		if err != nil {
			return last
		}
		if last = strings.TrimRight(line, "\r\n"); len(last) < 4 || last[3] != '-' {
			return last
		}
	}
}

// want sends commands, each with the beginning of its reply.
func (d *dialogue) want(pairs ...string) {
	d.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] != "" {
			io.WriteString(d.conn, pairs[i]+"\r\n")
		}
		if got := d.reply(); !strings.HasPrefix(got, pairs[i+1]) || (got == "") != (pairs[i+1] == "") {
			d.t.Fatalf("%.60q: got %q; want %q", pairs[i], got, pairs[i+1])
		}
	}
}

func (w *world) committed(n int) []*imsg.Commit {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.commits) != n {
		w.t.Fatalf("got %d messages; want %d", len(w.commits), n)
	}
	return append([]*imsg.Commit(nil), w.commits...)
}

func TestMail(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	d := w.dial()
	big := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 2000)
	d.want("", "220 mx.example.org ESMTP smtpd", "EHLO c", "250 ", "MAIL FROM:<a@b.org>", "250 2", "RCPT TO:<nosuch@x>", "550 5.1.1 Invalid recipient: <nosuch@x>",
		"RCPT TO:<alice@x>", "250 2", "DATA", "354", "Subject: x\r\n\r\nbody\r\n.", "250 2.0.0 00001000",
		"MAIL FROM:<a@b.org>", "250 2", "RCPT TO:<alice@x>", "250 2", "DATA", "354", "Subject: big\r\n\r\n"+big+".", "250 2.0.0 00001001",
		"MAIL FROM:<a@b.org>", "250 2", "RSET", "250", "MAIL FROM:<a@b.org>", "250 2", "RCPT TO:<alice@x>", "250 2", "DATA", "354", ".", "250 2.0.0 00002000",
		"QUIT", "221")
	c := w.committed(3)
	if c[0].InFile || c[0].Size != int64(len(c[0].Inline)) || !strings.HasSuffix(string(c[0].Inline), "Subject: x\nDate: "+w.between(string(c[0].Inline), "Date: ", "\n")+"\nMessage-ID: "+w.between(string(c[0].Inline), "Message-ID: ", "\n")+"\n\nbody\n") {
		t.Errorf("first message %+v", c[0])
	}
	body := w.bodies[c[1].ID]
	if !c[1].InFile || c[1].Size != int64(len(body)) || !strings.HasSuffix(body, "\n\n"+strings.ReplaceAll(big, "\r", "")) {
		t.Errorf("big message: size %d of %d", c[1].Size, len(body))
	}
	e := c[0].Envelopes[0]
	if e.Helo != "c" || e.Client != "127.0.0.1" || e.Host != "localhost" || e.Sender.String() != "a@b.org" || e.Rcpt.String() != "alice@x" || e.SMTPName != "mx.example.org" {
		t.Errorf("envelope %+v", e)
	}
	w.has("smtp message msgid=00001000 size=")
	w.has("smtp envelope evpid=0000100000000001 from=<a@b.org> to=<alice@x>")
	w.has("smtp disconnected reason=quit")
	if n := w.env.Stat.All()["smtp.session.inet4"]; n != 1 {
		t.Errorf("smtp.session.inet4=%d", n)
	}
}

func (w *world) between(s, a, b string) string {
	_, s, _ = strings.Cut(s, a)
	s, _, _ = strings.Cut(s, b)
	return s
}

func TestLongExpansion(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	d := w.dial()
	d.want("", "220", "EHLO c", "250 ", "MAIL FROM:<a@b.org>", "250 2", "RCPT TO:<list@x>", "250 2", "DATA", "354",
		"A: b\r\n\r\n"+strings.Repeat("x\r\n", 20000)+".", "250 2.0.0 00001000")
	c := w.committed(1)[0]
	all := append(w.parts[c.ID], c.Envelopes...)
	if len(all) != listParts*listSize || len(w.parts[c.ID]) == 0 {
		t.Fatalf("%d envelopes, %d ahead", len(all), len(w.parts[c.ID]))
	}
	for i, e := range all {
		if want := fmt.Sprintf("u%d-%d", i/listSize+1, i%listSize); e.Dest.User != want {
			t.Fatalf("envelope %d is for %s; want %s", i, e.Dest.User, want)
		}
	}
}

func TestNeighboursGone(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	d := w.dial()
	d.want("", "220", "HELO c", "250", "MAIL FROM:<a@b.org>", "250", "RCPT TO:<alice@x>", "250")
	w.lookup.Close()
	d.want("RCPT TO:<bob@x>", "451 4.3.0", "NOOP", "250")
	w.replace(w.lookup, w.ours.Lookup)
	d.want("RCPT TO:<bob@x>", "250", "DATA", "354")
	w.queue.Close()
	d.want("A: b\r\n.", "451 4.3.0", "NOOP", "250")
	w.replace(w.queue, w.ours.Queue)
	d.want("MAIL FROM:<a@b.org>", "250", "RCPT TO:<alice@x>", "250", "DATA", "354", "A: b\r\n.", "250 2.0.0")
	w.mu.Lock()
	w.full = true
	w.mu.Unlock()
	d.want("MAIL FROM:<a@b.org>", "250", "RCPT TO:<alice@x>", "250", "DATA", "354", "A: b\r\n.", "452 4.3.1 disk full", "NOOP", "250")
	w.committed(1)
}

// The parts of a message must all reach the same queue: what a new one has
// taken without them is not acknowledged.
func TestQueueReplacedBetweenParts(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	w.mu.Lock()
	w.swap = true
	w.mu.Unlock()
	d := w.dial()
	d.want("", "220", "HELO c", "250", "MAIL FROM:<a@b.org>", "250", "RCPT TO:<list@x>", "250", "DATA", "354", "A: b\r\n.", "451 4.3.0",
		"MAIL FROM:<a@b.org>", "250", "RCPT TO:<list@x>", "250", "DATA", "354", "A: b\r\n.", "250", "QUIT", "221")
}

func TestPause(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	w.dial().want("", "220")
	w.switches <- &imsg.Switches{PauseSMTP: true}
	w.openLocal(false)
	d := w.dial() // waits in the backlog
	d.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if b, err := d.r.ReadByte(); err == nil {
		t.Fatalf("got %q while paused", b)
	}
	d.conn.SetReadDeadline(time.Now().Add(patience))
	w.switches <- &imsg.Switches{}
	d.want("", "220", "QUIT", "221")
}

// openLocal asks for a local session until the answer is as wanted.
func (w *world) openLocal(ok bool) *dialogue {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		m, f, err := ipc.AskFile[*imsg.SessionOpened](context.Background(), w.ctl, &imsg.SessionOpen{})
		if err != nil {
			w.t.Fatal(err)
		}
		if f == nil {
			if !ok && !m.OK {
				return nil
			}
			continue
		}
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		if ok {
			return talk(w.t, conn)
		}
		conn.Close()
	}
	w.t.Fatal("the local session does not become as wanted")
	return nil
}

func TestLocal(t *testing.T) {
	w := newWorld(t)
	w.start()
	d := w.openLocal(true)
	d.want("", "220 mx.example.org", "EHLO localhost", "250 ", "MAIL FROM:<alice>", "250", "RCPT TO:<bob>", "250", "DATA", "354", "A: b\n\nc\n\r\n.", "250", "QUIT", "221")
	c := w.committed(1)[0]
	if got := string(c.Inline); !strings.HasPrefix(got, "Received: from localhost (mx.example.org [local])\n\tby mx.example.org (smtpd) with ESMTPA id ") || !strings.HasSuffix(got, "\n\nc\n\n") {
		t.Errorf("got %q", got)
	}
	if e := c.Envelopes[0]; e.Client != "local" || e.Flags != mail.FlagAuthenticated || e.Sender.String() != "alice@mx.example.org" {
		t.Errorf("got %+v", e)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.asked[0].Local {
		t.Error("lookup does not know that it is local")
	}
}

func TestInject(t *testing.T) {
	w := newWorld(t)
	w.start()
	ask := func(user string) *imsg.Injected {
		t.Helper()
		a, err := ipc.Ask[*imsg.Injected](context.Background(), w.queue,
			&imsg.Inject{Rcpt: mail.Address{User: user, Domain: "x"}, Data: []byte("Subject: notice\n\n.\n.dot\nend"), RequireTLS: true})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask("alice"); a.Status.Code != 250 || a.ID == 0 {
		t.Errorf("got %+v", a)
	}
	if a := ask("nosuch"); a.Status.Code != 550 || a.Status.Enh != [3]uint8{5, 1, 1} || a.Status.Text != "Invalid recipient: <nosuch@x>" {
		t.Errorf("got %+v", a)
	}
	c := w.committed(1)[0]
	if got := string(c.Inline); !strings.HasPrefix(got, "Received: from mx.example.org (mx.example.org [local])\n") || !strings.Contains(got, "\tfor <alice@x>;\n") || !strings.HasSuffix(got, "\n\n.\n.dot\nend\n") {
		t.Errorf("got %q", got)
	}
	if e := c.Envelopes[0]; e.Flags != mail.FlagAuthenticated|mail.FlagBounce|mail.FlagRequireTLS || !e.Sender.IsNull() || e.Client != "local" {
		t.Errorf("got %+v", e)
	}
}

func TestReload(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	old := w.dial()
	old.want("", "220 mx.example.org")
	first := w.addr
	conf := *w.conf
	conf.ServerName = "new.example.org"
	conf.Listeners = nil
	w.conf = &conf
	w.listen()
	w.config <- w.conf
	w.waitFor(func() bool { return w.tryBanner() == "220 new.example.org ESMTP smtpd" })
	old.want("EHLO c", "250 ")
	w.waitFor(func() bool {
		conn, err := net.Dial("tcp", first)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
}

func (w *world) tryBanner() string {
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimRight(line, "\r\n")
}

func (w *world) waitFor(ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			w.t.Fatal("does not come")
		}
	}
}

func TestShutdown(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	idle, busy := w.dial(), w.dial()
	idle.want("", "220", "HELO c", "250")
	busy.want("", "220", "HELO c", "250", "MAIL FROM:<>", "250", "RCPT TO:<alice@x>", "250", "DATA", "354")
	w.cancel()
	idle.want("", "421 4.3.2 mx.example.org shutting down", "", "")
	busy.want("A: b\r\n\r\nc\r\n.", "250 2.0.0", "", "421 4.3.2", "", "")
	w.stop()
	w.committed(1)
	if n := w.env.Stat.All()["smtp.session"]; n != 0 {
		t.Errorf("smtp.session=%d", n)
	}
}

// A panic ends one session, and is logged and counted.
func TestPanic(t *testing.T) {
	w := newWorld(t)
	var bad atomic.Bool
	w.env.Now = func() time.Time {
		if bad.Swap(false) {
			panic("a broken invariant")
		}
		return time.Now()
	}
	w.listen()
	w.start()
	a, b := w.dial(), w.dial()
	a.want("", "220", "HELO c", "250", "MAIL FROM:<>", "250")
	b.want("", "220", "HELO c", "250", "MAIL FROM:<>", "250")
	bad.Store(true)
	a.want("RCPT TO:<alice@x>", "")
	b.want("RCPT TO:<alice@x>", "250", "QUIT", "221")
	w.has("panic: a broken invariant: goroutine ")
	w.waitFor(func() bool { m := w.env.Stat.All(); return m["smtp.session"] == 0 && m["smtp.session.panic"] == 1 })
}

func TestSessionLimit(t *testing.T) {
	w := newWorld(t)
	w.room = 2
	w.listen()
	w.start()
	a, b := w.dial(), w.dial()
	a.want("", "220")
	b.want("", "220")
	w.has("warn: Disabling incoming SMTP connections: Client limit reached")
	c := w.dial()
	a.want("QUIT", "221")
	c.want("", "220")
	w.has("warn: smtp: fd exhaustion over, re-enabling incoming connections")
}

// More than the operator wants are told so.
func TestSessionsWanted(t *testing.T) {
	w := newWorld(t)
	w.conf.SMTP.MaxSessions = 2
	w.listen()
	w.start()
	a, b := w.dial(), w.dial()
	a.want("", "220")
	b.want("", "220")
	w.dial().want("", "421 4.3.2 Too many connections, try again later", "", "")
	w.has(`smtp refused address=127.0.0.1 result="421 4.3.2 Too many connections, try again later"`)
	a.want("QUIT", "221", "", "")
	w.waitFor(func() bool { return w.env.Stat.All()["smtp.session"] == 1 })
	w.dial().want("", "220")
}

func TestPlaces(t *testing.T) {
	var p places
	p.init()
	now := time.Unix(600, 0)
	c := &config.SMTP{MaxSessionsPerAddr: 2, MaxSessionsPerNet: 3, MaxConnRate: 4}
	a := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	steps := []struct {
		addr  string
		leave bool
		want  string
	}{
		{"192.0.2.1", false, ""}, {"192.0.2.1", false, ""},
		{"192.0.2.1", false, "421 4.7.0 Too many connections from your address"},
		{"192.0.2.1", true, ""}, {"192.0.2.1", false, ""},
		{"192.0.2.1", true, ""}, {"192.0.2.1", false, "421 4.7.0 Too many new connections from your address"},
		{"192.0.2.2", false, ""},
		{"2001:db8::1", false, ""}, {"2001:db8::2", false, ""}, {"2001:db8::3", false, ""},
		{"2001:db8::4", false, "421 4.7.0 Too many connections from your network"},
		{"2001:db8:0:1::4", false, ""}, {"2001:db8::1", true, ""}, {"2001:db8::4", false, ""},
		{"127.0.0.1", false, ""}, {"127.0.0.1", false, ""}, {"127.0.0.1", false, ""}, {"::1", false, ""},
	}
	for i, s := range steps {
		if s.leave {
			p.leave(a(s.addr))
			continue
		}
		if got := p.enter(a(s.addr), c, now); got != s.want {
			t.Errorf("step %d %s: got %q; want %q", i, s.addr, got, s.want)
		}
	}
	if got := p.enter(a("192.0.2.1"), c, now.Add(time.Minute)); got != "" {
		t.Errorf("next minute: got %q", got)
	}
	for _, s := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8:0:1::4"} {
		p.leave(a(s))
	}
	if len(p.byAddr)+len(p.byNet) != 0 {
		t.Errorf("left behind: %v %v", p.byAddr, p.byNet)
	}
}

// Behind a proxy the client's address counts, and the table of host names is
// asked for the address that the client came to.
func TestProxied(t *testing.T) {
	w := newWorld(t)
	w.conf.SMTP.MaxSessionsPerAddr = 1
	l := w.listen()
	l.ProxyV2, l.Hostnames = true, "names"
	w.start()
	const header = "PROXY TCP4 192.0.2.1 198.51.100.1 1 25"
	a := w.dial()
	a.want(header, "220 named.example.org", "HELO c", "250 named.example.org Hello c [192.0.2.1]")
	w.dial().want(header, "421 4.7.0 Too many connections from your address")
	a.want("QUIT", "221", "", "")
	w.waitFor(func() bool {
		d := w.dial()
		io.WriteString(d.conn, header+"\r\n")
		return strings.HasPrefix(d.reply(), "220")
	})
}

func TestTrace(t *testing.T) {
	w := newWorld(t)
	w.listen()
	w.start()
	w.switches <- &imsg.Switches{Trace: []string{"smtp from 127.0.0.0/8", "smtp from nonsense", "mta"}}
	w.waitFor(func() bool {
		w.dial().want("", "220", "HELO c", "250", "QUIT", "221")
		return strings.Contains(w.log.String(), `smtp dialogue client="HELO c"`)
	})
	w.switches <- &imsg.Switches{Trace: []string{"smtp from 192.0.2.1"}}
	w.waitFor(func() bool {
		before := strings.Count(w.log.String(), "smtp dialogue")
		w.dial().want("", "220", "HELO c", "250", "QUIT", "221")
		return strings.Count(w.log.String(), "smtp dialogue") == before
	})
}

// selfSigned makes a certificate for name in PEM.
func selfSigned(t *testing.T, name string, key crypto.Signer) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestTLS(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ecdsa": ec, "rsa": rs} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				w := newWorld(t)
				w.mu.Lock()
				w.key = key
				w.mu.Unlock()
				w.conf.PKI["a.test"] = &config.PKI{Name: "a.test", Cert: selfSigned(t, "a.test", key)}
				w.conf.PKI["b.test"] = &config.PKI{Name: "b.test", Cert: selfSigned(t, "other.test", key)}
				l := w.listen()
				l.TLS, l.PKI, l.Auth, l.AuthRequired, l.Senders = config.TLSOffered, []string{"a.test", "b.test"}, true, true, "s"
				w.start()
				for sni, want := range map[string]string{"": "a.test", "A.test": "a.test", "b.test": "other.test", "other.test": "other.test", "x.test": "a.test"} {
					d := w.dial()
					d.want("", "220", "EHLO c", "250 ", "STARTTLS", "220")
					conn := tls.Client(d.conn, &tls.Config{ServerName: sni, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
					if err := conn.Handshake(); err != nil {
						t.Fatal(err)
					}
					if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
						t.Errorf("sni %q: got the certificate of %s; want %s", sni, got, want)
					}
					d = talk(t, conn)
					d.want("EHLO c", "250 ", "AUTH PLAIN AGFsaWNlAHdyb25n", "535", "AUTH PLAIN AGFsaWNlAHNlY3JldA==", "235",
						"MAIL FROM:<bob@x>", "550 5.7.1 Sender rejected", "MAIL FROM:<alice@x>", "250", "QUIT", "221")
				}
				if s := w.log.String(); strings.Contains(s, "AGFsaWNl") || strings.Contains(s, "wrong") || strings.Contains(s, "secret") {
					t.Errorf("a password is in the log: %s", s)
				}
			})
		}
	}
}

func TestProtocols(t *testing.T) {
	const v10, v12, v13 = tls.VersionTLS10, tls.VersionTLS12, tls.VersionTLS13
	for in, want := range map[string][2]uint16{
		"": {v12, v13}, "tlsv1.3": {v13, v13}, "TLSv1.2,TLSv1.3": {v12, v13}, "tlsv1.2": {v12, v12}, "all": {v10, v13},
		"all:!tlsv1.0,!tlsv1.1": {v12, v13}, "!tlsv1.3": {v10, v12}, "secure": {v12, v13}, "nonsense": {v12, v13},
	} {
		if lo, hi := protocols(in); lo != want[0] || hi != want[1] {
			t.Errorf("%q: got %x %x; want %x", in, lo, hi, want)
		}
	}
}
