package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	t.Chdir(t.TempDir())
	env := func(k string) string { return map[string]string{"USER": "alice", "SENDER": "a@b"}[k] }
	for i, args := range [][]string{{"box"}, {"-f", "x@y", "box"}} {
		var stderr bytes.Buffer
		if got := run(context.Background(), args, env, strings.NewReader("Subject: x\n\nFrom me\n"), &stderr); got != 0 || stderr.Len() > 0 {
			t.Fatalf("%d: status %d, %q", i, got, stderr.String())
		}
	}
	b, err := os.ReadFile("box")
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); !strings.HasPrefix(s, "From a@b ") || strings.Count(s, "Subject: x\n\n>From me\n\n") != 2 || !strings.Contains(s, "\nFrom x@y ") {
		t.Errorf("got %q", s)
	}
	for _, tt := range []struct {
		args   []string
		status int
		stderr string
	}{
		{nil, 64, "usage: mail.mboxfile [-f from] file\n"},
		{[]string{"/dev/null/x"}, 75, "mail.mboxfile: Not a directory\n"},
	} {
		var stderr bytes.Buffer
		if got := run(context.Background(), tt.args, env, strings.NewReader("x\n"), &stderr); got != tt.status || stderr.String() != tt.stderr {
			t.Errorf("%q: status %d, %q", tt.args, got, stderr.String())
		}
	}
}
