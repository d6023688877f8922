package queuetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"smtpd/internal/mail"
	"smtpd/queue"
)

// Reopen opens the store in a folder, on a file system; moved is told when
// something had to be moved aside.
type Reopen func(dir string, disk queue.FS, moved func(string)) (queue.Store, error)

// fate is what is known of one envelope: it is there, tried so many times, or
// it is not.
type fate struct {
	there bool
	retry uint16
}

// begun marks that a change of envelopes was asked for; done, that it was
// acknowledged.
type begun struct{ fates map[mail.EnvelopeID]fate }
type done struct{ of *begun }

// ledger is what a workload has done, so that any crash can be judged.
type ledger struct {
	disk   *Disk
	mu     sync.Mutex
	bodies map[mail.MessageID]string
}

func (l *ledger) do(fates map[mail.EnvelopeID]fate, f func() error) error {
	b := &begun{fates}
	l.disk.Mark(b)
	if err := f(); err != nil {
		return err
	}
	l.disk.Mark(done{b})
	return nil
}

// TestCrash runs a workload once and then lets the power fail before every
// step of it, several times each: what was acknowledged must be there when the
// store is opened, once and whole, and nothing that was not asked for.
func TestCrash(t *testing.T, open Reopen, writers, each, times int) {
	d := NewDisk(t.TempDir())
	l := &ledger{disk: d, bodies: map[mail.MessageID]string{}}
	for round := range 2 {
		s, err := open(d.root, d, func(what string) { t.Errorf("moved aside: %s", what) })
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if err := l.life(t.Context(), s, w+i+round); err != nil {
						t.Errorf("writer %d: %v", w, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if c, ok := s.(interface {
			Compact(context.Context) (int64, int64, error)
		}); ok && round == 0 {
			if _, _, err := c.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := l.life(t.Context(), s, 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d steps", d.Len())
	crashes(t, l, open, 0, times)
}

// TestCrashFaults is TestCrash on a disk that fails now and then: what it was
// told to have is there, what it was told not to have may be.
func TestCrashFaults(t *testing.T, open Reopen, lives, times int) {
	d := NewDisk(t.TempDir())
	l := &ledger{disk: d, bodies: map[mail.MessageID]string{}}
	s, err := open(d.root, d, func(what string) { t.Errorf("moved aside: %s", what) })
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, uint64(lives)))
	failed := 0
	for i := range lives {
		left, many := r.IntN(9), 1+r.IntN(4)
		kind := []string{"write", "sync"}[r.IntN(2)]
		d.SetFail(func(step, _ string) error {
			if step != kind && i%3 > 0 {
				return nil
			}
			if left--; left < 0 && left >= -many {
				return syscall.EIO
			}
			return nil
		})
		err := l.life(t.Context(), s, i)
		d.SetFail(nil)
		if _, ok := errors.AsType[*mail.Status](err); err != nil && !ok {
			t.Fatalf("life %d: %v", i, err)
		}
		if err != nil {
			failed++
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d steps, %d of %d lives failed", d.Len(), failed, lives)
	if failed == 0 || failed == lives {
		t.Error("nothing is tried so")
	}
	crashes(t, l, open, 0, times)
}

// crashes judges every step from first on.
func crashes(t *testing.T, l *ledger, open Reopen, first, times int) {
	for n := first; n <= l.disk.Len(); n++ {
		for seed := range times {
			if !crash(t, l, open, n, uint64(seed)) {
				t.Fatalf("step %d, seed %d", n, seed)
			}
		}
	}
}

func crash(t *testing.T, l *ledger, open Reopen, n int, seed uint64) bool {
	dir, err := os.MkdirTemp(fast(t), "crash")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := rand.New(rand.NewPCG(uint64(n), seed))
	if err := l.disk.Crash(n, r, dir); err != nil {
		t.Fatal(err)
	}
	s, err := open(dir, queue.OS{}, func(what string) { t.Errorf("moved aside: %s", what) })
	if err != nil {
		t.Errorf("not opened: %v", err)
		return false
	}
	defer s.Close()
	return l.judge(t, s, n) && !t.Failed()
}

// fast is a folder in memory, where there is one: thousands of spools are made.
func fast(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "queuetest"); err == nil {
		os.Remove(dir)
		return "/dev/shm"
	}
	return t.TempDir()
}

// life is that of one message: accepted, changed, and mostly deleted.
func (l *ledger) life(ctx context.Context, s queue.Store, n int) error {
	id, err := s.Reserve(ctx, 1)
	if err != nil {
		return err
	}
	m := message1(id, strings.Repeat(fmt.Sprintf("line %d\n", n), 1+n*40%500), 1+n%3)
	if n%4 == 1 {
		f, err := s.NewBody(id)
		if err != nil {
			return err
		}
		m.Body = nil
		body := fmt.Sprint(n) + Large()
		io.WriteString(f, body)
		f.Close()
		m.InFile, m.Size = true, int64(len(body))
		l.setBody(id, body)
	} else {
		l.setBody(id, string(m.Body))
	}
	fates := map[mail.EnvelopeID]fate{}
	for i := range m.Envelopes {
		fates[id.Envelope(uint32(i)+1)] = fate{there: true}
	}
	if err := l.do(fates, func() error { return s.Accept(ctx, m) }); err != nil {
		return err
	}
	first := id.Envelope(1)
	if err := l.change(ctx, s, map[mail.EnvelopeID]fate{first: {true, 1}}, queue.Change{ID: first, Edit: func(e *mail.Envelope) queue.Verdict {
		e.Retry++
		return queue.Verdict{}
	}}); err != nil {
		return err
	}
	// It fails, and a notice takes its place.
	note := id.Envelope(uint32(len(m.Envelopes)) + 1)
	if err := l.change(ctx, s, map[mail.EnvelopeID]fate{first: {}, note: {there: true}},
		queue.Change{ID: first, Attempt: 1, Edit: func(e *mail.Envelope) queue.Verdict {
			b := *e
			b.Kind, b.Retry = mail.KindBounce, 0
			return queue.Verdict{Delete: true, Add: &b}
		}}); err != nil {
		return err
	}
	if n%3 == 0 {
		return nil
	}
	all := map[mail.EnvelopeID]fate{note: {}}
	changes := []queue.Change{{ID: note, Edit: remove}}
	for i := 1; i < len(m.Envelopes); i++ {
		all[id.Envelope(uint32(i)+1)] = fate{}
		changes = append(changes, queue.Change{ID: id.Envelope(uint32(i) + 1), Edit: remove})
	}
	return l.change(ctx, s, all, changes...)
}

func (l *ledger) setBody(id mail.MessageID, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bodies[id] = body
}

func (l *ledger) change(ctx context.Context, s queue.Store, fates map[mail.EnvelopeID]fate, c ...queue.Change) error {
	return l.do(fates, func() error {
		out, err := s.Apply(ctx, c)
		for _, o := range out {
			err = errors.Join(err, o.Err)
		}
		return err
	})
}

// settled is what marks say was acknowledged, and what was asked for besides.
func settled(marks []any) (sure map[mail.EnvelopeID]fate, open map[*begun]bool) {
	sure, open = map[mail.EnvelopeID]fate{}, map[*begun]bool{}
	for _, v := range marks {
		switch v := v.(type) {
		case *begun:
			open[v] = true
		case done:
			delete(open, v.of)
			maps.Copy(sure, v.of.fates)
		}
	}
	return sure, open
}

// judge compares a store with what was acknowledged before step n. A change
// that was only asked for has happened as a whole, or not at all.
func (l *ledger) judge(t *testing.T, s queue.Store, n int) bool {
	sure, open := settled(l.disk.Marks(n))
	all, err := All(s, 100)
	if err != nil {
		t.Error(err)
		return false
	}
	there := map[mail.EnvelopeID]fate{}
	for _, e := range all {
		there[e.ID] = fate{true, e.Retry}
	}
	for b := range open {
		happened := 0
		for id, f := range b.fates {
			if there[id] == f && there[id] != sure[id] {
				happened++
			}
		}
		if happened != 0 && happened != len(b.fates) {
			t.Errorf("%d of %d envelopes of one change", happened, len(b.fates))
			return false
		}
		if happened != 0 {
			for id, f := range b.fates {
				sure[id] = f
			}
		}
	}
	ok := true
	for id, f := range sure {
		if there[id] != f {
			t.Errorf("envelope %s: %+v, acknowledged %+v", id, there[id], f)
			ok = false
		}
		delete(there, id)
	}
	for id := range there {
		t.Errorf("envelope %s: nobody asked for it", id)
		ok = false
	}
	return ok && l.whole(t, s, all)
}

// whole reads every body, and sees whether the store still works.
func (l *ledger) whole(t *testing.T, s queue.Store, all []mail.Envelope) bool {
	seen := map[mail.MessageID]bool{}
	for _, e := range all {
		id := e.ID.Message()
		if seen[id] {
			continue
		}
		seen[id] = true
		if got, err := Read(s, id); got != l.bodies[id] || err != nil {
			t.Errorf("body of %s: %d octets, %d accepted, %v", id, len(got), len(l.bodies[id]), err)
			return false
		}
	}
	id, err := s.Reserve(t.Context(), 1)
	if err == nil {
		err = s.Accept(t.Context(), message1(id, "one more", 1))
	}
	if err != nil || seen[id] {
		t.Errorf("one more, %s: %v", id, err)
		return false
	}
	return true
}

// TestCrashTwice lets the power fail again at each step of the recovery from a
// crash.
func TestCrashTwice(t *testing.T, open Reopen, times int) {
	d := NewDisk(t.TempDir())
	l := &ledger{disk: d, bodies: map[mail.MessageID]string{}}
	s, err := open(d.root, d, func(what string) { t.Errorf("moved aside: %s", what) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if err := l.life(t.Context(), s, i); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for range times {
		n := r.IntN(d.Len() + 1)
		dir := t.TempDir()
		if err := d.Crash(n, r, dir); err != nil {
			t.Fatal(err)
		}
		second, err := adopt(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range d.Marks(n) {
			second.Mark(m)
		}
		first := second.Len()
		s, err := open(dir, second, func(what string) { t.Errorf("moved aside: %s", what) })
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		crashes(t, &ledger{disk: second, bodies: l.bodies}, open, first, 2)
	}
}

// adopt makes a Disk of a folder whose content is durable.
func adopt(root string) (*Disk, error) {
	d := NewDisk(root)
	err := filepath.WalkDir(root, func(name string, e os.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		if e.IsDir() {
			d.ops = append(d.ops, op{kind: opMkdir, path: name})
		} else {
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			d.inode++
			d.live[name] = d.inode
			d.ops = append(d.ops, op{kind: opCreate, path: name, inode: d.inode}, op{kind: opSync, inode: d.inode, data: b, whole: true})
		}
		d.ops = append(d.ops, op{kind: opSyncDir, path: filepath.Dir(name)})
		return nil
	})
	return d, err
}
