package main

import (
	"fmt"
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
// then the parent alone or with everything, while mail flows into Maildirs: what
// was acknowledged is there, and there is no second file of it.
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
		case 0, 1:
			if rand.IntN(2) == 0 {
				kills["all"]++
				d.kill()
			} else {
				kills["parent"]++ // the others see that it has gone, and end
				if err := d.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			waitFor(t, "the end of all processes", func() bool { return len(processes("smtpd: ")) == 0 })
			conf, err := os.ReadFile(filepath.Join(d.dir, "smtpd.conf"))
			if err != nil {
				t.Fatal(err)
			}
			d = startRoot(t, string(conf))
		case 2, 3:
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

// TestRootPlaces has mail for 40 users delivered, by commands that stay a little and into Maildirs,
// while mda is killed now and then: there are never more delivery processes than
// `max-session` allows, those of an mda that has died included.
func TestRootPlaces(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const places, users = 4, 40
	dir := "/home/virtual"
	var base, names, boxes []string
	for i := range users {
		home := fmt.Sprint(dir, "/u", i)
		if err := os.MkdirAll(home, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(home, 70000+i, 70000+i); err != nil {
			t.Fatal(err)
		}
		base = append(base, fmt.Sprintf("u%d = \"%d:%d:%s\"", i, 70000+i, 70000+i, home))
		names = append(names, fmt.Sprintf("u%d = u%d", i, i))
		boxes = append(boxes, home+"/Maildir/new", home+"/out")
	}
	d := startRoot(t, fmt.Sprintf(`listen on 127.0.0.1 port 25
mda limit max-session %d
table base { %s }
table names { %s }
action md maildir userbase <base> virtual <names>
action run mda "trap '' TERM; sleep 0.1; mkdir -p out; cat >out/%%{user.username}.$$" userbase <base> virtual <names>
match from any for domain md.test action md
match from any for domain run.test action run
`, places, strings.Join(base, ", "), strings.Join(names, ", ")))
	most, watching, watched := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-watching:
				return
			case <-tick.C:
				now := 0
				for _, role := range d.below() {
					if role == "deliver" {
						now++
					}
				}
				most = max(most, now)
			}
		}
	}()
	var to []string
	for i := range users {
		to = append(to, fmt.Sprintf("u%d@md.test", i), fmt.Sprintf("u%d@run.test", i))
	}
	l := &ledger{acked: map[string]string{}}
	for range 2 {
		l.send(3*users, 8, to, nil)
		_ = syscall.Kill(d.child(t, "mda"), syscall.SIGKILL)
	}
	waitEmpty(t, d, 2*time.Minute)
	close(watching)
	<-watched
	if most != places {
		t.Errorf("%d delivery processes at a time; want %d", most, places)
	}
	l.check(t, collect(t, boxes...), true) // a command may be run again
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
