package mda

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"smtpd/internal/mail"
)

// Result is the end of one delivery.
type Result struct {
	Status mail.Status
	Line   string // error line as show queue and notices print it; empty when delivered
	Stat   string // as the log prints it: `Delivered`, `Error (...)`
	Loop   bool   // the mail has been here before
	Exit   int    // of sysexits(3), for programs; 0: delivered
}

// Exit codes of sysexits(3) that commands use and our own programs give.
const (
	exDataErr     = 65
	exUnavailable = 69
	exOSErr       = 71
	exOSFile      = 72
	exIOErr       = 74
	exTempfail    = 75
)

// sysexits are the meanings that the log prints.
var sysexits = map[int]string{
	64: "command line usage error", 65: "data format error", 66: "cannot open input",
	67: "user unknown", 68: "host name unknown", 69: "service unavailable",
	70: "internal software error", 71: "system resource problem", 72: "critical OS file missing",
	73: "can't create user output file", 74: "input/output error", 75: "temporary failure",
	76: "remote error in protocol", 77: "permission denied", 78: "local configuration error",
}

// failure is why a delivery did not come about. Whatever fails without one is
// temporary.
type failure struct {
	perm   bool
	exit   int          // of sysexits(3), or any other that a command ended with; 0: none
	text   string       // without line ends
	quoted bool         // the words of a program: shown in quotes
	status *mail.Status // what an LMTP store answered
}

func (f *failure) Error() string { return f.text }

// tempfail is a temporary failure in the words of one of our own programs.
func tempfail(exit int, program, doing string, err error) *failure {
	text := program + sentence(err)
	if doing != "" {
		text = program + doing + ": " + sentence(err)
	}
	return &failure{exit: exit, text: text, quoted: true}
}

// sentence is an error as strerror(3) words it: "Permission denied".
func sentence(err error) string {
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return err.Error()
	}
	s := errno.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// maxLine bounds an error line, in octets. Ours: it is shown in a column of
// show queue.
const maxLine = 250

func delivered() Result {
	return Result{Status: mail.Status{Code: 250, Enh: [3]uint8{2, 0, 0}, Text: "Delivered"}, Stat: "Delivered"}
}

func loopDetected() Result {
	const text = "Loop detected"
	return Result{Status: mail.Status{Code: 554, Enh: [3]uint8{5, 4, 6}, Text: text},
		Line: text, Stat: text, Loop: true, Exit: exUnavailable}
}

// failed is the Result of an error.
func failed(err error) Result {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{text: err.Error()}
	}
	line := visible(f.text, maxLine)
	if f.quoted {
		line = `"` + line + `"`
	}
	r := Result{Line: line, Exit: f.exit, Stat: "Error (" + line + ")"}
	if meaning := sysexits[f.exit]; meaning != "" {
		r.Stat = fmt.Sprintf("Error (%s: %s)", meaning, line)
	}
	r.Status = mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: mail.Clean(line, mail.MaxStatusText)}
	if f.perm {
		r.Status.Code, r.Status.Enh[0] = 550, 5
	}
	if f.status != nil && f.status.Enh[0] == r.Status.Enh[0] {
		r.Status.Enh = f.status.Enh
	}
	if r.Exit == 0 {
		r.Exit = exTempfail
		if f.perm {
			r.Exit = exUnavailable
		}
	}
	return r
}

// visible writes octets that could harm a terminal or a line as vis(3) does in
// its C style, and cuts the result to max octets.
func visible(s string, max int) string {
	var b strings.Builder
	for i := range len(s) {
		n := b.Len()
		var e string
		switch c := s[i]; {
		case c == '\\':
			e = `\\`
		case c >= 0x80:
			e = `\M` + caret(c&0x7f, '-')
		case c < ' ' || c == 0x7f:
			e = cEscape(c)
		default:
			e = s[i : i+1]
		}
		if n+len(e) > max {
			break
		}
		b.WriteString(e)
	}
	return b.String()
}

// cEscape is a control octet as C writes it, or in caret notation.
func cEscape(c byte) string {
	const named = "\a\b\t\n\v\f\r"
	if c >= '\a' && c <= '\r' {
		return `\` + string("abtnvfr"[strings.IndexByte(named, c)])
	}
	if c == 0 {
		return `\0`
	}
	return `\` + caret(c, 0)
}

func caret(c byte, plain byte) string {
	switch {
	case c < ' ':
		return "^" + string(rune(c+'@'))
	case c == 0x7f:
		return "^?"
	}
	return string(rune(plain)) + string(rune(c))
}
