package filter

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// appendHead begins a line: what|version|seconds.microseconds|direction|name|session
func appendHead(b []byte, what string, t time.Time, d Direction, name string, id mail.SessionID) []byte {
	b = append(b, what...)
	b = append(b, '|')
	b = append(b, Protocol...)
	b = append(b, '|')
	b = strconv.AppendInt(b, t.Unix(), 10)
	b = append(b, '.')
	micro := t.Nanosecond() / 1000
	for div := 100000; div > 0; div /= 10 {
		b = append(b, byte('0'+micro/div%10))
	}
	b = append(b, '|')
	b = append(b, d.String()...)
	b = append(b, '|')
	b = append(b, name...)
	b = append(b, '|')
	return appendHex(b, uint64(id))
}

func appendHex(b []byte, v uint64) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, digits[v>>shift&15])
	}
	return b
}

// appendText adds the last field and ends the line: the text has no line ends
// afterwards.
func appendText(b []byte, s string) []byte {
	start := len(b)
	b = append(b, s...)
	for i, c := range b[start:] {
		if c == '\n' || c == '\r' {
			b[start+i] = ' '
		}
	}
	return append(b, '\n')
}

// appendReport is the line of an event.
func appendReport(b []byte, d Direction, id mail.SessionID, n *Note) []byte {
	b = appendHead(b, "report", n.Time, d, n.Event.String(), id)
	if n.Tail == "" && bare(n.Event) {
		return append(b, '\n')
	}
	b = append(b, '|')
	return appendText(b, n.Tail)
}

// bare reports the events that have no field after the session.
func bare(e Event) bool { return e == LinkDisconnect || e == Timeout }

// appendAsk is the line that asks for a decision.
func appendAsk(b []byte, t time.Time, p Phase, id mail.SessionID, token uint64, param string) []byte {
	b = appendHead(b, "filter", t, In, p.String(), id)
	b = append(b, '|')
	b = appendHex(b, token)
	b = append(b, '|')
	return appendText(b, param)
}

// errMissing and the others are what a program can do wrong; %s of them is in
// the log after the program's name.
var (
	errKind    = breach("Invalid filter message type")
	errMissing = breach("Missing parameter")
	errToken   = errors.New("misbehaving filter")
	errLong    = errors.New("a line is too long")
	errHello   = errors.New("not a registration")
	errReply   = errors.New("the reply does not begin with a 4xx or 5xx code and a blank")
	errSlow    = errors.New("does not read its input")
	errSilent  = errors.New("gives no answer")
	errGone    = errors.New("exited abnormally")
	errClosed  = errors.New("stopped")
)

// breach is an error in the words of OpenSMTPD, which watchers of logs know.
type breach string

// Error is the text.
func (e breach) Error() string { return string(e) }

// kind is what a program says once it has registered.
type kind uint8

const (
	kindResult kind = iota
	kindLine
	kindReport
)

// said is one line of a program. The bytes are those of the line.
type said struct {
	kind    kind
	session mail.SessionID
	token   uint64
	report  bool   // of a result: not the decision, only a text
	verdict Action // of a result
	text    []byte
}

// parse reads a line without its line end. What it gives refers to line.
func parse(line []byte) (said, error) {
	word, rest, _ := bytes.Cut(line, []byte{'|'})
	switch string(word) {
	case "filter-result":
		return parseResult(rest)
	case "filter-dataline":
		s := said{kind: kindLine}
		var ok bool
		if s.session, s.token, s.text, ok = parseIDs(rest); !ok {
			return said{}, errMissing
		}
		return s, nil
	case "report":
		return parseReport(rest)
	}
	return said{}, errKind
}

// parseIDs reads session|token|rest.
func parseIDs(b []byte) (id mail.SessionID, token uint64, rest []byte, ok bool) {
	if len(b) < 34 || b[16] != '|' || b[33] != '|' {
		return 0, 0, nil, false
	}
	s, ok1 := parseHex(b[:16])
	t, ok2 := parseHex(b[17:33])
	return mail.SessionID(s), t, b[34:], ok1 && ok2
}

// parseHex reads 16 hex digits.
func parseHex(b []byte) (v uint64, ok bool) {
	if len(b) != 16 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case digit(c):
			v = v<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		case 'A' <= c && c <= 'F':
			v = v<<4 | uint64(c-'A'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

func parseResult(b []byte) (said, error) {
	s := said{kind: kindResult}
	var rest []byte
	var ok bool
	if s.session, s.token, rest, ok = parseIDs(b); !ok {
		return said{}, errMissing
	}
	word, text, has := bytes.Cut(rest, []byte{'|'})
	switch string(word) {
	case "proceed":
		s.verdict, has = Proceed, true
	case "junk":
		s.verdict, has = Junk, true
	case "reject":
		s.verdict = Reject
	case "disconnect":
		s.verdict = Disconnect
	case "rewrite":
		s.verdict = Rewrite
	case "report":
		s.report = true
	default:
		return said{}, errMissing
	}
	if !has {
		return said{}, errMissing
	}
	s.text = text
	return s, nil
}

// parseReport reads timestamp|direction|session|text, the report of a program's
// own.
func parseReport(b []byte) (said, error) {
	f := bytes.SplitN(b, []byte{'|'}, 4)
	if len(f) != 4 || !direction(f[1]) {
		return said{}, errMissing
	}
	id, ok := parseHex(f[2])
	if !ok {
		return said{}, errMissing
	}
	return said{kind: kindReport, session: mail.SessionID(id), text: f[3]}, nil
}

func direction(b []byte) bool {
	return bytes.EqualFold(b, []byte("smtp-in")) || bytes.EqualFold(b, []byte("smtp-out"))
}

// registration is what a program wants.
type registration struct {
	phases  Set
	reports [2]Set // by Direction
}

// line takes one line of the program before it is ready.
func (r *registration) line(line string) (ready bool, err error) {
	f := strings.Split(line, "|")
	if f[0] != "register" || len(f) < 2 {
		return false, errHello
	}
	if f[1] == "ready" && len(f) == 2 {
		return true, nil
	}
	if len(f) != 4 {
		return false, errHello
	}
	d := In
	switch {
	case strings.EqualFold(f[2], "smtp-in"):
	case strings.EqualFold(f[2], "smtp-out"):
		d = Out
	default:
		return false, errHello
	}
	switch f[1] {
	case "report":
		if f[3] == "*" {
			r.reports[d] = all
			return false, nil
		}
		e, ok := ParseEvent(f[3])
		if !ok {
			return false, errHello
		}
		r.reports[d].add(uint8(e))
		return false, nil
	case "filter":
		p, ok := ParsePhase(f[3])
		if !ok || d == Out {
			return false, errHello
		}
		r.phases.add(uint8(p))
		return false, nil
	}
	return false, errHello
}
