package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestRootWorkerPosture looks at a delivery worker while a command of a user runs,
// and at the command: they are the user's and nothing else, have nothing open but
// what they need, and the command knows nothing of how our processes run.
func TestRootWorkerPosture(t *testing.T) {
	if !asRoot(t) {
		return
	}
	must(t, syscall.Mkfifo("/home/alice/end", 0o644))
	stray, err := syscall.Dup(2) // as from a careless shell: it would be handed on
	must(t, err)
	defer syscall.Close(stray)
	d := startRoot(t, `listen on 127.0.0.1 port 25 hostname mx.test
action run mda "cat >/dev/null; cat /proc/self/timerslack_ns >slack; cp /proc/self/status status; ls /proc/self/fd >files; mv slack began; read x <end"
match from any for any action run
`)
	l := &ledger{acked: map[string]string{}}
	if code := l.one("alice@mx.test", 100); code != 0 {
		t.Fatalf("refused: %d", code)
	}
	waitFor(t, "the command", func() bool { _, err := os.Stat("/home/alice/began"); return err == nil })
	workers := 0
	for pid, role := range d.below() {
		if role != "deliver" {
			continue
		}
		workers++
		want := posture{user: "alice", root: "/", seccomp: "0", caps: "0", peers: 1, mayGain: true}
		checkThreads(t, pid, want)
		checkDescriptors(t, pid, want)
		noCores(t, pid)
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) != "smtpd\n" {
			t.Errorf("name %q, want smtpd", comm)
		}
		if env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); strings.Contains(string(env), "PATH=") {
			t.Errorf("environment %q", env)
		}
		checkSlack(t, fmt.Sprintf("/proc/%d/timerslack_ns", pid), 1_000_000)
	}
	if workers != 1 {
		t.Errorf("%d workers", workers)
	}
	checkSlack(t, "/home/alice/began", 50_000)
	status, err := os.ReadFile("/home/alice/status")
	must(t, err)
	// Of what is ignored the signals from 32 on do not count: a C library ignores
	// some for itself in what it spawns, as make does us.
	const own = 1<<31 - 1
	for name, mask := range map[string]uint64{"SigIgn": own, "SigBlk": ^uint64(0), "CapEff": ^uint64(0)} {
		got, err := strconv.ParseUint(statusField(string(status), name), 16, 64)
		if err != nil || got&mask != 0 {
			t.Errorf("the command: %s is %x, %v; want 0", name, got, err)
		}
	}
	if got, want := statusField(string(status), "Groups"), ids(t, "alice"); got != want {
		t.Errorf("the command: Groups is %s; want %s", got, want)
	}
	files, err := os.ReadFile("/home/alice/files")
	must(t, err)

	for _, fd := range strings.Fields(string(files)) {
		if n, _ := strconv.Atoi(fd); n > 3 { // 3 is the folder that ls reads
			t.Errorf("the command has descriptor %d", n)
		}
	}
	must(t, os.WriteFile("/home/alice/end", []byte("\n"), 0))
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

func checkSlack(t *testing.T, file string, want int) {
	t.Helper()
	b, err := os.ReadFile(file)
	if got, _ := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || got != want {
		t.Errorf("%s: %d, %v; want %d", filepath.Base(file), got, err, want)
	}
}
