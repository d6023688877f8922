//go:build freebsd || openbsd

package mda

import (
	"time"

	"golang.org/x/sys/unix"
)

// syncFile brings a file to disk.
func syncFile(fd int) error { return retry(func() error { return unix.Fsync(fd) }) }

// beginSync has nothing to do: syncFile does all of it.
func beginSync(int) {}

// reserve cannot be had without a longer file.
func reserve(int, int64, int64) error { return nil }

// createNameless cannot be had.
func createNameless(int, string) (int, error) { return -1, unix.EOPNOTSUPP }

// kernelLock takes the lock of mail.local and its kind. The kernel lets flock
// and fcntl locks exclude each other, so one of them is enough and both would
// exclude themselves. It does not wait; the lock ends with the file.
func kernelLock(fd int) error {
	return retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// started is when a process began; zero: not known here.
func started(int) time.Time { return time.Time{} }

// booted is when the machine was started; zero: not known here.
func booted(int) time.Time { return time.Time{} }
