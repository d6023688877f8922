package mda

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// oWalk opens a folder to pass through; it need not be readable.
const oWalk = unix.O_PATH

// syncFile brings the octets of a file to disk, and what is needed to find them.
func syncFile(fd int) error { return retry(func() error { return unix.Fdatasync(fd) }) }

// beginSync starts to write what syncFile will wait for, so that the files of a
// batch share the waiting.
func beginSync(fd int) { _ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE) }

// reserve gets room for size octets behind the end of a file, which it does not
// move; nil where none is needed: where a quota is exceeded btrfs does not even
// shorten a file, so what has no room is not begun. In others the blocks of a file
// would change twice for each mail, and a power cut in between costs those that
// have no journal what was in it before.
func reserve(fd int, end, size int64) error {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &st) }); err != nil || uint32(st.Type) != unix.BTRFS_SUPER_MAGIC {
		return nil
	}
	err := retry(func() error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, end, size) })
	if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EFBIG {
		return err
	}
	return nil
}

// createNameless makes a file without a name in a folder and links it there. It
// fails where a file system cannot, and without /proc.
func createNameless(dir int, name string) (fd int, err error) {
	if fd, err = openat(dir, ".", unix.O_TMPFILE|unix.O_WRONLY, 0o600); err != nil {
		return -1, err
	}
	err = retry(func() error {
		return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// kernelLock takes the locks that procmail, mutt and Dovecot look at (fcntl) and
// those of flock, which others use; on Linux neither knows of the other. The
// fcntl lock belongs to the open file, so that two deliveries of one process
// exclude each other too. It does not wait; the locks end with the file.
func kernelLock(fd int) error {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) }); err != nil {
		return err
	}
	return retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// clockTicks per second of /proc (USER_HZ, the same on all Linux ports of Go).
const clockTicks = 100

// started is when a process began; zero when that cannot be told.
func started(pid int) time.Time {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return time.Time{}
	}
	// The name of the program, in brackets, may hold anything.
	_, after, ok := bytes.Cut(stat[max(bytes.LastIndexByte(stat, ')'), 0):], []byte(") "))
	f := bytes.Fields(after)
	if !ok || len(f) < 20 {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(string(f[19]), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return sinceBoot(time.Duration(ticks) * time.Second / clockTicks)
}

// sinceBoot is the time that was so long after the start of the machine; zero:
// not known.
func sinceBoot(after time.Duration) time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(after - time.Duration(now.Nano()))
}

// booted is when this machine was started, if no other can write to the file
// system of an open folder; else zero.
func booted(dir int) time.Time {
	var st unix.Statfs_t
	if retry(func() error { return unix.Fstatfs(dir, &st) }) != nil {
		return time.Time{}
	}
	switch uint32(st.Type) { // int32 on some
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, zfsMagic:
		return sinceBoot(0)
	}
	return time.Time{}
}

// zfsMagic is the type of ZFS in statfs(2), which x/sys lacks.
const zfsMagic = 0x2fc12fc1
