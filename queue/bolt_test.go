package queue_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpd/queue"
	"smtpd/queue/queuetest"
)

var variants = map[string]queue.Options{
	"plain":      {},
	"compressed": {Compress: true},
	"sealed":     {Key: []byte("0123456789abcdef0123456789abcdef")},
	"both":       {Key: []byte("0123456789abcdef0123456789abcdef"), Compress: true},
}

// smallLog is the size of logs where none else is asked for.
const smallLog = 256 << 10

func open(t *testing.T, dir string, o queue.Options) *queue.Bolt {
	t.Helper()
	if o.LogSize == 0 {
		o.LogSize = smallLog
	}
	o.Moved = func(m queue.Moved) { t.Errorf("moved aside: %+v", m) }
	s, err := queue.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBolt(t *testing.T) {
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			queuetest.TestStore(t, func(t *testing.T) queue.Store { return open(t, t.TempDir(), o) })
			dir := t.TempDir()
			t.Run("reopen", func(t *testing.T) {
				queuetest.TestReopen(t, func(t *testing.T) queue.Store { return open(t, dir, o) })
			})
		})
	}
}

// TestSealed: nothing of a mail is to be seen in a sealed spool.
func TestSealed(t *testing.T) {
	dir := t.TempDir()
	queuetest.TestReopen(t, func(t *testing.T) queue.Store { return open(t, dir, variants["both"]) })
	filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(name)
		for _, s := range []string{"alice", "example.org", "a line of", "small"} {
			if strings.Contains(string(b), s) {
				t.Errorf("%s shows %q", name, s)
			}
		}
		return err
	})
}

// TestUpgrade: a spool of the first format keeps its mail and becomes one of
// ours, which that smtpd refuses.
func TestUpgrade(t *testing.T) {
	dir := t.TempDir()
	queuetest.TestReopen(t, func(t *testing.T) queue.Store { return open(t, dir, queue.Options{}) })
	setMeta(t, dir, "format", []byte{0, 0, 0, 1})
	s := open(t, dir, queue.Options{})
	all, err := queuetest.All(s, 10)
	if err != nil || len(all) != 2 {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
	for _, e := range all {
		if _, err := queuetest.Read(s, e.ID.Message()); err != nil {
			t.Error(err)
		}
	}
	s.Close()
	b, err := os.ReadFile(filepath.Join(dir, "queue.db"))
	if err != nil || !strings.Contains(string(b), "format\x00\x00\x00\x03") {
		t.Errorf("its format is not 3 now: %v", err)
	}
}
