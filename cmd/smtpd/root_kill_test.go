package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deliveriesVar says how many deliveries TestRootKillsDeliveries makes; make
// torture says 5000.
const deliveriesVar = "SMTPD_TEST_DELIVERIES"

// processes are the pids of the daemon's processes in this name space whose titles
// begin so.
func processes(title string) []int {
	var pids []int
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.HasPrefix(string(b), title) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestRootKillsDeliveries kills delivery workers, the mda process, and now and
// then the parent with everything, while mail flows into Maildirs: what was
// acknowledged is there, and there is no second file of it.
func TestRootKillsDeliveries(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := 600
	if v, err := strconv.Atoi(os.Getenv(deliveriesVar)); err == nil {
		n = v
	}
	d := startRoot(t, rootConf)
	l := &ledger{acked: map[string]string{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		l.send(1<<30, 6, []string{"alice@localhost", "bob@localhost"}, stop)
	}()
	kills := map[string]int{}
	for next := 0; next < n; next += max(n/40, 5) {
		waitFor(t, "mail to flow", func() bool { return l.len() >= next })
		// Some of what was acknowledged is on its way into a mailbox now.
		switch rand.IntN(8) {
		case 0:
			kills["all"]++
			d.kill()
			waitFor(t, "the end of all processes", func() bool { return len(processes("smtpd: ")) == 0 })
			conf, err := os.ReadFile(filepath.Join(d.dir, "smtpd.conf"))
			if err != nil {
				t.Fatal(err)
			}
			d = startRoot(t, string(conf))
		case 1, 2, 3:
			kills["mda"]++
			if pid := d.children()["mda"]; pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		default:
			for _, pid := range processes("smtpd: deliver") {
				kills["worker"]++
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
	}
	close(stop)
	<-done
	waitEmpty(t, d, 2*time.Minute)
	t.Logf("kills: %v", kills)
	l.check(t, collect(t, "/home/alice/Maildir/new", "/home/bob/Maildir/new"), false)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
