package main

import (
	"bytes"
	"context"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the program that becomes another user.
func TestMain(m *testing.M) {
	if os.Args[0] == name {
		main()
	}
	os.Exit(m.Run())
}

const text = "Subject: x\n\nFrom me\n"

func call(spool string, args ...string) (int, string) {
	var stderr bytes.Buffer
	env := func(k string) string { return map[string]string{spoolVar: spool}[k] }
	status := run(context.Background(), args, env, strings.NewReader(text), &stderr)
	return status, stderr.String()
}

func TestRun(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Skip("this user has no account")
	}
	spool := t.TempDir()
	if status, stderr := call(spool, "-f", "a@b.org", me.Username); status != 0 || stderr != "" {
		t.Fatalf("status %d, %q", status, stderr)
	}
	if status, stderr := call(spool, "-f", "MAILER-DAEMON", me.Username); status != 0 || stderr != "" {
		t.Fatalf("status %d, %q", status, stderr)
	}
	if status, stderr := call(spool, me.Username); status != 0 || stderr != "" {
		t.Fatalf("status %d, %q", status, stderr)
	}
	b, err := os.ReadFile(spool + "/" + me.Username)
	if err != nil {
		t.Fatal(err)
	}
	var from []string
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.HasPrefix(line, "From ") {
			from = append(from, strings.Fields(line)[1])
		}
	}
	if strings.Join(from, " ") != "a@b.org MAILER-DAEMON "+me.Username || strings.Count(string(b), "Subject: x\n\n>From me\n\n") != 3 {
		t.Errorf("got %q", b)
	}
	tests := []struct {
		args   []string
		status int
		stderr string
	}{
		{nil, 64, "usage: mail.local [-f from] user ...\n"},
		{[]string{"no such user"}, 67, "mail.local: no such user: no such user\n"},
	}
	for _, tt := range tests {
		if status, stderr := call(spool, tt.args...); status != tt.status || stderr != tt.stderr {
			t.Errorf("%q: status %d, %q", tt.args, status, stderr)
		}
	}
	if err := os.Chmod(spool, 0o777); err != nil {
		t.Fatal(err)
	}
	if status, stderr := call(spool, me.Username); status != 75 || !strings.Contains(stderr, "world-writable") {
		t.Errorf("status %d, %q", status, stderr)
	}
}

// TestRootDelivers has root deliver to another user, in whose name, and in the
// group of the spool, the mailbox is made.
func TestRootDelivers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes another user")
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("no user nobody")
	}
	spool, err := os.MkdirTemp("/tmp", "mail.local")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(spool)
	const group = 12345
	if err := os.Chown(spool, 0, group); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(spool, os.ModeSetgid|0o775); err != nil {
		t.Fatal(err)
	}
	if status, stderr := call(spool, "-f", "a@b", "nobody"); status != 0 || stderr != "" {
		t.Fatalf("status %d, %q", status, stderr)
	}
	st, err := os.Stat(spool + "/nobody")
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	if strconv.Itoa(int(sys.Uid)) != u.Uid || sys.Gid != group || st.Mode() != 0o600 {
		t.Errorf("owner %d:%d, mode %v", sys.Uid, sys.Gid, st.Mode())
	}
	if err := os.Chmod(spool, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Remove(spool + "/nobody")
	if status, stderr := call(spool, "nobody"); status != 75 || !strings.HasPrefix(stderr, "mail.local: ") {
		t.Errorf("where only root may: status %d, %q", status, stderr)
	}
}
