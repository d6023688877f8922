package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

// reloads is how often the daemon is reloaded under load.
const reloads = 100

// reloadConf is the configuration number n: what differs is the name it greets
// with, a listener that is there every other time, and the rules in between.
func reloadConf(n int) string {
	conf := strings.ReplaceAll(rootConf, "hostname mx.test", fmt.Sprintf("hostname mx%d.test", n))
	if n > 0 {
		conf = "match from any for domain old.test reject\n" + conf
	}
	if n%2 == 1 {
		conf = "table t { a.test, b.test }\nlisten on 127.0.0.1 port 2526 tag T\n" +
			strings.Replace(conf, "match", "match from any tag T for domain <t> reject\nmatch", 1)
	}
	return conf
}

// TestRootReloads reloads the daemon 100 times while mail flows in, by signal
// and by smtpctl, each tenth time with a broken file: no connection is dropped,
// what got 250 arrives once, and a broken file changes nothing.
func TestRootReloads(t *testing.T) {
	if !asRoot(t) {
		return
	}
	sinkDir := relaySink(t)
	conf := filepath.Join(t.TempDir(), "smtpd.conf")
	replace(t, conf, reloadConf(0))
	d := startRoot(t, rootConf, "-f", conf)

	// A session from before all reloads, with a transaction begun.
	old, err := net.Dial("tcp4", "127.0.0.1:25")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if out, err := dialogue(old, "S: 220 mx0.test\nC: HELO a.test\nS: 250\nC: MAIL FROM:<a@b.test>\nS: 250"); err != nil {
		t.Fatal(out, err)
	}
	l := &ledger{acked: map[string]string{}}
	stop := make(chan struct{})
	var load sync.WaitGroup
	var dropped atomic.Int64
	for c := range 8 {
		load.Go(func() {
			to := []string{"alice@localhost", "someone@far.test"}[c%2]
			for !closed(stop) {
				if err := steadySession(l, to); err != nil {
					dropped.Add(1)
					t.Errorf("dropped: %v", err)
					return
				}
			}
		})
	}
	good := 0
	for n := 1; n <= reloads && dropped.Load() == 0; n++ {
		if n%10 == 0 {
			brokenReload(t, d, conf, good, n/10)
			continue
		}
		replace(t, conf, reloadConf(n))
		reloadBy(t, d, n)
		good++
		if err := d.waitLog(regexp.MustCompile("info: configuration reloaded"), good); err != nil {
			t.Fatal(err)
		}
		waitGreeting(t, fmt.Sprintf("220 mx%d.test", n))
		more := l.len() + 8
		waitFor(t, "mail to flow", func() bool { return l.len() >= more || dropped.Load() > 0 })
	}
	close(stop)
	load.Wait()
	if out, err := dialogue(old, "C: RCPT TO:<x@old.test>\nS: 250\nC: RSET\nS: 250\nC: MAIL FROM:<a@b.test>\nS: 250"); err != nil {
		t.Error("a session of before does not go by its rules:", out, err)
	}
	accepts(t, "127.0.0.1:25", "x@old.test", false)
	out, err := dialogue(old, "C: RCPT TO:<alice@localhost>\nS: 250\nC: DATA\nS: 354\nC: X-Token: old\nC: \nC: .\nS: 250\nC: QUIT\nS: 221")
	if err != nil {
		t.Error("the session of before:", out, err)
	}
	t.Logf("%d mails acknowledged during %d reloads", l.len(), reloads)
	waitEmpty(t, d, time.Minute)
	l.check(t, collect(t, "/home/alice/Maildir/new", sinkDir), false)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// reloadBy asks for a reload, in one of the two ways.
func reloadBy(t *testing.T, d *daemon, n int) {
	t.Helper()
	if n%2 == 0 {
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		return
	}
	if out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "reload").CombinedOutput(); err != nil {
		t.Fatalf("smtpctl reload: %v\n%s", err, out)
	}
}

// brokenReload reloads a file with two mistakes: both are told, and what was
// holds.
func brokenReload(t *testing.T, d *daemon, conf string, before, broken int) {
	t.Helper()
	name := strings.Fields(greetingLine(t))[1]
	replace(t, conf, "action \"x\" maidir\nlisten on nowhere9\n"+reloadConf(1000))
	out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "reload").CombinedOutput()
	for _, want := range []string{conf + `:1: syntax error: unknown option "maidir", did you mean "maildir"?`, conf + ":2: invalid virtual ip or interface"} {
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("smtpctl reload of a broken file: %v\n%s\nwant %s", err, out, want)
		}
	}
	if err := d.waitLog(regexp.MustCompile("warn: configuration not reloaded: .*:2: invalid virtual ip"), broken); err != nil {
		t.Error(err)
	}
	if got := strings.Fields(greetingLine(t))[1]; got != name {
		t.Errorf("a broken file changed the greeting from %s to %s", name, got)
	}
	if n := strings.Count(d.log(), "info: configuration reloaded"); n != before {
		t.Errorf("%d reloads, want %d", n, before)
	}
}

// steadySession sends some mails over one connection. Nothing may go wrong.
func steadySession(l *ledger, to string) error {
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
	if err != nil {
		return err
	}
	c := gosmtp.NewClient(conn)
	c.CommandTimeout, c.SubmissionTimeout = waitLimit, waitLimit
	defer c.Close()
	for range 10 {
		if err := l.transaction(c, newLetter(to, 2000), to); err != nil {
			return err
		}
	}
	return c.Quit()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// replace puts a file in place of another, whole.
func replace(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func greetingLine(t *testing.T) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		t.Fatal(err)
	}
	out, err := dialogue(conn, "S: 220 \nC: QUIT\nS: 221")
	if err != nil {
		t.Fatal(out, err)
	}
	return out
}

// waitGreeting waits until new sessions are greeted so.
func waitGreeting(t *testing.T, want string) {
	t.Helper()
	waitFor(t, want, func() bool { return strings.HasPrefix(greetingLine(t), want) })
}
