package smtp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"mime"
	"strings"
)

// Bounds of a message with binary parts. Ours.
const (
	maxMIMEDepth  = 32       // multiparts within each other
	maxMIMEHeader = 64 << 10 // octets of the header of one part
	maxDelimiter  = 512      // octets of a line that may be a delimiter; a boundary has 70 (RFC 2046 section 5.1.1)
	base64Line    = 57       // octets that make one line of 76
)

var errMIME = errors.New("MIME structure out of bounds")

// unbinary turns a message with binary parts (RFC 3030 section 3) into one of
// lines, which is all that is stored and passed on: such a part becomes base64
// (RFC 2045 section 6.8), all else stays as it is.
type unbinary struct {
	out func(text []byte) error // takes CRLF lines, or parts of them

	state  binaryState
	bounds []string // boundaries of the multiparts around, outermost first
	head   []byte   // header of the part that is under way
	line   []byte   // a line that has not come in whole
	mid    bool     // binary: the start of the line has gone out
	crlf   bool     // binary: a CRLF is held back; it may belong to a delimiter
	group  []byte   // binary: octets for the next line of base64
}

type binaryState uint8

const (
	inHead binaryState = iota
	inText
	inBinary
)

// write takes octets of the message as they come.
func (u *unbinary) write(p []byte) error {
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		n := i + 1
		if i < 0 {
			n = len(p)
		}
		u.line = append(u.line, p[:n]...)
		p = p[n:]
		if !bytes.HasSuffix(u.line, []byte("\r\n")) {
			if err := u.partial(); err != nil {
				return err
			}
			continue
		}
		if err := u.whole(u.line[:len(u.line)-2]); err != nil {
			return err
		}
		u.line = u.line[:0]
	}
	return nil
}

// partial handles a line that is getting long.
func (u *unbinary) partial() error {
	switch {
	case len(u.line) <= maxDelimiter:
		return nil
	case u.state == inHead:
		if len(u.line)+len(u.head) > maxMIMEHeader {
			return errMIME
		}
		return nil
	}
	keep := 0
	if u.line[len(u.line)-1] == '\r' {
		keep = 1
	}
	part := u.line[:len(u.line)-keep]
	if err := u.content(part); err != nil {
		return err
	}
	u.mid = true
	u.line = append(u.line[:0], u.line[len(part):]...)
	return nil
}

// whole handles a line that has come in, without its CRLF.
func (u *unbinary) whole(line []byte) error {
	if !u.mid && bytes.HasPrefix(line, []byte("--")) {
		if done, err := u.delimiter(line); done || err != nil {
			return err
		}
	}
	if u.state == inHead {
		u.head = append(append(u.head, line...), "\r\n"...)
		if len(u.head) > maxMIMEHeader {
			return errMIME
		}
		if len(line) > 0 {
			return nil
		}
		return u.endHead()
	}
	if err := u.content(line); err != nil {
		return err
	}
	u.mid = false
	if u.state == inText {
		return u.out([]byte("\r\n"))
	}
	u.crlf = true
	return nil
}

// content sends octets of a body on.
func (u *unbinary) content(b []byte) error {
	if u.state == inText {
		return u.out(b)
	}
	if u.crlf {
		u.crlf = false
		if err := u.encode([]byte("\r\n")); err != nil {
			return err
		}
	}
	return u.encode(b)
}

// encode collects octets into lines of base64.
func (u *unbinary) encode(b []byte) error {
	for len(b) > 0 {
		n := min(base64Line-len(u.group), len(b))
		u.group = append(u.group, b[:n]...)
		b = b[n:]
		if len(u.group) == base64Line {
			if err := u.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *unbinary) flush() error {
	if len(u.group) == 0 {
		return nil
	}
	text := base64.StdEncoding.AppendEncode(nil, u.group)
	u.group = u.group[:0]
	return u.out(append(text, "\r\n"...))
}

// delimiter handles a line that may stand between parts; done: it did.
func (u *unbinary) delimiter(line []byte) (done bool, err error) {
	text := strings.TrimRight(string(line[2:]), " \t")
	for i := len(u.bounds) - 1; i >= 0; i-- {
		last := text == u.bounds[i]+"--"
		if text != u.bounds[i] && !last {
			continue
		}
		if err := u.endPart(); err != nil {
			return true, err
		}
		u.state, u.bounds = inHead, u.bounds[:i+1]
		if last {
			u.state, u.bounds = inText, u.bounds[:i]
		}
		return true, u.out(append(bytes.Clone(line), "\r\n"...))
	}
	return false, nil
}

// endPart finishes the part before a delimiter, or the message.
func (u *unbinary) endPart() error {
	u.crlf, u.mid = false, false // a CRLF before a delimiter belongs to that
	if u.state == inHead {
		head := u.head
		u.head = u.head[:0]
		return u.out(head)
	}
	return u.flush()
}

// end is told that no more comes.
func (u *unbinary) end() error {
	if u.state == inHead {
		u.head = append(u.head, u.line...)
		return u.endPart()
	}
	if err := u.content(u.line); err != nil {
		return err
	}
	return u.flush()
}

// endHead decides on what follows the header of a part, and sends that on.
func (u *unbinary) endHead() error {
	kind, params, err := mime.ParseMediaType(u.field("content-type"))
	if err != nil {
		kind = "text/plain"
	}
	binary := strings.EqualFold(strings.TrimSpace(u.field("content-transfer-encoding")), "binary")
	encoding := "8bit"
	switch {
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
		if len(u.bounds) == maxMIMEDepth {
			return errMIME
		}
		u.bounds = append(u.bounds, strings.TrimRight(params["boundary"], " \t"))
		u.state = inText
	case kind == "message/rfc822" || kind == "message/global":
		u.state = inHead
	case binary:
		u.state, encoding = inBinary, "base64"
	default:
		u.state = inText
	}
	head := u.head
	u.head = nil
	if binary {
		head = setEncoding(head, encoding)
	}
	return u.out(head)
}

// field is the value of a field of the header, unfolded; empty: it is not
// there.
func (u *unbinary) field(name string) string {
	var value strings.Builder
	found := false
	for line := range strings.Lines(string(u.head)) {
		if line[0] == ' ' || line[0] == '\t' {
			if found {
				value.WriteString(strings.TrimRight(line, "\r\n"))
			}
			continue
		}
		if found {
			break
		}
		key, v, _ := strings.Cut(line, ":")
		if found = strings.EqualFold(strings.TrimRight(key, " \t"), name); found {
			value.WriteString(strings.TrimRight(v, "\r\n"))
		}
	}
	return strings.TrimSpace(value.String())
}

// setEncoding replaces Content-Transfer-Encoding in a header.
func setEncoding(head []byte, encoding string) []byte {
	var out []byte
	drop := false
	for line := range bytes.Lines(head) {
		if line[0] != ' ' && line[0] != '\t' {
			key, _, _ := bytes.Cut(line, []byte{':'})
			drop = strings.EqualFold(string(bytes.TrimRight(key, " \t")), "content-transfer-encoding")
			if drop {
				out = append(out, "Content-Transfer-Encoding: "+encoding+"\r\n"...)
			}
		}
		if !drop {
			out = append(out, line...)
		}
	}
	return out
}
