package parent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/log"
)

// What a sendmail that was cut short has left goes after a day, and the log says
// so; what one may still be writing stays.
func TestUnfinishedOffline(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	spool := t.TempDir()
	dir := offlineDir(spool)
	check(t, os.MkdirAll(filepath.Join(dir, ".folder"), 0o700))
	for name, age := range map[string]time.Duration{".1.old": unfinishedAge, ".2.new": unfinishedAge - time.Second, ".folder": 9 * unfinishedAge} {
		path := filepath.Join(dir, name)
		if name != ".folder" {
			check(t, os.WriteFile(path, []byte("bob\nhalf a ma"), 0o600))
		}
		check(t, os.Chtimes(path, now, now.Add(-age)))
	}
	var said bytes.Buffer
	p := &parent{o: Options{Spool: spool, Smtpctl: "/nonexistent", Now: func() time.Time { return now }}, log: log.New(&said, log.FormPlain)}
	p.resubmit()
	p.tasks.Wait()
	var left []string
	names, err := os.ReadDir(dir)
	check(t, err)
	for _, n := range names {
		left = append(left, n.Name())
	}
	if got, want := strings.Join(left, " "), ".2.new .folder"; got != want {
		t.Errorf("left: %s; want %s", got, want)
	}
	if got, want := said.String(), "warn: offline mail .1.old removed: the sendmail that began it has never ended it\n"; got != want {
		t.Errorf("said %q; want %q", got, want)
	}
}
