package ctl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bufferSize is how much output is gathered before it is written. Ours.
const bufferSize = 32 << 10

// Conn is one end of a control connection. It is not safe for concurrent use.
// Reads and writes end when their time is over; the zero timeouts mean never.
type Conn struct {
	ReadTimeout  time.Duration // for the first octet of a frame to its last
	WriteTimeout time.Duration // for one write

	u     *net.UnixConn
	max   int  // largest frame accepted
	files bool // descriptors are accepted
	file  *os.File
	in    []byte // storage for input
	have  []byte // input not yet used, within in
	out   []byte
}

// NewServer makes the daemon's end. Descriptors that a client sends are
// dropped by the kernel: none is ever received.
func NewServer(u *net.UnixConn) *Conn {
	return &Conn{u: u, max: MaxRequest, in: make([]byte, 1<<10)}
}

// newClient makes the tool's end.
func newClient(u *net.UnixConn) *Conn {
	return &Conn{u: u, max: MaxFrame, files: true, in: make([]byte, bufferSize)}
}

// Close ends the connection, without writing what waits.
func (c *Conn) Close() error {
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
	return c.u.Close()
}

// Send gathers a frame for the next Flush, and flushes when much has gathered.
func (c *Conn) Send(kind Kind, fields ...string) error {
	c.out = appendFrame(c.out, kind, fields)
	if len(c.out) < bufferSize {
		return nil
	}
	return c.Flush()
}

// Flush writes what has gathered.
func (c *Conn) Flush() error {
	if len(c.out) == 0 {
		return nil
	}
	if err := c.writeDeadline(); err != nil {
		return err
	}
	_, err := c.u.Write(c.out)
	c.out = c.out[:0]
	return err
}

// SendFile writes what has gathered, and a File frame with the descriptor. The
// caller keeps f.
func (c *Conn) SendFile(f *os.File) error {
	if err := c.Flush(); err != nil {
		return err
	}
	if err := c.writeDeadline(); err != nil {
		return err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	b := appendFrame(nil, KindFile, nil)
	var werr error
	err = raw.Control(func(fd uintptr) {
		_, _, werr = c.u.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, werr)
}

func (c *Conn) writeDeadline() error {
	if c.WriteTimeout == 0 {
		return nil
	}
	return c.u.SetWriteDeadline(time.Now().Add(c.WriteTimeout))
}

// Receive reads the next frame. At the end of the conversation it returns
// io.EOF; a frame over the bounds gives ErrFrame.
func (c *Conn) Receive() (Frame, error) {
	if c.ReadTimeout != 0 {
		if err := c.u.SetReadDeadline(time.Now().Add(c.ReadTimeout)); err != nil {
			return Frame{}, err
		}
	}
	if err := c.fill(4); err != nil {
		return Frame{}, err
	}
	n := binary.LittleEndian.Uint32(c.have)
	if n < 2 || n > uint32(c.max) {
		return Frame{}, ErrFrame
	}
	if err := c.fill(4 + int(n)); err != nil {
		return Frame{}, err
	}
	f, err := parseFrame(c.have[4 : 4+n])
	c.have = c.have[4+n:]
	return f, err
}

// File hands over the descriptor that came last, or nil.
func (c *Conn) File() *os.File {
	f := c.file
	c.file = nil
	return f
}

// fill reads until n octets are there.
func (c *Conn) fill(n int) error {
	if len(c.have) >= n {
		return nil
	}
	if n > len(c.in) {
		in := make([]byte, n)
		c.have = in[:copy(in, c.have)]
		c.in = in
	} else {
		c.have = c.in[:copy(c.in, c.have)]
	}
	for len(c.have) < n {
		got, err := c.read(c.in[len(c.have):])
		if err != nil {
			if errors.Is(err, io.EOF) && len(c.have) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		c.have = c.in[:len(c.have)+got]
	}
	return nil
}

// read is one read, with a descriptor where those are accepted.
func (c *Conn) read(b []byte) (int, error) {
	if !c.files {
		return c.u.Read(b)
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.u.ReadMsgUnix(b, oob)
	if oobn > 0 {
		if ferr := c.takeFile(oob[:oobn]); ferr != nil {
			return 0, ferr
		}
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

func (c *Conn) takeFile(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("control: descriptor: %w", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // some other control message
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if c.file != nil {
				c.file.Close()
			}
			c.file = os.NewFile(uintptr(fd), "session")
		}
	}
	return nil
}
