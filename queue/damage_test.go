package queue_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// TestRefusals: one clear line each, and nothing changed on disk.
func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, dir string)
		o       queue.Options
		want    string // after "spool DIR: "
	}{
		"newer format": {func(t *testing.T, dir string) { setMeta(t, dir, "format", []byte{0, 0, 0, 4}) }, queue.Options{},
			"format 4 is newer than this smtpd understands (3)"},
		"no format": {func(t *testing.T, dir string) { setMeta(t, dir, "format", []byte{0, 0, 0, 0}) }, queue.Options{},
			"queue.db has a format that never was: 0"},
		"not a spool": {func(t *testing.T, dir string) { write(t, dir, "queue.db", strings.Repeat("text\n", 2000)) }, queue.Options{},
			"queue.db is not a spool"},
		"another database": {func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "queue.db"))
			setMeta(t, dir, "x", nil)
		}, queue.Options{}, "queue.db does not say its format"},
		"no key":    {seal, queue.Options{}, "is encrypted, and the configuration has no queue encryption key"},
		"wrong key": {seal, queue.Options{Key: []byte(strings.Repeat("x", 32))}, "is encrypted with another key"},
		"wrong key and damage": {func(t *testing.T, dir string) {
			seal(t, dir)
			f, err := os.OpenFile(filepath.Join(dir, "queue.db"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			f.WriteAt([]byte{1}, 16) // the magic of a meta page
		}, queue.Options{Key: []byte(strings.Repeat("x", 32))}, "is encrypted with another key"},
		"short key": {nil, queue.Options{Key: []byte("x")}, "queue encryption: a key has 32 octets, not 1"},
		"writable": {func(t *testing.T, dir string) { os.Chmod(dir, 0o777) }, queue.Options{},
			"the folder may be written by others (mode 0777)"},
		"a link": {func(t *testing.T, dir string) {
			os.Rename(filepath.Join(dir, "queue.db"), filepath.Join(dir, "other"))
			os.Symlink("other", filepath.Join(dir, "queue.db"))
		}, queue.Options{}, "queue.db is not what it should be: Lrwxrwxrwx"},
		"wrong owner": {func(t *testing.T, dir string) {
			if os.Chown(dir, 12345, -1) != nil {
				t.Skip("only root gives files away")
			}
		}, queue.Options{}, fmt.Sprintf("the folder belongs to user id 12345, not to %d who runs the queue", os.Geteuid())},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir, queue.Options{}).Close()
			if test.prepare != nil {
				test.prepare(t, dir)
			}
			before := snapshot(t, dir)
			s, err := queue.Open(dir, test.o)
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if want := "spool " + dir + ": " + test.want; err.Error() != want {
				t.Errorf("%q, want %q", err, want)
			}
			if after := snapshot(t, dir); after != before {
				t.Errorf("changed from\n%sto\n%s", before, after)
			}
		})
	}
}

// TestSecond: one process has the spool, and the next can have it after that.
func TestSecond(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, queue.Options{})
	if _, err := queue.Open(dir, queue.Options{}); err == nil || err.Error() != "spool "+dir+": in use by another smtpd" {
		t.Errorf("a second one: %v", err)
	}
	end := time.AfterFunc(50*time.Millisecond, func() { s.Close() })
	open(t, dir, queue.Options{Wait: time.Minute}).Close() // it is about to end
	if end.Stop() {
		t.Error("two had it")
	}
}

// TestNewKey: an empty spool takes any key, or none.
func TestNewKey(t *testing.T) {
	dir := t.TempDir()
	seal(t, dir)
	s := open(t, dir, variants["sealed"])
	all, err := queuetest.All(s, 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		remove(t, s, e.ID.Message())
	}
	s.Close()
	open(t, dir, queue.Options{Key: []byte(strings.Repeat("x", 32))}).Close()
	open(t, dir, queue.Options{}).Close()
	// A key for new mail leaves the old readable.
	s = open(t, dir, queue.Options{})
	id, err := put(t, s, "in the clear")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, dir, variants["sealed"])
	defer s.Close()
	if got, err := queuetest.Read(s, id); got != "in the clear" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func seal(t *testing.T, dir string) {
	s := open(t, dir, variants["sealed"])
	defer s.Close()
	if _, err := put(t, s, "secret"); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, dir, name, text string) {
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func setMeta(t *testing.T, dir, key string, value []byte) {
	db, err := bbolt.Open(filepath.Join(dir, "queue.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("meta"))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), value)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// snapshot is all files of a folder with their content.
func snapshot(t *testing.T, dir string) string {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v", name, d.Type())
		if d.Type().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", crc(content))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func crc(b []byte) uint64 {
	sum := uint64(len(b))
	for _, c := range b {
		sum = sum*1099511628211 + uint64(c)
	}
	return sum
}

// stock fills a spool and gives the bodies.
func stock(t *testing.T, dir string, messages int) map[mail.MessageID]string {
	s := open(t, dir, queue.Options{})
	defer s.Close()
	bodies := map[mail.MessageID]string{}
	for i := range messages {
		body := strings.Repeat(fmt.Sprintf("line %d of a message\n", i), 1+i*7%200)
		id, err := put(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		bodies[id] = body
	}
	for range 2 {
		id, _ := s.Reserve(t.Context(), 1)
		if err := putLarge(t, s, id); err != nil {
			t.Fatal(err)
		}
		bodies[id] = queuetest.Large()
	}
	return bodies
}

// look reads everything and gives what is missing or wrong.
func look(s *queue.Bolt, bodies map[mail.MessageID]string) (bad []mail.MessageID, err error) {
	all, err := queuetest.All(s, 50)
	if err != nil {
		return nil, err
	}
	listed := map[mail.MessageID]bool{}
	for _, e := range all {
		listed[e.ID.Message()] = true
	}
	for id, want := range bodies {
		if got, err := queuetest.Read(s, id); !listed[id] || got != want || err != nil {
			bad = append(bad, id)
			if got != want && err == nil {
				return bad, fmt.Errorf("%s: a wrong body", id)
			}
		}
	}
	return bad, nil
}

// TestFlips: one wrong octet anywhere costs at most the one mail it belongs to,
// which is named.
func TestFlips(t *testing.T) {
	dir := t.TempDir()
	bodies := stock(t, dir, 60)
	db, err := os.ReadFile(filepath.Join(dir, "queue.db"))
	if err != nil {
		t.Fatal(err)
	}
	var places []int
	r := rand.New(rand.NewPCG(7, 7))
	for page := 0; page < len(db); page += os.Getpagesize() {
		if pageIsZero(db[page:min(page+os.Getpagesize(), len(db))]) {
			continue
		}
		for range 2 { // the header and the first elements, and anywhere
			places = append(places, page+r.IntN(64), page+r.IntN(os.Getpagesize()))
		}
	}
	t.Logf("%d places in %d octets", len(places), len(db))
	for _, at := range places {
		if at < len(db) {
			flip(t, dir, "queue.db", at, bodies)
		}
	}
	large, _ := filepath.Glob(filepath.Join(dir, "body", "*", "*"))
	for _, name := range large {
		rel, _ := filepath.Rel(dir, name)
		flip(t, dir, rel, 1000, bodies)
	}
	if len(large) < 2 {
		t.Errorf("large bodies: %v", large)
	}
}

func pageIsZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// flip changes one octet of one file in a copy of the spool, and looks. It gives
// what is missing, and the names of what was moved aside.
func flip(t *testing.T, dir, file string, at int, bodies map[mail.MessageID]string) (bad []mail.MessageID, names []string) {
	t.Helper()
	copied := copyOf(t, dir)
	defer os.RemoveAll(copied)
	name := filepath.Join(copied, file)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	f.ReadAt(b, int64(at))
	b[0] ^= 0x10
	f.WriteAt(b, int64(at))
	f.Close()
	moved := make(chan queue.Moved, 1000)
	s, err := queue.Open(copied, queue.Options{LogSize: smallLog, Moved: func(m queue.Moved) { moved <- m }})
	if err != nil {
		t.Errorf("%s octet %d: %v", file, at, err)
		return nil, nil
	}
	bad, err = look(s, bodies)
	if _, perr := put(t, s, "one more"); err != nil || perr != nil {
		t.Errorf("%s octet %d: %v, %v", file, at, err, perr)
	}
	named := map[mail.MessageID]bool{}
	for len(moved) > 0 {
		m := <-moved
		names = append(names, m.Name)
		for _, id := range m.Envelopes {
			named[id.Message()] = true
		}
		if id, err := mail.ParseMessageID(strings.TrimPrefix(m.Name, "msg-")); err == nil {
			named[id] = true
		}
	}
	for _, id := range bad {
		if !named[id] {
			t.Errorf("%s octet %d: %s is missing and not named", file, at, id)
		}
	}
	if len(bad) > 1 {
		t.Errorf("%s octet %d: %d mails are missing", file, at, len(bad))
	}
	if err := s.Close(); err != nil {
		t.Errorf("%s octet %d: %v", file, at, err)
	}
	return bad, names
}

// copyOf copies a spool; what is empty at the end of the database stays a hole.
func copyOf(t *testing.T, dir string) string {
	base, err := os.MkdirTemp("/dev/shm", "flip")
	if err != nil {
		base = t.TempDir()
	}
	err = filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		rel, rerr := filepath.Rel(dir, name)
		switch {
		case err != nil || rerr != nil || rel == "." || rel == "reserve":
			return errors.Join(err, rerr)
		case d.IsDir():
			return os.Mkdir(filepath.Join(base, rel), 0o700)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		to := filepath.Join(base, rel)
		return errors.Join(os.WriteFile(to, bytes.TrimRight(b, "\x00"), 0o600), os.Truncate(to, int64(len(b))))
	})
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// TestAside: what was moved aside is listed, shown, returned and removed.
func TestAside(t *testing.T) {
	dir := t.TempDir()
	bodies := stock(t, dir, 3)
	large := filepath.Join(dir, "body")
	files, _ := filepath.Glob(large + "/*/*")
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 1
	os.WriteFile(files[0], b, 0o600)
	db, _ := os.ReadFile(filepath.Join(dir, "queue.db"))
	at := strings.LastIndex(string(db), "line 2 of a message")
	db[at] ^= 1
	os.WriteFile(filepath.Join(dir, "queue.db"), db, 0o600)

	moved := make(chan queue.Moved, 10)
	s, err := queue.Open(dir, queue.Options{Moved: func(m queue.Moved) { moved <- m }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	bad, err := look(s, bodies)
	if len(bad) != 2 || err != nil {
		t.Fatal(bad, err)
	}
	put(t, s, "behind the moves")
	l, end, err := s.Corrupt("", 10)
	if len(l) != 2 || !end || err != nil || len(moved) != 2 {
		t.Fatalf("%+v, %v, %v", l, end, err)
	}
	if next, _, _ := s.Corrupt(l[0].Name, 10); len(next) != 1 || next[0].Name != l[1].Name {
		t.Errorf("behind the first: %+v", next)
	}
	for _, a := range l {
		if !strings.Contains(a.Reason, "checksum") || len(a.Envelopes) != 1 || a.When.IsZero() {
			t.Errorf("%+v", a)
		}
		_, envs, _, err := s.Inspect(a.Name)
		if err != nil || len(envs) != 1 || envs[0].Dest != queuetest.Envelope(1).Dest {
			t.Errorf("inspect: %+v, %v", envs, err)
		}
		back, err := s.Return(t.Context(), a.Name)
		if err != nil || len(back) != 1 {
			t.Fatalf("return %s: %v, %v", a.Name, back, err)
		}
		id := back[0].ID.Message()
		got, err := queuetest.Read(s, id)
		if err != nil || len(got) != len(bodies[id]) || got == bodies[id] {
			t.Errorf("returned body: %d octets of %d, %v", len(got), len(bodies[id]), err)
		}
		if _, err := s.Return(t.Context(), a.Name); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("returned twice: %v", err)
		}
		if err := remove(t, s, id); err != nil {
			t.Error(err)
		}
	}
	// And one that is given up.
	id, _ := s.Reserve(t.Context(), 1)
	if err := putLarge(t, s, id); err != nil {
		t.Fatal(err)
	}
	os.Truncate(filepath.Join(large, id.String()[6:], id.String()), 5)
	if _, err := s.Body(id); !errors.Is(err, queue.ErrCorrupt) {
		t.Error(err)
	}
	put(t, s, "behind the move")
	if err := s.Discard(t.Context(), "msg-"+id.String()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "corrupt")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestCompact: a database that is mostly free is written anew, when it is
// opened and when it is asked for.
func TestCompact(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, queue.Options{})
	var ids []mail.MessageID
	for range 400 {
		id, err := put(t, s, strings.Repeat("x", 60<<10))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range ids[:200] {
		remove(t, s, id)
	}
	before, after, err := s.Compact(t.Context())
	if err != nil || after > before*2/3 {
		t.Errorf("from %d to %d, %v", before, after, err)
	}
	for _, id := range ids[200:380] {
		remove(t, s, id)
	}
	s.Close()
	s = open(t, dir, queue.Options{})
	defer s.Close()
	info, err := os.Stat(filepath.Join(dir, "queue.db"))
	if err != nil || info.Size() > after/2+16<<20 {
		t.Errorf("%d octets after opening, %v", info.Size(), err)
	}
	for _, id := range ids[380:] {
		if got, err := queuetest.Read(s, id); len(got) != 60<<10 || err != nil {
			t.Error(len(got), err)
		}
	}
}

// twoNames is a file system on which no database loses its only name.
type twoNames struct {
	queue.OS
	t       *testing.T
	renames int
}

func (f *twoNames) Rename(from, to string) error {
	if info, err := os.Stat(to); err == nil && filepath.Base(to) == "queue.db" {
		f.renames++
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink != 2 {
			f.t.Errorf("the old %s has %d names", to, st.Nlink)
		}
	}
	return f.OS.Rename(from, to)
}

// TestCompactNames: the database that is replaced has a name until the new one's is
// on disk, and none afterwards, nor when a crash came in between.
func TestCompactNames(t *testing.T) {
	dir := t.TempDir()
	f := &twoNames{t: t}
	s := open(t, dir, queue.Options{FS: f})
	if _, _, err := s.Compact(t.Context()); err != nil || f.renames != 1 {
		t.Errorf("%v, %d renames", err, f.renames)
	}
	s.Close()
	for _, left := range []bool{false, true} {
		old := filepath.Join(dir, "queue.db.old")
		if left {
			if err := os.WriteFile(old, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			open(t, dir, queue.Options{}).Close()
		}
		if _, err := os.Lstat(old); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left by a crash %v: %v", left, err)
		}
	}
}

// TestDeep: many envelopes are listed quickly; the time is only logged.
func TestDeep(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	s := open(t, t.TempDir(), queue.Options{})
	defer s.Close()
	m := message(1, "x")
	for range 20000 - 1 {
		m.Envelopes = append(m.Envelopes, queuetest.Envelope(1))
	}
	m.ID, _ = s.Reserve(t.Context(), 1)
	if err := s.Accept(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	all, err := queuetest.All(s, queue.MaxList)
	if len(all) != 20000 || err != nil {
		t.Error(len(all), err)
	}
	t.Logf("%d envelopes listed in %v", len(all), time.Since(start))
}

// TestBroken: a database that turns out to be damaged while it is open ends the
// store, and nothing else; what can be saved is there when it is opened again.
func TestBroken(t *testing.T) {
	dir := t.TempDir()
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if _, err := put(t, s, strings.Repeat("x", 2000)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, "queue.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for page := int64(2); page < 20; page++ {
		f.WriteAt(bytes.Repeat([]byte{0xff}, 4096), page*4096)
	}
	for range 5 {
		_, err := put(t, s, "one more")
		if err == nil {
			_, err = queuetest.All(s, 10)
		}
		if err != nil && code(err) != 451 {
			t.Fatal(err)
		}
	}
	select {
	case <-s.Gone():
	default:
		t.Fatal("nobody noticed")
	}
	if err := s.Close(); err == nil {
		t.Error("closed as if nothing had been")
	}
	moved := 0
	s, err = queue.Open(dir, queue.Options{Moved: func(queue.Moved) { moved++ }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := put(t, s, "one more"); err != nil || moved == 0 {
		t.Errorf("%v, moved %d", err, moved)
	}
}
