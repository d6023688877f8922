package deliver

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A file that is too large is an error of its delivery alone, and commands know
// nothing of how.
func TestFileSizeLimit(t *testing.T) {
	l, _ := start(t)
	m := example(t)
	if r := run(t, l, m, nil); !r.Status.OK() { // so the worker is there
		t.Fatalf("got %+v", r)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if ignored := signals(t, string(status), "SigIgn"); ignored>>(syscall.SIGXFSZ-1)&1 != 1 {
		t.Errorf("the worker ignores %x", ignored)
	}
	m.Method, m.Command = "pipe", `grep SigIgn /proc/self/status | tr '\t' ' '; exit 1`
	r := run(t, l, m, nil)
	if ignored := signals(t, strings.Trim(r.Line, `"`), "SigIgn"); ignored>>(syscall.SIGXFSZ-1)&1 != 0 {
		t.Errorf("a command ignores %x", ignored)
	}
}

// signals are those that a line of /proc/PID/status names.
func signals(t *testing.T, status, name string) uint64 {
	t.Helper()
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in %q", name, status)
	return 0
}
