package parent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// spoolVar has the test binary make a spool there, to be watched.
const spoolVar = "PARENT_TEST_SPOOL"

// The names of the folders of a new spool, and of those above it that were not
// there, are on disk before anything is kept in them.
func TestSpoolIsSynced(t *testing.T) {
	if spool := os.Getenv(spoolVar); spool != "" {
		check(t, createSpool(Options{Unprivileged: true, Spool: spool}))
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Log("strace is not installed: not run")
		return
	}
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-y", "-e", "signal=none", "-e", "trace=fsync", "-o", out, os.Args[0], "-test.run=^TestSpoolIsSynced$")
	cmd.Env = append(os.Environ(), spoolVar+"="+dir+"/above/spool")
	if text, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(text), "ptrace") {
			t.Logf("processes cannot be traced here: not run: %s", text)
			return
		}
		t.Fatalf("%v\n%s", err, text)
	}
	trace, err := os.ReadFile(out)
	check(t, err)
	for folder, want := range map[string]int{dir: 1, dir + "/above": 1, dir + "/above/spool": 2} {
		if got := strings.Count(string(trace), "<"+folder+">) = 0"); got != want {
			t.Errorf("%s was synced %d times, for %d new folders", folder, got, want)
		}
	}
}
