package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	tests := map[string]struct {
		args   []string
		env    map[string]string
		text   string
		folder string // below home; empty: fails
		status int
		stderr string
	}{
		"default":   {folder: "Maildir/new"},
		"path":      {args: []string{"HOME/a%{b}"}, folder: "a%{b}/new"},
		"junk":      {args: []string{"-j"}, text: "X-Spam: yes\n\n", folder: "Maildir/.Junk/new"},
		"extension": {env: map[string]string{"EXTENSION": "lists"}, folder: "Maildir/.lists/new"},
		"usage":     {args: []string{"a", "b"}, status: 64, stderr: "usage: mail.maildir [-j] [path]\n"},
		"option":    {args: []string{"-x"}, status: 64, stderr: "usage: "},
		"no folder": {args: []string{"/dev/null/x"}, status: 75, stderr: "mail.maildir: /dev/null/x: Not a directory\n"},
		"no home":   {env: map[string]string{"HOME": "-"}, status: 75, stderr: "mail.maildir: the user has no home folder\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			if err := os.MkdirAll(home+"/Maildir/.lists", 0o700); err != nil {
				t.Fatal(err)
			}
			env := func(k string) string {
				if v, ok := tt.env[k]; ok {
					return v
				}
				return map[string]string{"HOME": home, "USER": "alice"}[k]
			}
			for i, a := range tt.args {
				tt.args[i] = strings.ReplaceAll(a, "HOME", home)
			}
			var stderr bytes.Buffer
			text := tt.text + "Subject: x\n\nhello\n"
			got := run(context.Background(), tt.args, env, strings.NewReader(text), &stderr)
			if got != tt.status || !strings.HasPrefix(stderr.String(), tt.stderr) || (tt.stderr == "" && stderr.Len() > 0) {
				t.Fatalf("status %d, %q", got, stderr.String())
			}
			if tt.folder == "" {
				return
			}
			files, _ := filepath.Glob(filepath.Join(home, tt.folder, "*"))
			if len(files) != 1 {
				t.Fatalf("files: %v", files)
			}
			if b, err := os.ReadFile(files[0]); string(b) != text {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}
