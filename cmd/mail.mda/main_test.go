package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{"USER": "alice", "HOME": home, "SENDER": "a@b", "RECIPIENT": "alice-tag@c", "EXTENSION": "tag",
		"LOCAL": "team", "DOMAIN": "c"}
	tests := map[string]struct {
		args   []string
		status int
		stderr string
	}{
		"ok":          {args: []string{"cat >got; date +%s >/dev/null; echo $USER $SENDER $RECIPIENT $EXTENSION $LOCAL $DOMAIN >env"}},
		"status":      {args: []string{"echo no such thing; exit 3"}, status: 3, stderr: "mail.mda: no such thing\n"},
		"try later":   {args: []string{"exit 75"}, status: 75, stderr: "mail.mda: exited abnormally\n"},
		"killed":      {args: []string{"kill -9 $$"}, status: 75, stderr: "mail.mda: terminated; signal 9\n"},
		"no command":  {status: 64, stderr: "usage: mail.mda command\n"},
		"a blank":     {args: []string{" "}, status: 64, stderr: "usage: mail.mda command\n"},
		"two of them": {args: []string{"a", "b"}, status: 64, stderr: "usage: mail.mda command\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			got := run(context.Background(), tt.args, func(k string) string { return env[k] }, strings.NewReader("Subject: x\n\n"), &stderr)
			if got != tt.status || stderr.String() != tt.stderr {
				t.Errorf("status %d, %q", got, stderr.String())
			}
		})
	}
	for file, want := range map[string]string{"got": "Subject: x\n\n", "env": "alice a@b alice-tag@c tag team c\n"} {
		if b, err := os.ReadFile(home + "/" + file); string(b) != want {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	}
}
