package mda

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Waiting for locks. Ours: mail readers hold a mailbox for a second or two; the
// age is that of liblockfile and of Dovecot's mbox_lock_timeout.
const (
	lockWait     = 60 * time.Second
	lockPoll     = 4 * time.Millisecond  // doubled up to lockPollMax
	lockPollMax  = 50 * time.Millisecond // a reader that comes again at once leaves no more
	staleLockAge = 5 * time.Minute       // a dot-lock that does not name its holder
)

var errLocked = errors.New("mailbox is locked by another program")

// dotLock is NAME.lock beside a mailbox, while we hold it.
type dotLock struct {
	dir  int
	name string
	ino  uint64
}

// release removes the lock if it is still ours.
func (l *dotLock) release() {
	if l == nil {
		return
	}
	var st unix.Stat_t
	if unix.Fstatat(l.dir, l.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && uint64(st.Ino) == l.ino {
		_ = unix.Unlinkat(l.dir, l.name, 0)
	}
}

// tryDotLock makes the lock. It fails with EEXIST while another holds it, and
// gives nil without an error where the user may not make files: then the kernel
// lock has to do, as for every other program that runs as the user.
func (d *Deliverer) tryDotLock(dir int, mailbox string) (*dotLock, error) {
	name := mailbox + ".lock"
	fd, err := openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o444)
	switch err {
	case nil:
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return nil, nil
	default:
		return nil, err
	}
	l := &dotLock{dir: dir, name: name}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	l.ino = uint64(st.Ino)
	if err == nil {
		err = writeAll(fd, []byte(strconv.Itoa(unix.Getpid())+"\n"))
	}
	unix.Close(fd)
	if err != nil {
		_ = unix.Unlinkat(dir, name, 0)
		return nil, err
	}
	return l, nil
}

// breakStale removes a dot-lock whose holder is gone and reports it.
func (d *Deliverer) breakStale(dir int, mailbox string) {
	name := mailbox + ".lock"
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	reason := d.stale(dir, name, &st)
	if reason == "" {
		return
	}
	// Another may break it at the same moment and a third make its own: so take
	// it aside first and look at what was taken.
	aside := fmt.Sprintf("%s.%d", name, unix.Getpid())
	if unix.Renameat(dir, name, dir, aside) != nil {
		return
	}
	var moved unix.Stat_t
	if unix.Fstatat(dir, aside, &moved, unix.AT_SYMLINK_NOFOLLOW) == nil && moved.Ino != st.Ino {
		_ = unix.Linkat(dir, aside, dir, name, 0)
		_ = unix.Unlinkat(dir, aside, 0)
		return
	}
	_ = unix.Unlinkat(dir, aside, 0)
	d.o.Report(fmt.Sprintf("warn: mda: lock %s broken: %s", visible(name, maxLine), reason))
}

// stale says why a dot-lock has no holder any more; empty: it may have one.
func (d *Deliverer) stale(dir int, name string, st *unix.Stat_t) string {
	made := modified(st)
	pid := d.holder(dir, name)
	if pid > 0 {
		if !d.o.Alive(pid) {
			return fmt.Sprintf("its holder, process %d, has ended", pid)
		}
		if at := started(pid); !at.IsZero() && at.After(made.Add(clockSlack)) {
			return fmt.Sprintf("it is older than process %d", pid)
		}
		return ""
	}
	if age := d.o.Now().Sub(made); age > staleLockAge {
		return fmt.Sprintf("it is %d minutes old", age/time.Minute)
	}
	if at := d.o.Booted(dir); made.Before(at.Add(-clockSlack)) {
		return "it is older than the start of this machine"
	}
	return ""
}

// holder is the process that a lock names; 0: none, or one of another machine.
func (d *Deliverer) holder(dir int, name string) int {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0
	}
	number, host, _ := strings.Cut(strings.TrimSpace(string(b[:n])), ":")
	pid, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || pid <= 0 || (host != "" && host != d.o.Hostname()) {
		return 0
	}
	return pid
}

// alive reports whether a process is there, ours or another's.
func alive(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// waitLock repeats try until it reports that it holds the locks of the mailbox,
// fails for good, or takes too long. Programs take dot-lock and kernel lock in
// either order, so try must hold neither when it has not got both.
func (d *Deliverer) waitLock(ctx context.Context, path string, try func() (held bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for wait := lockPoll; ; wait = min(2*wait, lockPollMax) {
		if held, err := try(); held || err != nil {
			if wait > lockPoll {
				d.boxes.shared(path)
			}
			return err
		}
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return errLocked
		case <-t.C:
		}
	}
}

// tryKernelLock is kernelLock that tells being locked out from an error.
func tryKernelLock(fd int) (bool, error) {
	switch err := kernelLock(fd); err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EACCES:
		return false, nil
	case unix.EINVAL, unix.EOPNOTSUPP, unix.ENOLCK:
		return true, nil // nothing that can be locked: a device, or a file system without
	default:
		return false, err
	}
}
