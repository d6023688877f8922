package mda

import (
	"context"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// look is one try of a reader to lock a mailbox; release is nil when it is
// locked.
type look func(t *testing.T, path string) (release func())

func dotLook(t *testing.T, path string) func() {
	fd, err := unix.Open(path+".lock", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o444)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		t.Error(err)
		return func() {}
	}
	unix.Close(fd)
	return func() { os.Remove(path + ".lock") }
}

func kernelLook(t *testing.T, path string) func() {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		t.Error(err)
		return func() {}
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		unix.Close(fd)
		return nil
	}
	return func() { unix.Close(fd) }
}

// TestBoxTurns has mail pour into a mailbox without an end, while a reader looks
// for a lock at its own pace: it must get it before it would give up.
func TestBoxTurns(t *testing.T) {
	tests := map[string]struct {
		method Method
		look   look
		every  time.Duration
		looks  int
	}{
		"mutt, dot-lock":      {Mbox, dotLook, time.Second, 5},
		"mutt, kernel lock":   {Mbox, kernelLook, time.Second, 5},
		"dovecot, dot-lock":   {Mbox, dotLook, 150 * time.Millisecond, 27},
		"woken by the kernel": {Mbox, kernelLook, 4 * time.Millisecond, 52},
		"file of .forward":    {File, kernelLook, time.Second, 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, v := newDeliverer(t, nil), example(t, tt.method)
				v.Path = spool(d, "alice")
				stop := pourInto(t, d, v)
				defer stop()
				for round := range 12 {
					// Each round begins at another moment of the turn.
					time.Sleep(time.Duration(round) * 337 * time.Millisecond)
					release := tt.look(t, spool(d, "alice"))
					for n := 1; release == nil && n < tt.looks; n++ {
						time.Sleep(tt.every)
						release = tt.look(t, spool(d, "alice"))
					}
					if release == nil {
						t.Errorf("round %d: locked at %d looks, one each %v", round, tt.looks, tt.every)
						continue
					}
					time.Sleep(100 * time.Millisecond)
					release()
				}
			})
		})
	}
}

// pourInto delivers without an end, each delivery taking 20 ms, until stop is
// called.
func pourInto(t *testing.T, d *Deliverer, v *Delivery) (stop func()) {
	d.fault = func(step string) error {
		if step == "sync" {
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if r := d.Deliver(context.Background(), v); !r.Status.OK() {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// TestBoxPauseCost has nobody wait for a mailbox: one mail does not wait either,
// nor do those of two seconds; of a minute no more than a third is lost.
func TestBoxPauseCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, v := newDeliverer(t, nil), example(t, Mbox)
		const each = 50 * time.Millisecond
		d.fault = func(step string) error {
			if step == "sync" {
				time.Sleep(each)
			}
			return nil
		}
		for _, tt := range []struct {
			mails int
			limit time.Duration
		}{{1, each}, {40, 40*each + 10*briefPause}, {1200, 1200 * each * 3 / 2}} {
			time.Sleep(time.Hour)
			start := time.Now()
			for range tt.mails {
				mustDeliver(t, d, v)
			}
			if took := time.Since(start); took > tt.limit {
				t.Errorf("%d mails took %v; want %v at most", tt.mails, took, tt.limit)
			}
		}
	})
}

// TestBoxesForgotten looks at what is remembered of mailboxes nobody uses.
func TestBoxesForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b boxes
		for i := range 10 * maxIdleBoxes {
			path := string(rune('a' + i))
			if err := b.lock(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			b.unlock(path)
			time.Sleep(longPause)
		}
		if len(b.known) > maxIdleBoxes {
			t.Errorf("%d are remembered", len(b.known))
		}
	})
}

// Where another machine may write, nothing is known of when those that hold locks
// were started.
func TestBooted(t *testing.T) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	start := time.Now().Add(-time.Duration(info.Uptime) * time.Second)
	if got := sinceBoot(0); got.Sub(start).Abs() > 2*time.Second {
		t.Errorf("started at %v; want %v", got, start)
	}
	for path, shared := range map[string]bool{"/proc": true, t.TempDir(): false} {
		fd, err := openDirAt(unix.AT_FDCWD, path, oWalk)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if at := booted(fd); shared && !at.IsZero() {
			t.Errorf("%s: %v; want zero", path, at)
		} else if !shared {
			t.Logf("%s: %v", path, at)
		}
	}
}
