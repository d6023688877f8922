package mta

import (
	"bytes"
	"errors"
	"net"
	"strconv"
	"time"

	"smtpd/internal/mail"
)

const (
	// flushSize is how much is gathered before it is written, in octets. Ours:
	// a mail of usual size leaves in one write.
	flushSize = 32 << 10
	// keepSize is the largest buffer that an idle connection keeps.
	keepSize = 4 << 10
	// maxCommand bounds one command line. RFC 5321 section 4.5.3.1.4 says 512
	// octets, RFC 3461 and 4954 add theirs.
	maxCommand = 16 << 10
)

// errUnfit is a command parameter that must not be sent: it holds an octet that
// would end the line or the parameter, or is too long.
var errUnfit = errors.New("a command parameter holds a forbidden octet")

// writer gathers commands and text for a connection.
type writer struct {
	conn net.Conn
	out  []byte

	// Of the text being written.
	raw    bool // dots are not doubled
	bol    bool // at the start of a line
	sentCR bool // the last octet was CR, held back
	limit  time.Duration
	gone   int64 // octets that have left
	start  int64 // of the text, counted as gone is
	size   int64 // of the text once it has ended, without the final dot
}

// command gathers one command. parts are put together without blanks between
// them; none may hold a control octet. The buffer is as before when one does.
func (w *writer) command(parts ...string) error {
	start := len(w.out)
	for _, p := range parts {
		if mail.HasControl(p) {
			w.out = w.out[:start]
			return errUnfit
		}
		w.out = append(w.out, p...)
	}
	if len(w.out)-start > maxCommand {
		w.out = w.out[:start]
		return errUnfit
	}
	w.out = append(w.out, "\r\n"...)
	return nil
}

// flush writes what was gathered. The time is for the whole of it.
func (w *writer) flush(limit time.Duration) error {
	if len(w.out) == 0 {
		return nil
	}
	err := w.conn.SetWriteDeadline(time.Now().Add(limit))
	if err == nil {
		_, err = w.conn.Write(w.out)
	}
	w.gone += int64(len(w.out))
	if w.out = w.out[:0]; cap(w.out) > flushSize+keepSize {
		w.out = nil
	}
	if err != nil {
		return readError(err)
	}
	return nil
}

// shrink gives a large buffer back while there is nothing to do.
func (w *writer) shrink() {
	if cap(w.out) > keepSize && len(w.out) == 0 {
		w.out = nil
	}
}

// begin starts a text; limit is the time for each write.
func (w *writer) begin(limit time.Duration) {
	w.raw, w.bol, w.sentCR, w.limit = false, true, false, limit
	w.start = w.gone + int64(len(w.out))
}

// chunk gathers a whole text as the last BDAT of a mail: line ends as in text,
// dots as they are.
func (w *writer) chunk(p []byte) {
	size := wireSize(p)
	w.out = append(w.out, "BDAT "...)
	w.out = strconv.AppendInt(w.out, int64(size), 10)
	w.out = append(w.out, " LAST\r\n"...)
	if size == len(p) && bytes.Count(p, []byte("\r")) == bytes.Count(p, []byte("\r\n")) {
		w.out = append(w.out, p...)
		return
	}
	w.raw, w.bol, w.sentCR = true, true, false
	_ = w.text(p) // writes nothing yet
	w.endLine()
}

// wireSize is how many octets a text has once its line ends are what they must
// be.
func wireSize(p []byte) int {
	n := len(p) + bytes.Count(p, []byte("\n")) - bytes.Count(p, []byte("\r\n"))
	if len(p) > 0 && p[len(p)-1] != '\n' {
		n += len("\r\n")
	}
	return n
}

// text gathers a part of a text as it goes over the wire: each line ends in
// CRLF and a dot at its start is doubled. A bare LF becomes CRLF, a bare CR a
// blank: no host may see a line end where another sees none.
func (w *writer) text(p []byte) error {
	for len(p) > 0 {
		if w.sentCR {
			w.sentCR = false
			if p[0] == '\n' {
				w.out = append(w.out, "\r\n"...)
				w.bol = true
				p = p[1:]
				continue
			}
			w.out = append(w.out, ' ')
			w.bol = false
		}
		if w.bol && p[0] == '.' && !w.raw {
			w.out = append(w.out, '.')
		}
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		p = rest
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
			w.sentCR = !whole
		}
		w.appendLine(line)
		if w.bol = whole; whole {
			w.out = append(w.out, "\r\n"...)
		}
		if len(w.out) >= flushSize && !w.raw {
			if err := w.flush(w.limit); err != nil {
				return err
			}
		}
	}
	return nil
}

// appendLine gathers octets without line ends.
func (w *writer) appendLine(line []byte) {
	start := len(w.out)
	w.out = append(w.out, line...)
	if bytes.IndexByte(line, '\r') < 0 {
		return
	}
	for i, c := range w.out[start:] {
		if c == '\r' {
			w.out[start+i] = ' '
		}
	}
}

// end gathers the end of the text: a line of a single dot.
func (w *writer) end() {
	w.endLine()
	w.size = w.gone + int64(len(w.out)) - w.start
	w.out = append(w.out, ".\r\n"...)
}

// endLine ends a last line that has no end.
func (w *writer) endLine() {
	if w.sentCR {
		w.out = append(w.out, ' ')
		w.bol, w.sentCR = false, false
	}
	if !w.bol {
		w.out = append(w.out, "\r\n"...)
	}
}
