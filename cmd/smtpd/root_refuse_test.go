package main

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// TestRootRefuses: what an installation can have wrong is said in one line, with
// status 1, and changes nothing on disk.
func TestRootRefuses(t *testing.T) {
	if !asRoot(t) {
		return
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "smtpd.conf")
	must(t, os.WriteFile(conf, []byte(rootConf), 0o644))
	spool := "/var/spool/smtpd"
	// A spool as a daemon leaves it.
	if err := startRoot(t, rootConf).stop(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(spool, "queue", "queue.db")
	tests := []struct {
		name  string
		spoil func()
		mend  func()
		want  string
		args  []string
	}{
		{name: "unreadable configuration", args: []string{"-f", filepath.Join(dir, "nosuch.conf")}, want: "nosuch.conf"},
		{name: "spool of the wrong owner",
			spoil: func() { must(t, os.Chown(spool, 12345, 0)) }, mend: func() { must(t, os.Chown(spool, 0, 0)) },
			want: "belongs to uid 12345"},
		{name: "spool that others may write",
			spoil: func() { must(t, os.Chmod(spool, 0o777)) }, mend: func() { must(t, os.Chmod(spool, 0o711)) },
			want: "may be written by others"},
		{name: "queue of the wrong owner",
			spoil: func() { must(t, os.Chown(filepath.Dir(db), 12345, 0)) },
			mend:  func() { must(t, exec.Command("chown", "_smtpq", filepath.Dir(db)).Run()) },
			want:  "belongs to uid 12345"},
		{name: "newer format", spoil: func() { setFormat(t, db, 99) }, mend: func() { setFormat(t, db, 1) /* an older one is upgraded */ },
			want: "format 99 is newer"},
		{name: "no such user", spoil: func() { renameUser(t, "_smtpq", "_gone") }, mend: func() { renameUser(t, "_gone", "_smtpq") },
			want: "user _smtpq does not exist"},
		{name: "a folder in place of the socket", args: []string{"-s", dir}, want: "is no socket"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.spoil != nil {
				tt.spoil()
				defer tt.mend()
			}
			before := listing(t)
			args := append([]string{"-d", "-f", conf}, tt.args...)
			cmd := exec.Command(filepath.Join(bins, "smtpd"), args...)
			out, err := cmd.CombinedOutput()
			var said []string
			for line := range strings.Lines(string(out)) {
				// What is said of the configuration, which may come first, is no refusal.
				if !strings.Contains(line, "warning:") && !strings.HasPrefix(line, "info:") &&
					!strings.HasPrefix(line, "warn: root has no alias") {
					said = append(said, strings.TrimSpace(line))
				}
			}
			if err == nil || cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("status %v, want 1", err)
			}
			if len(said) != 1 || !strings.Contains(said[0], tt.want) {
				t.Errorf("said %q, want one line with %q", said, tt.want)
			}
			if after := listing(t); after != before {
				t.Errorf("changed on disk:\nbefore\n%s\nafter\n%s", before, after)
			}
		})
	}
	// And after all that it starts.
	if err := startRoot(t, rootConf).stop(); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing is what find says of spool and socket: names, owners, modes, sizes,
// times of change.
func listing(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("find", "/var/spool/smtpd", "/run", "-printf", "%p %u %m %s %t\n").Output()
	must(t, err)
	lines := strings.Split(string(out), "\n")
	for i, l := range lines { // making and removing the socket touches its folder
		if strings.HasPrefix(l, "/run ") {
			lines[i] = "/run"
		}
	}
	return strings.Join(lines, "\n")
}

func setFormat(t *testing.T, path string, format uint32) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	must(t, err)
	defer db.Close()
	must(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("format"), binary.BigEndian.AppendUint32(nil, format))
	}))
}

func renameUser(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile("/etc/passwd")
	must(t, err)
	must(t, os.WriteFile("/etc/passwd", []byte(strings.Replace(string(b), "\n"+from+":", "\n"+to+":", 1)), 0o644))
}
