package queue_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
	"smtpd/queue"
)

// smallVar says that the test binary runs in a name space of its own.
const smallVar = "QUEUE_TEST_SMALL"

// smallDisk gives a folder on a file system of 64 MB of its own, or "": the test
// has been run in another process, or cannot.
func smallDisk(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Log("needs root: not run as an ordinary user")
		return ""
	}
	if os.Getenv(smallVar) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", exe, "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), smallVar+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("in a name space: %v", err)
		}
		t.Logf("%s", out)
		return ""
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// eat fills a file system but for some octets.
func eat(t *testing.T, disk string, leave int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "other"))
	if err != nil {
		t.Fatal(err)
	}
	b, n := make([]byte, 4096), int64(0)
	for err == nil {
		_, err = f.Write(b)
		n += int64(len(b))
	}
	if err := f.Truncate(max(0, n-leave)); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// crowded makes a spool with many messages and few free pages.
func crowded(t *testing.T, dir string) (*queue.Bolt, []mail.MessageID) {
	t.Helper()
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []mail.MessageID
	for range 4000 {
		id, err := put(t, s, strings.Repeat("x", 2000))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if _, _, err := s.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, ids
}

// retried notes one more attempt at a message.
func retried(t *testing.T, s queue.Store, id mail.MessageID) error {
	out, err := s.Apply(t.Context(), []queue.Change{{ID: id.Envelope(1), Attempt: queue.AnyAttempt, Edit: func(e *mail.Envelope) queue.Verdict {
		e.Retry++
		return queue.Verdict{}
	}}})
	if err == nil {
		err = out[0].Err
	}
	return err
}

// TestNoRoomForLog: where the log does not fit, mail is taken all the same.
func TestNoRoomForLog(t *testing.T) {
	disk := smallDisk(t)
	if disk == "" {
		return
	}
	eat(t, disk, 5<<20)
	dir := filepath.Join(disk, "q")
	os.Mkdir(dir, 0o700)
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := range 200 {
		if _, err := put(t, s, strings.Repeat("x", 4000)); err != nil {
			t.Fatalf("mail %d: %v", n, err)
		}
	}
}

// TestFullWithLog: on a full disk, with a full log and the reserve gone, what there
// is can be changed and removed.
func TestFullWithLog(t *testing.T) {
	disk := smallDisk(t)
	if disk == "" {
		return
	}
	dir := filepath.Join(disk, "q")
	os.Mkdir(dir, 0o700)
	s, ids := crowded(t, dir)
	defer s.Close()
	os.Remove(filepath.Join(dir, "reserve"))
	eat(t, disk, 100_000)
	for range 3 {
		for i := range ids { // far apart, so that each touches a page of its own
			if err := retried(t, s, ids[i*1013%len(ids)]); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
		}
	}
	for i, id := range ids {
		if err := remove(t, s, id); err != nil {
			t.Fatalf("removing %d: %v", i, err)
		}
	}
}

// TestOpenFull: a spool that was killed with much in its log opens on a disk
// that has become full, and has it all.
func TestOpenFull(t *testing.T) {
	disk := smallDisk(t)
	if disk == "" {
		return
	}
	dir := t.TempDir()
	s, ids := crowded(t, dir)
	tried := ids[:1400]
	for _, id := range tried {
		if err := retried(t, s, id); err != nil {
			t.Fatal(err)
		}
	}
	killed := filepath.Join(disk, "q")
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", dir, killed).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.Close()
	os.Remove(filepath.Join(killed, "reserve"))
	eat(t, disk, 300_000)
	s, err := queue.Open(killed, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, id := range tried {
		if e, err := s.Load(id.Envelope(1)); err != nil || e.Retry != 1 {
			t.Fatalf("%d: tried %d times, %v", i, e.Retry, err)
		}
	}
	if err := remove(t, s, ids[7]); err != nil {
		t.Error(err)
	}
}
