package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRootChange reloads what only the parent can do, and what goes wrong half
// way: a listener on a port below 1024 comes and goes, limits and admd change;
// a process that hangs and then dies while all get ready ends the change, the caller
// hears of it, and what was stays in force.
func TestRootChange(t *testing.T) {
	if !asRoot(t) {
		return
	}
	conf := filepath.Join(t.TempDir(), "smtpd.conf")
	text := func(lines string) string {
		return lines + "listen on 127.0.0.1 port 25 hostname mx.test\naction \"l\" maildir\nmatch from any for local action \"l\"\n"
	}
	replace(t, conf, text(""))
	d := startRoot(t, rootConf, "-f", conf)
	reload := func(lines string) (string, error) {
		t.Helper()
		replace(t, conf, text(lines))
		out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "reload").CombinedOutput()
		return string(out), err
	}
	for _, lines := range []string{"listen on 127.0.0.1 port 99 hostname low.test\n", "smtp limit max-rcpt 1\nadmd new.test\n"} {
		if out, err := reload(lines); err != nil {
			t.Fatal(out, err)
		}
		if low := strings.Contains(lines, "99"); reachable("127.0.0.1:99") != low {
			t.Errorf("port 99 answers: %v", !low)
		}
	}
	conn, err := net.Dial("tcp4", "127.0.0.1:25")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if out, err := dialogue(conn, "S: 220\nC: EHLO c.test\nR: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<alice@localhost>\nS: 250\nC: RCPT TO:<bob@localhost>\nS: 45\nC: QUIT\nS: 221"); err != nil {
		t.Error("max-rcpt 1:", out, err)
	}
	// A port that another program has: nothing changes.
	taken, err := net.Listen("tcp4", "127.0.0.1:98")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if out, err := reload("listen on 127.0.0.1 port 97\nlisten on 127.0.0.1 port 98\n"); err == nil || !strings.Contains(out, "127.0.0.1:98") {
		t.Errorf("a port that is taken: %v, %s", err, out)
	}
	if reachable("127.0.0.1:97") {
		t.Error("half of a configuration is in force")
	}
	// A process that is stopped does not get ready; then it dies.
	for role, pid := range d.children() {
		if role != "lookup" && role != "mta" && role != "smtp" {
			continue
		}
		t.Run(role, func(t *testing.T) {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			dead := time.AfterFunc(time.Second, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
			defer dead.Stop()
			out, err := reload("listen on 127.0.0.1 port 97\n")
			if err == nil || !strings.Contains(out, role+" ended while it got ready for it") {
				t.Errorf("after %v: %v, %s", time.Since(began), err, out)
			}
			if reachable("127.0.0.1:97") {
				t.Error("half of a configuration is in force")
			}
			waitFor(t, role+" again", func() bool { p := d.children()[role]; return p != 0 && p != pid })
			waitGreeting(t, "220 mx.test")
			accepts(t, "127.0.0.1:25", "alice@localhost", true)
		})
	}
	if err := d.waitLog(regexp.MustCompile("warn: configuration not reloaded: .*ended while it got ready"), 3); err != nil {
		t.Error(err)
	}
	if os.Getenv(roundsVar) != "" { // make torture: it takes the 40 seconds of the limit
		t.Run("hangs", func(t *testing.T) {
			pid := d.child(t, "mda")
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			out, err := reload("listen on 127.0.0.1 port 97\n")
			took := time.Since(began)
			if err == nil || !strings.Contains(out, "mda: not ready for it after 40s") || took > time.Minute {
				t.Errorf("after %v: %v, %s", took, err, out)
			}
			if reachable("127.0.0.1:97") {
				t.Error("half of a configuration is in force")
			}
			accepts(t, "127.0.0.1:25", "alice@localhost", true)
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			t.Logf("told after %v", took)
		})
	}
	if out, err := reload("listen on 127.0.0.1 port 97\n"); err != nil || !reachable("127.0.0.1:97") {
		t.Error("in the end:", out, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err, d.log())
	}
}

// reachable reports whether a server greets there.
func reachable(addr string) bool {
	conn, err := net.DialTimeout("tcp4", addr, waitLimit)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(waitLimit))
	_, err = dialogue(conn, "S: 220\nC: QUIT\nS: 221")
	return err == nil
}

// TestRootBackground starts the daemon in the background with the name of its
// file as it is in that folder: it works, reads the file again, and one that
// cannot start says why.
func TestRootBackground(t *testing.T) {
	if !asRoot(t) {
		return
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "own.conf"), []byte(rootConf), 0o644); err != nil {
		t.Fatal(err)
	}
	start := func() (string, error) {
		cmd := exec.Command(filepath.Join(bins, "smtpd"), "-f", "own.conf")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := start()
	if err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	d := &daemon{socket: "/run/smtpd.sock"}
	if out := smtpctl(t, d, "reload"); out != "command succeeded\n" {
		t.Errorf("reload: %q", out)
	}
	if out, err := start(); err == nil || !strings.Contains(out, "another smtpd is listening") {
		t.Errorf("the second to start: %v, %q", err, out)
	}
	for _, pid := range processes(filepath.Join(bins, "smtpd")) {
		if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != "/" {
			t.Errorf("it stays in %s: %v", cwd, err)
		}
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	waitFor(t, "the daemon to end", func() bool { return len(workersAlive()) == 0 })
}
