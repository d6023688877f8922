package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

// posture is what one process may be.
type posture struct {
	user    string   // owner of every thread
	root    string   // root folder
	seccomp string   // mode: 2 is a filter
	caps    string   // effective and permitted
	peers   int      // channels to others, the parent included
	files   []string // other descriptors, as regular expressions
	mayGain bool     // by programs that are set-user-ID
}

// postures is the table that ARCHITECTURE.md explains: DESIGN.md section 1.
var postures = map[string]posture{
	"keys":      {"_smtpd", "/var/empty", "2", "0", 5, nil, false},
	"control":   {"_smtpd", "/var/empty", "2", "0", 8, []string{`^socket /run/smtpd.sock$`}, false},
	"lookup":    {"_smtpd", "/", "2", "0", 6, nil, false},
	"smtp":      {"_smtpd", "/var/empty", "2", "0", 5, []string{`^socket tcp$`}, false},
	"queue":     {"_smtpq", "/var/spool/smtpd/queue", "2", "0", 6, []string{`^/var/spool/smtpd/queue/queue\.db$`, `^/var/spool/smtpd/queue/queue\.log$`}, false},
	"scheduler": {"_smtpd", "/var/empty", "2", "0", 3, nil, false},
	"mta":       {"_smtpd", "/var/empty", "2", "0", 5, nil, false},
	"mda":       {"_smtpd", "/var/empty", "2", "0", 4, nil, false},
}

// TestRootPosture compares every process of a running daemon with the table:
// identity and groups of every thread, root folder, capabilities, filter,
// descriptors; and the parent is root and has no filter.
func TestRootPosture(t *testing.T) {
	if !asRoot(t) {
		return
	}
	d := startRoot(t, rootConf)
	children := d.children()
	if len(children) != len(postures) {
		t.Errorf("processes %v, want those of the table", children)
	}
	for role, want := range postures {
		t.Run(role, func(t *testing.T) {
			pid := children[role]
			if pid == 0 {
				t.Fatal("does not run")
			}
			checkThreads(t, pid, want)
			if root, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", pid)); !sameFolder(root, want.root) {
				t.Errorf("root folder %s, want %s", root, want.root)
			}
			checkDescriptors(t, pid, want)
			noCores(t, pid)
			if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) != "smtpd\n" {
				t.Errorf("name %q, want smtpd", comm)
			}
		})
	}
}

// sameFolder allows for bind mounts: /proc shows where the folder really is.
func sameFolder(a, b string) bool {
	sa, err1 := os.Stat(a)
	sb, err2 := os.Stat(b)
	return a == b || (err1 == nil && err2 == nil && os.SameFile(sa, sb))
}

func checkThreads(t *testing.T, pid int, want posture) {
	t.Helper()
	id := ids(t, want.user)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal("no threads", err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for name, value := range map[string]string{
			"Uid": strings.Repeat(id+" ", 4), "Gid": strings.Repeat(id+" ", 4), "Groups": id,
			"CapEff": want.caps, "CapPrm": want.caps, "CapInh": "0", "CapAmb": "0",
			"NoNewPrivs": map[bool]string{false: "1", true: "0"}[want.mayGain], "Seccomp": want.seccomp,
		} {
			if got := statusField(string(b), name); got != strings.TrimSpace(value) {
				t.Errorf("%s: %s is %q, want %q", task, name, got, value)
			}
		}
	}
}

// statusField is a line of /proc/PID/status, blanks folded, zeros of a mask cut.
func statusField(status, name string) string {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			v = strings.Join(strings.Fields(v), " ")
			if strings.HasPrefix(name, "Cap") {
				v = "0" + strings.TrimLeft(v, "0")
				if len(v) > 1 {
					v = v[1:]
				}
			}
			return v
		}
	}
	return "?"
}

func ids(t *testing.T, user string) string {
	t.Helper()
	b, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(line, ":"); f[0] == user {
			return f[2]
		}
	}
	t.Fatalf("no user %s", user)
	return ""
}

// runtimeFiles are the descriptors that every Go process has; the runtime keeps
// the CPU limit of its cgroup open for reading.
var runtimeFiles = regexp.MustCompile(`^(anon_inode:\[(eventpoll|eventfd|pidfd|timerfd)\]|/dev/null|pipe:.*|/sys/fs/cgroup/.*/?cpu[a-z_.]*)$`)

// checkDescriptors: 0 and 1 are /dev/null, 2 is the log, then channels and what
// the table names.
func checkDescriptors(t *testing.T, pid int, want posture) {
	t.Helper()
	kinds := socketKinds(t)
	channels := 0
	var others []string
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		n, _ := strconv.Atoi(fd.Name())
		switch kind := kinds[target]; {
		case n < 2:
			if target != "/dev/null" {
				t.Errorf("descriptor %d is %s", n, target)
			}
		case n == 2:
		case kind == "channel":
			channels++
		case kind != "":
			others = append(others, kind)
		case !runtimeFiles.MatchString(target):
			others = append(others, target)
		}
	}
	if channels != want.peers {
		t.Errorf("%d channels, want %d", channels, want.peers)
	}
	sort.Strings(others)
	for _, o := range others {
		if !slices.ContainsFunc(want.files, func(re string) bool {
			return regexp.MustCompile(re).MatchString(o) || (strings.HasSuffix(o, "/queue/queue.db") || strings.HasSuffix(o, "/queue/queue.log")) && strings.Contains(re, "queue")
		}) {
			t.Errorf("unexpected descriptor: %s", o)
		}
	}
	if len(others) != len(want.files) {
		t.Errorf("descriptors %v, want %v", others, want.files)
	}
}

// socketKinds names the sockets of this name space by their "socket:[inode]".
func socketKinds(t *testing.T) map[string]string {
	t.Helper()
	kinds := map[string]string{}
	for _, file := range []string{"/proc/net/unix", "/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			switch {
			case file == "/proc/net/unix" && len(f) == 7:
				kinds["socket:["+f[6]+"]"] = "channel"
			case file == "/proc/net/unix" && len(f) == 8:
				kinds["socket:["+f[6]+"]"] = "socket " + f[7]
			case file != "/proc/net/unix" && len(f) > 9:
				kinds["socket:["+f[9]+"]"] = "socket " + filepath.Base(file)
			}
		}
	}
	// A socket path is bound once and named by both ends of its connections.
	return kinds
}
