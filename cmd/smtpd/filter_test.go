package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a filter program whose part the test plays: whenever the daemon
// starts it, serve gets a new conversation.
type fake struct {
	socket string
	ln     net.Listener
	serve  func(c *talk)
	wg     sync.WaitGroup
}

// talk is one life of a fake program.
type talk struct {
	conn net.Conn
	in   *bufio.Scanner
}

// pipeProgram builds the stand-in for filter programs.
func pipeProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(bins, "pipe")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-o", path, "./testdata/pipe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

func newFake(t *testing.T, dir, name string, serve func(c *talk)) *fake {
	t.Helper()
	f := &fake{socket: filepath.Join(dir, name+".sock"), serve: serve}
	var err error
	if f.ln, err = net.Listen("unix", f.socket); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(f.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	f.wg.Go(func() {
		for {
			conn, err := f.ln.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() {
				defer conn.Close()
				c := &talk{conn: conn, in: bufio.NewScanner(conn)}
				c.in.Buffer(nil, 4<<20)
				f.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		f.ln.Close()
		f.wg.Wait()
	})
	return f
}

// line is the next line of the daemon; ok is false at the end.
func (c *talk) line() (string, bool) {
	ok := c.in.Scan()
	return c.in.Text(), ok
}

func (c *talk) say(format string, args ...any) { fmt.Fprintf(c.conn, format+"\n", args...) }

// register does the handshake, asking for what is named, and gives the lines
// that the daemon began with.
func (c *talk) register(what ...string) (hello []string) {
	for {
		line, ok := c.line()
		if !ok {
			return hello
		}
		hello = append(hello, line)
		if line == "config|ready" {
			break
		}
	}
	for _, w := range what {
		c.say("register|%s", w)
	}
	c.say("register|ready")
	return hello
}

// filterDaemon starts a daemon with a listener on a port of its own whose
// filter is a chain of fakes.
func filterDaemon(t *testing.T, dir, conf string, args ...string) (d *daemon, addr string) {
	t.Helper()
	ports, err := freePorts(1, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "smtpd.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := openUp(dir); err != nil {
		t.Fatal(err)
	}
	user := daemonUser()
	all := append([]string{"-q", filepath.Join(dir, "spool"), "-f", filepath.Join(dir, "smtpd.conf"),
		"-D", fmt.Sprintf("port1=%d", ports[0]), "-D", "me=" + user, "-D", `box="` + filepath.Join(dir, "Maildir") + `"`}, args...)
	d, err = startDaemon(context.Background(), dir, filepath.Join(dir, "smtpd.sock"), daemonUID(), all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", d.log())
		}
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d, fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// recorded is one session of a recording: what the program was told, and what
// it said after each line.
type recorded struct {
	lines   []string   // from the daemon
	answers [][]string // by line
}

// fieldsOf splits a line of a recording: what, event or phase, session, rest.
func fieldsOf(line string) (what, name, session, rest string) {
	f := strings.SplitN(line, "|", 7)
	if len(f) < 6 {
		return "", "", "", ""
	}
	if len(f) == 7 {
		rest = f[6]
	}
	return f[0], f[4], f[5], rest
}

// readRecording reads the whole sessions of a recording, in their order.
func readRecording(t *testing.T, name string) []*recorded {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "filter", name))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	sessions := map[string]*recorded{}
	var last *recorded
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if s, ok := strings.CutPrefix(line, "-> "); ok && last != nil {
			n := len(last.answers) - 1
			last.answers[n] = append(last.answers[n], s)
			continue
		}
		s, ok := strings.CutPrefix(line, "<- ")
		_, name, id, _ := fieldsOf(s)
		if !ok || id == "" {
			continue
		}
		if sessions[id] == nil {
			if name != "link-connect" {
				continue
			}
			sessions[id] = &recorded{}
			order = append(order, id)
		}
		last = sessions[id]
		last.lines, last.answers = append(last.lines, s), append(last.answers, nil)
	}
	var whole []*recorded
	for _, id := range order {
		if r := sessions[id]; strings.Contains(r.lines[len(r.lines)-1], "|link-disconnect|") {
			whole = append(whole, r)
		}
	}
	return whole
}

var (
	portRE     = regexp.MustCompile(`(127\.0\.0\.1):\d+`)
	receivedRE = regexp.MustCompile(`^(Received: from .*|\tby .* with [A-Z]+|\tfor .*;|\t).*$`)
)

// plain is the lines of a session with names, times and ids aside; those of the
// message are by themselves, for they may come before or after the reply to
// DATA, but not before what follows their end.
func plain(lines []string) (told, message []string) {
	for _, line := range lines {
		what, name, _, rest := fieldsOf(line)
		switch name {
		case "data-line":
			_, text, _ := strings.Cut(rest, "|")
			text = strings.Replace(text, "(OpenSMTPD)", "(smtpd)", 1)
			if strings.HasPrefix(text, "\t") {
				text = receivedRE.ReplaceAllString(text, "$1")
			}
			if message = append(message, text); text == "." {
				told = append(told, "end of the lines")
			}
			continue
		case "protocol-server":
			if len(rest) < 4 || rest[3] == '-' {
				continue // which extensions there are is another matter
			}
			rest = rest[:1] + "xx"
		case "link-connect":
			rest = portRE.ReplaceAllString(rest, "$1:P")
		case "link-tls":
			rest = "cipher"
		case "tx-begin", "tx-reset", "tx-rollback", "tx-commit", "tx-envelope":
			rest = "id"
		case "tx-mail", "tx-rcpt", "tx-data":
			_, rest, _ = strings.Cut(rest, "|")
		default:
			if what == "filter" {
				_, rest, _ = strings.Cut(rest, "|")
			}
		}
		told = append(told, what+" "+name+" "+rest)
	}
	return told, message
}

// player plays the program of a recording and writes down what it is told.
type player struct {
	sessions []*recorded
	mu       sync.Mutex
	hello    []string
	seen     [][]string
	ended    chan int // a session has ended
}

func (p *player) serve(c *talk) {
	hello := c.register("report|smtp-in|*", "filter|smtp-in|connect", "filter|smtp-in|helo", "filter|smtp-in|ehlo",
		"filter|smtp-in|starttls", "filter|smtp-in|auth", "filter|smtp-in|mail-from", "filter|smtp-in|rcpt-to",
		"filter|smtp-in|data", "filter|smtp-in|data-line", "filter|smtp-in|rset", "filter|smtp-in|quit",
		"filter|smtp-in|noop", "filter|smtp-in|help", "filter|smtp-in|wiz", "filter|smtp-in|commit")
	p.mu.Lock()
	p.hello = hello
	p.mu.Unlock()
	number := map[string]int{}
	at := map[string]int{}
	for {
		line, ok := c.line()
		if !ok {
			return
		}
		what, name, id, rest := fieldsOf(line)
		p.mu.Lock()
		if name == "link-connect" {
			number[id] = len(p.seen)
			p.seen = append(p.seen, nil)
		}
		n := number[id]
		p.seen[n] = append(p.seen[n], line)
		p.mu.Unlock()
		if name == "link-disconnect" {
			p.ended <- n
		}
		if what != "filter" || n >= len(p.sessions) {
			continue
		}
		token, _, _ := strings.Cut(rest, "|")
		p.answer(c, p.sessions[n], at, id, name, token)
	}
}

// answer says what the recording says after its next line of the same kind.
func (p *player) answer(c *talk, r *recorded, at map[string]int, id, name, token string) {
	key := id + name
	for i := at[key]; i < len(r.lines); i++ {
		what, kind, _, _ := fieldsOf(r.lines[i])
		if what != "filter" || kind != name {
			continue
		}
		at[key] = i + 1
		for _, a := range r.answers[i] {
			f := strings.SplitN(a, "|", 4)
			c.say("%s|%s|%s|%s", f[0], id, token, f[3])
		}
		return
	}
	c.say("filter-result|%s|%s|proceed", id, token)
}

// client says what the client of a recording said.
func (r *recorded) client(t *testing.T, addr string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close() }()
	conn.SetDeadline(time.Now().Add(waitLimit))
	in := bufio.NewReader(conn)
	reply := func() string {
		for {
			line, err := in.ReadString('\n')
			if err != nil || len(line) < 4 || line[3] == ' ' {
				return line
			}
		}
	}
	reply()
	for i, line := range r.lines {
		what, name, _, rest := fieldsOf(line)
		if what != "report" || name != "protocol-client" || rest == "." {
			continue
		}
		if strings.HasPrefix(rest, "AUTH ") {
			_, _, _, arg := fieldsOf(r.lines[i+1])
			_, arg, _ = strings.Cut(arg, "|")
			rest = "AUTH " + arg
		}
		fmt.Fprintf(conn, "%s\r\n", rest)
		answer := reply()
		switch {
		case rest == "STARTTLS" && strings.HasPrefix(answer, "220"):
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
			in = bufio.NewReader(conn)
		case rest == "DATA" && strings.HasPrefix(answer, "354"):
			_, message := plain(r.lines[i:])
			for _, l := range message {
				if !strings.HasPrefix(l, "Received: ") && !strings.HasPrefix(l, "\t") && l != "X-Spam: Yes" {
					fmt.Fprintf(conn, "%s\r\n", l)
				}
				if l == "." {
					break
				}
			}
			reply()
		}
	}
}

// withoutPipelining cuts the end of the sessions in which the client said
// several lines at once: OpenSMTPD ends them for that.
func withoutPipelining(l []*recorded) []*recorded {
	for _, r := range l {
		for i, line := range r.lines {
			if strings.Contains(line, "|Subject: ") && strings.Contains(line, "|protocol-client|") {
				r.lines = append(r.lines[:i:i], r.lines[len(r.lines)-1])
				break
			}
		}
	}
	return l
}

const replayConf = `
pki mx.example.org cert "%[1]s/mx.example.org.crt"
pki mx.example.org key "%[1]s/mx.example.org.key"
admd "my-admd.example"
table creds { "alice" = "%[2]s" }
table users { "alice@md.test" = $me, "rw@md.test" = $me, "foo@sq.test" = $me, "tmp@remote.test" = $me,
	"perm@remote.test" = $me, "ok@remote.test" = $me }
%[3]s
listen on 127.0.0.1 port $port1 %[4]s hostname mx.example.org filter "f"
action "local" maildir $box virtual <users>
match from any for domain { "md.test", "sq.test", "remote.test" } action "local"
`

// The recordings of filter sessions, line for line: programs are told the same
// things in the same order, names, times and ids aside.
func TestFilterRecordings(t *testing.T) {
	tests := map[string]struct {
		files []string // one for each program of the chain
		tls   bool
	}{
		"chain":     {[]string{"filter-session-a.txt", "filter-session-b.txt"}, true},
		"phases":    {[]string{"filter-phases-a.txt"}, false},
		"0.6":       {[]string{"debian68-filter.txt"}, false},
		"decisions": {[]string{"filter-decisions-a.txt"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { replay(t, tt.files, tt.tls) })
	}
}

// password is "secret" as SCRAM keeps it elsewhere; here a hash of crypt(3).
const password = "$6$aaaaaaaa$Uy05juZUvx6BGwo60q0gdTgdBQxG/XdfPiPVaseSX3o99IXYqUVqe/AvHlD5DWm5MkgiS4k29TpTxDT.XwP/t1"

func replay(t *testing.T, files []string, withTLS bool) {
	dir := t.TempDir()
	program := pipeProgram(t)
	a := newAuthority(t)
	a.issue(t, "mx.example.org", true, false)
	for _, f := range []string{"mx.example.org.crt", "mx.example.org.key"} {
		b, err := os.ReadFile(a.path(f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var players []*player
	filters := ""
	var names []string
	for i, f := range files {
		p := &player{sessions: withoutPipelining(readRecording(t, f)), ended: make(chan int, 64)}
		players = append(players, p)
		fk := newFake(t, dir, fmt.Sprint("f", i), p.serve)
		name := fmt.Sprintf("\"f%d\"", i)
		names = append(names, name)
		filters += fmt.Sprintf("filter %s proc-exec \"%s %s\"\n", name, program, fk.socket)
	}
	filters += "filter \"f\" chain { " + strings.Join(names, ", ") + " }\n"
	how := ""
	if withTLS {
		how = "tls pki mx.example.org auth-optional <creds>"
	}
	_, addr := filterDaemon(t, dir, fmt.Sprintf(replayConf, dir, password, filters, how))
	for n, r := range players[0].sessions {
		r.client(t, addr)
		for _, p := range players {
			select {
			case <-p.ended:
			case <-time.After(waitLimit):
				t.Fatalf("session %d: no link-disconnect", n)
			}
			compare(t, n, p)
		}
	}
	want := "config|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|subsystem|smtp-in\nconfig|admd|my-admd.example\nconfig|ready"
	if got := strings.Join(players[0].hello[1:], "\n"); got != want || !strings.HasPrefix(players[0].hello[0], "config|smtpd-version|") {
		t.Errorf("handshake %q; want %q", players[0].hello, want)
	}
}

func compare(t *testing.T, n int, p *player) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	told, message := plain(p.seen[n])
	wantTold, wantMessage := plain(p.sessions[n].lines)
	if strings.Join(told, "\n") != strings.Join(wantTold, "\n") {
		t.Errorf("session %d: told\n%s\nwant\n%s", n, strings.Join(told, "\n"), strings.Join(wantTold, "\n"))
	}
	if strings.Join(message, "\n") != strings.Join(wantMessage, "\n") {
		t.Errorf("session %d: lines\n%s\nwant\n%s", n, strings.Join(message, "\n"), strings.Join(wantMessage, "\n"))
	}
}
