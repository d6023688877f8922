package mail

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxStatusText bounds the text of a Status, in octets. Ours: a reply line is
// 512 octets at most (RFC 5321 section 4.5.3.1.5), with room for the codes.
const MaxStatusText = 480

// Status is a mail's fate in the words of SMTP: a reply code, an enhanced code
// (RFC 3463) and one harmless line of printable text. It is the only error
// that crosses from one process to another.
type Status struct {
	Code int      // 200..599
	Enh  [3]uint8 // class, subject, detail; all zero: no enhanced code is shown
	Text string   // without codes and line ends
}

// NewStatus makes a Status whose text is cleaned and cut to MaxStatusText.
func NewStatus(code int, enh [3]uint8, text string) *Status {
	return &Status{Code: code, Enh: enh, Text: Clean(text, MaxStatusText)}
}

// LocalError is what others are told of an error of our own: try again later.
func LocalError() *Status { return &Status{451, [3]uint8{4, 3, 0}, "Temporary failure"} }

// Error is the status as the log shows it; the same as String.
func (s *Status) Error() string { return s.String() }

// String is "550 5.1.1 text", or "550 text" without an enhanced code.
func (s *Status) String() string {
	if s.Enh[0] == 0 {
		return strconv.Itoa(s.Code) + " " + s.Text
	}
	return fmt.Sprintf("%d %d.%d.%d %s", s.Code, s.Enh[0], s.Enh[1], s.Enh[2], s.Text)
}

// OK reports a 2xx status.
func (s *Status) OK() bool { return s.Code/100 == 2 }

// Permanent reports a 5xx status: trying again is no use.
func (s *Status) Permanent() bool { return s.Code/100 == 5 }

// Temporary reports whatever is neither ok nor permanent; in doubt a failure
// is temporary.
func (s *Status) Temporary() bool { return !s.OK() && !s.Permanent() }

// ParseStatus reads "CODE [x.y.z] text" as String prints it, or as a remote
// server said it once its lines are joined. Anything else gives false.
func ParseStatus(s string) (*Status, bool) {
	if len(s) < 3 || (len(s) > 3 && s[3] != ' ') {
		return nil, false
	}
	code, err := strconv.Atoi(s[:3])
	if err != nil || code < 200 || code > 599 {
		return nil, false
	}
	st := &Status{Code: code}
	rest := strings.TrimPrefix(s[3:], " ")
	if word, tail, _ := strings.Cut(rest, " "); parseEnh(word, &st.Enh) {
		rest = tail
	}
	st.Text = Clean(rest, MaxStatusText)
	return st, true
}

func parseEnh(s string, enh *[3]uint8) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || len(parts[0]) != 1 || !strings.Contains("245", parts[0]) {
		return false
	}
	var e [3]uint8
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return false
		}
		e[i] = uint8(v)
	}
	*enh = e
	return true
}

// HasControl reports whether s holds an octet below the blank, or DEL: in a
// command or a header line it could begin another.
func HasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// OneLine is s for a header line: cleaned if it holds a control octet.
func OneLine(s string) string {
	if HasControl(s) {
		return Clean(s, len(s))
	}
	return s
}

// Clean makes text from outside fit to be stored, logged and sent: control
// octets become '?', and it is cut to max octets, never inside a UTF-8
// sequence.
func Clean(s string, max int) string {
	if len(s) > max {
		for max > 0 && s[max]&0xc0 == 0x80 {
			max--
		}
		s = s[:max]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
