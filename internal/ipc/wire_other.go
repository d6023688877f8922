//go:build !linux || !(amd64 || arm64)

package ipc

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// quick reads and writes a socket by plain system calls.
type quick struct{ rc syscall.RawConn }

// noSignal is not known everywhere; the Go runtime takes the signal for a peer
// that is gone, and the call fails.
const noSignal = 0

func newQuick(rc syscall.RawConn) *quick { return &quick{rc} }

// read waits for octets, or what came with them.
func (q *quick) read(b, oob []byte) (n, on int, flags int32, err error) {
	werr := q.rc.Read(func(fd uintptr) bool {
		for {
			var f int
			n, on, f, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT)
			flags = int32(f)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	switch {
	case werr != nil:
		return 0, 0, 0, werr
	case err == nil && n == 0:
		err = io.EOF
	}
	return max(n, 0), on, flags, err
}

// write writes all of b.
func (q *quick) write(b []byte) error {
	var err error
	werr := q.rc.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			n, err = unix.Write(int(fd), b)
			switch err {
			case nil:
				b = b[n:]
			case unix.EINTR:
			case unix.EAGAIN:
				return false
			default:
				return true
			}
		}
		return true
	})
	if werr != nil {
		return werr
	}
	return err
}
