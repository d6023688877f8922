package mta

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"strings"
)

// Bounds of a message that is converted. Ours; one beyond them goes as it is.
const (
	maxParts      = 1000
	maxPartDepth  = 20
	maxPartHeader = 64 << 10
	qpLine        = 76 // RFC 2045 section 6.7 rule 5
)

// sevenBit makes of a message with octets beyond ASCII one without (RFC 6152
// section 3: a host that does not offer 8BITMIME must not get such octets):
// parts that have them become quoted-printable. It works line by line, twice:
// first it finds the parts, then it writes. Header fields are left alone, and
// so is a message whose structure is out of bounds.
type sevenBit struct {
	parts []part // in order, as found

	// Where the lines are.
	n        int      // parts begun
	bounds   []string // of the multiparts around, outermost first
	inHeader bool
	header   [][]byte // lines of the header of the part under way
	size     int      // of them
	broken   bool
}

// part is one header with what follows it, up to the next part.
type part struct {
	leaf    bool // has text of its own
	eight   bool // the text has octets beyond ASCII
	encoded bool // it says so: quoted-printable or base64
}

// begin starts a pass over the lines.
func (c *sevenBit) begin() {
	c.n, c.bounds, c.inHeader, c.header, c.size = 0, nil, true, nil, 0
}

// needed reports whether the first pass found something to convert.
func (c *sevenBit) needed() bool {
	for _, p := range c.parts {
		if p.leaf && p.eight && !p.encoded {
			return !c.broken
		}
	}
	return false
}

// look is the first pass: one line without its end.
func (c *sevenBit) look(line []byte) {
	if c.broken {
		return
	}
	c.step(line, nil)
	if !c.inHeader && len(c.parts) > 0 && hasEight(line) {
		c.parts[len(c.parts)-1].eight = true
	}
}

// write is the second pass: put gets the lines that go out, without ends.
func (c *sevenBit) write(line []byte, put func([]byte)) {
	if c.step(line, put) {
		return
	}
	if p := c.now(); p.leaf && p.eight && !p.encoded {
		quotedPrintable(line, put)
		return
	}
	put(line)
}

// now is the part under way in the second pass.
func (c *sevenBit) now() part {
	if c.n == 0 || c.n > len(c.parts) {
		return part{}
	}
	return c.parts[c.n-1]
}

// step follows the structure. It reports whether it has dealt with the line:
// with put, lines of headers and delimiters go out from here.
func (c *sevenBit) step(line []byte, put func([]byte)) bool {
	if depth, last := c.delimiter(line); depth > 0 {
		c.endHeader(put)
		if c.bounds = c.bounds[:depth]; last {
			c.bounds = c.bounds[:depth-1]
			c.start(part{}) // what follows the last part is for nobody
		} else {
			c.inHeader, c.header, c.size = true, nil, 0
		}
		if put != nil {
			put(line)
		}
		return true
	}
	if !c.inHeader {
		return false
	}
	if len(line) == 0 {
		c.endHeader(put)
		if put != nil {
			put(line)
		}
		return true
	}
	if c.size += len(line); c.size > maxPartHeader {
		c.broken = true
		return true
	}
	c.header = append(c.header, bytes.Clone(line))
	return true
}

// start begins a part; in the second pass it is known already.
func (c *sevenBit) start(p part) {
	if c.n++; c.n > len(c.parts) {
		if c.n > maxParts {
			c.broken = true
			return
		}
		c.parts = append(c.parts, p)
	}
}

// endHeader ends the header under way, if there is one.
func (c *sevenBit) endHeader(put func([]byte)) {
	if !c.inHeader {
		return
	}
	c.inHeader = false
	kind, params, _ := mime.ParseMediaType(fieldValue(c.header, "content-type"))
	encoding := strings.ToLower(strings.TrimSpace(fieldValue(c.header, "content-transfer-encoding")))
	switch {
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
		c.start(part{})
		if len(c.bounds) == maxPartDepth {
			c.broken = true
		}
		c.bounds = append(c.bounds, params["boundary"])
		c.putHeader(put, "7bit", encoding)
	case kind == "message/rfc822" && encoding != "base64" && encoding != "quoted-printable":
		c.start(part{})
		c.putHeader(put, "7bit", encoding)
		c.inHeader, c.header, c.size = true, nil, 0 // its text begins with a header
	default:
		c.start(part{leaf: true, encoded: encoding == "base64" || encoding == "quoted-printable"})
		if p := c.now(); p.eight && !p.encoded {
			c.putHeader(put, "quoted-printable", "8bit")
			return
		}
		c.putHeader(put, "", "")
	}
}

// putHeader sends a header out. A transfer encoding of 8bit or binary is
// replaced; quoted-printable is said even where nothing was.
func (c *sevenBit) putHeader(put func([]byte), encoding, was string) {
	if put == nil {
		return
	}
	replace := encoding != "" && (was == "8bit" || was == "binary")
	skip := false
	for _, line := range c.header {
		if line[0] != ' ' && line[0] != '\t' {
			skip = replace && isField(line, "content-transfer-encoding")
		}
		if !skip {
			put(line)
		}
	}
	if !replace {
		return
	}
	if c.n == 1 && fieldValue(c.header, "mime-version") == "" {
		put([]byte("MIME-Version: 1.0"))
		if fieldValue(c.header, "content-type") == "" {
			put([]byte("Content-Type: text/plain; charset=unknown-8bit"))
		}
	}
	put([]byte("Content-Transfer-Encoding: " + encoding))
}

// delimiter reports the depth of the multipart that line is a delimiter of, 1
// for the outermost, and whether it ends it (RFC 2046 section 5.1.1).
func (c *sevenBit) delimiter(line []byte) (depth int, last bool) {
	if len(c.bounds) == 0 || !bytes.HasPrefix(line, []byte("--")) {
		return 0, false
	}
	line = bytes.TrimRight(line[2:], " \t")
	for i := len(c.bounds) - 1; i >= 0; i-- {
		rest, ok := bytes.CutPrefix(line, []byte(c.bounds[i]))
		if ok && (len(rest) == 0 || string(rest) == "--") {
			return i + 1, len(rest) > 0
		}
	}
	return 0, false
}

// isField reports whether a line begins the field of that lower-case name.
func isField(line []byte, name string) bool {
	return len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(string(line[:len(name)]), name)
}

// fieldValue is the unfolded text of the first field of that name.
func fieldValue(header [][]byte, name string) string {
	value, found := "", false
	for _, line := range header {
		continued := line[0] == ' ' || line[0] == '\t'
		switch {
		case found && !continued:
			return value
		case found:
			value += " " + strings.TrimSpace(string(line))
		case !continued && isField(line, name):
			value, found = strings.TrimSpace(string(line[len(name)+1:])), true
		}
	}
	return value
}

func hasEight(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}

// quotedPrintable encodes one line (RFC 2045 section 6.7).
func quotedPrintable(line []byte, put func([]byte)) {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, qpLine)
	for i, c := range line {
		literal := c > ' ' && c < 0x7f && c != '=' || (c == ' ' || c == '\t') && i < len(line)-1
		size := 3
		if literal {
			size = 1
		}
		if len(out)+size > qpLine-1 {
			put(append(out, '='))
			out = out[:0]
		}
		if literal {
			out = append(out, c)
		} else {
			out = append(out, '=', hex[c>>4], hex[c&15])
		}
	}
	put(out)
}

// lineBuffer bounds a line of a text that is converted, in octets. Ours: no
// longer ones are taken in.
const lineBuffer = 128 << 10

// needSevenBit is how a text must be converted for a host that does not take
// octets beyond ASCII; nil: it can go as it is. An error means that the text
// cannot be read.
func needSevenBit(text *Text) (*sevenBit, error) {
	if text.File == nil && !hasEight(text.Data) {
		return nil, nil
	}
	c := &sevenBit{}
	c.begin()
	err := text.lines(func(line []byte) error {
		c.look(line)
		return nil
	})
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, nil
	}
	if c.endHeader(nil); err != nil || !c.needed() {
		return nil, err
	}
	return c, nil
}

// lines calls do for each line of a text, without its end.
func (t *Text) lines(do func([]byte) error) error {
	var r io.Reader = bytes.NewReader(t.Data)
	if t.File != nil {
		r = io.NewSectionReader(t.File, 0, t.Size)
	}
	in := bufio.NewReaderSize(r, lineBuffer)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			line = bytes.TrimSuffix(line, []byte("\n"))
			if derr := do(bytes.TrimSuffix(line, []byte("\r"))); derr != nil {
				return derr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sendConverted gathers and writes a text, converted.
func (s *session) sendConverted(text *Text, c *sevenBit) error {
	var failed error
	put := func(line []byte) {
		if failed == nil {
			failed = s.w.text(append(line, "\r\n"...))
		}
	}
	c.begin()
	err := text.lines(func(line []byte) error {
		c.write(bytes.Clone(line), put)
		return failed
	})
	if err == nil {
		c.endHeader(put)
		err = failed
	} else if failed == nil {
		err = errText
	}
	if err == nil {
		s.w.end()
	}
	return err
}
