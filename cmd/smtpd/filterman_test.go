package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// examples are the programs in the manual page, by their first line.
func examples(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "internal", "filter", "smtpd-filters.7"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, part := range strings.Split(string(b), ".Bd -literal\n")[1:] {
		text, _, _ := strings.Cut(part, ".Ed\n")
		text = strings.ReplaceAll(text, `\e`, `\`)
		first, _, _ := strings.Cut(text, "\n")
		found[first] = text
	}
	return found
}

// The examples of smtpd-filters(7) do what the page says.
func TestFilterExamples(t *testing.T) {
	programs := examples(t)
	dir := t.TempDir()
	conf, names := "", []string{}
	for name, first := range map[string]string{"sh": "#!/bin/sh", "python3": "#!/usr/bin/env python3"} {
		text := programs[first]
		if text == "" {
			t.Fatalf("the manual page has no example for %s", name)
		}
		if _, err := exec.LookPath(name); err != nil {
			t.Logf("%s is not installed: its example is not run", name)
			continue
		}
		path := filepath.Join(dir, name+".filter")
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		interpreter, err := exec.Command(name, "-c", map[string]string{"sh": "command -v sh",
			"python3": "import sys; print(sys.executable)"}[name]).Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/usr/bin/" + name); err == nil {
			interpreter = []byte("/usr/bin/" + name) // one that the daemon's user may run
		}
		conf += fmt.Sprintf("filter \"%s\" proc-exec \"%s %s\"\n", name, strings.TrimSpace(string(interpreter)), path)
		names = append(names, `"`+name+`"`)
	}
	conf += "filter \"f\" chain { " + strings.Join(names, ", ") + " }\n" + strings.SplitN(oneFilterConf, "\n", 3)[2]
	_, addr := filterDaemon(t, dir, conf)
	tests := map[string]struct{ sender, body, want string }{
		"clean":      {"a@b.org", "Subject: hello\r\n\r\n..dot", "250"},
		"bad sender": {"bad@b.org", "Subject: hello\r\n\r\nx", "550 5.7.1 not you"},
		"watches":    {"a@b.org", "Subject: hello\r\n\r\nbuy cheap watches", "550 5.7.1 no watches"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if strings.HasPrefix(tt.want, "550 5.7.1 no watches") && !strings.Contains(conf, "python3") {
				return
			}
			reply, err := mailer(addr, tt.sender, tt.body)
			if err != nil || !strings.HasPrefix(reply, tt.want) {
				t.Errorf("%q, %v; want %q", reply, err, tt.want)
			}
		})
	}
}
