package smtp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"

	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	engine "smtpd/internal/smtp"
)

var (
	errTables = errors.New("filter: a table cannot tell now")
	errLines  = errors.New("a filter did not give the whole message back")
)

// lineBatch is how many octets of a message are collected: one that is shorter
// goes to lookup and back in one question, a longer one by a socket.
const lineBatch = 64 << 10

// flow is the way of one message through the programs that asked for it.
type flow struct {
	s       *sessionFilter
	ctx     context.Context
	out     func([]byte)
	members []uint8
	buf     []byte
	conn    net.Conn // nil until there is much
	unhook  func() bool
	ended   chan error // what became of the reading from conn
}

// Lines implements engine.Filter.
func (s *sessionFilter) Lines(ctx context.Context, out func(line []byte)) engine.Lines {
	if s.failed {
		return nil
	}
	members := s.walk.Lines()
	if len(members) == 0 {
		return nil
	}
	return &flow{s: s, ctx: ctx, out: out, members: placesOf(members)}
}

// Write implements engine.Lines.
func (l *flow) Write(line []byte) error {
	l.buf = append(append(l.buf, line...), '\n')
	if len(l.buf) < lineBatch {
		return nil
	}
	return l.flush()
}

// flush sends what was collected on the socket, which it opens when there is
// none yet.
func (l *flow) flush() error {
	if l.conn == nil {
		a, err := l.ask(&imsg.FilterLines{})
		if err != nil {
			return err
		}
		if !a.Stream {
			return errLines
		}
	}
	_, err := l.conn.Write(l.buf)
	l.buf = l.buf[:0]
	return err
}

// ask begins the way through the programs.
func (l *flow) ask(m *imsg.FilterLines) (*imsg.FilterLinesOut, error) {
	m.Session, m.Filters, m.Events = l.s.c.Session, l.members, l.s.take()
	ctx, cancel := context.WithTimeout(l.ctx, l.s.f.wait)
	defer cancel()
	a, f, err := askFile[*imsg.FilterLinesOut](ctx, l.s.b.s.lookup, m)
	switch {
	case err != nil:
		return nil, err
	case a.Failed || a.Stream != (f != nil):
		if f != nil {
			f.Close()
		}
		return nil, errLines
	case !a.Stream:
		return a, nil
	}
	conn, err := filter.Socket(f)
	if err != nil {
		return nil, err
	}
	l.conn, l.ended = conn, make(chan error, 1)
	l.unhook = context.AfterFunc(l.ctx, func() { conn.Close() })
	go func() { l.ended <- l.read() }() // Close waits for it
	return a, nil
}

// read gives out what comes by the socket, to the last dot.
func (l *flow) read() error {
	in := bufio.NewReaderSize(l.conn, lineBatch)
	var long []byte
	for {
		b, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			long = append(long, b...)
			continue
		case errors.Is(err, io.EOF):
			return errLines
		case err != nil:
			return err
		}
		line := b[:len(b)-1]
		if len(long) > 0 {
			long = append(long, line...)
			line, long = long, long[:0]
		}
		if len(line) == 1 && line[0] == '.' {
			return nil
		}
		l.out(line)
	}
}

// Close implements engine.Lines.
func (l *flow) Close(whole bool) error {
	switch {
	case !whole && l.conn == nil:
		return nil // the programs have not seen any of it
	case l.conn == nil && len(l.buf) <= imsg.MaxData:
		a, err := l.ask(&imsg.FilterLines{Lines: l.buf, Whole: true})
		if err != nil {
			return err
		}
		if !a.Stream {
			l.give(a.Lines)
			return nil
		}
		return l.finish()
	}
	if whole {
		l.buf = append(l.buf, ".\n"...)
		if err := l.flush(); err != nil {
			if l.conn != nil {
				l.hangUp()
			}
			return err
		}
		return l.finish()
	}
	l.hangUp()
	return errLines
}

// give hands out whole lines.
func (l *flow) give(b []byte) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		l.out(line)
		b = rest
	}
}

// finish waits for the last line.
func (l *flow) finish() error {
	err := <-l.ended
	l.ended <- err
	l.hangUp()
	return err
}

// hangUp closes the socket and waits for the reader.
func (l *flow) hangUp() {
	l.unhook()
	l.conn.Close()
	<-l.ended
}
