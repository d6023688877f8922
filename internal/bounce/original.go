package bounce

import (
	"bufio"
	"strings"

	"smtpd/internal/mail"
)

// original is the part that returns the message, and its type: its header, or
// all of it when that is wanted and fits into room octets.
func (c *composer) original(room int) (body, kind string) {
	n := c.n
	full := n.Full
	switch n.Recipients[0].DSN.Ret {
	case mail.RetFull:
		full = true
	case mail.RetHeaders:
		full = false
	}
	for i := range n.Recipients { // RFC 8689 section 5
		full = full && n.Recipients[i].Flags&mail.FlagRequireTLS == 0
	}
	// Lines that are too long are broken, which takes a little more room.
	full = full && n.Kind == mail.NoticeFailed && n.Size > 0 && n.Size+n.Size/64 < int64(room)
	kind = "text/rfc822-headers"
	switch {
	case full && c.utf8:
		kind = "message/global"
	case full:
		kind = "message/rfc822"
	case c.utf8:
		kind = "message/global-headers"
	}
	w := &lineWriter{room: room}
	r := bufio.NewReaderSize(n.Original, 4<<10)
	w.copy(r, !full)
	return w.b.String(), kind
}

// lineWriter copies lines: without CR or NUL, none longer than MaxLine, and no
// more than room octets in all.
type lineWriter struct {
	b    strings.Builder
	room int
}

// copy copies r, or its header only. It never fails: what cannot be read is
// left out.
func (w *lineWriter) copy(r *bufio.Reader, header bool) {
	inHeader, begun := true, false // begun: within a line that is longer than the buffer
	for {
		line, err := r.ReadSlice('\n')
		if inHeader && !begun && (len(line) == 0 || line[0] == '\n' || string(line) == "\r\n") {
			if header {
				return
			}
			inHeader = false
		}
		if len(line) > 0 && !w.line(line, inHeader, begun) {
			return
		}
		begun = err == bufio.ErrBufferFull
		if err != nil && !begun {
			break // io.EOF, or an error: what there is has been copied
		}
	}
	if s := w.b.String(); s != "" && s[len(s)-1] != '\n' {
		w.b.WriteByte('\n')
	}
}

// line writes one line, or a piece of one. It reports whether there is room for
// more.
func (w *lineWriter) line(line []byte, header, begun bool) bool {
	s, whole := strings.CutSuffix(string(line), "\n")
	if whole {
		s = strings.TrimSuffix(s, "\r")
	}
	s = harmless.Replace(s)
	cut := "\n"
	if header {
		cut = "\n " // goes on as one field
	}
	if begun && !w.put(cut) {
		return false
	}
	for len(s) > foldAt {
		at := foldAt
		for at > foldAt-4 && s[at]&0xc0 == 0x80 { // not inside a UTF-8 sequence
			at--
		}
		if !w.put(s[:at] + cut) {
			return false
		}
		s = s[at:]
	}
	if whole {
		s += "\n"
	}
	return w.put(s)
}

var harmless = strings.NewReplacer("\r", "?", "\x00", "?")

func (w *lineWriter) put(s string) bool {
	if w.room -= len(s); w.room < 0 {
		return false
	}
	w.b.WriteString(s)
	return true
}
