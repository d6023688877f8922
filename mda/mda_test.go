package mda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

const exampleText = "Received: from x\nSubject: hello\n\nbody\n"

var exampleTime = time.Date(2026, 11, 20, 23, 17, 50, 0, time.UTC)

// newDeliverer delivers below a folder of the test; now is a fixed time.
func newDeliverer(t *testing.T, change func(*Options)) *Deliverer {
	t.Helper()
	o := Options{UID: os.Geteuid(), SpoolDir: t.TempDir(), Now: func() time.Time { return exampleTime.Add(time.Second) }}
	if change != nil {
		change(&o)
	}
	d := New(o)
	t.Cleanup(d.Close)
	return d
}

// example is a delivery of exampleText to alice, whose home is a new folder.
func example(t *testing.T, m Method) *Delivery {
	t.Helper()
	return &Delivery{
		ID: 0x102118e0b265bb9b, Created: exampleTime, Method: m,
		Values: Values{
			Sender: mail.Address{User: "a", Domain: "b.org"},
			Rcpt:   mail.Address{User: "team", Domain: "md.test"},
			Dest:   mail.Address{User: "alice", Domain: "md.test"},
			User:   "alice", Home: t.TempDir(), Delim: "+",
		},
		Hostname: "mx.example.org", Text: Text{Data: []byte(exampleText)},
	}
}

const exampleFront = "Return-Path: <a@b.org>\nDelivered-To: team@md.test\n"

func deliver(t *testing.T, d *Deliverer, v *Delivery) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return d.Deliver(ctx, v)
}

func mustDeliver(t *testing.T, d *Deliverer, v *Delivery) {
	t.Helper()
	if r := deliver(t, d, v); !r.Status.OK() || r.Stat != "Delivered" || r.Line != "" || r.Exit != 0 {
		t.Fatalf("not delivered: %+v", r)
	}
}

func mustFail(t *testing.T, d *Deliverer, v *Delivery, code int, line string) Result {
	t.Helper()
	r := deliver(t, d, v)
	if r.Status.Code != code || !strings.Contains(r.Line, line) || r.Exit == 0 {
		t.Fatalf("got %+v; want %d and %q", r, code, line)
	}
	return r
}

func content(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func list(t *testing.T, path ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	var l []string
	for _, e := range entries {
		l = append(l, e.Name())
	}
	return l
}

func TestMaildir(t *testing.T) {
	const name = "1795216670.102118e000000001.mx.example.org"
	tests := map[string]struct {
		change func(*Delivery)
		before []string // folders that exist
		want   string   // file below home
		text   string
	}{
		"default": {want: "Maildir/new/" + name, text: exampleFront + exampleText},
		"null sender": {change: func(v *Delivery) { v.Sender = mail.Address{} },
			want: "Maildir/new/" + name, text: "Return-Path: <>\nDelivered-To: team@md.test\n" + exampleText},
		"path with formats": {change: func(v *Delivery) { v.Path = "~/mail/%{dest.domain}/%{dest.user:uppercase}" },
			want: "mail/md.test/ALICE/new/" + name},
		"relative path": {change: func(v *Delivery) { v.Path = "box" }, want: "box/new/" + name},
		"tag without folder": {change: func(v *Delivery) { v.Dest.User = "alice+lists" },
			want: "Maildir/new/" + name},
		"tag with folder": {change: func(v *Delivery) { v.Dest.User = "alice+lists" },
			before: []string{"Maildir/.lists"}, want: "Maildir/.lists/new/" + name},
		"shell characters in a tag": {change: func(v *Delivery) { v.Dest.User = "alice+a$b/c" },
			before: []string{"Maildir/.a:b:c"}, want: "Maildir/.a:b:c/new/" + name},
		"a dot as tag": {change: func(v *Delivery) { v.Dest.User = "alice+." },
			want: "Maildir/new/" + name},
		"junk": {change: func(v *Delivery) { v.Junk, v.Text.Data = true, []byte("x-spam: YES\n\nx\n") },
			want: "Maildir/.Junk/new/" + name},
		"junk beats tag": {change: func(v *Delivery) {
			v.Junk, v.Text.Data, v.Dest.User = true, []byte("A: b\nX-Spam-Flag: yes\n\nx\n"), "alice+lists"
		}, before: []string{"Maildir/.lists"}, want: "Maildir/.Junk/new/" + name},
		"nearly junk": {change: func(v *Delivery) { v.Junk, v.Text.Data = true, []byte("X-Spam: yes!\n\nX-Spam: yes\n") },
			before: []string{}, want: "Maildir/new/" + name},
		"hostname": {change: func(v *Delivery) { v.Hostname = "a/b:c" }, want: "Maildir/new/1795216670.102118e000000001.a_b_c"},
		"as it is": {change: func(v *Delivery) { v.AsIs = true }, want: "Maildir/new/" + name, text: exampleText},
		"empty":    {change: func(v *Delivery) { v.AsIs, v.Text.Data = true, nil }, want: "Maildir/new/" + name, text: ""},
	}
	for what, tt := range tests {
		t.Run(what, func(t *testing.T) {
			d, v := newDeliverer(t, nil), example(t, Maildir)
			for _, dir := range tt.before {
				if err := os.MkdirAll(filepath.Join(v.Home, dir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if tt.change != nil {
				tt.change(v)
			}
			mustDeliver(t, d, v)
			path := filepath.Join(v.Home, tt.want)
			if got := content(t, path); tt.text != "" && got != tt.text {
				t.Errorf("got %q; want %q", got, tt.text)
			}
			st, err := os.Stat(path)
			if err != nil || st.Mode() != 0o600 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			dir := filepath.Dir(filepath.Dir(path))
			for _, sub := range []string{".", "cur", "new", "tmp"} {
				st, err := os.Stat(filepath.Join(dir, sub))
				if err != nil || (sub != "." || tt.before == nil) && st.Mode().Perm() != 0o700 {
					t.Errorf("%s: mode %v, %v", sub, st.Mode(), err)
				}
			}
			if left := list(t, dir, "tmp"); left != nil {
				t.Errorf("left in tmp: %v", left)
			}
			if _, err := os.Stat(filepath.Join(v.Home, "Maildir/.Junk")); (err == nil) != v.Junk {
				t.Errorf(".Junk: %v", err)
			}
		})
	}
}

func TestMaildirRefuses(t *testing.T) {
	d := newDeliverer(t, nil)
	v := example(t, Maildir)
	v.Path, v.Dest.User = "~/v/%{dest.user}", ".."
	mustFail(t, d, v, 550, "leaves its folder")

	v = example(t, Maildir)
	v.Path, v.Sender = "~/v/%{sender.user[0:3]}", mail.Address{}
	mustFail(t, d, v, 451, "range")

	v = example(t, Maildir)
	v.Home = ""
	mustFail(t, d, v, 451, "no home")

	v = example(t, Maildir)
	if err := os.WriteFile(v.Home+"/Maildir", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := mustFail(t, d, v, 451, "mail.maildir: ")
	if want := `Error (temporary failure: "mail.maildir: ` + v.Home + `/Maildir: Not a directory")`; r.Stat != want {
		t.Errorf("stat %s; want %s", r.Stat, want)
	}
	v = example(t, Maildir)
	v.Text = Text{File: strings.NewReader("short"), Size: 10}
	mustFail(t, d, v, 451, "cut short")
}

// crash stands for the machine stopping there: nothing is tidied up.
type crash struct{}

func crashAt(step string) func(string) error {
	return func(s string) error {
		if s == step {
			panic(crash{})
		}
		return nil
	}
}

func TestMaildirCrash(t *testing.T) {
	for _, step := range []string{"write", "sync", "rename", "dirsync"} {
		t.Run(step, func(t *testing.T) { crashMaildir(t, step) })
	}
}

func crashMaildir(t *testing.T, step string) {
	v := example(t, Maildir)
	box := filepath.Join(v.Home, "Maildir")
	newOne := func(fault func(string) error) *Deliverer {
		d := newDeliverer(t, nil)
		d.fault = fault
		return d
	}
	d := newOne(crashAt(step))
	func() {
		defer func() {
			if _, ok := recover().(crash); !ok {
				t.Errorf("no crash at %s", step)
			}
		}()
		d.Deliver(context.Background(), v)
	}()
	if step != "dirsync" && len(list(t, box, "new")) != 0 {
		t.Errorf("in new before it is on disk: %v", list(t, box, "new"))
	}
	if left := len(list(t, box, "tmp")); step != "dirsync" && left != 1 {
		t.Errorf("%d files in tmp", left)
	}
	mustDeliver(t, newOne(nil), v)
	if got := list(t, box, "new"); len(got) != 1 || content(t, box, "new", got[0]) != exampleFront+exampleText {
		t.Errorf("after the second attempt: %v", got)
	}

	v.Home = t.TempDir()
	mustFail(t, newOne(func(s string) error {
		if s == step {
			return errors.New("disk trouble")
		}
		return nil
	}), v, 451, "disk trouble")
	if left := list(t, v.Home, "Maildir/tmp"); left != nil {
		t.Errorf("left in tmp: %v", left)
	}
}

func TestMaildirRepeated(t *testing.T) {
	for _, suffix := range []string{"", ":2,S", ",S=12:2,", ";2,FS"} {
		v := example(t, Maildir)
		mustDeliver(t, newDeliverer(t, nil), v)
		box := filepath.Join(v.Home, "Maildir")
		name := list(t, box, "new")[0]
		if suffix != "" {
			if err := os.Rename(filepath.Join(box, "new", name), filepath.Join(box, "cur", name+suffix)); err != nil {
				t.Fatal(err)
			}
		}
		before := len(list(t, box, "new"))
		broken := newDeliverer(t, nil) // the earlier one may have ended before this
		broken.fault = func(step string) error { return map[string]error{"dirsync": errors.New("disk trouble")}[step] }
		mustFail(t, broken, v, 451, "disk trouble")
		mustDeliver(t, newDeliverer(t, nil), v) // another worker, the envelope older than it
		late := *v
		late.Retry = 1
		mustDeliver(t, newDeliverer(t, func(o *Options) { o.Now = func() time.Time { return exampleTime.Add(-time.Hour) } }), &late)
		if got := list(t, box, "new"); len(got) != before {
			t.Errorf("%q: delivered again: %v", suffix, got)
		}
	}
}

func TestMaildirSwapped(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Maildir)
	box := filepath.Join(v.Home, "Maildir")
	mustDeliver(t, d, v)
	// The user moves the folder away: the next mail must go to a new one.
	if err := os.Rename(box, v.Home+"/old"); err != nil {
		t.Fatal(err)
	}
	v.ID += 1 << 32
	mustDeliver(t, d, v)
	// Or takes a part of it away.
	if err := os.RemoveAll(box + "/tmp"); err != nil {
		t.Fatal(err)
	}
	v.ID += 1 << 32
	mustDeliver(t, d, v)
	if n := len(list(t, box, "new")); n != 2 {
		t.Errorf("%d files", n)
	}
	// A link of the user's own is followed, also in the middle of a path.
	if err := os.Rename(box, v.Home+"/elsewhere"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("./elsewhere", box); err != nil {
		t.Fatal(err)
	}
	v.ID += 1 << 32
	mustDeliver(t, d, v)
	if n := len(list(t, v.Home, "elsewhere", "new")); n != 3 {
		t.Errorf("%d files behind the link", n)
	}
	// A link to itself ends.
	if err := os.Remove(box); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(box, box); err != nil {
		t.Fatal(err)
	}
	mustFail(t, d, v, 451, "")
}

func TestRootMaildirForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes files of other users")
	}
	for name, prepare := range map[string]func(home string) error{
		"link": func(home string) error {
			return errors.Join(os.Mkdir(home+"/target", 0o700), os.Symlink(home+"/target", home+"/Maildir"), os.Lchown(home+"/Maildir", 54321, 54321))
		},
		"folder": func(home string) error {
			return errors.Join(os.Mkdir(home+"/Maildir", 0o777), os.Chown(home+"/Maildir", 54321, 54321))
		},
		"new": func(home string) error {
			return errors.Join(os.MkdirAll(home+"/Maildir/new", 0o777), os.Chown(home+"/Maildir/new", 54321, 54321))
		},
	} {
		d, v := newDeliverer(t, nil), example(t, Maildir)
		if err := prepare(v.Home); err != nil {
			t.Fatal(err)
		}
		mustFail(t, d, v, 451, "belongs to another user")
		t.Log(name)
	}
}

func TestMaildirTidy(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Maildir)
	tmp := filepath.Join(v.Home, "Maildir", "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"old": 40 * time.Hour, "fresh": time.Hour} {
		path := filepath.Join(tmp, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	mustDeliver(t, d, v)
	if got := list(t, tmp); !slices.Equal(got, []string{"fresh"}) {
		t.Errorf("in tmp: %v", got)
	}
}

// TestMaildirTogether delivers many messages at a time: every one is there, and
// syncs of the folder are shared.
func TestMaildirTogether(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Maildir)
	var mu sync.Mutex
	var joined sync.WaitGroup
	var first, begun sync.Once
	alone := make(chan struct{}) // closed once the first batch is made up
	syncs := 0
	d.fault = func(step string) error {
		switch step {
		case "join":
			joined.Done()
		case "write":
			begun.Do(func() { close(alone) })
		case "sync":
			first.Do(joined.Wait) // the others pile up
		case "dirsync":
			mu.Lock()
			syncs++
			mu.Unlock()
		}
		return nil
	}
	const n = 100
	joined.Add(n)
	var wg sync.WaitGroup
	big := bytes.Repeat([]byte("0123456789abcde\n"), 20000)
	for i := range n {
		w := *v
		w.ID += mail.EnvelopeID(i) << 32
		if i%5 == 0 {
			w.Text = Text{File: bytes.NewReader(big), Size: int64(len(big))}
		}
		wg.Go(func() {
			if r := d.Deliver(context.Background(), &w); !r.Status.OK() {
				t.Errorf("%+v", r)
			}
		})
		<-alone
	}
	wg.Wait()
	if syncs != 1+(n-1+maxBatch-1)/maxBatch {
		t.Errorf("%d syncs for %d deliveries", syncs, n)
	}
	for _, f := range list(t, v.Home, "Maildir/new") {
		if got := content(t, v.Home, "Maildir/new", f); got != exampleFront+exampleText && got != exampleFront+string(big) {
			t.Errorf("%s: %d octets", f, len(got))
		}
	}
}

// TestMaildirOneCopy has recipients of one message end in one folder, or not.
func TestMaildirOneCopy(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Maildir)
	v.Dest.User = "alice"
	tagged := *v
	tagged.ID++
	tagged.Dest.User = "alice+tag"
	failed := errors.New("no")
	d.fault = func(step string) error { return map[string]error{"sync": failed}[step] }
	mustFail(t, d, v, 451, "")
	d.fault = nil
	var wg sync.WaitGroup
	for _, w := range []*Delivery{v, &tagged} {
		wg.Go(func() { mustDeliver(t, d, w) })
	}
	wg.Wait()
	if n := len(list(t, v.Home, "Maildir/new")); n != 1 {
		t.Errorf("no folder for the tag: %d files", n)
	}
	other := tagged
	other.ID += 1 << 32
	mustDeliver(t, d, &other)
	if n := len(list(t, v.Home, "Maildir/new")); n != 2 {
		t.Errorf("another message: %d files", n)
	}
	if err := os.Mkdir(v.Home+"/Maildir/.tag", 0o700); err != nil {
		t.Fatal(err)
	}
	mustDeliver(t, d, &tagged)
	if n := len(list(t, v.Home, "Maildir/.tag/new")); n != 1 {
		t.Errorf("a folder for the tag: %d files in it", n)
	}
	for i := range 2 * maxCopies {
		if err := d.copies.once(copyKey{message: mail.MessageID(i)}, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.copies.known) > maxCopies || len(d.copies.order) != len(d.copies.known) {
		t.Errorf("%d copies remembered, %d in order", len(d.copies.known), len(d.copies.order))
	}
}

func TestMaildirManyFolders(t *testing.T) {
	d, v := newDeliverer(t, nil), example(t, Maildir)
	v.Path = "~/%{dest.user}"
	for i := range 3 * maxFolders {
		v.Dest.User = fmt.Sprint("u", i)
		mustDeliver(t, d, v)
	}
	if n := len(d.folders.open); n > maxFolders {
		t.Errorf("%d folders open", n)
	}
}

func TestLoop(t *testing.T) {
	for text, want := range map[string]bool{
		"Delivered-To: alice@md.test\n\nx\n":                  true,
		"A: b\ndelivered-to:  <Alice@MD.test>\nB: c\n\nx\n":   true,
		"Delivered-To: alice@md.test.example\n\nx\n":          false,
		"X-Delivered-To: alice@md.test\n\nx\n":                false,
		"Subject: x\n\nDelivered-To: alice@md.test\n":         false,
		"\nDelivered-To: alice@md.test\n":                     false,
		"Delivered-To: team@md.test\nDelivered-To: bob@x\n\n": false,
	} {
		for _, file := range []bool{false, true} {
			d, v := newDeliverer(t, nil), example(t, Maildir)
			v.Text.Data = []byte(text)
			if file {
				v.Text = Text{File: strings.NewReader(text), Size: int64(len(text))}
			}
			r := deliver(t, d, v)
			if r.Loop != want || r.Status.OK() == want {
				t.Errorf("%q: %+v", text, r)
			}
			if want && (r.Status.String() != "554 5.4.6 Loop detected" || r.Line != "Loop detected") {
				t.Errorf("%+v", r)
			}
		}
	}
}

func TestHeaderOfFile(t *testing.T) {
	long := "A: " + strings.Repeat("x", 50000) + "\nDelivered-To: me\n\nbody"
	text := Text{File: strings.NewReader(long), Size: int64(len(long))}
	if looped, err := text.looped("me"); !looped || err != nil {
		t.Errorf("%v, %v", looped, err)
	}
	text.Size++
	text.File = strings.NewReader(strings.TrimSuffix(long, "\n\nbody"))
	if _, err := text.looped("me"); !errors.Is(err, errShort) {
		t.Errorf("%v", err)
	}
}

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "a\tb\\": `a\tb\\`, "\x00\x1b\x7f": `\0\^[\^?`, "\xc3\xa9": `\M-C\M-)`, "\x80\xff": `\M^@\M^?`,
	} {
		if got := visible(in, 100); got != want {
			t.Errorf("visible(%q) = %q; want %q", in, got, want)
		}
	}
	if got := visible("abc\x80", 5); got != "abc" {
		t.Errorf("cut: %q", got)
	}
}

func BenchmarkMaildir(b *testing.B) {
	d := New(Options{UID: os.Geteuid()})
	defer d.Close()
	text := []byte(strings.Repeat("A: header line of some length\n", 10) + "\n" + strings.Repeat("0123456789012345678901234567890\n", 120))
	v := Delivery{Created: time.Now().Add(time.Hour), Method: Maildir, Hostname: "mx.example.org", Text: Text{Data: text},
		Values: Values{User: "alice", Home: b.TempDir(), Dest: mail.Address{User: "alice", Domain: "example.org"}}}
	b.ReportAllocs()
	b.SetParallelism(8)
	var id sync.Mutex
	n := mail.EnvelopeID(0)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			w := v
			id.Lock()
			n++
			w.ID = n
			id.Unlock()
			if r := d.Deliver(context.Background(), &w); !r.Status.OK() {
				b.Error(r.Stat)
			}
		}
	})
}

// Names that could not be brought to disk are a failure, but for a folder that may
// be written and not read.
func TestSyncDir(t *testing.T) {
	if err := syncDir(-1); err == nil {
		t.Error("a folder that cannot be opened counts as synced")
	}
	dir := t.TempDir()
	fd, err := openDirAt(unix.AT_FDCWD, dir, oWalk)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, mode := range []os.FileMode{0o700, 0o300} { // the second tells nothing for root
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := syncDir(fd); err != nil {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}
