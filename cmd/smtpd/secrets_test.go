package main

import (
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// otherSecrets are passwords of the tests beside secretOf: wrong ones, those of
// scripts, of databases, of other suites here.
var otherSecrets = []string{"Wrong-Sesame-000", "Sesame", "PassWord"}

// leaks collects what the daemons of the whole suite wrote down that they must
// not: their logs and traces are read line by line as they come.
type leaks struct {
	once  sync.Once
	forms []string // of every password

	mu    sync.Mutex
	found []string
}

var theLeaks leaks

// maxLeaks is enough to find the reason.
const maxLeaks = 20

// secretForms are the ways in which a password may be written: as it is, in
// small letters unless that is a word of the log, and within any base64.
func secretForms() []string {
	all := slices.Clone(otherSecrets)
	for _, p := range secretOf {
		all = append(all, p)
	}
	var forms []string
	for _, p := range all {
		forms = append(forms, p)
		if strings.Contains(p, "Sesame") {
			forms = append(forms, strings.ToLower(p))
		}
		for shift := range 3 { // where it stands in the groups of three octets
			whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + p))
			from, to := (shift*8+5)/6, (shift+len(p))*8/6 // characters that no neighbour has a bit of
			if to-from >= 6 {
				forms = append(forms, whole[from:to])
			}
		}
	}
	return forms
}

// look reads one line of a log.
func (l *leaks) look(line string) {
	l.once.Do(func() { l.forms = secretForms() })
	for _, f := range l.forms {
		if i := strings.Index(line, f); i >= 0 {
			l.mu.Lock()
			if len(l.found) < maxLeaks {
				l.found = append(l.found, line[max(0, i-100):min(len(line), i+100)])
			}
			l.mu.Unlock()
			return
		}
	}
}

// report is the exit status of the suite as far as it is about secrets: no log
// may hold one, and there may be no core file, which would hold them all.
func (l *leaks) report() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range l.found {
		fmt.Printf("a secret was written down: %q\n", text)
	}
	cores := 0
	_ = filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && (e.Name() == "core" || strings.HasPrefix(e.Name(), "core.")) {
			fmt.Println("a core file:", path)
			cores++
		}
		return nil
	})
	return min(len(l.found)+cores, 1)
}

// TestLeaksAreFound: the grep over all logs finds what it looks for.
func TestLeaksAreFound(t *testing.T) {
	for _, p := range append(slices.Clone(otherSecrets), secretOf["scram"], strings.ToLower(secretOf["bcrypt"])) {
		for _, before := range []string{"", "a", "\x00alice\x00", "\x00bob\x00"} {
			for _, text := range []string{before + p, base64.StdEncoding.EncodeToString([]byte(before + p))} {
				if strings.Contains(text, "blow") || strings.HasPrefix(p, "blow") {
					text = before + p // small letters are looked for as they are only
				}
				var l leaks
				if l.look("smtp dialogue client=" + text); len(l.found) != 1 {
					t.Errorf("%q was not found in %q", p, text)
				}
			}
		}
	}
	var l leaks
	if l.look(`smtp dialogue client="AUTH PLAIN ********"`); len(l.found) != 0 {
		t.Errorf("found %q", l.found)
	}
}

// noCores checks that a process may not leave a core file.
func noCores(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (len(f) < 6 || f[4] != "0" || f[5] != "0") {
			t.Errorf("process %d: %s", pid, strings.TrimSpace(line))
		}
	}
}
