package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

// insideVar marks the copy of the test binary that runs in name spaces of its
// own, where users, spool and network belong to the test; it names the folder that
// has the spool and the homes.
const insideVar = "SMTPD_TEST_INSIDE"

// asRoot runs the calling test again in private mount, network and pid name
// spaces with users _smtpd, _smtpq, alice and bob. It returns true there, and
// false outside when the test is over. Without root it says so.
func asRoot(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Log("needs root: not run as an ordinary user")
		return false
	}
	if os.Getenv(insideVar) == "" {
		limit := "9m"
		if os.Getenv(roundsVar) != "" {
			limit = "170m" // make torture
		}
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		world, err := os.MkdirTemp("", "smtpd-world")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(world)
		cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
			exe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+limit)
		cmd.Env = append(os.Environ(), insideVar+"="+world, binsVar+"="+bins)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("in name spaces: %v\n%s", err, tail(out, 60))
		}
		t.Logf("%s", tail(out, 25))
		return false
	}
	if err := privateWorld(); err != nil {
		t.Fatal(err)
	}
	return true
}

func tail(b []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

const worldScript = `set -e
ip link set lo up
w=$SMTPD_TEST_INSIDE
mkdir -p /run /var/spool /home /var/empty
mount -t tmpfs tmpfs /run
mkdir "$w/spool" "$w/home"
mount --bind "$w/spool" /var/spool
mount --bind "$w/home" /home
grep -vE '^(_smtpd|_smtpq|alice|bob):' /etc/passwd >"$w/passwd"
grep -vE '^(_smtpd|_smtpq|alice|bob):' /etc/group >"$w/group"
n=64200
for u in _smtpd _smtpq alice bob; do
	n=$((n + 1))
	echo "$u:x:$n:$n::/home/$u:/bin/sh" >>"$w/passwd"
	echo "$u:x:$n:" >>"$w/group"
	case $u in _*) ;; *) install -d -m 0700 -o $n -g $n "/home/$u" ;; esac
done
echo 'nameserver 127.0.0.1' >"$w/resolv.conf"
echo '127.0.0.1 localhost mx.test' >"$w/hosts"
for f in passwd group resolv.conf hosts; do chmod 644 "$w/$f"; mount --bind "$w/$f" "/etc/$f"; done
`

func privateWorld() error {
	out, err := exec.Command("sh", "-c", worldScript).CombinedOutput()
	if err != nil {
		return fmt.Errorf("private world: %w\n%s", err, out)
	}
	return nil
}

// startRoot starts the daemon as an installation does, with conf.
func startRoot(t *testing.T, conf string, args ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "smtpd.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	d, err := startDaemon(context.Background(), dir, "/run/smtpd.sock", 0, append([]string{"-f", path}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.kill)
	return d
}

// rootConf delivers to alice and relays everything else to a sink.
const rootConf = `listen on 127.0.0.1 port 25 hostname mx.test
queue ttl 1h
action "local" maildir
action "out" relay host "smtp://127.0.0.1:2525"
match from any for local action "local"
match from any for any action "out"
`

// letter is one test mail: a token in a header, and a body that holds what
// breaks careless servers.
type letter struct {
	token string
	text  string // with CRLF, as sent
	to    string
}

func newLetter(to string, size int) letter {
	token := rand.Text()
	var b strings.Builder
	fmt.Fprintf(&b, "X-Token: %s\r\nFrom: <sender@example.org>\r\nTo: <%s>\r\nSubject: test\r\n", token, to)
	b.WriteString("Date: Fri, 20 Nov 2026 23:17:50 +0000\r\nMessage-ID: <" + token + "@example.org>\r\n\r\n")
	b.WriteString(".\r\n..\r\n.leading dot\r\nFrom the start\r\n\r\n\ttab\r\n8-bit \xc3\xa9\r\n")
	for b.Len() < size {
		b.WriteString("the quick brown fox jumps over the lazy dog 0123456789\r\n")
	}
	return letter{token, b.String(), to}
}

// ledger is what was acknowledged, by token.
type ledger struct {
	from   string     // reverse-path; "": sender@example.org
	moment func() int // what time it is, for when; nil: nobody asks

	mu    sync.Mutex
	acked map[string]string // token -> text with LF
	when  map[string]int    // token -> moment
}

func (l *ledger) add(m letter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked[m.token] = strings.ReplaceAll(m.text, "\r\n", "\n")
	if l.moment != nil {
		l.when[m.token] = l.moment()
	}
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// send delivers n letters over conns connections of go-smtp's client to the
// recipients in turn. What is refused or lost with its connection is tried
// again as another letter, until stop is closed or n are acknowledged.
func (l *ledger) send(n, conns int, to []string, stop <-chan struct{}) {
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(n))
	for c := range conns {
		wg.Go(func() {
			for left.Load() > 0 {
				l.session(&left, to[c%len(to)], stop)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	wg.Wait()
}

// perSession is how many mails one connection carries (smtp limit max-mails).
const perSession = 50

func (l *ledger) session(left *atomic.Int64, to string, stop <-chan struct{}) {
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", 2*time.Second)
	if err != nil {
		return
	}
	c := gosmtp.NewClient(conn)
	c.CommandTimeout, c.SubmissionTimeout = 20*time.Second, 20*time.Second
	defer c.Close()
	for range perSession {
		select {
		case <-stop:
			return
		default:
		}
		if left.Add(-1) < 0 {
			break
		}
		m := newLetter(to, 4096)
		if err := l.transaction(c, m, to); err != nil {
			left.Add(1)
			return
		}
	}
	_ = c.Quit()
}

func (l *ledger) transaction(c *gosmtp.Client, m letter, to string) error {
	if err := c.Mail(cmp.Or(l.from, "sender@example.org"), nil); err != nil {
		return err
	}
	if err := c.Rcpt(to, nil); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(m.text)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	l.add(m)
	return nil
}

// check compares what arrived with what was acknowledged: none missing, each
// whole; none twice unless mayRepeat.
func (l *ledger) check(t *testing.T, arrived map[string][]string, mayRepeat bool) {
	t.Helper()
	missing, twice, broken := 0, 0, 0
	for token, want := range l.acked {
		got := arrived[token]
		switch {
		case len(got) == 0:
			missing++
		case len(got) > 1:
			twice++
		}
		for _, g := range got {
			if g != want {
				if broken++; broken == 1 {
					t.Errorf("not whole:\ngot  %q\nwant %q", g, want)
				}
			}
		}
	}
	t.Logf("%d acknowledged, %d missing, %d twice, %d not whole", len(l.acked), missing, twice, broken)
	if missing > 0 || broken > 0 || (twice > 0 && !mayRepeat) {
		t.Errorf("missing %d, twice %d, not whole %d of %d", missing, twice, broken, len(l.acked))
	}
}

// collect reads all mails below dirs: by token, the text from X-Token on.
func collect(t *testing.T, dirs ...string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			i := bytes.Index(b, []byte("X-Token: "))
			if i < 0 {
				continue
			}
			token, _, _ := strings.Cut(string(b[i+len("X-Token: "):]), "\n")
			all[token] = append(all[token], string(b[i:]))
		}
	}
	return all
}

// waitEmpty waits until smtpctl shows an empty queue.
func waitEmpty(t *testing.T, d *daemon, limit time.Duration) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var out []byte
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		var err error
		out, err = exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "show", "queue").Output()
		if err == nil && len(out) == 0 {
			return
		}
	}
	t.Fatalf("the queue is not empty after %s:\n%s\nlog:\n%s", limit, tail(out, 20), tail([]byte(d.log()), 30))
}

// one sends a mail on a connection of its own and gives the code of what was
// refused; 0: it was accepted, or the connection broke.
func (l *ledger) one(to string, size int) int {
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
	if err != nil {
		return 0
	}
	c := gosmtp.NewClient(conn)
	c.CommandTimeout, c.SubmissionTimeout = waitLimit, waitLimit
	defer c.Close()
	err = l.transaction(c, newLetter(to, size), to)
	if e, ok := err.(*gosmtp.SMTPError); ok {
		return e.Code
	}
	return 0
}

// smtpctl runs a command that has to succeed and gives what it prints.
func smtpctl(t *testing.T, d *daemon, words ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(bins, "smtpctl"), append([]string{"-s", d.socket}, words...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("smtpctl %s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return string(out)
}
