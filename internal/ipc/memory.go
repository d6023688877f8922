package ipc

import (
	"io"
	"os"
	"sync"
	"syscall"
)

// ConnectMemory joins two links within one process, without sockets: for tests
// under testing/synctest, where nobody may wait for the kernel. It behaves like
// a socketpair: what was written before an end is closed can still be read.
// Descriptors do not pass.
func ConnectMemory(a, b *Link) {
	one, two := newPipe(), newPipe()
	a.attach(&memory{in: one, out: two})
	b.attach(&memory{in: two, out: one})
}

// memory is one end.
type memory struct{ in, out *pipe }

func (m *memory) read(b []byte) (int, []*os.File, error) {
	n, err := m.in.read(b)
	return n, nil, err
}

func (m *memory) write(b []byte) error { return m.out.write(b) }

func (m *memory) writeFile([]byte, *os.File) error { return syscall.EOPNOTSUPP }

func (m *memory) close() {
	m.in.end(true)
	m.out.end(false)
}

// pipeSize is what a pipe holds, about as much as a socket.
const pipeSize = 208 << 10

// pipe is one direction.
type pipe struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	over bool // nothing more is written
	deaf bool // nothing more is read
}

func newPipe() *pipe {
	p := &pipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 && !p.over && !p.deaf {
		p.cond.Wait()
	}
	if p.deaf || len(p.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.buf)
	if p.buf = p.buf[n:]; len(p.buf) == 0 {
		p.buf = nil
	}
	p.cond.Broadcast()
	return n, nil
}

func (p *pipe) write(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(b) > 0 {
		for len(p.buf) >= pipeSize && !p.over && !p.deaf {
			p.cond.Wait()
		}
		if p.over || p.deaf {
			return syscall.EPIPE
		}
		n := min(len(b), pipeSize-len(p.buf))
		p.buf = append(p.buf, b[:n]...)
		b = b[n:]
		p.cond.Broadcast()
	}
	return nil
}

func (p *pipe) end(deaf bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	p.deaf = p.deaf || deaf
	p.cond.Broadcast()
}
