package smtp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
)

// message is the text of one message while it comes in: octets of the client
// become lines, lines may pass filters, and then they are stored. All but the
// store belongs to the session's goroutine.
type message struct {
	max     int64         // octets of the client
	maxLine int           // octets of a line with its line end
	repair  bool          // bare CR and LF end lines; else they refuse the message
	dots    bool          // DATA: dot-stuffed, and ends at CRLF.CRLF
	lines   Lines         // filters, or nil
	guard   rfc5322.Guard // before filters
	binary  *unbinary     // of BODY=BINARYMIME, or nil

	carry  []byte // a line that has not come in whole
	first  bool   // no line has come yet
	crlf   bool   // the line before ended with CRLF, or there is none
	raw    int64  // octets of all chunks
	count  int64  // octets of the client, a line end counted as one
	refuse string // the reply that the message gets; what follows is dropped
	err    error  // of our own: try later

	store store
}

// store is the stored form: LF line ends, no dot stuffing, header rewritten. It
// waits in memory or goes to a file. With filters it is written to by their
// goroutine until Lines.Close returns.
type store struct {
	ctx     context.Context
	backend Backend
	id      mail.MessageID

	hdr    rfc5322.Rewriter
	out    []byte // what is not in the file
	size   int64  // octets in the file
	file   io.WriteCloser
	begun  bool // a file was asked for
	refuse string
	err    error
}

var messages = sync.Pool{New: func() any { return new(message) }}

// keepBody is the largest memory of a message that is kept for the next. Ours:
// one with a file needs no more.
const keepBody = 2*MaxInline + smallBuffer

// newMessage makes a message ready; free gives its memory back.
func newMessage(ctx context.Context, b Backend, id mail.MessageID, o rfc5322.Options) *message {
	m := messages.Get().(*message)
	*m = message{carry: m.carry[:0], crlf: true, first: true,
		store: store{ctx: ctx, backend: b, id: id, hdr: m.store.hdr, out: m.store.out[:0]}}
	m.store.hdr.Reset(o)
	return m
}

func (m *message) free() {
	if cap(m.store.out) > keepBody {
		m.store.out = nil
	}
	if cap(m.carry) > smallBuffer {
		m.carry = nil
	}
	m.binary = nil
	m.lines, m.store.ctx, m.store.backend, m.store.file = nil, nil, nil, nil
	messages.Put(m)
}

// failed reports that the message will not be accepted.
func (m *message) failed() bool {
	return m.refuse != "" || m.err != nil || (m.lines == nil && m.store.failed())
}

// eat uses up whole lines at the start of b and gives their octets. done says
// that the end of the data was among them. errLineTooLong ends everything.
func (m *message) eat(b []byte) (n int, done bool, err error) {
	if len(m.carry) > 0 {
		if n, done, err = m.finishCarry(b); err != nil || done || len(m.carry) > 0 {
			return n, done, err
		}
	}
	for n < len(b) {
		i := bytes.IndexByte(b[n:], '\n')
		if i < 0 {
			if len(b)-n >= m.maxLine {
				return n, false, errLineTooLong
			}
			return n, false, nil
		}
		if i+1 > m.maxLine {
			return n, false, errLineTooLong
		}
		line := b[n : n+i]
		n += i + 1
		if m.take(line) {
			return n, true, nil
		}
	}
	return n, false, nil
}

// finishCarry adds to the line that was begun earlier.
func (m *message) finishCarry(b []byte) (n int, done bool, err error) {
	i := bytes.IndexByte(b, '\n')
	if n = i + 1; i < 0 {
		n = len(b)
	}
	if len(m.carry)+n > m.maxLine {
		return 0, false, errLineTooLong
	}
	m.carry = append(m.carry, b[:n]...)
	if i >= 0 {
		line := m.carry[:len(m.carry)-1]
		m.carry = m.carry[:0]
		done = m.take(line)
	}
	return n, done, nil
}

// feed uses up all of a piece of the message: BDAT may cut it anywhere.
func (m *message) feed(b []byte) error {
	if m.binary == nil || m.failed() {
		return m.feedText(b)
	}
	err := m.binary.write(b)
	if errors.Is(err, errMIME) {
		m.reject(replyBigHeader)
		return nil
	}
	return err
}

func (m *message) feedText(b []byte) error {
	n, _, err := m.eat(b)
	if err != nil {
		return err
	}
	return m.stash(b[n:])
}

// stash keeps the start of a line for the next eat.
func (m *message) stash(b []byte) error {
	if len(m.carry)+len(b) > m.maxLine {
		return errLineTooLong
	}
	m.carry = append(m.carry, b...)
	return nil
}

// take handles one line that ended with LF; the CR before it is still there.
// It reports the end of the data: a dot alone between two CRLF, and nothing
// else.
func (m *message) take(line []byte) (done bool) {
	n := len(line)
	strict := n > 0 && line[n-1] == '\r'
	if strict {
		line = line[:n-1]
	}
	wasCRLF := m.crlf
	m.crlf = strict
	if m.dots && wasCRLF && strict && len(line) == 1 && line[0] == '.' {
		return true
	}
	m.count += int64(len(line)) + 1
	if m.count > m.max {
		m.reject(replyTooBig)
	}
	if m.failed() {
		return false
	}
	if !strict || bytes.IndexByte(line, '\r') >= 0 {
		m.bare(line, wasCRLF)
		return false
	}
	m.pass(line, wasCRLF)
	return false
}

// bare handles a line with a CR or LF that is not part of CRLF: it refuses the
// message, or ends a line at each.
func (m *message) bare(line []byte, wasCRLF bool) {
	if !m.repair {
		m.reject(replyBare)
		return
	}
	line = bytes.TrimRight(line, "\r")
	for {
		part, rest, more := bytes.Cut(line, []byte{'\r'})
		m.pass(part, wasCRLF)
		if !more {
			return
		}
		line, wasCRLF = rest, false
	}
}

// pass sends a line through the filters, or on to the header rewriting.
// Stuffed lines are those after a CRLF; an inner line that begins with a dot,
// made by repairing, is stuffed for the filters as they expect it.
func (m *message) pass(line []byte, stuffed bool) {
	dot := len(line) > 0 && line[0] == '.'
	if m.lines != nil {
		if m.first && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
			m.reject(replyShape) // it would continue our own field
			return
		}
		m.first = false
		plain := line
		if dot && m.dots && stuffed {
			plain = line[1:]
		}
		if m.guard.Drops(plain) {
			return
		}
		if dot && !(m.dots && stuffed) {
			line = append([]byte{'.'}, line...)
		}
		if err := m.lines.Write(line); err != nil {
			m.err = fmt.Errorf("filter: %w", err)
		}
		return
	}
	if dot && m.dots && stuffed {
		line = line[1:]
	}
	m.store.put(line)
}

// reject refuses the message for good; the first reason stays.
func (m *message) reject(reply string) {
	if m.refuse == "" {
		m.refuse = reply
	}
}

// end is told that no more comes; what is left of a line is one.
func (m *message) end() {
	if m.binary != nil && !m.failed() {
		if err := m.binary.end(); err != nil {
			m.reject(replyLineTooLong)
		}
	}
	if len(m.carry) > 0 {
		line := m.carry
		m.carry = m.carry[:0]
		m.take(append(line, '\r'))
	}
	if m.lines != nil {
		if err := m.lines.Close(!m.failed()); err != nil && m.err == nil {
			m.err = fmt.Errorf("filter: %w", err)
		}
		m.lines = nil
	}
	if !m.failed() {
		m.store.end()
	}
	m.reject(m.store.refuse)
	if m.err == nil {
		m.err = m.store.err
	}
}

// abort drops the message.
func (m *message) abort() {
	if m.lines != nil {
		m.lines.Close(false) // its error changes nothing
	}
	m.store.abort()
	m.free()
}

func (t *store) failed() bool { return t.refuse != "" || t.err != nil }

// filtered takes a line that comes out of the filters.
func (t *store) filtered(line []byte) {
	if len(line) > 0 && line[0] == '.' {
		line = line[1:]
	}
	if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, '\n') >= 0 {
		line = bytes.Clone(line)
		for i, c := range line {
			if c == '\r' || c == '\n' {
				line[i] = ' '
			}
		}
	}
	t.put(line)
}

// put stores a line.
func (t *store) put(line []byte) {
	switch {
	case t.failed():
		return
	case t.hdr.InBody():
		t.out = append(append(t.out, line...), '\n')
	default:
		t.head(line)
	}
	if len(t.out) > MaxInline {
		t.spill()
	}
}

// head stores a line of the header.
func (t *store) head(line []byte) {
	var err error
	t.out, err = t.hdr.Line(t.out, line)
	switch {
	case err == nil:
		return
	case errors.Is(err, rfc5322.ErrLoop):
		t.refuse = replyLoop
	case errors.Is(err, rfc5322.ErrTooBig):
		t.refuse = replyBigHeader
	default:
		t.refuse = replyShape
	}
	t.out = t.out[:0]
}

// spill moves what waits in memory to the file.
func (t *store) spill() {
	if t.file == nil {
		t.begun = true
		if t.file, t.err = t.backend.CreateBody(t.ctx, t.id); t.err != nil {
			t.file = nil
			return
		}
	}
	n, err := t.file.Write(t.out)
	t.size += int64(n)
	t.out = t.out[:0]
	if err != nil {
		t.err = fmt.Errorf("write body: %w", err)
	}
}

// end finishes the header, if that was all, and the file.
func (t *store) end() {
	t.out = t.hdr.End(t.out)
	if t.file == nil {
		return
	}
	if len(t.out) > 0 {
		t.spill()
	}
	if err := t.file.Close(); err != nil && t.err == nil {
		t.err = fmt.Errorf("close body: %w", err)
	}
}

func (t *store) abort() {
	if t.file != nil {
		t.file.Close() // the file goes away; twice does no harm
	}
	if t.begun {
		t.backend.AbortBody(t.id)
	}
}
