package queue_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// clock is a time that tests move.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(1795216993, c.now.Load()) }
func (c *clock) advance(d time.Duration) { c.now.Add(int64(d)) }

func message(id mail.MessageID, body string) *queue.Message {
	return &queue.Message{ID: id, Arrival: queuetest.Epoch(), Body: []byte(body), Size: int64(len(body)),
		Envelopes: []mail.Envelope{queuetest.Envelope(1)}}
}

func put(t *testing.T, s queue.Store, body string) (mail.MessageID, error) {
	t.Helper()
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		return id, err
	}
	return id, s.Accept(t.Context(), message(id, body))
}

func remove(t *testing.T, s queue.Store, id mail.MessageID) error {
	t.Helper()
	out, err := s.Apply(t.Context(), []queue.Change{{ID: id.Envelope(1), Attempt: queue.AnyAttempt,
		Edit: func(*mail.Envelope) queue.Verdict { return queue.Verdict{Delete: true} }}})
	if err == nil {
		err = out[0].Err
	}
	return err
}

func code(err error) int {
	if st, ok := errors.AsType[*mail.Status](err); ok {
		return st.Code
	}
	return 0
}

// TestFull: a full disk refuses new mail and nothing else, loses nothing, and
// goes on by itself once there is room.
func TestFull(t *testing.T) {
	c := &clock{}
	disk := queuetest.NewDisk(t.TempDir())
	s, err := queue.Open(disk.Root(), queue.Options{FS: disk, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	body := strings.Repeat("x", 30<<10)
	var ids []mail.MessageID
	for range 40 {
		id, err := put(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	// From now on only what the reserve gives can be written.
	room := atomic.Int64{}
	disk.SetFail(func(step, name string) error {
		switch {
		case step == "remove" && strings.HasSuffix(name, "reserve"):
			room.Store(1 << 20)
		case step == "write":
			if room.Add(-4096) < 0 {
				return syscall.ENOSPC
			}
		}
		return nil
	})
	if _, err := put(t, s, body); code(err) != 452 {
		t.Fatalf("accepted on a full disk: %v", err)
	}
	if _, err := put(t, s, body); code(err) != 452 {
		t.Fatalf("and again: %v", err)
	}
	if got, err := queuetest.Read(s, ids[3]); got != body || err != nil {
		t.Errorf("reading: %v", err)
	}
	for i, id := range ids[:20] {
		if err := remove(t, s, id); err != nil {
			t.Fatalf("removing %d: %v", i, err)
		}
	}
	// There is room again.
	disk.SetFail(nil)
	c.advance(2 * time.Second)
	if _, err := put(t, s, body); err != nil {
		t.Fatalf("with room: %v", err)
	}
	all, err := queuetest.All(s, 100)
	if err != nil || len(all) != 21 {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
	reserve := filepath.Join(disk.Root(), "reserve")
	if _, err := os.Stat(reserve); err == nil {
		t.Error("the reserve was not given up")
	}
	c.advance(2 * time.Minute)
	for range 2 { // the second is behind the first's group
		if _, err := put(t, s, body); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(reserve); err != nil || info.Size() == 0 {
		t.Errorf("no new reserve: %v", err)
	}
}

// TestFailing: a disk that fails in any step of a change leaves what was there,
// and what was refused is not there afterwards.
func TestFailing(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for _, step := range []string{"write", "sync", "syncdir", "open", "rename", "mkdir"} {
			t.Run(step+" "+errno.Error(), func(t *testing.T) {
				c := &clock{}
				disk := queuetest.NewDisk(t.TempDir())
				s, err := queue.Open(disk.Root(), queue.Options{FS: disk, Now: c.Now})
				if err != nil {
					t.Fatal(err)
				}
				kept, err := put(t, s, "kept")
				if err != nil {
					t.Fatal(err)
				}
				left := atomic.Int64{}
				for n := range int64(12) { // the n-th such step fails, and all after it
					left.Store(n)
					disk.SetFail(func(what, name string) error {
						if what == step && !strings.HasSuffix(name, "reserve") && left.Add(-1) < 0 {
							return errno
						}
						return nil
					})
					small, _ := s.Reserve(t.Context(), 1)
					serr := s.Accept(t.Context(), message(small, "small"))
					large, _ := s.Reserve(t.Context(), 1)
					lerr := putLarge(t, s, large)
					disk.SetFail(nil)
					c.advance(2 * time.Second)
					want := 451
					if errno == syscall.ENOSPC {
						want = 452
					}
					for id, err := range map[mail.MessageID]error{small: serr, large: lerr} {
						if err != nil && code(err) != want {
							t.Errorf("step %d: %v", n, err)
						}
						// One change that works ends all doubt.
						if _, perr := put(t, s, "x"); perr != nil {
							t.Fatalf("step %d: afterwards: %v", n, perr)
						}
						if _, merr := s.Message(id); (merr == nil) != (err == nil) {
							t.Errorf("step %d: %s answered %v, and there is %v", n, id, err, merr)
						}
					}
				}
				if got, err := queuetest.Read(s, kept); got != "kept" || err != nil {
					t.Errorf("%q, %v", got, err)
				}
				before, _ := queuetest.All(s, 100)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, disk.Root(), queue.Options{})
				defer s.Close()
				after, err := queuetest.All(s, 100)
				if len(before) != len(after) || err != nil {
					t.Errorf("%d envelopes, %d before, %v", len(after), len(before), err)
				}
			})
		}
	}
}

// TestOnceMore: a message that was refused can come again under its id.
func TestOnceMore(t *testing.T) {
	disk := queuetest.NewDisk(t.TempDir())
	s := open(t, disk.Root(), queue.Options{FS: disk})
	defer s.Close()
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	disk.SetFail(func(step, _ string) error {
		if step == "write" {
			return syscall.EIO
		}
		return nil
	})
	if err := putLarge(t, s, id); code(err) != 451 {
		t.Fatal(err)
	}
	disk.SetFail(nil)
	if err := putLarge(t, s, id); err != nil {
		t.Fatal(err)
	}
	if got, err := queuetest.Read(s, id); got != queuetest.Large() || err != nil {
		t.Errorf("%d octets, %v", len(got), err)
	}
}

func putLarge(t *testing.T, s queue.Store, id mail.MessageID) error {
	f, err := s.NewBody(id)
	if err != nil {
		return err
	}
	f.WriteString(queuetest.Large())
	f.Close()
	m := message(id, "")
	m.InFile, m.Size = true, int64(len(queuetest.Large()))
	return s.Accept(t.Context(), m)
}

// TestNoLogLeft: a log that could not be made leaves no file that takes
// what room there is.
func TestNoLogLeft(t *testing.T) {
	disk := queuetest.NewDisk(t.TempDir())
	disk.SetFail(func(step, name string) error {
		if step == "sync" && strings.HasSuffix(name, "queue.log.new") {
			return syscall.ENOSPC
		}
		return nil
	})
	s := open(t, disk.Root(), queue.Options{FS: disk})
	defer s.Close()
	if _, err := os.Stat(filepath.Join(disk.Root(), "queue.log.new")); err == nil {
		t.Error("queue.log.new stays")
	}
}

// tight is a disk that says how much is free.
type tight struct {
	*queuetest.Disk
	free atomic.Int64
}

func (d *tight) Free(string) int64 { return d.free.Load() }

// TestSlow: why there is no log, or no reserve, is told once, and once that there is
// one again; and what room there is, is not taken to be given up soon.
func TestSlow(t *testing.T) {
	c := &clock{}
	disk := &tight{Disk: queuetest.NewDisk(t.TempDir())}
	disk.free.Store(1 << 40)
	reserve, log := filepath.Join(disk.Root(), "reserve"), filepath.Join(disk.Root(), "queue.log")
	failing := func(step, name string, errno syscall.Errno) {
		disk.SetFail(func(s, n string) error {
			if s == step && strings.Contains(filepath.Base(n), name) {
				return errno
			}
			return nil
		})
	}
	var told []string
	failing("open", "queue.log.new", syscall.EACCES)
	s, err := queue.Open(disk.Root(), queue.Options{FS: disk, Now: c.Now, LogSize: smallLog, Slow: func(why error) {
		if why == nil {
			why = errors.New("again")
		}
		told = append(told, why.Error())
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	// some groups, each time a good while after the one before
	groups := func(want ...string) {
		t.Helper()
		for range 3 {
			c.advance(2 * time.Minute)
			if _, err := put(t, s, "x"); err != nil {
				t.Fatal(err)
			}
		}
		s.Note(t.Context(), "x", nil) // when it has ended, so has what follows the groups
		s.Note(t.Context(), "x", nil)
		if len(told) != len(want) {
			t.Errorf("told %q, want %q", told, want)
		}
		for i := range min(len(told), len(want)) {
			if !strings.Contains(told[i], want[i]) {
				t.Errorf("told %q, want %q", told[i], want[i])
			}
		}
		told = nil
	}
	groups("queue.log: open: permission denied")
	disk.SetFail(nil)
	groups("again")
	failing("write", "queue.log", syscall.EIO)
	groups("queue.log: write: input/output error")
	disk.SetFail(nil)
	groups("again")
	// A disk that is full gives the reserve up.
	failing("write", "queue.db", syscall.ENOSPC)
	for range 1000 {
		if _, err = put(t, s, strings.Repeat("x", 9000)); err != nil {
			break
		}
	}
	if err := remove(t, s, 1); code(err) != 452 {
		t.Error(err)
	}
	disk.SetFail(nil)
	if _, err := os.Stat(reserve); err == nil {
		t.Fatal("the reserve was not given up")
	}
	// It is 640 KB, which would be most of what is free.
	disk.free.Store(900 << 10)
	groups("no space left on device")
	if _, err := os.Stat(reserve); err == nil {
		t.Error("the last room was taken")
	}
	disk.free.Store(2 << 20)
	groups("again")
	if _, err := os.Stat(reserve); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(log); err != nil {
		t.Error(err)
	}
}

// TestNoRoom: what does not fit is not begun.
func TestNoRoom(t *testing.T) {
	disk := &tight{Disk: queuetest.NewDisk(t.TempDir())}
	disk.free.Store(100 << 10)
	disk.SetFail(func(step, name string) error {
		if step == "open" && (strings.HasSuffix(name, "reserve") || strings.HasSuffix(name, "queue.log.new")) {
			t.Errorf("%s is made", name)
		}
		return nil
	})
	why := ""
	s, err := queue.Open(disk.Root(), queue.Options{FS: disk, LogSize: smallLog, Slow: func(err error) { why = err.Error() }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if want := "queue.log: 100 KB are free, 256 are needed: no space left on device"; why != want {
		t.Errorf("told %q, want %q", why, want)
	}
	if _, err := put(t, s, "x"); err != nil {
		t.Error(err)
	}
}
