package smtp

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"time"
)

// Sizes of buffers, in octets.
const (
	smallBuffer = 4 << 10  // ours: a command line, and room for pipelined ones
	largeBuffer = 64 << 10 // ours: a body line, and whatever has come in by then
	flushSize   = 4 << 10  // ours: replies that wait for the client to fall silent
)

// writeTimeout bounds one write of replies, which gets half of it at least.
// Ours: a client that does not read for so long is gone.
const writeTimeout = 60 * time.Second

var errLineTooLong = errors.New("line too long")

// Buffers are shared by all sessions: one that is idle holds a small one only.
var (
	smallPool = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largePool = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
	outPool   = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}
)

// wire is the octets of one connection, both ways. buf[r:w] is what came in
// and was not used yet.
type wire struct {
	nc    net.Conn
	small *[smallBuffer]byte
	large *[largeBuffer]byte // in place of small while a body or a long line comes in
	buf   []byte
	r, w  int
	seen  int       // octets of buf[r:w] known to hold no LF
	bare  bool      // the last line ended with LF alone
	out   *[]byte   // replies; nil: none wait
	err   error     // of writing; nothing more is written
	until time.Time // deadline of writing, as set; zero: not known
}

func newWire(nc net.Conn) *wire {
	c := &wire{nc: nc, small: smallPool.Get().(*[smallBuffer]byte)}
	c.buf = c.small[:]
	return c
}

// release gives all buffers back.
func (c *wire) release() {
	if c.large != nil {
		largePool.Put(c.large)
	}
	if c.small != nil {
		smallPool.Put(c.small)
	}
	c.large, c.small, c.buf, c.r, c.w = nil, nil, nil, 0, 0
	if c.out != nil {
		outPool.Put(c.out)
		c.out = nil
	}
}

// grow makes room for long lines.
func (c *wire) grow() {
	if c.large != nil {
		return
	}
	c.large = largePool.Get().(*[largeBuffer]byte)
	c.w = copy(c.large[:], c.buf[c.r:c.w])
	c.r = 0
	c.buf = c.large[:]
}

// shrink goes back to the small buffer, if what has come in fits.
func (c *wire) shrink() {
	if c.large == nil || c.w-c.r > smallBuffer/2 {
		return
	}
	c.w = copy(c.small[:], c.buf[c.r:c.w])
	c.r = 0
	c.buf = c.small[:]
	largePool.Put(c.large)
	c.large = nil
}

// buffered is what has come in and was not used yet.
func (c *wire) buffered() []byte { return c.buf[c.r:c.w] }

// skip uses n octets up.
func (c *wire) skip(n int) {
	c.r += n
	c.seen = 0
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
}

// fill reads once. There must be room, see grow; replies must be flushed.
func (c *wire) fill() error {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// full reports that fill has no room.
func (c *wire) full() bool { return c.w-c.r == len(c.buf) }

// line gives the next line without its line end, if it has come in whole. It
// is valid until the next fill or grow. A line of more than max octets is an
// error, even before it ends.
func (c *wire) line(max int) (line []byte, ok bool, err error) {
	b := c.buf[c.r:c.w]
	i := bytes.IndexByte(b[c.seen:], '\n')
	if i < 0 {
		c.seen = len(b)
		if len(b) > max+1 {
			return nil, false, errLineTooLong
		}
		return nil, false, nil
	}
	i += c.seen
	line = b[:i]
	c.bare = i == 0 || line[i-1] != '\r'
	if !c.bare {
		line = line[:i-1]
	}
	if len(line) > max {
		return nil, false, errLineTooLong
	}
	c.r += i + 1 // not skip: the line is still there
	c.seen = 0
	return line, true, nil
}

// waiting reports whether a whole line has come in already.
func (c *wire) waiting() bool {
	return bytes.IndexByte(c.buf[c.r:c.w], '\n') >= 0
}

// say queues one reply line.
func (c *wire) say(line string) {
	if c.err != nil {
		return
	}
	if c.out == nil {
		c.out = outPool.Get().(*[]byte)
		*c.out = (*c.out)[:0]
	}
	*c.out = append(append(*c.out, line...), '\r', '\n')
	if len(*c.out) >= flushSize {
		c.flush()
	}
}

// hurry gives what is written from here on so little time, all in all: the
// client has not kept its part.
func (c *wire) hurry(d time.Duration) {
	if now := time.Now(); c.nc.SetWriteDeadline(now.Add(d)) == nil {
		c.until = now.Add(writeTimeout) // stays as it is
	}
}

// flush writes what waits to be said.
func (c *wire) flush() {
	if c.out == nil {
		return
	}
	if len(*c.out) > 0 && c.err == nil {
		if now := time.Now(); c.until.Sub(now) < writeTimeout/2 { // setting it costs as much as many lines
			c.until = now.Add(writeTimeout)
			c.err = c.nc.SetWriteDeadline(c.until)
		}
		if c.err == nil {
			_, c.err = c.nc.Write(*c.out)
		}
	}
	if cap(*c.out) <= 2*flushSize {
		outPool.Put(c.out)
	}
	c.out = nil
}

// drain reads and drops what the client still sends, so that it can read our
// last words before the connection is reset: at most max octets and for at
// most the given time.
func (c *wire) drain(max int, d time.Duration) {
	type closeWriter interface{ CloseWrite() error }
	cw, ok := c.nc.(closeWriter)
	if !ok || cw.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(d)) != nil {
		return
	}
	for n := 0; n < max; {
		m, err := c.nc.Read(c.buf)
		if err != nil {
			return
		}
		n += m
	}
}
