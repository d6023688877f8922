package mda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the other program that locks a mailbox, a
// worker that dies, or the other user of a race.
func TestMain(m *testing.M) {
	if how := os.Getenv("MDA_TEST_LOCK"); how != "" {
		os.Exit(holdLock(how, os.Args[1]))
	}
	if how := os.Getenv(killVar); how != "" {
		os.Exit(killMain(how))
	}
	if d := os.Getenv("MDA_TEST_RACE"); d != "" {
		os.Exit(raceMain(d))
	}
	os.Exit(m.Run())
}

// holdLock locks a mailbox in one way, says so, and holds it until its standard
// input ends.
func holdLock(how, path string) int {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	switch how {
	case "fcntl":
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	case "flock":
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	case "dot":
		err = os.WriteFile(path+".lock", []byte(strconv.Itoa(os.Getpid())), 0o400)
	}
	fmt.Println("locked", err)
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
	if how == "dot" {
		os.Remove(path + ".lock")
	}
	return 0
}

// locker starts such a program; release ends it.
func locker(t *testing.T, how, path string) (release func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), "MDA_TEST_LOCK="+how)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, _ := out.Read(b); string(b[:n]) != "locked <nil>\n" {
		t.Fatalf("the other program: %s", b[:n])
	}
	release = sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })
	t.Cleanup(release)
	return release
}

func spool(d *Deliverer, name string) string { return filepath.Join(d.o.SpoolDir, name) }

const exampleFrom = "From a@b.org Fri Nov 20 23:17:51 2026\n"

func TestMbox(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Mbox)
	mustDeliver(t, d, v)
	want := exampleFrom + exampleFront + exampleText + "\n"
	if got := content(t, spool(d, "alice")); got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	st, err := os.Stat(spool(d, "alice"))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	v.Text.Data = []byte("Subject: From\nFrom is no header\n\nFrom me\nFrom you\n\nFrom x\n>From y\nno end")
	v.Sender.User, v.Sender.Domain = "", ""
	mustDeliver(t, d, v)
	want += "From MAILER-DAEMON Fri Nov 20 23:17:51 2026\nReturn-Path: <>\nDelivered-To: team@md.test\n" +
		"Subject: From\nFrom is no header\n\n>From me\nFrom you\n\n>From x\n>From y\nno end\n\n"
	if got := content(t, spool(d, "alice")); got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	if left := list(t, d.o.SpoolDir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestMboxSeparates delivers behind what a power cut may have left: also to a file
// that an alias names, and to one that its owner may not read.
func TestMboxSeparates(t *testing.T) {
	for before, want := range map[string]string{"x\n\n": "", "x\n": "\n", "x": "\n\n", "xy": "\n\n", "\n": "", "": ""} {
		for _, m := range []Method{Mbox, File} {
			d, v := newDeliverer(t, nil), example(t, m)
			v.Path = spool(d, "alice")
			if err := os.WriteFile(v.Path, []byte(before), 0o600); err != nil {
				t.Fatal(err)
			}
			mustDeliver(t, d, v)
			if got := content(t, v.Path); !strings.HasPrefix(got, before+want+"From ") {
				t.Errorf("%v, after %q: %q", m, before, got)
			}
		}
	}
	d, v := newDeliverer(t, nil), example(t, File)
	v.Path = spool(d, "alice")
	if err := os.WriteFile(v.Path, []byte("x\n\n"), 0o200); err != nil {
		t.Fatal(err)
	}
	mustDeliver(t, d, v)
}

// TestMboxName: the name of a mailbox that may be new is on disk before a mail in
// it is reported, and no lock is beside it then.
func TestMboxName(t *testing.T) {
	for _, m := range []Method{Mbox, File} {
		d, v := newDeliverer(t, nil), example(t, m)
		v.Path = spool(d, "alice")
		d.fault = func(step string) error {
			if left, _ := filepath.Glob(d.o.SpoolDir + "/*.lock"); step == "dirsync" && left != nil {
				t.Errorf("%v: %v while names are brought to disk", m, left)
			}
			return map[string]error{"dirsync": unix.EIO}[step]
		}
		for range 2 { // it is there, and empty, the second time
			mustFail(t, d, v, 451, "Input/output error")
		}
		d.fault = nil
		mustDeliver(t, d, v)
		d.fault = func(step string) error { return map[string]error{"dirsync": unix.EIO}[step] }
		mustDeliver(t, d, v) // it is known to be there
	}
}

func TestMboxRefuses(t *testing.T) {
	special := "linked or special file"
	tests := map[string]struct {
		prepare func(box string) error
		change  func(*Delivery)
		want    string
	}{
		"symbolic link": {prepare: func(box string) error {
			return errors.Join(os.WriteFile(box+".target", nil, 0o600), os.Symlink(box+".target", box))
		}, want: special},
		"dangling link": {prepare: func(box string) error { return os.Symlink(box+".target", box) }, want: special},
		"hard link": {prepare: func(box string) error {
			return errors.Join(os.WriteFile(box+".target", nil, 0o600), os.Link(box+".target", box))
		}, want: special},
		"fifo":      {prepare: func(box string) error { return syscall.Mkfifo(box, 0o600) }, want: special},
		"folder":    {prepare: func(box string) error { return os.Mkdir(box, 0o700) }, want: "Is a directory"},
		"world":     {prepare: func(box string) error { return os.Chmod(filepath.Dir(box), 0o777) }, want: "will not deliver to world-writable spool"},
		"sticky":    {prepare: func(box string) error { return os.Chmod(filepath.Dir(box), 0o1777) }, want: "world-writable"},
		"no spool":  {prepare: func(box string) error { return os.Remove(filepath.Dir(box)) }, want: "No such file"},
		"up":        {change: func(v *Delivery) { v.User = ".." }, want: "no mailbox"},
		"elsewhere": {change: func(v *Delivery) { v.User = "a/b" }, want: "no mailbox"},
		"a lock":    {change: func(v *Delivery) { v.User = "bob.lock" }, want: "no mailbox"},
		"short":     {change: func(v *Delivery) { v.Text = Text{File: strings.NewReader("a"), Size: 2}; v.AsIs = true }, want: "cut short"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, v := newDeliverer(t, nil), example(t, Mbox)
			if tt.prepare != nil {
				if err := tt.prepare(spool(d, "alice")); err != nil {
					t.Fatal(err)
				}
			}
			if tt.change != nil {
				tt.change(v)
			}
			r := mustFail(t, d, v, 451, tt.want)
			if b, err := os.ReadFile(spool(d, "alice.target")); err == nil && len(b) > 0 {
				t.Errorf("written through a link: %q", b)
			}
			if !strings.HasPrefix(r.Stat, "Error (temporary failure: \"") {
				t.Errorf("stat %s", r.Stat)
			}
			if left, _ := filepath.Glob(d.o.SpoolDir + "/*.lock"); left != nil {
				t.Errorf("left %v", left)
			}
		})
	}
}

func TestCheckSpool(t *testing.T) {
	dir := t.TempDir()
	if err := CheckSpool(dir); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(dir, 0o1777); err != nil {
		t.Fatal(err)
	}
	if err := CheckSpool(dir); err == nil || !strings.Contains(err.Error(), "chmod o-w "+dir) {
		t.Errorf("got %v", err)
	}
	if err := CheckSpool(dir + "/none"); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

func TestRootMboxForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a file of another user")
	}
	d, v := newDeliverer(t, nil), example(t, Mbox)
	if err := errors.Join(os.WriteFile(spool(d, "alice"), nil, 0o666), os.Chown(spool(d, "alice"), 54321, 54321)); err != nil {
		t.Fatal(err)
	}
	mustFail(t, d, v, 451, "belongs to another user")
}

// TestMboxTruncates fails at each step of a delivery: the mailbox must be what
// it was.
func TestMboxTruncates(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde\n"), 30000)
	for _, step := range []string{"write", "sync"} {
		for skip := range 3 {
			d, v := newDeliverer(t, nil), example(t, Mbox)
			mustDeliver(t, d, v)
			before := content(t, spool(d, "alice"))
			v.Text = Text{File: bytes.NewReader(big), Size: int64(len(big))}
			n := 0
			d.fault = func(s string) error {
				if s == step {
					if n++; n > skip || step == "sync" {
						return unix.ENOSPC
					}
				}
				return nil
			}
			mustFail(t, d, v, 451, "No space left on device")
			if got := content(t, spool(d, "alice")); got != before {
				t.Errorf("%s %d: left %d octets; was %d", step, skip, len(got), len(before))
			}
		}
	}
}

// TestMboxLocks has another process hold each kind of lock: we wait.
func TestMboxLocks(t *testing.T) {
	for _, how := range []string{"fcntl", "flock", "dot"} {
		for _, m := range []Method{Mbox, File} {
			if m == File && how == "dot" {
				continue
			}
			t.Run(fmt.Sprint(how, " ", m), func(t *testing.T) {
				t.Parallel()
				d, v := newDeliverer(t, nil), example(t, m)
				v.Path = spool(d, "alice")
				release := locker(t, how, spool(d, "alice"))
				short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				if r := d.Deliver(short, v); r.Status.Code != 451 || !strings.Contains(r.Line, "locked") {
					t.Errorf("while it is locked: %+v", r)
				}
				if got := content(t, spool(d, "alice")); got != "" {
					t.Errorf("written while it is locked: %q", got)
				}
				done := make(chan Result)
				go func() { done <- d.Deliver(context.Background(), v) }()
				release()
				if r := <-done; !r.Status.OK() {
					t.Errorf("afterwards: %+v", r)
				}
			})
		}
	}
}

func TestMboxStaleLock(t *testing.T) {
	gone := exec.Command("/bin/sh", "-c", ":")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	pid := gone.Process.Pid
	tests := map[string]struct {
		text   string
		age    time.Duration
		report string // empty: the lock holds
	}{
		"holder has ended":        {fmt.Sprint(pid), 0, fmt.Sprintf("its holder, process %d, has ended", pid)},
		"with our host":           {fmt.Sprintf("%d:here\n", pid), 0, "has ended"},
		"of another host":         {fmt.Sprintf("%d:there", pid), 0, ""},
		"of another host, old":    {fmt.Sprintf("%d:there", pid), 10 * time.Minute, "it is 10 minutes old"},
		"no holder named":         {"0", 0, ""},
		"no holder named, old":    {"0", 6 * time.Minute, "it is 6 minutes old"},
		"empty, old":              {"", 6 * time.Minute, "minutes old"},
		"from before the start":   {"", 90 * time.Second, "it is older than the start of this machine"},
		"from after the start":    {"", 50 * time.Second, ""},
		"held by a living one":    {fmt.Sprint(os.Getpid()), 0, ""},
		"older than that process": {fmt.Sprint(os.Getpid()), 24 * time.Hour, "it is older than process"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var reports []string
			d := newDeliverer(t, func(o *Options) {
				o.Now = time.Now
				o.Hostname = func() string { return "here" }
				o.Report = func(s string) { reports = append(reports, s) }
				o.Booted = func(int) time.Time { return time.Now().Add(-time.Minute) }
			})
			v := example(t, Mbox)
			lock := spool(d, "alice.lock")
			if err := os.WriteFile(lock, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(lock, time.Time{}, time.Now().Add(-tt.age)); err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			if tt.report == "" { // it holds for as long as we care to wait
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 40*time.Millisecond)
				defer cancel()
			}
			r := d.Deliver(ctx, v)
			if r.Status.OK() != (tt.report != "") {
				t.Errorf("got %+v", r)
			}
			if tt.report != "" && (len(reports) != 1 || !strings.Contains(reports[0], tt.report) ||
				!strings.HasPrefix(reports[0], "warn: mda: lock alice.lock broken: ")) {
				t.Errorf("reported %q", reports)
			}
			if _, err := os.Stat(lock); (err == nil) != (tt.report == "") {
				t.Errorf("the lock: %v", err)
			}
		})
	}
}

// TestMboxTogether delivers from several Deliverers, as several processes would,
// and from several goroutines of each.
func TestMboxTogether(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	const each = 10
	for range 4 {
		d := newDeliverer(t, func(o *Options) { o.SpoolDir = dir })
		for range each {
			v := example(t, Mbox)
			v.Text.Data = []byte("Subject: x\n\n" + strings.Repeat("line\n", rand.IntN(5000)) + "end\n")
			wg.Go(func() {
				if r := d.Deliver(context.Background(), v); !r.Status.OK() {
					t.Errorf("%+v", r)
				}
			})
		}
	}
	wg.Wait()
	messages := strings.Split(content(t, dir, "alice"), exampleFrom)
	if messages[0] != "" || len(messages) != 4*each+1 {
		t.Fatalf("%d messages", len(messages)-1)
	}
	for _, m := range messages[1:] {
		if !strings.HasPrefix(m, exampleFront+"Subject: x\n\n") || strings.Count(m, "end\n\n") != 1 || !strings.HasSuffix(m, "end\n\n") {
			t.Errorf("damaged: %.80q", m)
		}
	}
}

func TestFile(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, File)
	v.Path = "~/saved"
	v.Text.Data = []byte("Subject: x\n\nFrom a\nFrom b\n")
	mustDeliver(t, d, v)
	want := exampleFrom + exampleFront + "Subject: x\n\n>From a\n>From b\n\n"
	if got := content(t, v.Home, "saved"); got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	st, err := os.Stat(v.Home + "/saved")
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	v.Path = "/dev/null"
	mustDeliver(t, d, v)
	v.Path = v.Home + "/none/x"
	if r := mustFail(t, d, v, 451, ""); r.Stat != `Error (temporary failure: "mail.mboxfile: No such file or directory")` || r.Exit != 75 {
		t.Errorf("got %+v", r)
	}
	v.Path = v.Home + "/fifo"
	if err := syscall.Mkfifo(v.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	mustFail(t, d, v, 451, "mail.mboxfile: ")
}

// splitMbox reads an mbox as its readers do: a message begins with a `From `
// line at the start or after an empty line.
func splitMbox(s string) []string {
	var messages []string
	empty := true
	for line := range strings.SplitAfterSeq(s, "\n") {
		if empty && strings.HasPrefix(line, "From ") {
			messages = append(messages, "")
		} else if len(messages) > 0 {
			messages[len(messages)-1] += line
		}
		empty = line == "\n"
	}
	return messages
}

// FuzzMbox checks that any two messages come back as two, whole but for the
// quoting.
func FuzzMbox(f *testing.F) {
	f.Add([]byte("Subject: x\n\nFrom me\n"), []byte("\nFrom\n\nFrom x"), true)
	f.Add([]byte(""), []byte("\n\n\n"), false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, one, two []byte, every bool) {
		d := New(Options{})
		file, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		defer file.Close()
		texts := []Text{{Data: one}, {File: bytes.NewReader(two), Size: int64(len(two))}}
		for _, text := range texts {
			if err := d.writeMbox(int(file.Fd()), &Delivery{Text: text}, every, ""); err != nil {
				t.Fatal(err)
			}
		}
		got := splitMbox(content(t, file.Name()))
		if len(got) != 2 {
			t.Fatalf("%d messages: %q", len(got), got)
		}
		for i, want := range []string{string(one), string(two)} {
			if want != "" && !strings.HasSuffix(want, "\n") {
				want += "\n"
			}
			unquote := func(s string) string { return strings.ReplaceAll("\n"+s, "\n>From ", "\nFrom ") }
			if g := strings.TrimPrefix(got[i], "Return-Path: <>\nDelivered-To: \n"); unquote(g) != unquote(want+"\n") {
				t.Errorf("got %q; want %q", g, want+"\n")
			}
			if every && strings.Contains("\n"+got[i], "\nFrom ") {
				t.Errorf("not quoted: %q", got[i])
			}
		}
	})
}
