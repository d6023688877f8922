package enqueue

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// keepVar has the test binary keep a mail in each way there, to be watched.
const keepVar = "ENQUEUE_TEST_KEEP"

// A mail that is kept is on disk: the offline file before it has its name, and then
// the name; and the dead letter.
func TestKeptIsSynced(t *testing.T) {
	if dir := os.Getenv(keepVar); dir != "" {
		o, err := OpenOffline(dir, []string{"bob"}, when)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Store(strings.NewReader("Subject: x\n\nx\n")); err != nil {
			t.Fatal(err)
		}
		m, err := Read(strings.NewReader("Subject: x\n\nx\n"), &Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.SaveDeadLetter(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Log("strace is not installed: not run")
		return
	}
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-y", "-e", "signal=none", "-e", "trace=fsync,renameat,renameat2", "-o", out, os.Args[0], "-test.run=^TestKeptIsSynced$")
	cmd.Env = append(os.Environ(), keepVar+"="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(text), "ptrace") {
			t.Logf("processes cannot be traced here: not run: %s", text)
			return
		}
		t.Fatalf("%v\n%s", err, text)
	}
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	at := regexp.QuoteMeta(dir)
	want := regexp.MustCompile(`(?s)fsync\(\d+<` + at + `/\.[\d.]+>\) += 0.*rename.*fsync\(\d+<` + at + `>\) += 0.*fsync\(\d+<` + at + `/dead\.letter>\) += 0`)
	if !want.Match(trace) {
		t.Errorf("got\n%s\nwant file, rename, folder, dead letter", trace)
	}
}
