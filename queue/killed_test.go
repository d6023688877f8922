package queue_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// killed makes a spool as one that was killed leaves it: with mail in the
// database, in the log, and removed there. It gives the folder and the bodies.
func killed(t *testing.T, o queue.Options) (string, map[mail.MessageID]string) {
	dir := t.TempDir()
	s := open(t, dir, o)
	defer s.Close()
	bodies := map[mail.MessageID]string{}
	var ids []mail.MessageID
	for i := range 30 {
		if i == 12 { // so that there is something in the database
			if _, _, err := s.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		body := strings.Repeat(fmt.Sprintf("line %d of a message\n", i), 1+i*37%400)
		id, err := put(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		bodies[id] = body
		ids = append(ids, id)
	}
	for _, n := range []int{2, 5, 20, 21} {
		if err := remove(t, s, ids[n]); err != nil {
			t.Fatal(err)
		}
		delete(bodies, ids[n])
	}
	id, _ := s.Reserve(t.Context(), 1)
	if err := putLarge(t, s, id); err != nil {
		t.Fatal(err)
	}
	bodies[id] = queuetest.Large()
	return copyOf(t, dir), bodies
}

// TestKilledFlips: one wrong octet in a spool that was killed costs nothing when
// it is in the log, and at most one mail, which is named, when it is elsewhere.
func TestKilledFlips(t *testing.T) {
	dir, bodies := killed(t, queue.Options{})
	log, err := os.ReadFile(filepath.Join(dir, "queue.log"))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(11, 7))
	salt := string(log[20:28]) // behind what the file is and the version
	places := []int{0, 10, 19, 20, 27, 28, 31}
	records := 0
	for at := 4096; at < len(log); at += 4096 {
		if string(log[at:at+8]) == salt {
			records++
			places = append(places, at+r.IntN(8), at+8+r.IntN(8), at+16+r.IntN(4), at+20+r.IntN(12), at+32, at+33, at+34+r.IntN(60))
		}
		if !pageIsZero(log[at : at+4096]) {
			places = append(places, at+r.IntN(4096))
		}
	}
	t.Logf("%d records, %d places", records, len(places))
	if records < 20 {
		t.Errorf("%d records", records)
	}
	for _, at := range places {
		if bad, _ := flip(t, dir, "queue.log", at, bodies); len(bad) > 0 {
			t.Errorf("octet %d: %v are missing", at, bad)
		}
	}
	if _, names := flip(t, dir, "queue.log", 4096+40, bodies); !slices.Contains(names, "queue.log") {
		t.Errorf("not named: %q", names)
	}
	db, err := os.ReadFile(filepath.Join(dir, "queue.db"))
	if err != nil {
		t.Fatal(err)
	}
	for page := 0; page < len(db); page += 4096 {
		if !pageIsZero(db[page : page+4096]) {
			flip(t, dir, "queue.db", page+r.IntN(64), bodies)
			flip(t, dir, "queue.db", page+r.IntN(4096), bodies)
		}
	}
}

// TestKilledLog: a log that cannot be read as a whole is kept, named, and costs
// only what was in the part that is gone.
func TestKilledLog(t *testing.T) {
	tests := map[string]struct {
		spoil func(log []byte) []byte
		lost  int // at most
		named bool
	}{
		"a block":   {func(b []byte) []byte { clear(b[5*4096:][:4096]); return b }, 2, true},
		"its head":  {func(b []byte) []byte { clear(b[:4096]); return b }, 0, true},
		"all":       {func(b []byte) []byte { return []byte(strings.Repeat("text", 9999)) }, 30, true},
		"its end":   {func(b []byte) []byte { return b[:20*4096] }, 30, false},
		"nothing":   {func(b []byte) []byte { return nil }, 30, false},
		"too large": {func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }, 0, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir, bodies := killed(t, queue.Options{})
			file := filepath.Join(dir, "queue.log")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, test.spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			var names []string
			s, err := queue.Open(dir, queue.Options{LogSize: smallLog, Moved: func(m queue.Moved) { names = append(names, m.Name) }})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			bad, err := look(s, bodies)
			if len(bad) > test.lost || err != nil {
				t.Errorf("%d are missing, %v", len(bad), err)
			}
			kept, _ := filepath.Glob(filepath.Join(dir, "corrupt", "queue.log-*"))
			if (len(kept) == 1) != test.named || test.named != slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "queue.log-") }) {
				t.Errorf("kept %q, named %q", kept, names)
			}
			if _, err := put(t, s, "one more"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKilledSealed: mail that is only in the log counts where the key is asked
// for, and nothing of it is to be seen.
func TestKilledSealed(t *testing.T) {
	dir, bodies := killed(t, variants["both"])
	for _, key := range []string{"", strings.Repeat("x", 32)} {
		o := queue.Options{LogSize: smallLog}
		if key != "" {
			o.Key = []byte(key)
		}
		before := snapshot(t, dir)
		if s, err := queue.Open(dir, o); err == nil || !strings.Contains(err.Error(), "is encrypted") {
			t.Errorf("key %q: %v, %v", key, s, err)
		}
		if snapshot(t, dir) != before {
			t.Errorf("key %q: something was touched", key)
		}
	}
	for _, name := range []string{"queue.db", "queue.log"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.Contains(string(b), "alice") || strings.Contains(string(b), "of a message") {
			t.Errorf("%s shows what it holds, %v", name, err)
		}
	}
	s := open(t, dir, variants["both"])
	defer s.Close()
	if bad, err := look(s, bodies); len(bad) > 0 || err != nil {
		t.Error(bad, err)
	}
}

// TestFullDatabase: what is in the log when the disk has become full is not lost
// and does not keep mail from being removed; new mail is refused when the log
// cannot be emptied, and taken again when there is room.
func TestFullDatabase(t *testing.T) {
	c := &clock{}
	disk := queuetest.NewDisk(t.TempDir())
	s, err := queue.Open(disk.Root(), queue.Options{FS: disk, Now: c.Now, LogSize: smallLog})
	if err != nil {
		t.Fatal(err)
	}
	full, reserve := atomic.Bool{}, atomic.Bool{}
	reserve.Store(true)
	disk.SetFail(func(step, name string) error {
		if step == "remove" && strings.HasSuffix(name, "reserve") {
			reserve.Store(false)
		}
		if step == "write" && strings.Contains(name, "queue.db") && full.Load() && reserve.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	full.Store(true)
	body := strings.Repeat("x", 3000)
	var ids []mail.MessageID
	for range 1000 {
		id, err := put(t, s, body)
		if code(err) == 452 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if len(ids) < 20 || len(ids) == 1000 {
		t.Fatalf("%d mails were taken on a disk that is full", len(ids))
	}
	for _, id := range ids[:20] {
		if got, err := queuetest.Read(s, id); got != body || err != nil {
			t.Error(err)
		}
		if err := remove(t, s, id); err != nil {
			t.Fatalf("removing: %v", err)
		}
	}
	if reserve.Load() {
		t.Error("the reserve was not given up")
	}
	full.Store(false)
	c.advance(2 * time.Second)
	if _, err := put(t, s, body); err != nil {
		t.Errorf("with room: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = open(t, disk.Root(), queue.Options{})
	defer s.Close()
	if all, err := queuetest.All(s, 100); len(all) != len(ids)-20+1 || err != nil {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
}

// TestNotBeforeSync: nobody sees what is not durable yet.
func TestNotBeforeSync(t *testing.T) {
	disk := queuetest.NewDisk(t.TempDir())
	s := open(t, disk.Root(), queue.Options{FS: disk})
	defer s.Close()
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	syncs := 0
	disk.SetFail(func(step, name string) error {
		if step == "sync" && strings.HasSuffix(name, "queue.log") {
			syncs++
			if _, err := s.Message(id); !errors.Is(err, queue.ErrNotFound) {
				t.Errorf("seen before it is durable: %v", err)
			}
		}
		return nil
	})
	if err := s.Accept(t.Context(), message(id, "x")); err != nil || syncs != 1 {
		t.Errorf("%v, %d syncs", err, syncs)
	}
	disk.SetFail(nil)
	if _, err := s.Message(id); err != nil {
		t.Error(err)
	}
}

// TestKilledMended: what the log brings back into a database that was mended
// comes back too when the first attempt ended between the two.
func TestKilledMended(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, queue.Options{LogSize: 1 << 20})
	bodies := map[mail.MessageID]string{}
	for i := range 40 {
		body := strings.Repeat(fmt.Sprintf("line %d\n", i), 300)
		id, err := put(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		bodies[id] = body
	}
	s.Close()
	file := filepath.Join(dir, "queue.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	hit := 0
	for at := 8192; at < len(b); at += 4096 { // every page with an item of a body
		if bytes.Contains(b[at:at+4096], []byte("line 1")) {
			clear(b[at : at+4096])
			hit++
		}
	}
	if err := os.WriteFile(file, b, 0o600); err != nil || hit == 0 {
		t.Fatal(hit, err)
	}
	for _, twice := range []bool{false, true} {
		copied := copyOf(t, dir)
		if twice {
			disk := queuetest.NewDisk(copied)
			opened := false
			disk.SetFail(func(step, name string) error {
				if step == "rename" {
					opened = true
				} else if opened && step == "write" {
					return syscall.EIO
				}
				return nil
			})
			if s, err := queue.Open(copied, queue.Options{FS: disk, LogSize: 1 << 20}); err == nil {
				s.Close()
				t.Error("nothing failed")
			} else {
				t.Log(err)
			}
		}
		s, err := queue.Open(copied, queue.Options{LogSize: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		bad, err := look(s, bodies)
		if len(bad) > 0 || err != nil {
			t.Errorf("twice %v, %d pages: %d of %d are missing, %v", twice, hit, len(bad), len(bodies), err)
		}
		s.Close()
	}
}

// TestIDsNotBack: a log that is carried out again as a whole gives no id twice,
// though the database has had newer ones past it.
func TestIDsNotBack(t *testing.T) {
	disk := queuetest.NewDisk(t.TempDir())
	s := open(t, disk.Root(), queue.Options{FS: disk})
	for i := range 40 {
		if _, err := put(t, s, strings.Repeat(fmt.Sprintf("line %d\n", i), 300)); err != nil {
			t.Fatal(err)
		}
	}
	disk.SetFail(func(step, name string) error {
		if step == "write" && strings.HasSuffix(name, "queue.log") {
			return syscall.EIO
		}
		return nil
	})
	var last mail.MessageID
	var err error
	for range 9 { // more than one time takes
		if last, err = s.Reserve(t.Context(), queue.MaxReserve); err != nil {
			t.Fatal(err)
		}
	}
	disk.SetFail(nil)
	s.Close()
	file := filepath.Join(disk.Root(), "queue.db")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := 8192; at < len(b); at += 4096 {
		if bytes.Contains(b[at:at+4096], []byte("line 1")) {
			clear(b[at : at+4096])
		}
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	mended := false
	s, err = queue.Open(disk.Root(), queue.Options{LogSize: smallLog, Moved: func(queue.Moved) { mended = true }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if id, err := s.Reserve(t.Context(), 1); err != nil || id < last+queue.MaxReserve || !mended {
		t.Errorf("%s after %s, mended %v, %v", id, last, mended, err)
	}
}

// TestOthersLog: the log of another database is set aside, whether its numbers are
// greater or less, and stays so when that is cut short.
func TestOthersLog(t *testing.T) {
	for _, more := range []int{0, 40} {
		other, _ := killed(t, queue.Options{})
		dir, bodies := killed(t, queue.Options{})
		s := open(t, dir, queue.Options{})
		for i := range more {
			body := fmt.Sprint("one more ", i)
			id, err := put(t, s, body)
			if err != nil {
				t.Fatal(err)
			}
			bodies[id] = body
		}
		s.Close() // all is in the database
		b, err := os.ReadFile(filepath.Join(other, "queue.log"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "queue.log"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		disk := queuetest.NewDisk(dir)
		disk.SetFail(func(step, name string) error {
			if step == "rename" {
				return syscall.EIO
			}
			return nil
		})
		if s, err := queue.Open(dir, queue.Options{FS: disk}); err == nil {
			s.Close()
			t.Error("nothing failed")
		}
		var moved []queue.Moved
		s, err = queue.Open(dir, queue.Options{Moved: func(m queue.Moved) { moved = append(moved, m) }})
		if err != nil {
			t.Fatal(err)
		}
		if bad, err := look(s, bodies); len(bad) > 0 || err != nil {
			t.Errorf("%v are missing, %v", bad, err)
		}
		all, err := queuetest.All(s, 100)
		for _, e := range all {
			if bodies[e.ID.Message()] == "" {
				t.Errorf("%s is another one's", e.ID)
			}
		}
		if err != nil || len(moved) != 1 || !strings.Contains(moved[0].Reason, "another queue.db") {
			t.Errorf("moved %+v, %v", moved, err)
		}
		if kept, _ := filepath.Glob(filepath.Join(dir, "corrupt", "queue.log-*")); len(kept) != 1 {
			t.Errorf("kept %q", kept)
		}
		s.Close()
		s = open(t, dir, queue.Options{Moved: func(m queue.Moved) { t.Errorf("again: %+v", m) }})
		s.Close()
	}
}
