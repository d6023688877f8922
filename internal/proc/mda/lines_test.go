package mda

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/log"
)

// writes counts the calls of Write.
type writes struct {
	mu   sync.Mutex
	list []string
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, string(p))
	return len(p), nil
}

func (w *writes) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

// TestLinesGather: a line that comes alone waits for nothing; those behind it
// are written together, and none is left.
func TestLinesGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &writes{}
		l := newLines(log.New(w, log.FormPlain))
		print := func(b *log.Batch) { b.Event(1, "mda delivery") }
		l.add(print)
		if got := w.all(); len(got) != 1 {
			t.Fatalf("got %q; want the first line at once", got)
		}
		for range 3 {
			l.add(print)
		}
		if got := w.all(); len(got) != 1 {
			t.Errorf("got %q; want the others to wait", got)
		}
		synctest.Wait()
		<-time.After(2 * gatherTime)
		if got := w.all(); len(got) != 2 || strings.Count(got[1], "mda delivery\n") != 3 {
			t.Errorf("got %q; want three lines in the second write", got)
		}
	})
}
