//go:build linux && (amd64 || arm64)

package ipc

import (
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quick reads and writes a socket by system calls of which the runtime is not
// told. It never waits in one of them, so that there is nothing to tell; but to
// be told costs a process that was asleep as much as the call itself, for its
// watching thread wakes up, sees that all is well and goes back to sleep. One
// goroutine reads, another may write.
type quick struct {
	rc syscall.RawConn

	in       []byte
	oob      []byte
	got, on  int
	flags    int32
	inError  unix.Errno
	receive  func(fd uintptr) bool // kept: a new one for each call would be garbage
	out      []byte
	outError unix.Errno
	send     func(fd uintptr) bool
}

// noSignal has a peer that is gone be an error of the call.
const noSignal = unix.MSG_NOSIGNAL

func newQuick(rc syscall.RawConn) *quick {
	q := &quick{rc: rc}
	q.receive, q.send = q.tryReceive, q.trySend
	return q
}

// read waits for octets, or what came with them.
func (q *quick) read(b, oob []byte) (n, on int, flags int32, err error) {
	q.in, q.oob = b, oob
	err = q.rc.Read(q.receive)
	q.in, q.oob = nil, nil
	switch {
	case err != nil:
		return 0, 0, 0, err
	case q.inError != 0:
		return 0, 0, 0, q.inError
	case q.got == 0:
		return 0, q.on, q.flags, io.EOF
	}
	return q.got, q.on, q.flags, nil
}

// tryReceive reports whether there was something, if only an error.
func (q *quick) tryReceive(fd uintptr) bool {
	iov := unix.Iovec{Base: unsafe.SliceData(q.in)}
	iov.SetLen(len(q.in))
	for {
		m := unix.Msghdr{Iov: &iov, Control: unsafe.SliceData(q.oob)}
		m.SetIovlen(1)
		m.SetControllen(len(q.oob))
		n, _, e := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&m)), unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		switch e {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		q.got, q.on, q.flags, q.inError = int(n), int(m.Controllen), m.Flags, e
		return true
	}
}

// write writes all of b.
func (q *quick) write(b []byte) error {
	q.out, q.outError = b, 0
	err := q.rc.Write(q.send)
	q.out = nil
	if err == nil && q.outError != 0 {
		err = q.outError
	}
	return err
}

// trySend reports whether all is written, or an error ended it.
func (q *quick) trySend(fd uintptr) bool {
	for len(q.out) > 0 {
		n, _, e := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(q.out))), uintptr(len(q.out)),
			noSignal|unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			q.out = q.out[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			q.outError = e
			return true
		}
	}
	return true
}
