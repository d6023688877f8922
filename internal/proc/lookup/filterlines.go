package lookup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"smtpd/internal/filter"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// chunkSize is how much of a message is read at a time. Ours.
const chunkSize = 64 << 10

var errOutlet = errors.New("nobody takes the lines")

// outlet takes what comes out of the last program: in memory as long as it is
// little, then by a socket.
type outlet struct {
	mu    sync.Mutex
	cond  *sync.Cond
	buf   []byte
	conn  net.Conn      // nil: in memory
	ended bool          // nobody takes it any more
	full  chan struct{} // closed when memory is not enough
}

func newOutlet() *outlet {
	o := &outlet{full: make(chan struct{})}
	o.cond = sync.NewCond(&o.mu)
	return o
}

// Write implements io.Writer; it waits until there is a socket when memory is
// not enough.
func (o *outlet) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil && !o.ended && len(o.buf)+len(b) > imsg.MaxData {
		close(o.full)
		for o.conn == nil && !o.ended {
			o.cond.Wait()
		}
	}
	if o.ended {
		return 0, errOutlet
	}
	if o.conn == nil {
		o.buf = append(o.buf, b...)
		return len(b), nil
	}
	return o.conn.Write(b)
}

// connect gives the outlet its socket.
func (o *outlet) connect(c net.Conn) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var err error
	if len(o.buf) > 0 {
		_, err = c.Write(o.buf)
		o.buf = nil
	}
	o.conn = c
	o.cond.Broadcast()
	return err
}

// end makes writers stop.
func (o *outlet) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.cond.Broadcast()
}

// filterLines sends the lines of one message through the programs of a session
// and answers with what comes out, or with the socket that it comes by.
func filterLines(ctx context.Context, r *ipc.Request, s *filter.Session, m *imsg.FilterLines, maxLine int) {
	out := newOutlet()
	st := s.Stream(membersOf(m.Filters), notes(m.Events), out)
	if st == nil {
		s.Flush()
		r.Reply(&imsg.FilterLinesOut{Failed: true}, nil)
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- st.Wait(ctx) }() // received below in any case
	if m.Whole {
		wholeLines(r, s, st, out, m.Lines, ended)
	} else {
		s.Flush()
		streamLines(ctx, r, st, out, maxLine, ended)
	}
	out.end()
}

// wholeLines is for a message that came in one piece.
func wholeLines(r *ipc.Request, s *filter.Session, st *filter.Stream, out *outlet, b []byte, ended chan error) {
	st.All(b)
	s.Flush()
	select {
	case err := <-ended:
		if err != nil {
			r.Reply(&imsg.FilterLinesOut{Failed: true}, nil)
			return
		}
		r.Reply(&imsg.FilterLinesOut{Lines: out.buf}, nil)
		return
	case <-out.full:
	}
	conn := handOver(r)
	if conn == nil {
		out.end()
		<-ended
		return
	}
	defer conn.Close()
	if out.connect(conn) != nil {
		out.end()
	}
	if <-ended == nil {
		_, _ = conn.Write([]byte(".\n")) // smtp sees the end of the socket otherwise
	}
}

// handOver answers with one end of a new socket and gives the other.
func handOver(r *ipc.Request) net.Conn {
	far, near, err := ipc.Socketpair()
	if err != nil {
		r.Reply(&imsg.FilterLinesOut{Failed: true}, nil)
		return nil
	}
	conn, err := filter.Socket(near)
	if err != nil {
		far.Close()
		r.Reply(&imsg.FilterLinesOut{Failed: true}, nil)
		return nil
	}
	r.Reply(&imsg.FilterLinesOut{Stream: true}, far)
	return conn
}

// streamLines is for a message that comes and goes by a socket.
func streamLines(ctx context.Context, r *ipc.Request, st *filter.Stream, out *outlet, maxLine int, ended chan error) {
	conn := handOver(r)
	if conn == nil {
		out.end()
		st.Close(false)
		<-ended
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if out.connect(conn) != nil {
		out.end()
	}
	fed := make(chan struct{})
	go func() { // ends with the message, or when conn is closed; waited for below
		defer close(fed)
		st.Close(feed(conn, st, maxLine) == nil)
	}()
	if err := <-ended; err == nil {
		<-fed
		_, _ = conn.Write([]byte(".\n")) // smtp sees the end of the socket otherwise
		return
	}
	out.end()
	conn.Close()
	<-fed
}

// feed reads lines up to the last dot and sends them on their way.
func feed(conn net.Conn, st *filter.Stream, maxLine int) error {
	buf := make([]byte, 0, chunkSize)
	for {
		if len(buf) == cap(buf) {
			if len(buf) > maxLine+chunkSize {
				return errOutlet
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := conn.Read(buf[len(buf):cap(buf)])
		if n == 0 && err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		buf = buf[:len(buf)+n]
		end := bytes.LastIndexByte(buf, '\n') + 1
		lines := buf[:end]
		whole := bytes.HasSuffix(lines, []byte("\n.\n")) || string(lines) == ".\n"
		if whole {
			lines = lines[:len(lines)-2]
		}
		if _, err := st.Write(lines); err != nil {
			return err
		}
		if whole {
			return nil
		}
		buf = append(buf[:0], buf[end:]...)
	}
}
