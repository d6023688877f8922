package ipc

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// wire is what a channel runs on: octets in order, and descriptors that come
// with one of them. Reads and writes end when it is closed.
type wire interface {
	// read fills at most b; the files, even with an error, belong to the caller.
	read(b []byte) (n int, files []*os.File, err error)
	write(b []byte) error
	// writeFile sends b, not empty, with a descriptor of f.
	writeFile(b []byte, f *os.File) error
	close()
}

// socket is one end of a socketpair. One goroutine reads.
type socket struct {
	*quick
	conn *os.File
	oob  []byte
}

func newSocket(conn *os.File) *socket {
	rc, err := conn.SyscallConn()
	if err != nil {
		panic("ipc: a channel that is no file: " + err.Error()) // the only error there is
	}
	return &socket{quick: newQuick(rc), conn: conn, oob: make([]byte, unix.CmsgSpace(8*4))}
}

func (s *socket) close() { s.conn.Close() }

// writeFile keeps clear of f.Fd, which would make the description blocking for
// everyone who shares it.
func (s *socket) writeFile(b []byte, f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = s.sendRights(b, unix.UnixRights(int(fd))) })
	return errors.Join(cerr, err)
}

// sendRights sends b with what oob says.
func (s *socket) sendRights(b, oob []byte) error {
	var n int
	var err error
	werr := s.rc.Write(func(fd uintptr) bool {
		for {
			n, err = unix.SendmsgN(int(fd), b, oob, nil, unix.MSG_DONTWAIT|noSignal)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	})
	if werr == nil && err == nil && n < len(b) {
		werr = s.write(b[n:])
	}
	return errors.Join(werr, err)
}

func (s *socket) read(b []byte) (int, []*os.File, error) {
	n, on, flags, err := s.quick.read(b, s.oob)
	if on == 0 {
		return n, nil, err
	}
	files, ferr := parseFiles(s.oob[:on])
	if ferr != nil || flags&unix.MSG_CTRUNC != 0 {
		err = &ProtocolError{errFiles}
	}
	return n, files, err
}

func parseFiles(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // some other control message
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
