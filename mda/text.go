package mda

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"

	"smtpd/internal/mail"
)

// Text is a message as stored: its lines end in LF. It is Data, or Size octets
// of File from its start; File may serve several deliveries at a time.
type Text struct {
	Data []byte
	File io.ReaderAt
	Size int64
}

// maxHeader bounds how much of a message is looked at for header lines. Ours:
// far above what listeners accept.
const maxHeader = 512 << 10

var errShort = errors.New("the message is cut short")

func (t *Text) size() int64 {
	if t.File == nil {
		return int64(len(t.Data))
	}
	return t.Size
}

// open reads the text from its start.
func (t *Text) open() io.Reader {
	if t.File == nil {
		return bytes.NewReader(t.Data)
	}
	return &whole{r: io.NewSectionReader(t.File, 0, t.Size), left: t.Size}
}

// whole is a reader that must not end early.
type whole struct {
	r    io.Reader
	left int64
}

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.left -= int64(n)
	if err == io.EOF && w.left > 0 {
		err = errShort
	}
	return n, err
}

// header is the lines before the first empty one, or of the first maxHeader
// octets.
func (t *Text) header() ([]byte, error) {
	data := t.Data
	if t.File != nil {
		data = nil
		for size := min(t.Size, 16<<10); ; size = min(t.Size, 2*size) {
			data = make([]byte, size)
			if n, err := t.File.ReadAt(data, 0); int64(n) < size {
				if err == nil || err == io.EOF {
					err = errShort
				}
				return nil, err
			}
			if size == t.Size || size >= maxHeader || bytes.Contains(data, []byte("\n\n")) {
				break
			}
		}
	}
	data = data[:min(len(data), maxHeader)]
	if len(data) > 0 && data[0] == '\n' {
		return nil, nil
	}
	if i := bytes.Index(data, []byte("\n\n")); i >= 0 {
		data = data[:i+1]
	}
	return data, nil
}

// looped reports whether a Delivered-To line of the header names dest: then the
// mail has been delivered here before and came back.
func (t *Text) looped(dest string) (bool, error) {
	h, err := t.header()
	if err != nil || dest == "" {
		return false, err
	}
	for _, v := range fields(h, "Delivered-To") {
		if strings.EqualFold(strings.Trim(v, "<>"), dest) {
			return true, nil
		}
	}
	return false, nil
}

// spam reports whether a filter has marked the message as such.
func (t *Text) spam() (bool, error) {
	h, err := t.header()
	if err != nil {
		return false, err
	}
	for _, name := range []string{"X-Spam", "X-Spam-Flag"} {
		for _, v := range fields(h, name) {
			if strings.EqualFold(v, "yes") {
				return true, nil
			}
		}
	}
	return false, nil
}

// fields are the values of the header lines of that name, without blanks
// around; of a folded one the first line.
func fields(header []byte, name string) []string {
	var values []string
	for len(header) > 0 {
		line, rest, _ := bytes.Cut(header, []byte{'\n'})
		header = rest
		if len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(string(line[:len(name)]), name) {
			values = append(values, string(bytes.TrimSpace(line[len(name)+1:])))
		}
	}
	return values
}

// front appends what every method puts before the text (RFC 5321 section 4.4
// for Return-Path).
func (v *Delivery) front(b []byte) []byte {
	if v.AsIs {
		return b
	}
	b = append(b, "Return-Path: <"...)
	b = append(b, mail.OneLine(v.Sender.String())...)
	b = append(b, ">\nDelivered-To: "...)
	b = append(b, mail.OneLine(v.Rcpt.String())...)
	if v.OrigTo {
		b = append(b, "\nX-Original-To: "...)
		b = append(b, mail.OneLine(v.Rcpt.String())...)
	}
	return append(b, '\n')
}

// maxPiece is the longest piece of a line that pieces gives.
const maxPiece = 16 << 10

// pieces gives the text by lines with their LF; a line over maxPiece comes in
// several. Each is at least 5 octets or a whole line, and valid until fn ends.
func (t *Text) pieces(fn func(piece []byte) error) error {
	if t.File == nil {
		for rest := t.Data; len(rest) > 0; {
			n := bytes.IndexByte(rest[:min(len(rest), maxPiece)], '\n') + 1
			if n == 0 {
				n = min(len(rest), maxPiece)
			}
			if err := fn(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	}
	r := bufio.NewReaderSize(t.open(), maxPiece)
	for {
		piece, err := r.ReadSlice('\n')
		if len(piece) > 0 {
			if err := fn(piece); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
	}
}
