package mta

import (
	"bytes"
	"errors"
	"io"
	"net"
	"time"

	"smtpd/internal/mail"
)

// Bounds on what a host may say at a time.
const (
	// maxReplyLine is ours: RFC 5321 section 4.5.3.1.5 allows 512 octets, and
	// hosts write longer ones.
	maxReplyLine = 4096
	// maxReply bounds one whole reply, in octets. Ours: the longest EHLO
	// replies seen have a few hundred.
	maxReply = 64 << 10
	// maxKeptLines bounds the lines of an EHLO reply that are looked at. Ours.
	maxKeptLines = 128
)

// said is an error in the words that the log has always had for it.
type said string

func (e said) Error() string { return string(e) }

// Errors of reading.
const (
	errClosed   said = "Connection closed unexpectedly"
	errTimeout  said = "Connection timeout"
	errTooMuch  said = "Remote host sent too much data"
	errLeftover said = "Bad response: data before TLS was ready"
)

// badReply is a line that is no reply.
type badReply string

func (e badReply) Error() string { return "Bad response: " + string(e) }

// reply is one reply, of one or more lines.
type reply struct {
	code  int
	text  []byte   // lines joined, without codes; valid until the next reply
	lines []string // when asked for: the text of each line
}

func (r *reply) ok() bool { return r.code/100 == 2 }

// status is the reply as a Status, cleaned.
func (r *reply) status() *mail.Status {
	b := make([]byte, 0, 4+len(r.text))
	b = append(b, byte('0'+r.code/100), byte('0'+r.code/10%10), byte('0'+r.code%10), ' ')
	b = append(b, r.text...)
	st, ok := mail.ParseStatus(string(b))
	if !ok {
		return &mail.Status{Code: r.code, Text: mail.Clean(string(r.text), mail.MaxStatusText)}
	}
	if st.Enh[0] != 0 && int(st.Enh[0]) != st.Code/100 {
		st.Enh = [3]uint8{} // RFC 3463 section 2: the class must agree with the code
	}
	return st
}

// replyReader reads replies from a connection through a buffer of its own.
// It reads no octet beyond what one read of the connection gives.
type replyReader struct {
	conn net.Conn
	buf  [maxReplyLine]byte
	r, w int    // what of buf is unread
	text []byte // joined lines of the present reply
}

// buffered reports whether there is input that has not been looked at.
func (b *replyReader) buffered() bool { return b.r < b.w }

// read reads one whole reply within the time given. Lines end in LF, with or
// without CR before it. keep asks for the lines one by one.
func (b *replyReader) read(limit time.Duration, keep bool) (reply, error) {
	var rep reply
	if !b.whole() {
		if err := b.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return rep, readError(err)
		}
	}
	b.text = b.text[:0]
	total := 0
	for {
		line, err := b.line()
		if err != nil {
			return reply{}, err
		}
		if total += len(line); total > maxReply {
			return reply{}, errTooMuch
		}
		code, more, text, ok := splitReply(line)
		if !ok || (rep.code != 0 && code != rep.code) {
			return reply{}, badReply(mail.Clean(string(bytes.TrimRight(line, "\r\n")), 100))
		}
		b.join(text, rep.code == 0)
		rep.code = code
		if keep && len(rep.lines) < maxKeptLines {
			rep.lines = append(rep.lines, string(text))
		}
		if !more {
			rep.text = b.text
			return rep, nil
		}
	}
}

// whole reports whether a last line is buffered, so that reading needs no deadline.
func (b *replyReader) whole() bool {
	line := b.buf[b.r:b.w]
	i := bytes.IndexByte(line, '\n')
	return i >= 3 && line[3] != '-'
}

// line is the next line with its end; it is valid until the next call.
func (b *replyReader) line() ([]byte, error) {
	scanned := 0
	for {
		if i := bytes.IndexByte(b.buf[b.r+scanned:b.w], '\n'); i >= 0 {
			line := b.buf[b.r : b.r+scanned+i+1]
			b.r += len(line)
			return line, nil
		}
		scanned = b.w - b.r
		if b.r > 0 {
			copy(b.buf[:], b.buf[b.r:b.w])
			b.r, b.w = 0, scanned
		}
		if b.w == len(b.buf) {
			return nil, errTooMuch
		}
		n, err := b.conn.Read(b.buf[b.w:])
		b.w += n
		if n == 0 && err != nil {
			return nil, readError(err)
		}
	}
}

// join adds one line to the text of the reply. An enhanced code that the first
// line had already is not repeated.
func (b *replyReader) join(text []byte, first bool) {
	if len(b.text) > mail.MaxStatusText {
		return // enough for every use; the rest is counted only
	}
	if !first {
		if enh, _, ok := bytes.Cut(b.text, []byte(" ")); ok && isEnhanced(enh) {
			if rest, ok := bytes.CutPrefix(text, enh); ok && (len(rest) == 0 || rest[0] == ' ') {
				text = bytes.TrimPrefix(rest, []byte(" "))
			}
		}
		if len(b.text) > 0 && len(text) > 0 {
			b.text = append(b.text, ' ')
		}
	}
	b.text = append(b.text, text...)
}

// isEnhanced reports whether b looks like an enhanced code (RFC 3463).
func isEnhanced(b []byte) bool {
	return len(b) >= 5 && (b[0] == '2' || b[0] == '4' || b[0] == '5') && b[1] == '.' &&
		bytes.Count(b, []byte(".")) == 2
}

// splitReply takes a line apart: three digits, then a hyphen when more lines
// follow, or a blank, or nothing at all (RFC 5321 section 4.2).
func splitReply(line []byte) (code int, more bool, text []byte, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) < 3 {
		return 0, false, nil, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, nil, false
		}
		code = code*10 + int(c-'0')
	}
	if code < 200 || code > 599 {
		return 0, false, nil, false
	}
	if len(line) == 3 {
		return code, false, nil, true
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, false, nil, false
	}
	return code, line[3] == '-', line[4:], true
}

// readError puts an error of the connection into the words of the log.
func readError(err error) error {
	var ne net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, net.ErrClosed):
		return errClosed
	case errors.As(err, &ne) && ne.Timeout():
		return errTimeout
	}
	return ioError{err}
}
