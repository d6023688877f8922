package ipc

import (
	"fmt"
	"net"
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
func Conn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("channel: not a unix socket but %T", c)
	}
	return u, nil
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
