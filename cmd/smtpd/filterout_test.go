package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// outHost is a host that says what the host of a recording said.
type outHost struct {
	ln   net.Listener
	cert tls.Certificate
	wg   sync.WaitGroup

	mu    sync.Mutex
	lines []string // of the session that is recorded
	errs  []string
}

func newOutHost(t *testing.T, cert tls.Certificate) *outHost {
	t.Helper()
	h := &outHost{cert: cert}
	var err error
	if h.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	h.wg.Go(func() {
		for {
			conn, err := h.ln.Accept()
			if err != nil {
				return
			}
			h.wg.Go(func() { h.serve(conn) })
		}
	})
	t.Cleanup(func() {
		h.ln.Close()
		h.wg.Wait()
	})
	return h
}

// serve reads where the recording has a command and writes where it has a
// reply.
func (h *outHost) serve(conn net.Conn) {
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(2 * waitLimit))
	h.mu.Lock()
	lines := h.lines
	h.mu.Unlock()
	in := bufio.NewReader(conn)
	starts := false
	for _, line := range lines {
		_, name, _, rest := fieldsOf(line)
		switch name {
		case "protocol-server":
			fmt.Fprintf(conn, "%s\r\n", rest)
			if starts {
				conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{h.cert}})
				in, starts = bufio.NewReader(conn), false
			}
		case "protocol-client":
			for {
				got, err := in.ReadString('\n')
				if err != nil {
					h.wrong("%v instead of %q", err, rest)
					return
				}
				if got = strings.TrimRight(got, "\r\n"); rest == "." && got != "." {
					continue // of the text
				}
				if starts = got == "STARTTLS"; strings.ToUpper(got[:min(4, len(got))]) != rest[:min(4, len(rest))] {
					h.wrong("%q instead of %q", got, rest)
				}
				break
			}
		}
	}
}

func (h *outHost) wrong(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errs = append(h.errs, fmt.Sprintf(format, args...))
}

// plainOut is the lines of a session to another host, names, times and ids
// aside.
func plainOut(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		what, name, _, rest := fieldsOf(line)
		switch name {
		case "link-connect":
			_, rest, _ = strings.Cut(portRE.ReplaceAllString(rest, "$1:P"), "|")
			rest = strings.NewReplacer("127.0.0.5:25", "127.0.0.1:P", "127.0.0.3:25", "127.0.0.1:P", "127.0.0.5:P", "127.0.0.1:P", "127.0.0.3:P", "127.0.0.1:P").Replace(rest)
		case "link-tls":
			rest = "cipher"
		case "tx-begin", "tx-reset", "tx-rollback", "tx-commit", "tx-envelope":
			rest = strings.Repeat("|id", strings.Count(rest, "|")+1)
		case "tx-mail", "tx-rcpt", "tx-data":
			_, rest, _ = strings.Cut(rest, "|")
		case "protocol-client":
			rest, _, _ = strings.Cut(rest, " SIZE=")
			rest, _, _ = strings.Cut(rest, " NOTIFY=")
		}
		b.WriteString(what + " " + name + " " + rest + "\n")
	}
	return b.String()
}

const outConf = `
admd "my-admd.example"
filter "o" proc-exec "%s %s"
listen on 127.0.0.1 port $port1 hostname mx.example.org
mta limit session-keepalive 1
action "out" relay host "smtp://127.0.0.1:%d" helo "mx.example.org" filter "o"
match from any for domain "mx.example.org" reject # a bounce could come in the same session
match from any for any action "out"
`

// The recording of a filter on a relay action, line for line: one mail that is
// taken in clear, one whose recipient is refused inside TLS.
func TestFilterOutRecording(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t)
	a.issue(t, "mx1.remote.test", true, false)
	cert, err := tls.LoadX509KeyPair(a.path("mx1.remote.test.crt"), a.path("mx1.remote.test.key"))
	if err != nil {
		t.Fatal(err)
	}
	sessions := readRecording(t, "filter-smtp-out.txt")
	if len(sessions) != 2 {
		t.Fatalf("%d sessions", len(sessions))
	}
	var mu sync.Mutex
	var hello, told []string
	ended := make(chan struct{}, 8)
	f := newFake(t, dir, "o", func(c *talk) {
		h := c.register("report|smtp-in|*", "report|smtp-out|*", "filter|smtp-in|connect")
		mu.Lock()
		hello = h
		mu.Unlock()
		for {
			line, ok := c.line()
			if !ok {
				return
			}
			mu.Lock()
			told = append(told, line)
			mu.Unlock()
			if strings.Contains(line, "|link-disconnect|") {
				ended <- struct{}{}
			}
		}
	})
	h := newOutHost(t, cert)
	port := h.ln.Addr().(*net.TCPAddr).Port
	_, addr := filterDaemon(t, dir, fmt.Sprintf(outConf, pipeProgram(t), f.socket, port))
	for n, rcpt := range []string{"ok@hostonly.test", "perm@remote.test"} {
		mu.Lock()
		told = nil
		mu.Unlock()
		h.mu.Lock()
		h.lines = sessions[n].lines
		h.mu.Unlock()
		sendTo(t, addr, "dave@mx.example.org", rcpt)
		select {
		case <-ended:
		case <-time.After(waitLimit):
			t.Fatal("no link-disconnect")
		}
		mu.Lock()
		got, want := plainOut(told), plainOut(sessions[n].lines)
		mu.Unlock()
		if got != want {
			t.Errorf("%s: told\n%s\nwant\n%s", rcpt, got, want)
		}
	}
	want := "config|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|subsystem|smtp-out\nconfig|admd|my-admd.example\nconfig|ready"
	if got := strings.Join(hello[1:], "\n"); got != want {
		t.Errorf("handshake %q; want %q", got, want)
	}
	for _, e := range h.errs {
		t.Error(e)
	}
}

// sendTo sends a mail to one recipient; it has to be taken.
func sendTo(t *testing.T, addr, from, to string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(waitLimit))
	script := "R: 220\nC: EHLO c\nR: 250\nC: MAIL FROM:<" + from + ">\nS: 250\nC: RCPT TO:<" + to +
		">\nS: 250\nC: DATA\nS: 354\nC: Subject: x\nC: \nC: text\nC: .\nS: 250\nC: QUIT\nS: 221"
	if said, err := dialogue(conn, script); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
}
