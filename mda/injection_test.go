package mda

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smtpd/internal/mail"
)

// hostileWords are what values are made of: all that a shell, a format, a path or
// a mailbox could take for something of its own.
var hostileWords = []string{";", "|", "&", "$", "`", "(", ")", "<", ">", "\"", "'", "\\", "*", "?", "[", "]", "#", "~", "=", "%", "%{", "%{sender}",
	"{", "}", "!", "^", "-", "--", " ", "\t", "\n", "\r", "\x01", "\x7f", "$(touch hacked)", "`touch hacked`", ";touch hacked;", "\ntouch hacked\n",
	"é", "\xff", "a", "/", "//", "..", "../", "/../", "/etc/passwd", ".", "+", "From "}

// hostile is a random value; one in ten is 4 KB long.
func hostile() string {
	var s strings.Builder
	for range 1 + rand.IntN(12) {
		s.WriteString(hostileWords[rand.IntN(len(hostileWords))])
	}
	if rand.IntN(10) == 0 {
		s.WriteString(strings.Repeat("x", 4096))
	}
	return s.String()
}

// hostileExample is a delivery whose addresses and tag are hostile; the name of
// the user and the home come from the system.
func hostileExample(t *testing.T, m Method) *Delivery {
	v := example(t, m)
	v.ID = mail.EnvelopeID(rand.Uint64())
	v.Sender = mail.Address{User: hostile(), Domain: hostile()}
	v.Rcpt = mail.Address{User: hostile(), Domain: hostile()}
	v.Dest = mail.Address{User: hostile() + "+" + hostile(), Domain: hostile()}
	if rand.IntN(2) == 0 {
		v.SubAddr = hostile()
	}
	return v
}

// TestInjectionEnvironment checks what a command finds in its environment,
// through /bin/sh and through a wrapper: each value as it is, and no other
// variable.
func TestInjectionEnvironment(t *testing.T) {
	for range 40 {
		d, v := newDeliverer(t, nil), hostileExample(t, Command)
		v.Command = "/usr/bin/env -0 >env; cat >/dev/null"
		if rand.IntN(2) == 0 {
			v.Wrapper = "umask 077; { %{mda}; }"
		}
		mustDeliver(t, d, v)
		tag := v.SubAddr
		if tag == "" {
			_, tag = v.Dest.SplitTag(v.Delim)
		}
		want := []string{"PATH=/usr/bin:/bin", "SHELL=/bin/sh", "HOME=" + v.Home, "USER=alice", "LOGNAME=alice",
			"DOMAIN=" + v.Rcpt.Domain, "LOCAL=" + v.Rcpt.User, "ORIGINAL_RECIPIENT=" + v.Rcpt.String(), "RECIPIENT=" + v.Dest.String(),
			"SENDER=" + v.Sender.String()}
		if tag != "" {
			want = append(want, "EXTENSION="+tag)
		}
		var got []string
		for _, line := range strings.Split(strings.TrimRight(content(t, v.Home, "env"), "\x00"), "\x00") {
			if name, _, _ := strings.Cut(line, "="); !slices.Contains([]string{"_", "PWD", "OLDPWD", "SHLVL"}, name) { // of the shell's own
				got = append(got, line)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("environment\n%q; want\n%q", got, want)
		}
		if exists(v.Home + "/hacked") {
			t.Fatalf("a value was run: %q %q %q", v.Sender, v.Rcpt, v.Dest)
		}
	}
}

// TestInjectionCommand checks the words of a command line, in a wrapper too: a
// format is one word of the line whatever its value, and the format's own
// punctuation is all that the shell acts on.
func TestInjectionCommand(t *testing.T) {
	ran, long := 0, 0
	for range 60 {
		d, v := newDeliverer(t, nil), hostileExample(t, Command)
		v.Command = `set -f; set -- "x%{sender}" "x%{rcpt}" "x%{dest.user}" "x%{dest.domain:uppercase}"; cat >/dev/null; echo $# >words; printf '%%s\0' "$@" >args`
		if rand.IntN(2) == 0 {
			v.Wrapper = "set -e; %{mda}; echo x%{rcpt.domain} >/dev/null"
		}
		r := d.Deliver(context.Background(), v)
		if r.Status.Code == 550 && strings.Contains(r.Line, "too long") {
			long++
			continue // never cut: a command with half an address is another command
		}
		if !r.Status.OK() {
			t.Fatalf("%q %q %q: %+v", v.Sender, v.Rcpt, v.Dest, r)
		}
		ran++
		if got := content(t, v.Home, "words"); got != "4\n" {
			t.Fatalf("%q %q %q: %s words", v.Sender, v.Rcpt, v.Dest, got)
		}
		var want strings.Builder
		for _, f := range []string{"x%{sender}", "x%{rcpt}", "x%{dest.user}", "x%{dest.domain:uppercase}"} {
			s, err := v.expand(f, useCommand)
			if err != nil {
				t.Fatal(err)
			}
			want.WriteString(s + "\x00")
		}
		if got := content(t, v.Home, "args"); got != want.String() {
			t.Fatalf("%q %q %q: words %q; want %q", v.Sender, v.Rcpt, v.Dest, got, want.String())
		}
		if exists(v.Home + "/hacked") {
			t.Fatalf("a value was run: %q %q %q", v.Sender, v.Rcpt, v.Dest)
		}
	}
	if ran == 0 || long == 0 {
		t.Errorf("%d ran, %d were too long", ran, long)
	}
}

// TestInjectionPath delivers to Maildirs and files whose paths hold hostile
// values and tags: whatever comes of it lies below the folder that the format
// begins with.
func TestInjectionPath(t *testing.T) {
	formats := map[Method][]string{
		Maildir: {"", "~/m/%{dest.user}", "~/m/%{rcpt.domain}/%{rcpt.user:lowercase}", "~/m/%{sender:strip}", "~/m/x%{dest:raw}y", "~/m/%{dest.user:raw}"},
		File:    {"~/m/%{dest.user}", "~/m/%{sender}.box"},
	}
	delivered := 0
	for i := range 120 {
		m := []Method{Maildir, Maildir, File}[i%3]
		top := t.TempDir()
		v := hostileExample(t, m)
		v.Home = top + "/home"
		for _, dir := range []string{"/home/m", "/home/Maildir/.a", "/home/Maildir/cur", "/home/Maildir/new", "/home/Maildir/tmp"} {
			if err := os.MkdirAll(top+dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		v.Path = formats[m][rand.IntN(len(formats[m]))]
		base := top + "/home/m/"
		if v.Path == "" {
			base = top + "/home/Maildir/"
		}
		if r := newDeliverer(t, nil).Deliver(context.Background(), v); r.Status.OK() {
			delivered++
		}
		err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && !strings.HasPrefix(path, base) {
				err = fmt.Errorf("%s is not below %s", path, base)
			}
			return err
		})
		if err != nil {
			t.Fatalf("%s, sender %q, rcpt %q, dest %q, tag %q: %v", v.Path, v.Sender, v.Rcpt, v.Dest, v.SubAddr, err)
		}
	}
	if delivered == 0 {
		t.Error("nothing was delivered")
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
