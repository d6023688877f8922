package queue_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// workVar has the test binary work on the spool in a folder, to be watched.
const workVar = "QUEUE_TEST_WORK"

// TestSyncOrder holds against the kernel what queuetest.Disk supposes of bbolt:
// pages, sync, meta page, sync; and that a body and its folder are synced before
// the record, or the pages, that name it; and that a record is synced before the
// next one, and before the database.
func TestSyncOrder(t *testing.T) {
	if dir := os.Getenv(workVar); dir != "" {
		watched(t, dir)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Log("strace is not installed: not run")
		return
	}
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "trace")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-y", "-e", "signal=none", "-e", "trace=pwrite64,fdatasync,fsync,write,renameat,renameat2,linkat",
		"-o", out, exe, "-test.run=^TestSyncOrder$")
	cmd.Env = append(os.Environ(), workVar+"="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(text, []byte("ptrace")) {
			t.Logf("processes cannot be traced here: not run: %s", text)
			return
		}
		t.Fatalf("%v\n%s", err, text)
	}
	trace, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	commits, records, bodies, err := inOrder(string(trace), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d commits, %d records, %d bodies", commits, records, bodies)
	if commits < 3 || records < 20 || bodies < 2 {
		t.Errorf("%d commits, %d records and %d bodies seen", commits, records, bodies)
	}
}

// watched is the work: mail with bodies of both kinds, changed and removed.
func watched(t *testing.T, dir string) {
	s := open(t, dir, queue.Options{LogSize: 64 << 10})
	for i := range 8 {
		id, err := s.Reserve(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		m := &queue.Message{ID: id, Arrival: time.Unix(1, 0), Body: []byte("x"), Size: 1, Envelopes: []mail.Envelope{benchEnvelope()}}
		if i%3 == 1 {
			f, err := s.NewBody(id)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteString(queuetest.Large())
			if err != nil || f.Close() != nil {
				t.Fatal(err)
			}
			m.Body, m.InFile, m.Size = nil, true, int64(len(queuetest.Large()))
		}
		if err := s.Accept(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		for _, gone := range []bool{false, true} {
			edit := func(e *mail.Envelope) queue.Verdict { e.Retry++; return queue.Verdict{Delete: gone} }
			if _, err := s.Apply(context.Background(), []queue.Change{{ID: id.Envelope(1), Attempt: queue.AnyAttempt, Edit: edit}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// call is one line of strace -f -y: name, file, and for pwrite64 the offset.
var call = regexp.MustCompile(`^\d+ +(\w+)\((?:\d+<([^>]*)>)?.*?(?:, (\d+)\) *= \d+|\) *= \d+)`)

// inOrder reads a trace and finds writes that a sync had to come between.
func inOrder(trace, dir string) (commits, records, bodies int, err error) {
	db, log := filepath.Join(dir, "queue.db"), filepath.Join(dir, "queue.log")
	pages, meta := false, false // written, and not synced
	record := false             // too
	dirty := map[string]bool{}  // bodies written and not synced
	names := false              // bodies that have their names, which are not synced
	for line := range strings.Lines(whole(trace)) {
		m := call.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name, file := m[1], strings.TrimSuffix(m[2], ".new")
		isMeta := m[3] == "0" || m[3] == fmt.Sprint(os.Getpagesize())
		switch {
		case name == "pwrite64" && record:
			return 0, 0, 0, fmt.Errorf("written while a record is not synced: %s", line)
		case name == "pwrite64" && (file == db || file == log) && (len(dirty) > 0 || names):
			return 0, 0, 0, fmt.Errorf("written before bodies %v or their folder are synced: %s", dirty, line)
		case name == "pwrite64" && file == log:
			record = true
			records++
		case name == "fdatasync" && file == log:
			record = false
		case name == "pwrite64" && file == db && isMeta:
			if pages {
				return 0, 0, 0, fmt.Errorf("a meta page is written before its pages are synced: %s", line)
			}
			meta = true
			commits++
		case name == "pwrite64" && file == db:
			if meta {
				return 0, 0, 0, fmt.Errorf("pages are written before the meta page is synced: %s", line)
			}
			pages = true
		case strings.HasSuffix(name, "sync") && file == db:
			pages, meta = false, false
		case (name == "write" || name == "pwrite64") && strings.HasPrefix(file, dir+"/body/"):
			dirty[file] = true
		case strings.HasSuffix(name, "sync") && dirty[file]:
			delete(dirty, file)
			bodies++
		case strings.HasPrefix(name, "rename") || name == "linkat":
			names = names || strings.Contains(line, dir+"/body/")
		case strings.HasSuffix(name, "sync") && strings.HasPrefix(file, dir+"/body"):
			names = false
		}
	}
	return commits, records, bodies, nil
}

// whole puts calls together that strace shows in two pieces, at the place of
// their end.
func whole(trace string) string {
	var b strings.Builder
	begun := map[string]string{} // by thread
	for line := range strings.Lines(trace) {
		thread, _, _ := strings.Cut(line, " ")
		if head, _, ok := strings.Cut(line, " <unfinished ...>"); ok {
			begun[thread] = head
			continue
		}
		if _, tail, ok := strings.Cut(line, " resumed>"); ok {
			line = begun[thread] + tail
		}
		b.WriteString(line)
	}
	return b.String()
}
