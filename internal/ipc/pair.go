package ipc

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socketpair makes both ends of a channel, close-on-exec.
func Socketpair() (a, b *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel"), nil
}

// Conn makes one end of a channel ready for Link.Attach and closes f.
func Conn(f *os.File) (*os.File, error) {
	defer f.Close()
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	fd := -1
	cerr := rc.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	conn, err := Inherited(fd)
	if err != nil {
		unix.Close(fd)
	}
	return conn, err
}

// Inherited is Conn for a descriptor that this process was started with, or that
// is its own otherwise. It is taken over unless there is an error.
func Inherited(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	if _, ok := sa.(*unix.SockaddrUnix); !ok {
		return nil, fmt.Errorf("channel: not a unix socket but %T", sa)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	return os.NewFile(uintptr(fd), "channel"), nil
}

// Connect joins two links within one process: for tests.
func Connect(a, b *Link) error {
	fa, fb, err := Socketpair()
	if err != nil {
		return err
	}
	ca, err := Conn(fa)
	if err != nil {
		fb.Close()
		return err
	}
	cb, err := Conn(fb)
	if err != nil {
		ca.Close()
		return err
	}
	a.Attach(ca)
	b.Attach(cb)
	return nil
}
