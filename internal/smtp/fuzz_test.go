package smtp

import (
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// FuzzPath: what is accepted prints as a path that is read as the same address,
// and holds nothing that could end a line or a command.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"<a@b>", "<>", `<"a b"@[IPv6:::1]> X=Y`, "<@x,@y:a@b>", "<é@ü.org>", `<"\"">`} {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, utf8 bool) {
		a, rest, err := parsePath(s, utf8)
		if err != nil {
			return
		}
		if !strings.HasSuffix(s, rest) {
			t.Fatalf("%q: rest %q", s, rest)
		}
		text := a.String()
		if strings.ContainsAny(text, "\r\n\x00") || len(a.User) > mail.MaxLocalPart || len(a.Domain) > mail.MaxDomain {
			t.Fatalf("%q gives %q", s, text)
		}
		if !utf8 && !isASCII(text) {
			t.Fatalf("%q gives %q", s, text)
		}
		b, rest, err := parsePath("<"+text+">", utf8)
		if err != nil || rest != "" || a != b {
			t.Fatalf("%q gives %+v, and that %+v, %q, %v", s, a, b, rest, err)
		}
	})
}

// FuzzParams: parameters never hold what could end a line; each is bounded.
func FuzzParams(f *testing.F) {
	f.Add("SIZE=1 BODY=8BITMIME RET=FULL ENVID=a+2B", "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+40b")
	f.Add("SMTPUTF8", "ORCPT=utf-8;\u00fc@md.test")
	f.Fuzz(func(t *testing.T, mailText, rcptText string) {
		u := newSetup()
		s := New(u.c, nowhere{}, netip.AddrPort{}, netip.AddrPort{})
		p, reply := s.mailParams(mailText)
		checkReply(t, reply)
		var d mail.DSN
		checkReply(t, s.rcptParams(rcptText, p.utf8, &d))
		if reply == "" && (!isClean(p.dsn.EnvID) || len(p.dsn.EnvID) > mail.MaxEnvID || p.size < 0 || p.size > u.c.SMTP.MaxMessageSize) {
			t.Fatalf("%q gives %+v", mailText, p)
		}
		if !isClean(d.ORcpt) || len(d.ORcpt) > mail.MaxORcpt {
			t.Fatalf("%q gives %+v", rcptText, d)
		}
	})
}

func isClean(s string) bool { return mail.Clean(s, len(s)) == s && isASCII(s) }

func checkReply(t *testing.T, reply string) {
	if reply != "" && (len(reply) > 510 || mail.Clean(reply, len(reply)) != reply) {
		t.Fatalf("reply %q", reply)
	}
}

// FuzzSession: whatever a client sends, the session ends, answers in SMTP, and
// keeps nothing.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO c\r\nMAIL FROM:<a@b.org> SIZE=1\r\nRCPT TO:<alice@md.test> NOTIFY=NEVER\r\nDATA\r\nTo: a\r\n\r\n..x\r\n.\r\nQUIT\r\n"), false)
	f.Add([]byte("HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<team@x>\r\nBDAT 6\r\nA: b\r\nBDAT 4 LAST\r\n\r\nx\nRSET\r\nVRFY\r\n"), true)
	f.Add([]byte("AUTH PLAIN\r\nSTARTTLS\r\nNOOP\x00\r\n\n\r\r\nGET / HTTP/1.1\r\n"), false)
	f.Fuzz(func(t *testing.T, in []byte, repair bool) { oneSession(t, in, repair) })
}

func oneSession(t testing.TB, in []byte, repair bool) {
	u := mutable(repair)
	conn := &script{in: in}
	s := New(u.c, conn, u.client, u.l.Addr)
	s.Run(context.Background())
	u.checkMutated(t, conn.out.String())
}

// mutable is a setup that bounds what a broken session can do.
func mutable(repair bool) *setup {
	u := newSetup()
	u.l.Repair = repair
	u.c.Log = log.Discard()
	u.c.SMTP.MaxMessageSize = 2000
	return u
}

// checkMutated looks at what a session said and kept.
func (u *setup) checkMutated(t testing.TB, said string) {
	t.Helper()
	if u.b.open != 0 || len(u.b.files) != 0 {
		t.Errorf("left behind: %d files, %d open", len(u.b.files), u.b.open)
	}
	for line := range strings.Lines(said) {
		if !strings.HasSuffix(line, "\r\n") || len(line) > 600 || len(line) < 5 || line[0] < '2' || line[0] > '5' || strings.ContainsAny(line[:len(line)-2], "\r\n\x00") {
			t.Errorf("reply %q", line)
		}
	}
	for _, m := range u.b.messages {
		if strings.Contains(m.body, "\r") || !strings.HasSuffix(m.body, "\n") || len(m.envelopes) == 0 {
			t.Errorf("stored %q for %d", m.body, len(m.envelopes))
		}
	}
}

// overPipe plays a broken session over a real connection, which is closed when
// all has been said. Every other one is inside TLS already, where there are
// logins; the others can ask for it, and what follows is no handshake.
func overPipe(t testing.TB, cert *tls.Config, in []byte, kind int) {
	u := mutable(kind&1 != 0)
	u.l.TLS, u.c.TLS, u.l.Auth = config.TLSOffered, cert, true
	u.c.ScramSecret = []byte("secret")
	ours, theirs, err := socketpair()
	if err != nil {
		t.Error(err)
		return
	}
	s := New(u.c, theirs, u.client, u.l.Addr)
	if kind&2 != 0 {
		s.tls = &tlsFacts{cipher: "none"}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.Background())
	}()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = ours.Write(in) // the session may be over
		_ = ours.CloseWrite()
	}()
	said, _ := io.ReadAll(ours) // a reset is an end too
	<-wrote
	ours.Close()
	<-done
	text := string(said)
	if i := strings.Index(text, replyStartTLS); i >= 0 {
		text = text[:i] // then comes an alert of TLS
	}
	u.checkMutated(t, text[:strings.LastIndexByte(text, '\n')+1])
}

// socketpair is a connection with both its ends.
func socketpair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1], nil
}

// script is a connection on which everything has come in already.
type script struct {
	nowhere
	in  []byte
	out strings.Builder
}

func (c *script) Read(b []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *script) Write(b []byte) (int, error) { return c.out.Write(b) }

// mutationsVar raises the number of sessions that TestMutations plays.
const mutationsVar = "SMTPD_MUTATIONS"

// mutations is that number; 1,000,000 take some minutes.
func mutations(t *testing.T) int {
	text := os.Getenv(mutationsVar)
	if text == "" {
		return 10000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", mutationsVar, err)
	}
	return n
}

// openFiles counts the descriptors of this process, where that can be told.
func openFiles() int {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(files)
}

// TestMutations plays broken sessions and looks for goroutines and descriptors
// that stay.
func TestMutations(t *testing.T) {
	seeds := []string{
		"EHLO c\r\nMAIL FROM:<a@b.org> SIZE=1 ENVID=x\r\nRCPT TO:<alice@md.test> NOTIFY=NEVER ORCPT=rfc822;a\r\nDATA\r\nTo: a, <b>\r\nBcc: x\r\n\r\n..x\r\n.\r\nQUIT\r\n",
		"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<team@x>\r\nBDAT 6\r\nA: b\r\nBDAT 4 LAST\r\n\r\nx\nRSET\r\nVRFY x\r\nHELP\r\n",
		"EHLO c\r\nMAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<alice@x>\r\nBDAT 77 LAST\r\nContent-Transfer-Encoding: binary\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n\r\nQUIT\r\n",
		"EHLO c\r\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\r\nAUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPXg=\r\n*\r\nMAIL FROM:<a@b>\r\nRCPT TO:<alice@x>\r\nDATA\r\nFrom: x\r\n\r\n.\r\n",
		"EHLO [IPv6:::1]\r\nAUTH LOGIN\r\nx\r\nSTARTTLS\r\nMAIL FROM:<\"a b\"@b> SMTPUTF8\r\nRCPT TO:<postmaster>\r\nDATA\r\nA: b\r\n.\r\n",
	}
	u := newSetup().withTLS(t, config.TLSOffered)
	overPipe(t, u.c.TLS, []byte("NOOP\r\n"), 0)
	before, files := runtime.NumGoroutine(), openFiles()
	var wg sync.WaitGroup
	const players = 4
	for p := range players {
		r := rand.New(rand.NewPCG(1, uint64(p)))
		wg.Go(func() {
			for range mutations(t) / players {
				in := mutate(r, seeds[r.IntN(len(seeds))])
				overPipe(t, u.c.TLS, in, r.IntN(4))
			}
		})
	}
	wg.Wait()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines; before %d", runtime.NumGoroutine(), before)
		}
	}
	if now := openFiles(); now > files {
		t.Errorf("%d descriptors; before %d", now, files)
	}
}

// mutate breaks s in a few places: octets changed, cut, doubled, lines moved.
func mutate(r *rand.Rand, s string) []byte {
	b := []byte(s)
	for range 1 + r.IntN(6) {
		if len(b) == 0 {
			return b
		}
		i := r.IntN(len(b))
		j := min(i+1+r.IntN(20), len(b))
		switch r.IntN(6) {
		case 0:
			b[i] = byte(r.IntN(256))
		case 1:
			b = append(b[:i:i], b[j:]...)
		case 2:
			b = append(b[:j:j], b[i:]...)
		case 3:
			b[i] = "\r\n.<>@:;\"\\ =\x00"[r.IntN(13)]
		case 4:
			b = append(append(b[:i:i], "\r\n.\r\n"...), b[i:]...)
		case 5:
			b = append(append(b[:i:i], strings.Repeat(string(b[i:j]), r.IntN(200))...), b[i:]...)
		}
	}
	return b
}
