package mda

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

func TestCommand(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde\n"), 20000)
	tests := map[string]struct {
		command string
		change  func(*Delivery)
		code    int
		line    string
		stat    string
		exit    int
	}{
		"ok":            {command: "cat >/dev/null", code: 250, stat: "Delivered"},
		"input left":    {command: "exit 0", code: 250, stat: "Delivered"},
		"much left":     {command: "exit 0", change: func(v *Delivery) { v.Text.Data = big }, code: 451, line: "mda exited prematurely", stat: "Error (mda exited prematurely)", exit: 75},
		"much consumed": {command: "cat >/dev/null", change: func(v *Delivery) { v.Text.Data = big }, code: 250, stat: "Delivered"},
		"os error":      {command: "exit 71", code: 451, line: "exited abnormally", stat: "Error (system resource problem: exited abnormally)", exit: 71},
		"try later":     {command: "echo full >&2; exit 75", code: 451, line: `"full"`, stat: `Error (temporary failure: "full")`, exit: 75},
		"refused":       {command: "echo one; echo no such thing; echo; exit 1", code: 550, line: `"no such thing"`, stat: `Error ("no such thing")`, exit: 1},
		"no output":     {command: "exit 77", code: 550, line: "exited abnormally", stat: "Error (permission denied: exited abnormally)", exit: 77},
		"not found":     {command: "/nonexistent/x", code: 550, line: "not found", exit: 127},
		"killed":        {command: "kill -9 $$", code: 451, line: "terminated; signal 9", stat: "Error (terminated; signal 9)", exit: 75},
		"strange words": {command: `printf 'a\033[1mb\200\n'; exit 1`, code: 550, line: `"a\^[[1mb\M^@"`, exit: 1},
		"long words":    {command: "head -c 100000 /dev/zero | tr '\\0' x; exit 1", code: 550, line: strings.Repeat("x", 200), exit: 1},
		"background":    {command: "sleep 5 & exit 3", code: 550, line: "exited abnormally", exit: 3},
		"wrapper": {command: "echo %{user.username}", change: func(v *Delivery) { v.Wrapper = "%{mda} wrapped by %{dest.user}; exit 1" },
			code: 550, line: `"alice wrapped by alice"`, exit: 1},
		"format too long": {command: "%{sender}", change: func(v *Delivery) { v.Sender.User = strings.Repeat("x", 2000) },
			code: 550, line: "command line could not be expanded: result too long", exit: 69},
		"format beyond": {command: "%{sender[500]}", code: 451, line: "command line could not be expanded: range beyond the value", exit: 75},
		"broken format": {command: "date +%{x", code: 451, line: "command line could not be expanded: ", exit: 75},
		"NUL":           {command: "a\x00b", code: 550, line: "NUL", exit: 69},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, v := newDeliverer(t, nil), example(t, Command)
			v.Command = tt.command
			if tt.change != nil {
				tt.change(v)
			}
			r := deliver(t, d, v)
			if r.Status.Code != tt.code || !strings.Contains(r.Line, tt.line) || (tt.stat != "" && r.Stat != tt.stat) || r.Exit != tt.exit {
				t.Errorf("got %+v", r)
			}
			if len(r.Line) > maxLine+2 {
				t.Errorf("line of %d octets", len(r.Line))
			}
		})
	}
}

func TestCommandInput(t *testing.T) {
	for _, size := range []int{0, 10, 4096, 65536, 70000, 1 << 20} {
		for _, file := range []bool{false, true} {
			d, v := newDeliverer(t, nil), example(t, Pipe)
			text := bytes.Repeat([]byte{'x'}, size)
			v.Text = Text{Data: text}
			if file {
				v.Text = Text{File: bytes.NewReader(text), Size: int64(size)}
			}
			v.Command = "cat >got"
			mustDeliver(t, d, v)
			if got := content(t, v.Home, "got"); got != exampleFront+string(text) {
				t.Errorf("%d octets, file %v: got %d", size, file, len(got))
			}
		}
	}
}

func TestCommandSurroundings(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Command)
	v.Dest.User = "alice+lists"
	t.Setenv("SECRET", "x")
	out := t.TempDir()
	v.Command = "cat >/dev/null; /usr/bin/env | sort >env; pwd >cwd; ls -l /proc/self/fd >fds 2>/dev/null; ps -o sid= -p $$ >sid; echo $$ >pid"
	mustDeliver(t, d, v)
	want := []string{"DOMAIN=md.test", "EXTENSION=lists", "HOME=" + v.Home, "LOCAL=team", "LOGNAME=alice", "ORIGINAL_RECIPIENT=team@md.test",
		"PATH=/usr/bin:/bin", "PWD=" + v.Home, "RECIPIENT=alice+lists@md.test", "SENDER=a@b.org", "SHELL=/bin/sh", "USER=alice"}
	var got []string
	for _, line := range strings.Fields(content(t, v.Home, "env")) {
		if !strings.HasPrefix(line, "_=") && !strings.HasPrefix(line, "OLDPWD") && !strings.HasPrefix(line, "SHLVL") { // of the shell's own
			got = append(got, line)
		}
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("environment %q; want %q", got, want)
	}
	if cwd := content(t, v.Home, "cwd"); cwd != v.Home+"\n" {
		t.Errorf("runs in %q", cwd)
	}
	if sid, pid := content(t, v.Home, "sid"), content(t, v.Home, "pid"); sid != "" && strings.TrimSpace(sid) != strings.TrimSpace(pid) {
		t.Errorf("session %q of process %q", sid, pid)
	}
	// Nothing but what every process started from here would have.
	plain := exec.Command(shell, "-c", "ls -l /proc/self/fd >fds 2>/dev/null")
	plain.Dir = out
	if err := plain.Run(); err == nil {
		if got, want := content(t, v.Home, "fds"), content(t, out, "fds"); strings.Count(got, "->") != strings.Count(want, "->") {
			t.Errorf("descriptors:\n%s\nwant:\n%s", got, want)
		}
	}
	v.Home, v.Sender = v.Home+"/none", mail.Address{}
	v.Command = "pwd >" + out + "/cwd; echo ${SENDER-unset} >" + out + "/sender"
	mustDeliver(t, d, v)
	if got := content(t, out, "cwd") + content(t, out, "sender"); got != "/\n\n" {
		t.Errorf("without a home, null sender: %q", got)
	}
}

// timeUp is a context whose time is up when end is called, not on a clock that a
// busy machine is late for.
type timeUp struct {
	context.Context
	end context.CancelFunc
}

func newTimeUp(t *testing.T) timeUp {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return timeUp{ctx, cancel}
}

func (c timeUp) Err() error {
	if c.Context.Err() == nil {
		return nil
	}
	return context.DeadlineExceeded
}

func TestCommandTimeout(t *testing.T) {
	for _, command := range []string{"%s; sleep 60", "trap '' TERM; %s; while :; do sleep 0.05; done", "trap 'exit 0' TERM; %s; sleep 60 & wait"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			d, v := newDeliverer(t, nil), example(t, Command)
			v.Command = fmt.Sprintf(command, "echo x >started")
			if err := unix.Mkfifo(v.Home+"/started", 0o600); err != nil {
				t.Fatal(err)
			}
			ctx := newTimeUp(t)
			go func() {
				if _, err := os.ReadFile(v.Home + "/started"); err != nil { // a pipe: until the command has written
					t.Error(err)
				}
				ctx.end()
			}()
			begin := time.Now()
			r := d.Deliver(ctx, v)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("took %v", took)
			}
			if strings.HasPrefix(command, "trap 'exit 0'") {
				if !r.Status.OK() { // it ended well after all
					t.Errorf("got %+v", r)
				}
				return
			}
			if r.Status.Code != 451 || r.Line != "terminated; timeout" {
				t.Errorf("got %+v", r)
			}
		})
	}
}

// TestInjection gives every token every octet that a shell acts on: the command
// line is one line with the words that the format has, and nothing of a value
// is ever run.
func TestInjection(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Command)
	alphabet := []string{";", "|", "&", "$", "`", "(", ")", "<", ">", "\"", "'", "\\", "*", "?", "[", "]", "#", "~", "=", "%", "%{",
		"{", "}", "!", "^", "-", " ", "\t", "$(touch hacked)", "`touch hacked`", ";touch hacked;", "é", "\xff", "a", "/", "..", "+"}
	value := func() string {
		var s strings.Builder
		for range 1 + rand.IntN(12) {
			s.WriteString(alphabet[rand.IntN(len(alphabet))])
		}
		return s.String()
	}
	for i := range 60 {
		v.Sender = mail.Address{User: value(), Domain: "b.org"}
		v.Rcpt = mail.Address{User: value(), Domain: value()}
		v.Dest = mail.Address{User: value(), Domain: "c"}
		formats := []string{"%{sender}", "%{rcpt.user:lowercase}", "%{rcpt.domain:uppercase}", "%{dest:strip}", "%{mbox.from}", "%{user.username}"}
		v.Command = fmt.Sprintf(`rm -f out; for a in "%s"; do printf '%%%%s\n' "$a" >>out; done`, strings.Join(formats, `" "`))
		mustDeliver(t, d, v)
		var want strings.Builder
		for _, f := range formats {
			val, err := v.expand(f, useCommand)
			if err != nil {
				t.Fatal(err)
			}
			want.WriteString(val + "\n")
		}
		if got := content(t, v.Home, "out"); got != want.String() {
			t.Errorf("%d: sender %q: got %q; want %q", i, v.Sender, got, want.String())
		}
		// Unquoted, a value is one word but for the file names it may match.
		v.Command = "set -f; set -- x%{sender} x%{rcpt} x%{dest}; echo $# >n"
		mustDeliver(t, d, v)
		if n := content(t, v.Home, "n"); n != "3\n" {
			t.Errorf("%q %q %q make %s words", v.Sender, v.Rcpt, v.Dest, n)
		}
		if _, err := os.Stat(v.Home + "/hacked"); err == nil {
			t.Fatalf("a value was run: %q %q %q", v.Sender, v.Rcpt, v.Dest)
		}
	}
}

// TestWrapper has wrappers stand around the methods that are no commands: what
// they get is the program of that name with its arguments as single words.
func TestWrapper(t *testing.T) {
	libexec := t.TempDir()
	for _, name := range []string{"mail.maildir", "mail.lmtp", "mail.mboxfile"} {
		script := "#!/bin/sh\nfor a in " + name + ` "$@"; do printf '<%s>' "$a"; done >args; cat >text; echo "$WRAPPED" >wrapped`
		if err := os.WriteFile(libexec+"/"+name, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[Method]struct {
		change func(*Delivery)
		want   string
	}{
		Maildir: {func(v *Delivery) { v.Junk, v.Path, v.Rcpt.User = true, "~/it's $HOME/%{rcpt.user}", "a;b$(c)" }, "<mail.maildir><-j><HOME/it's $HOME/a;b:(c)>"},
		LMTP:    {func(v *Delivery) { v.Path, v.RcptTo = "/run/lmtp", true }, "<mail.lmtp><-d></run/lmtp><-r>"},
		File:    {func(v *Delivery) { v.Path = "/x y" }, "<mail.mboxfile><-f><a@b.org></x y>"},
	}
	for m, tt := range tests {
		d, v := newDeliverer(t, func(o *Options) { o.Libexec = []string{"/nonexistent", libexec} }), example(t, m)
		v.Wrapper = "WRAPPED=%{dest.user} %{mda}"
		tt.change(v)
		mustDeliver(t, d, v)
		if got, want := content(t, v.Home, "args"), strings.ReplaceAll(tt.want, "HOME/it", v.Home+"/it"); got != want {
			t.Errorf("%s: got %s; want %s", m, got, want)
		}
		if got := content(t, v.Home, "text") + content(t, v.Home, "wrapped"); !strings.HasSuffix(got, exampleText+"alice\n") || !strings.HasPrefix(got, "Return-Path: ") {
			t.Errorf("%s: got %q", m, got)
		}
	}
	d, v := newDeliverer(t, func(o *Options) { o.Libexec = []string{"/nonexistent"} }), example(t, LMTP)
	v.Path, v.Wrapper = "/run/lmtp", "%{mda}"
	mustFail(t, d, v, 451, "mail.lmtp is not in /nonexistent")
	d, v = newDeliverer(t, nil), example(t, Mbox)
	v.Wrapper = "exit 1" // mailboxes of the system have none
	mustDeliver(t, d, v)
}

func TestProgram(t *testing.T) {
	for _, size := range []int{0, 100, maxKept - 1, maxKept, maxKept + 1, 3 * maxKept} {
		text := bytes.Repeat([]byte("x"), size)
		got, done, err := ReadText(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(got.open())
		if err != nil || !bytes.Equal(b, text) || got.size() != int64(size) {
			t.Errorf("%d octets: got %d, size %d, %v", size, len(b), got.size(), err)
		}
		done()
	}
	if _, _, err := ReadText(iotest.ErrReader(io.ErrUnexpectedEOF)); err == nil {
		t.Error("no error of the reader")
	}
}
