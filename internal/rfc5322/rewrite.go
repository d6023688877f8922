package rfc5322

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"smtpd/internal/mail"
)

// Bounds of a header.
const (
	// MaxReceived is how many trace fields a message may bring along. Ours, as
	// OpenSMTPD: RFC 5321 section 6.3 asks for at least 100 with our own.
	MaxReceived = 99
	// DefaultMaxBytes and DefaultMaxFields bound a header when Options does not.
	// Ours: a list of ten thousand recipients in To still fits.
	DefaultMaxBytes  = 1 << 20
	DefaultMaxFields = 5000
	// maxField is the longest address field that is rewritten; a longer one
	// passes as it is. Ours: what one line may hold.
	maxField = 64 << 10
)

// Errors that refuse a message; the caller reads on to the end of it.
var (
	ErrShape  = errors.New("rfc5322: the header is not one")
	ErrLoop   = errors.New("rfc5322: too many Received fields")
	ErrTooBig = errors.New("rfc5322: the header is over its bound")
)

// Options say what happens to the header of one message.
type Options struct {
	Domain     string        // completes addresses without one in To, Cc, From; empty: they stay
	Masquerade *mail.Address // takes the place of every address in From; nil: they stay

	Date      time.Time // of a Date field, when there is none; zero: none is added
	MessageID string    // of a Message-ID field, with brackets, when there is none; empty: none is added

	Own int // Received fields of our own among the lines

	AuthServIDs []string // Authentication-Results in these names are removed: nobody else may speak for us

	MaxBytes, MaxFields int // zero: the defaults above
}

// Rewriter rewrites the header of one message. The zero value is not ready; see
// Reset. It is not safe for concurrent use.
type Rewriter struct {
	o       Options
	keep    action // of the field that is under way
	field   []byte // an address field that is under way, with LF between its lines
	bytes   int
	fields  int
	hops    int
	hasDate bool
	hasID   bool
	body    bool
}

// authResults is the field of RFC 8601.
const authResults = "authentication-results"

// action is what happens to the lines of a field.
type action uint8

const (
	none   action = iota // no field has begun
	pass                 // as it is
	drop                 // removed
	rcpts                // buffered: addresses are completed
	author               // buffered: completed or masqueraded
)

// Reset makes r ready for another message; memory is kept.
func (r *Rewriter) Reset(o Options) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxFields == 0 {
		o.MaxFields = DefaultMaxFields
	}
	*r = Rewriter{o: o, field: r.field[:0]}
}

// InBody reports whether the empty line has passed: what follows needs no
// Rewriter.
func (r *Rewriter) InBody() bool { return r.body }

// Line takes one line without its line end and appends to dst what becomes of
// it, which may be nothing yet, with LF line ends. After an error the message
// cannot be accepted. Once InBody, lines pass as they are.
func (r *Rewriter) Line(dst, line []byte) ([]byte, error) {
	if r.body {
		return append(append(dst, line...), '\n'), nil
	}
	r.bytes += len(line) + 1
	switch {
	case r.bytes > r.o.MaxBytes:
		return dst, ErrTooBig
	case len(line) == 0:
		dst = r.end(dst)
		r.body = true
		return append(dst, '\n'), nil
	case line[0] == ' ' || line[0] == '\t':
		return r.continued(dst, line)
	}
	dst = r.flush(dst)
	r.fields++
	if r.fields > r.o.MaxFields {
		return dst, ErrTooBig
	}
	colon := bytes.IndexByte(line, ':')
	if colon < 0 {
		return dst, ErrShape
	}
	r.keep = r.classify(bytes.TrimRight(line[:colon], " \t"), line[colon+1:])
	if r.hops > MaxReceived+r.o.Own {
		return dst, ErrLoop
	}
	return r.put(dst, line), nil
}

// End is told that the message ended; a header without a body ends here.
func (r *Rewriter) End(dst []byte) []byte {
	if r.body {
		return dst
	}
	r.body = true
	return r.end(dst)
}

// end finishes the last field and adds what is missing.
func (r *Rewriter) end(dst []byte) []byte {
	dst = r.flush(dst)
	if !r.hasDate && !r.o.Date.IsZero() {
		dst = append(dst, "Date: "...)
		dst = append(AppendDate(dst, r.o.Date), '\n')
	}
	if !r.hasID && r.o.MessageID != "" {
		dst = append(dst, "Message-ID: "...)
		dst = append(append(dst, r.o.MessageID...), '\n')
	}
	return dst
}

func (r *Rewriter) continued(dst, line []byte) ([]byte, error) {
	if r.keep == none {
		return dst, ErrShape
	}
	return r.put(dst, line), nil
}

// put adds a line to the field that is under way.
func (r *Rewriter) put(dst, line []byte) []byte {
	switch r.keep {
	case drop:
		return dst
	case pass:
		return append(append(dst, line...), '\n')
	}
	if len(r.field)+len(line) > maxField {
		return r.tooLong(dst, line)
	}
	r.field = append(append(r.field, line...), '\n')
	return dst
}

// tooLong gives up rewriting the field that is under way. A From field that
// was to be masqueraded must not slip through: it ends here.
func (r *Rewriter) tooLong(dst, line []byte) []byte {
	if r.keep == author && r.o.Masquerade != nil {
		r.field = append(r.field[:0], "From:\n"...)
		dst = r.flush(dst)
		r.keep = drop
		return dst
	}
	dst = append(dst, r.field...)
	r.field = r.field[:0]
	r.keep = pass
	return append(append(dst, line...), '\n')
}

// flush writes the address field that is under way, if any.
func (r *Rewriter) flush(dst []byte) []byte {
	if len(r.field) == 0 {
		return dst
	}
	colon := bytes.IndexByte(r.field, ':') + 1
	dst = append(dst, r.field[:colon]...)
	value := r.field[colon : len(r.field)-1]
	if r.keep == author && r.o.Masquerade != nil {
		dst = masquerade(dst, value, mail.OneLine(r.o.Masquerade.String()))
	} else {
		dst = complete(dst, value, r.o.Domain)
	}
	r.field = r.field[:0]
	return append(dst, '\n')
}

// classify decides on a field and remembers what it says.
func (r *Rewriter) classify(name, value []byte) action {
	switch len(name) {
	case 2:
		if is(name, "to") || is(name, "cc") {
			return rcpts
		}
	case 3:
		if is(name, "bcc") {
			return drop
		}
	case 4:
		if is(name, "from") {
			return author
		}
		r.hasDate = r.hasDate || is(name, "date")
	case 8:
		if is(name, "received") {
			r.hops++
		}
	case 10:
		r.hasID = r.hasID || is(name, "message-id")
	case 11:
		if is(name, "return-path") {
			return drop
		}
	case 22:
		if is(name, authResults) && ours(r.o.AuthServIDs, value) {
			return drop
		}
	}
	return pass
}

// ours reports whether an Authentication-Results field claims to be written by
// us. A name on a continuation line, or behind a comment, is taken for ours:
// honest writers put it first (RFC 8601 section 2.2).
func ours(ids []string, value []byte) bool {
	if len(ids) == 0 {
		return false
	}
	value = bytes.TrimLeft(value, " \t")
	if len(value) == 0 || value[0] == '(' || value[0] == '"' {
		return true
	}
	if i := bytes.IndexAny(value, " \t;("); i >= 0 {
		value = value[:i]
	}
	value = bytes.TrimSuffix(value, []byte{'.'})
	return slices.ContainsFunc(ids, func(id string) bool { return is(value, id) })
}

// Guard finds Authentication-Results of others in our names where no Rewriter
// stands: before filters, which write such fields themselves. The zero value
// finds none.
type Guard struct {
	ids  []string
	drop bool // the field that is under way
	body bool
}

// NewGuard makes a guard of names for one message; see Options.AuthServIDs.
func NewGuard(ids []string) Guard { return Guard{ids: ids} }

// Drops reports whether a line, which comes after all before it, without its
// line end and dot-stuffing, is to be removed.
func (g *Guard) Drops(line []byte) bool {
	switch {
	case g.body || len(line) == 0:
		g.body = true
		return false
	case line[0] == ' ' || line[0] == '\t':
		return g.drop
	}
	name, value, ok := bytes.Cut(line, []byte{':'})
	g.drop = ok && is(bytes.TrimRight(name, " \t"), authResults) && ours(g.ids, value)
	return g.drop
}

// is compares without regard to the case of ASCII letters.
func is(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
