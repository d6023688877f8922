package table

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The line protocol, version 0.1: fields parted by '|', the last of which may
// hold more of them.
const (
	lineVersion   = "0.1"
	serverVersion = "7.8.0" // whose protocol we speak
	maxLine       = MaxValue + 256
)

// lines is a dialogue in the line protocol.
type lines struct {
	conn   net.Conn
	in     *bufio.Reader
	name   string
	offers Service

	mu    sync.Mutex
	next  uint32
	open  map[string]*question // by id
	ended error
}

// question is one that waits for its answer.
type question struct {
	op   operation
	done chan reply // buffered; nobody may wait any more
}

type reply struct {
	value string
	found bool
	err   error
}

// openLines greets a program in the line protocol. io.EOF: it does not speak
// it.
func openLines(c *child, name string) (dialogue, error) {
	l := &lines{conn: c.conn, in: bufio.NewReaderSize(c.conn, maxLine), name: name, open: map[string]*question{}}
	if err := c.conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	_, err := fmt.Fprintf(c.conn, "config|smtpd-version|%s\nconfig|protocol|%s\nconfig|tablename|%s\nconfig|ready\n",
		serverVersion, lineVersion, name)
	if err != nil {
		return nil, err
	}
	for {
		line, err := l.readLine()
		if err != nil {
			return nil, err
		}
		word, ok := strings.CutPrefix(line, "register|")
		if !ok {
			return nil, fmt.Errorf("%w: %.80q instead of a registration", errAnswer, line)
		}
		if word == "ready" {
			break
		}
		s, known := ParseService(word)
		if !known {
			return nil, fmt.Errorf("%w: unknown service %.80q", errAnswer, word)
		}
		l.offers |= s
	}
	if l.offers == 0 {
		return nil, fmt.Errorf("%w: no service registered", errAnswer)
	}
	return l, c.conn.SetDeadline(time.Time{})
}

func (l *lines) readLine() (string, error) {
	line, err := l.in.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", fmt.Errorf("%w: a line is too long", errAnswer)
	}
	if err != nil {
		return "", err
	}
	return string(line[:len(line)-1]), nil
}

func (l *lines) services() Service { return l.offers }

func (l *lines) parallel() int { return maxAsked }

func (l *lines) ask(ctx context.Context, op operation, s Service, key string) (string, bool, error) {
	q := &question{op: op, done: make(chan reply, 1)}
	l.mu.Lock()
	if l.ended != nil {
		l.mu.Unlock()
		return "", false, errEnded
	}
	l.next++
	id := fmt.Sprintf("%08x", l.next)
	l.open[id] = q
	if len(l.open) == 1 {
		l.conn.SetReadDeadline(time.Now().Add(answerTime))
	}
	l.conn.SetWriteDeadline(time.Now().Add(answerTime))
	_, err := l.conn.Write(l.encode(op, s, id, key)) // whole lines, one after the other
	l.mu.Unlock()
	if err != nil {
		l.conn.Close() // half a line may have gone
		return "", false, errEnded
	}
	select {
	case r := <-q.done:
		return r.value, r.found, r.err
	case <-ctx.Done():
		return "", false, ctx.Err() // the answer is dropped when it comes
	}
}

// encode writes a request. The key stands last and holds no control octet, so
// that it can be neither a second field nor a second line.
func (l *lines) encode(op operation, s Service, id, key string) []byte {
	now := time.Now()
	b := make([]byte, 0, 64+len(l.name)+len(key))
	b = append(b, "table|"+lineVersion+"|"...)
	b = strconv.AppendInt(b, now.Unix(), 10)
	b = fmt.Appendf(b, ".%06d|%s|", now.Nanosecond()/1000, l.name)
	switch op {
	case opUpdate:
		b = append(b, "update|"+id...)
	case opFetch:
		b = append(b, "fetch|"+s.String()+"|"+id...)
	case opCheck:
		b = append(b, "check|"+s.String()+"|"+id+"|"+key...)
	case opLookup:
		b = append(b, "lookup|"+s.String()+"|"+id+"|"+key...)
	}
	return append(b, '\n')
}

func (l *lines) run() error {
	err := l.serve()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = err
	l.conn.Close()
	for _, q := range l.open {
		q.done <- reply{err: errEnded}
	}
	l.open = nil
	return err
}

// serve hands answers to those who asked until there are no more.
func (l *lines) serve() error {
	for {
		line, err := l.readLine()
		if err != nil {
			return err
		}
		word, rest, _ := strings.Cut(line, "|")
		id, rest, _ := strings.Cut(rest, "|")
		l.mu.Lock()
		q := l.open[id]
		delete(l.open, id)
		deadline := time.Time{}
		if len(l.open) > 0 {
			deadline = time.Now().Add(answerTime)
		}
		l.conn.SetReadDeadline(deadline)
		l.mu.Unlock()
		if q == nil {
			return fmt.Errorf("%w: an answer to nothing: %.80q", errAnswer, line)
		}
		r, ok := decodeReply(q.op, word, rest)
		q.done <- r
		if !ok {
			return fmt.Errorf("%w: %.80q", errAnswer, line)
		}
	}
}

// decodeReply reads the answer to an operation: its word, and what follows the
// id.
func decodeReply(op operation, word, rest string) (r reply, ok bool) {
	broken := reply{err: errAnswer}
	expected := [...]string{opCheck: "check-result", opLookup: "lookup-result", opFetch: "fetch-result", opUpdate: "update-result"}
	if word != expected[op] && !(op == opFetch && word == "lookup-result") { // so in a manual page of theirs
		return broken, false
	}
	result, text, _ := strings.Cut(rest, "|")
	switch {
	case result == "error":
		return reply{err: fmt.Errorf("%w: %.200q", errGarbled, text)}, true
	case result == "not-found" && op != opUpdate:
		return reply{}, true
	case result == "ok" && op == opUpdate, result == "found" && op == opCheck:
		return reply{found: true}, true
	case result == "found" && op != opUpdate && text != "":
		return reply{value: text, found: true}, true
	}
	return broken, false
}
