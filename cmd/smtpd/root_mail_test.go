package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRootDelivers2000 sends 2,000 mails over 20 connections to alice's Maildir
// and through a relay to a sink, and some with other people's clients.
func TestRootDelivers2000(t *testing.T) {
	if !asRoot(t) {
		return
	}
	sinkDir := relaySink(t)
	d := startRoot(t, rootConf)
	l := &ledger{acked: map[string]string{}}
	start := time.Now()
	l.send(2000, 20, []string{"alice@localhost", "someone@far.test"}, nil)
	sent := time.Since(start)
	otherClients(t, l)
	waitEmpty(t, d, time.Minute)
	t.Logf("accepted in %s, all delivered after %s", sent, time.Since(start))
	l.check(t, collect(t, "/home/alice/Maildir/new", sinkDir), false)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// TestRootMbox delivers to the mailbox of a user, made as the user, in a spool
// like Debian's; mail for root, who has no alias, is not delivered as root.
func TestRootMbox(t *testing.T) {
	if !asRoot(t) {
		return
	}
	script := "mkdir -p /var/mail && mount -t tmpfs tmpfs /var/mail && chown root:mail /var/mail && chmod 2775 /var/mail"
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const conf = "listen on 127.0.0.1 port 25\naction \"local\" mbox\nmatch from any for local action \"local\"\n"
	d := startRoot(t, conf)
	l := &ledger{acked: map[string]string{}}
	l.send(20, 4, []string{"alice@localhost"}, nil)
	waitEmpty(t, d, waitLimit)
	box, err := os.ReadFile("/var/mail/alice")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count("\n"+string(box), "\nFrom sender@example.org "); n != 20 {
		t.Errorf("%d mails in the mailbox, want 20", n)
	}
	for token := range l.acked {
		if strings.Count(string(box), "X-Token: "+token+"\n") != 1 {
			t.Errorf("mail %s is not there once", token)
		}
	}
	if !strings.Contains(string(box), "\nFrom the start\n") {
		t.Error("a line that begins with From, not after an empty line, was changed")
	}
	out, err := exec.Command("stat", "-c", "%U %a", "/var/mail/alice").Output()
	if err != nil || string(out) != "alice 600\n" {
		t.Errorf("the mailbox is %q, %v; want alice 600", out, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	openSpool(t, conf)
}

// openSpool makes the spool writable by everybody: the check of the
// configuration and the start say so, with what helps, and until it has been
// done mail waits.
func openSpool(t *testing.T, conf string) {
	t.Helper()
	const warning = "warn(ing)?: /var/mail is writable by every user: no mail will be delivered there \\(chmod o-w /var/mail\\)"
	if err := os.Chmod("/var/mail", 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	d := startRoot(t, conf)
	check := exec.Command(filepath.Join(bins, "smtpd"), "-n", "-f", filepath.Join(d.dir, "smtpd.conf"))
	if out, err := check.CombinedOutput(); err != nil || !regexp.MustCompile("(?m)^smtpd: "+warning+"\nconfiguration OK$").Match(out) {
		t.Errorf("smtpd -n: %v\n%s", err, out)
	}
	if err := d.waitLog(regexp.MustCompile("^"+warning+"$"), 1); err != nil {
		t.Error(err)
	}
	l := &ledger{acked: map[string]string{}}
	l.send(1, 1, []string{"bob@localhost"}, nil)
	if err := d.waitLog(regexp.MustCompile(`result=TempFail stat=Error \(temporary failure: "lockspool: /var/mail: will not deliver to world-writable spool"\)`), 1); err != nil {
		t.Error(err)
	}
	if err := os.Chmod("/var/mail", 0o775); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the mail to go out when it is scheduled", func() bool {
		smtpctl(t, d, "schedule", "all")
		return smtpctl(t, d, "show", "queue") == ""
	})
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// otherClients sends a mail each with Python's smtplib and swaks, to both ways
// out.
func otherClients(t *testing.T, l *ledger) {
	t.Helper()
	for _, to := range []string{"alice@localhost", "someone@far.test"} {
		for name, args := range map[string][]string{
			"python3": {"-c", "import smtplib,sys\ns=smtplib.SMTP('127.0.0.1',25)\ns.sendmail('sender@example.org',[sys.argv[1]],sys.stdin.buffer.read())\ns.quit()", to},
			"swaks":   {"--server", "127.0.0.1", "--from", "sender@example.org", "--to", to, "--data", "-", "--no-data-fixup", "--silent", "2"},
		} {
			if _, err := exec.LookPath(name); err != nil {
				t.Logf("%s is not installed: its mail is not sent", name)
				continue
			}
			m := newLetter(to, 2000)
			cmd := exec.Command(name, args...)
			text := m.text
			if name == "swaks" { // stuffs no dots and ends the data itself
				text = strings.ReplaceAll(text, "\r\n.", "\r\n..") + ".\r\n"
			}
			cmd.Stdin = strings.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
				continue
			}
			l.add(m)
		}
	}
}

// TestRootKillsEachChild kills each process in turn, ten rounds, while mail
// flows in: what got 250 arrives, and a new connection is answered within 1 s.
func TestRootKillsEachChild(t *testing.T) {
	if !asRoot(t) {
		return
	}
	sinkDir := relaySink(t)
	d := startRoot(t, rootConf)
	l := &ledger{acked: map[string]string{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		l.send(1<<30, 8, []string{"alice@localhost", "someone@far.test"}, stop)
	}()
	roles := []string{"smtp", "queue", "scheduler", "lookup", "keys", "control", "mta", "mda"}
	slowest := time.Duration(0)
	for range 10 {
		for _, role := range roles {
			before := waitChildren(t, d, len(roles))
			if err := syscall.Kill(before[role], syscall.SIGKILL); err != nil {
				t.Fatalf("kill %s: %v", role, err)
			}
			if wait := greeting(t); wait > slowest {
				slowest = wait
				t.Logf("after the death of %s a greeting took %s", role, wait)
			}
			waitFor(t, role+" to be replaced", func() bool { now := d.children()[role]; return now != 0 && now != before[role] })
			after := waitChildren(t, d, len(roles))
			for r, pid := range before {
				if (after[r] == pid) == (r == role) {
					t.Fatalf("after the death of %s: %s had pid %d, has %d", role, r, pid, after[r])
				}
			}
			more := l.len() + 10
			waitFor(t, "mail to flow after the death of "+role, func() bool { return l.len() >= more })
		}
	}
	close(stop)
	<-done
	t.Logf("slowest greeting after a death: %s", slowest)
	if slowest > time.Second {
		t.Errorf("a new connection was answered after %s", slowest)
	}
	waitEmpty(t, d, 2*time.Minute)
	// A delivery that was under way when its process died may be repeated.
	l.check(t, collect(t, "/home/alice/Maildir/new", sinkDir), true)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// waitFor waits for a fact that no event announces.
func waitFor(t *testing.T, what string, fact func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); <-tick.C {
		if fact() {
			return
		}
	}
	t.Fatalf("waited %s for %s", waitLimit, what)
}

// waitChildren waits until n roles have a process.
func waitChildren(t *testing.T, d *daemon, n int) map[string]int {
	t.Helper()
	var now map[string]int
	waitFor(t, "all children to run", func() bool { now = d.children(); return len(now) == n })
	return now
}

// greeting is how long a new connection waits for its 220.
func greeting(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		t.Fatal(err)
	}
	// A connection that the dying process had accepted is lost with it: what
	// counts is the next.
	if out, err := dialogue(conn, "S: 220 "); err != nil {
		if time.Since(start) > waitLimit/2 {
			t.Fatalf("no greeting: %v %q", err, out)
		}
		return time.Since(start) + greeting(t)
	}
	return time.Since(start)
}

// roundsVar is how often TestRootSurvivesKillOfAll kills the daemon; `make
// torture` wants 200.
const roundsVar = "SMTPD_KILL_ROUNDS"

// killRounds is how many rounds there are, and how many mails are acknowledged
// in each before all is killed: many rounds take less of each.
func killRounds(t *testing.T) (rounds, perRound int) {
	t.Helper()
	text := os.Getenv(roundsVar)
	if text == "" {
		return 10, 1000
	}
	rounds, err := strconv.Atoi(text)
	if err != nil || rounds < 1 {
		t.Fatalf("%s: not a number of rounds: %q", roundsVar, text)
	}
	return rounds, 500
}

// workersAlive are the processes of any smtpd in this name space.
func workersAlive() []string {
	var alive []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), "smtpd: ") {
			alive = append(alive, p)
		}
	}
	return alive
}

// TestRootSyncsBeforeItAccepts watches the queue with strace: between the final
// dot and the 250 there is a sync.
func TestRootSyncsBeforeItAccepts(t *testing.T) {
	if !asRoot(t) {
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Log("strace is not installed: not run")
		return
	}
	d := startRoot(t, rootConf, "-P", "mda", "-P", "mta")
	pid := d.child(t, "queue")
	out := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	tracer := exec.CommandContext(ctx, strace, "-f", "-ttt", "-e", "trace=fsync,fdatasync", "-o", out, "-p", strconv.Itoa(pid))
	tracer.Cancel = func() error { return tracer.Process.Signal(syscall.SIGINT) }
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "strace to be attached", func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		return err == nil && strings.Contains(string(b), "TracerPid:\t"+strconv.Itoa(tracer.Process.Pid)+"\n")
	})
	conn, err := net.Dial("tcp4", "127.0.0.1:25")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(waitLimit))
	before := `S: 220
C: HELO client.test
S: 250
C: MAIL FROM:<a@b.org>
S: 250
C: RCPT TO:<alice@localhost>
S: 250
C: DATA
S: 354
C: Subject: sync
`
	if out, err := dialogue(conn, before); err != nil {
		t.Fatal(err, out)
	}
	dot := time.Now()
	if out, err := dialogue(conn, "C: .\nS: 250 2.0.0"); err != nil {
		t.Fatal(err, out)
	}
	accepted := time.Now()
	cancel()
	_ = tracer.Wait()
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if n := syncsBetween(string(trace), dot, accepted); n == 0 {
		t.Errorf("no sync between the dot (%d) and 250 (%d):\n%s", dot.UnixMicro(), accepted.UnixMicro(), trace)
	}
}

// syncsBetween counts the lines "PID SECONDS.MICROS fdatasync(...)" of strace
// within an interval.
func syncsBetween(trace string, from, to time.Time) int {
	n := 0
	for line := range strings.Lines(trace) {
		fields := strings.Fields(line)
		if len(fields) < 3 || !strings.Contains(fields[2], "sync") {
			continue
		}
		micros, err := strconv.ParseInt(strings.Replace(fields[1], ".", "", 1), 10, 64)
		if err == nil && micros >= from.UnixMicro() && micros <= to.UnixMicro() {
			n++
		}
	}
	return n
}
