package filter

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/mail"
)

// Stream is the way of the lines of one message through the programs that asked
// for them, in their order. Write and Close are called by one goroutine.
type Stream struct {
	session mail.SessionID
	first   *stage
	out     io.Writer
	timeout time.Duration
	moved   atomic.Uint64 // lines that came out of any program

	once sync.Once
	done chan struct{}
	err  error // once done is closed
	drop atomic.Bool

	buf  []byte // owned by the reader of the last program
	over bool   // the same
}

// stage is one program of a stream.
type stage struct {
	program *Program
	stream  *Stream
	token   uint64
	next    *stage

	head []byte // of a line, by the one who feeds
	when time.Time
	dot  time.Time // when the last one was handed to the program, under its lock
}

// emitSize is how many octets are handed out at a time.
const emitSize = 64 << 10

// Stream begins the way of a message through members, which must have asked for
// lines; nil: one of them is gone and may not be left out. What comes out is
// written to out as whole lines, without the last dot, never after Wait has
// returned; a Write that waits holds the last program up. The programs are told
// notes with the first lines, those that are no members by Flush.
func (s *Session) Stream(which []int, notes []Note, out io.Writer) *Stream {
	s.tell(nil, notes, false)
	st := &Stream{session: s.ID, out: out, done: make(chan struct{})}
	for n := len(which) - 1; n >= 0; n-- {
		m := s.member(which[n])
		if m.Program != nil {
			if next := m.Program.openStream(st, st.first); next != nil {
				st.first, st.timeout = next, max(st.timeout, cmp.Or(m.Timeout, m.Program.o.Timeout))
				continue
			}
		}
		if !m.Pass {
			st.cut(errClosed)
			return nil
		}
	}
	if st.first == nil {
		st.first = &stage{stream: st} // nobody is left: straight out
	}
	return st
}

// openStream makes the program expect lines.
func (p *Program) openStream(st *Stream, next *stage) *stage {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || p.sessions[st.session] == nil {
		return nil
	}
	p.token++
	g := &stage{program: p, stream: st, token: p.token, next: next}
	p.streams[g.token] = g
	return g
}

// Write takes whole lines, each ended by LF. It waits for a slow program.
func (st *Stream) Write(lines []byte) (int, error) {
	err := st.feed(lines)
	if err != nil {
		return 0, err
	}
	st.settle()
	return len(lines), nil
}

// All takes all the lines of a message, and is its Close.
func (st *Stream) All(lines []byte) {
	if st.feed(lines) == nil {
		st.Close(true)
	}
}

// feed takes whole lines, which go on their way with settle.
func (st *Stream) feed(lines []byte) error {
	now := st.now()
	for len(lines) > 0 {
		n, room := 0, true
		if g := st.first; g.program == nil {
			n = st.emitAll(lines, nil)
		} else if n, room = g.feedAll(lines, nil, now); !room {
			g.room()
		}
		if lines = lines[n:]; n == 0 && room {
			st.put(lines, now) // it has no end
			lines = nil
		}
		select {
		case <-st.done:
			return st.err
		default:
		}
	}
	return nil
}

// now is the time that lines carry which are fed now.
func (st *Stream) now() time.Time {
	if p := st.first.program; p != nil {
		return p.o.Now()
	}
	return time.Time{}
}

// put feeds one line into the first program.
func (st *Stream) put(line []byte, now time.Time) {
	if g := st.first; g.program == nil {
		st.emit(line, len(line) == 1 && line[0] == '.')
	} else if !g.feed(line, now) {
		g.room()
	}
}

// settle lets what was fed go on its way.
func (st *Stream) settle() {
	g := st.first
	if g.program == nil {
		st.flush()
		return
	}
	g.program.flushed()
}

// Close says that no more lines come. Without whole the message was given up:
// what comes out of it is dropped.
func (st *Stream) Close(whole bool) {
	if !whole {
		st.drop.Store(true)
	}
	st.put([]byte{'.'}, st.now())
	st.settle()
}

// Wait waits until the last line has come out, and tells what went wrong. It
// ends when ctx does, or when nothing has moved for the programs' timeout.
func (st *Stream) Wait(ctx context.Context) error {
	t := time.NewTicker(max(st.timeout, time.Second))
	defer t.Stop()
	since, before := time.Now(), st.moved.Load()
	for {
		select {
		case <-st.done:
			if st.err != nil {
				st.cut(st.err)
			}
			return st.err
		case <-ctx.Done():
			st.cut(ctx.Err())
			return ctx.Err()
		case <-t.C:
			if n := st.moved.Load(); n != before {
				since, before = time.Now(), n
				continue
			}
			for g := st.first; g != nil && g.program != nil; g = g.next {
				if g.open() {
					g.program.silent(since)
					break
				}
			}
			st.cut(errSilent)
			return errSilent
		}
	}
}

// open reports whether the program has not said the last dot.
func (g *stage) open() bool {
	g.program.mu.Lock()
	defer g.program.mu.Unlock()
	return g.program.streams[g.token] != nil
}

// fail ends the stream with an error.
func (st *Stream) fail(err error) { st.finish(err) }

func (st *Stream) finish(err error) {
	st.once.Do(func() {
		st.err = err
		close(st.done)
	})
}

// cut ends the stream and makes the session unknown to its programs: what they
// say of it from here on is late.
func (st *Stream) cut(err error) {
	st.drop.Store(true)
	st.finish(err)
	for g := st.first; g != nil && g.program != nil; g = g.next {
		g.program.forget(st.session)
	}
}

// feed queues a line for the program of a stage, without waking it; it reports
// whether there is room for more.
func (g *stage) feed(line []byte, now time.Time) bool {
	p := g.program
	p.mu.Lock()
	defer p.mu.Unlock()
	g.append(line, now)
	return p.dataOut <= maxAhead || p.err != nil
}

// feedAll is feed for the whole lines that b begins with, as far as they begin
// with prefix, which is cut off; a last dot behind a prefix is left. It reports
// how many octets that took.
func (g *stage) feedAll(b, prefix []byte, now time.Time) (n int, room bool) {
	p := g.program
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.dataOut <= maxAhead || p.err != nil {
		line, size := nextLine(b[n:], prefix)
		if size == 0 {
			return n, true
		}
		g.append(line, now)
		n += size
	}
	return n, false
}

// nextLine is the first line of b, and how many octets it takes; see feedAll.
func nextLine(b, prefix []byte) (line []byte, size int) {
	if !bytes.HasPrefix(b, prefix) {
		return nil, 0
	}
	size = bytes.IndexByte(b, '\n') + 1
	if size <= len(prefix) {
		return nil, 0
	}
	line = b[len(prefix) : size-1]
	if len(prefix) > 0 && len(line) == 1 && line[0] == '.' {
		return nil, 0
	}
	return line, size
}

// append queues one line with the lock of the program held.
func (g *stage) append(line []byte, now time.Time) {
	p := g.program
	if p.err != nil {
		return // the stream hears of it by itself
	}
	n := len(p.out)
	if len(g.head) == 0 || !now.Equal(g.when) {
		g.when = now
		g.head = appendHead(g.head[:0], "filter", now, In, "data-line", g.stream.session)
		g.head = append(g.head, '|')
		g.head = appendHex(g.head, g.token)
		g.head = append(g.head, '|')
	}
	p.out = append(p.out, g.head...)
	p.out = append(append(p.out, line...), '\n')
	if len(line) == 1 && line[0] == '.' {
		g.dot = now
	}
	p.dataOut += len(p.out) - n
}

// room waits until the program has taken some of what is before it.
func (g *stage) room() {
	p := g.program
	p.mu.Lock()
	defer p.mu.Unlock()
	p.send()
	for p.dataOut > maxAhead && p.err == nil {
		p.cond.Wait()
	}
}

// emit takes a line that came out of the last program; it reports whether flush
// is to be called.
func (st *Stream) emit(line []byte, last bool) bool {
	st.moved.Add(1)
	if last {
		st.over = true
		return true
	}
	if st.drop.Load() {
		return false
	}
	st.buf = append(append(st.buf, line...), '\n')
	if len(st.buf) >= emitSize {
		st.flush()
	}
	return true
}

// emitAll is emit for whole lines; see feedAll.
func (st *Stream) emitAll(b, prefix []byte) (n int) {
	drop := st.drop.Load()
	for {
		line, size := nextLine(b[n:], prefix)
		if size == 0 {
			break
		}
		n += size
		if drop {
			continue
		}
		st.buf = append(append(st.buf, line...), '\n')
		if len(st.buf) >= emitSize {
			st.flush()
		}
	}
	st.moved.Add(1)
	return n
}

// flush hands out what has come.
func (st *Stream) flush() {
	if len(st.buf) > 0 && !st.drop.Load() {
		if _, err := st.out.Write(st.buf); err != nil {
			st.fail(err)
		}
	}
	st.buf = st.buf[:0]
	if st.over {
		st.buf = nil
		st.finish(nil)
	}
}
