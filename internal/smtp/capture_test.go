package smtp

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Recordings of OpenSMTPD 7.8, and one of Debian's 6.8, are played against our sessions. Where we answer
// otherwise on purpose, deviations has both replies and the reason.

// deviations are by "command -> recorded reply", or by the recorded reply
// alone.
var deviations = map[string]string{
	// RSET, EHLO and HELO come at any time and again (RFC 5321 section 4.1.4).
	"RSET -> 503 5.5.1 Invalid command: Command not allowed at this point.": "250 2.0.0 Reset state",
	"EHLO foo bar -> 503 5.5.1 Invalid command: Already identified":         "501 5.5.4 Invalid command arguments: Invalid domain name",
	"EHLO [127.0.0.1] -> 503 5.5.1 Invalid command: Already identified":     "250-mx.example.org Hello [127.0.0.1] [127.0.0.1], pleased to meet you",
	"EHLO again.test -> 503 5.5.1 Invalid command: Already identified":      "250-mx.example.org Hello again.test [127.0.0.1], pleased to meet you",
	"HELO again.test -> 503 5.5.1 Invalid command: Already identified":      "250 mx.example.org Hello again.test [127.0.0.1], pleased to meet you",
	"EHLO client.test -> 503 5.5.1 Invalid command: Already identified":     "250-submit.example.org Hello client.test [127.0.0.1], pleased to meet you",
	// VRFY and EXPN tell nothing; BDAT is offered and its octets are read.
	"VRFY alice -> 500 5.5.1 Invalid command: Command unrecognized": replyVRFY,
	"EXPN team -> 500 5.5.1 Invalid command: Command unrecognized":  replyEXPN,
	"BDAT 3 -> 500 5.5.1 Invalid command: Command unrecognized":     replySequence,
	"214-2.0.0 This is OpenSMTPD":                                   "214-2.0.0 This is smtpd",
	// The HELP text is ours.
	"214-2.0.0 To report bugs in the implementation, please contact bugs@openbsd.org": "214-2.0.0 It accepts mail for the domains of this host and relays what its rules allow;",
	"214-2.0.0 with full details": "214-2.0.0 see smtpd(8) and smtpd.conf(5)",
	// Extensions that 7.8 lacks, and parameters it does not check.
	"MAIL FROM:<a@b.org> BODY=BINARYMIME -> 503 5.5.4 Invalid command arguments: Unsupported option BODY=BINARYMIME": "250 2.0.0 Ok",
	"MAIL FROM:<a@b.org> SMTPUTF8 -> 503 5.5.4 Invalid command arguments: Unsupported option SMTPUTF8":               "250 2.0.0 Ok",
	"MAIL FROM:<a@b.org> SIZE=99999999999 -> 250 2.0.0 Ok":                                                           replyTooBig,
	"MAIL FROM:<a@b.org> RET=XX ENVID=abc -> 503 5.5.4 Invalid command arguments: Unsupported option RET=XX":         "555 5.5.4 Invalid command arguments: Unsupported option RET=XX",
	"503 5.5.4 Invalid command arguments: Unsupported option FOO=BAR":                                                "555 5.5.4 Invalid command arguments: Unsupported option FOO=BAR",
	"503 5.5.4 Invalid command arguments: Unsupported option extra":                                                  "555 5.5.4 Invalid command arguments: Unsupported option extra",
	"503 5.5.4 Invalid command arguments: Unsupported option RET=FULL":                                               "555 5.5.4 Invalid command arguments: Unsupported option RET=FULL",
	"503 Unsupported option FOO=1":                                  "555 5.5.4 Invalid command arguments: Unsupported option FOO=1",
	"503 Unsupported option NOTIFY=NEVER":                           "555 5.5.4 Invalid command arguments: Unsupported option NOTIFY=NEVER",
	"553 NOTIFY option NEVER cannot be combined with other options": replyNever,
	"553 ORCPT address syntax error":                                replyORcpt,
	// Addresses as RFC 5321 has them.
	`MAIL FROM:<"a b"@b.org> -> 553 5.1.0 Sender address syntax error`: "250 2.0.0 Ok",
	"MAIL FROM:<a@> -> 250 2.0.0 Ok":                                   replySenderSyntax,
	// An enhanced code on every reply.
	"550 Invalid recipient: <nosuch@example.org>":                               "550 5.1.1 Invalid recipient: <nosuch@example.org>",
	"550 Invalid recipient: <alice@unknown.test>":                               "550 5.7.1 Invalid recipient: <alice@unknown.test>",
	"550 Invalid recipient: <x@rejected.test>":                                  "550 5.7.1 Invalid recipient: <x@rejected.test>",
	"550 Invalid recipient: <multi@sq.test>":                                    "550 5.1.1 Invalid recipient: <multi@sq.test>",
	"550 Invalid recipient: <a@off.test>":                                       "550 5.7.1 Invalid recipient: <a@off.test>",
	"524 5.2.4 Mailing list expansion problem: <nosuch@sq.test>":                "550 5.2.4 Mailing list expansion problem: <nosuch@sq.test>",
	"235 2.0.0 Authentication succeeded":                                        replyAuthOK,
	"535 Authentication failed":                                                 replyAuthFailed,
	"530 Sender rejected":                                                       replySenderRejected,
	"530 5.5.1 Invalid command: Must issue a STARTTLS command first":            replyNeedTLS,
	"451 4.5.3 Too many recipients: Too many recipients":                        replyTooManyRcpts,
	"554 5.3.4 Message too big for system: Transaction failed, message too big": replyTooBig,
	"500 5.0.0 Line too long -> command":                                        replyCommandTooLong,
	// Pipelining is offered (RFC 2920).
	"NOOP\r\nNOOP -> 500 5.5.1 Invalid command: Pipelining not supported":                                           "250 2.0.0 Ok",
	"MAIL FROM:<a@b.org>\r\nRCPT TO:<alice@md.test>\r\nDATA -> 500 5.5.1 Invalid command: Pipelining not supported": "250 2.0.0 Ok",
	// LF alone ends no line.
	"NOOP bare-lf\n -> 250 2.0.0 Ok": replyBareLF,
	// Each recipient begins clean.
	"RCPT TO:<x@nullmx.test> NOTIFY=NEVER -> 553 NOTIFY option NEVER cannot be combined with other options": replyRcptOK,
	// NUL in a command; a bare CR or LF in a message.
	`NOOP a` + "\x00" + `b -> 250 2.0.0 Ok`:                                                                            replyBadOctet,
	"NO\x00OP -> 500 5.5.1 Invalid command: Command unrecognized":                                                      replyBadOctet,
	"Subject: barelf\nX: y\n\nbody bare lf\n. -> 250 2.0.0 IDID Message accepted for delivery":                         replyBare,
	"Subject: barecr\r\n\r\na\rb\r\nc\r\r\n. -> 250 2.0.0 IDID Message accepted for delivery":                          replyBare,
	"Subject: lfdotlf\r\n\r\nx\n.\nMAIL FROM:<evil@x.org>\r\n. -> 500 5.5.1 Invalid command: Pipelining not supported": replyBare,
}

// ours are lines of EHLO that 7.8 does not have.
var ours = regexp.MustCompile(`^250-(PIPELINING|CHUNKING|BINARYMIME|SMTPUTF8|REQUIRETLS|LIMITS .*)$`)

// capture is one recorded connection.
type capture struct {
	name  string
	conf  []string
	lines []string
}

func TestCaptures(t *testing.T) {
	tests := []struct {
		file string
		conf []string
		stop string // command at which the recording ceases to be a dialogue
	}{
		{"smtp-commands-port25.txt", []string{"tls", "max-size=204800"}, ""},
		{"dsn-dialogue.txt", []string{"tls", "max-size=204800"}, ""},
		{"smtp-limits.txt", []string{"max-mails=2", "max-rcpt=2"}, ""},
		{"smtp-listeners.txt", []string{"max-size=204800"}, "From: \"Alice\" <faked@else.org>"},
		{"debian68-smtp.txt", nil, ""},
		{"smtp-edge-cases.txt", []string{"max-size=204800", "hostname=plain.example.org", "no-dsn"}, ""},
	}
	for _, tt := range tests {
		for i, c := range readCaptures(t, tt.file) {
			t.Run(fmt.Sprintf("%s %d %s", tt.file, i, c.name), func(t *testing.T) {
				u := newSetup()
				for _, w := range append(tt.conf, c.conf...) {
					u.configure(t, w)
				}
				(&replay{t: t, c: u.dial(t), stop: tt.stop}).run(c.lines)
			})
		}
	}
}

// listenerConf is what the headings of the recording of listeners mean.
var listenerConf = map[string][]string{
	"listener: 127.0.0.1":    {"tls-require", "auth-required", "received-auth", "hostname=submit.example.org"},
	"implicit TLS port 465,": {"smtps", "auth-required", "mask-src", "senders=alice@example.org", "masquerade"},
	"no-dsn port 2525":       {"no-dsn", "hostname=plain.example.org"},
	"ipv6":                   {"client=[::1]:4000"},
}

func readCaptures(t *testing.T, file string) []capture {
	t.Helper()
	b, err := os.ReadFile("testdata/captures/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []capture
	name := "all"
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if h, ok := strings.CutPrefix(line, "### "); ok {
			name = h
			all = append(all, capture{name: name})
			continue
		}
		if strings.HasPrefix(line, "S: 220 ") && !strings.Contains(line, "Ready") && (len(all) == 0 || talks(all[len(all)-1].lines)) {
			all = append(all, capture{name: name})
		}
		if len(all) == 0 || strings.HasPrefix(line, "# ") || line == "" {
			continue
		}
		c := &all[len(all)-1]
		for head, conf := range listenerConf {
			if strings.HasPrefix(c.name, head) {
				c.conf = conf
			}
		}
		c.lines = append(c.lines, line)
	}
	return all
}

// talks reports whether the server has greeted already.
func talks(lines []string) bool {
	for _, l := range lines {
		if strings.HasPrefix(l, "S: ") {
			return true
		}
	}
	return false
}

// replay plays one recording.
type replay struct {
	t      *testing.T
	c      *client
	stop   string
	last   string // what the client said last, without its line end
	closed bool
}

func (r *replay) run(lines []string) {
	for i, line := range lines {
		switch {
		case strings.HasPrefix(line, "-- TLS"):
			r.c.startTLS()
		case strings.HasPrefix(line, "-- "): // how the recorded client fared afterwards
		case strings.HasPrefix(line, "C(raw): "):
			raw := pythonBytes(r.t, line[len("C(raw): "):])
			r.last = strings.TrimSuffix(raw, "\r\n")
			if strings.HasSuffix(raw, "\n.\r\n") && !strings.HasSuffix(raw, "\r\n.\r\n") && raw != ".\r\n" {
				raw += "\r\n.\r\n" // LF.CRLF ends nothing here
			}
			r.c.send(raw)
		case strings.HasPrefix(line, "C: "), line == "C:":
			text := strings.TrimPrefix(line[2:], " ")
			if r.stop != "" && text == r.stop {
				return
			}
			r.last = text
			if text == "BDAT 3" {
				text += "\r\na" // here it is a command, and three octets follow
			}
			r.c.send(text + "\r\n")
		case strings.HasPrefix(line, "b'"): // the whole of what was answered to a client that did not wait
			r.c.send("EHLO x\r\n")
			all, err := strconv.Unquote(`"` + strings.Trim(line, "b'") + `"`)
			if err != nil {
				r.t.Fatal(err)
			}
			for said := range strings.Lines(all) {
				if !r.expect(strings.TrimSuffix(said, "\r\n"), i) {
					return
				}
			}
		case strings.HasPrefix(line, "S: "):
			if !r.expect(line[len("S: "):], i) {
				return
			}
		}
	}
}

// expect compares a reply line; false ends the recording.
func (r *replay) expect(want string, n int) bool {
	r.t.Helper()
	want = normal(strings.ReplaceAll(want, "ESMTP OpenSMTPD", "ESMTP smtpd"))
	got := r.line()
	for ours.MatchString(got) && !ours.MatchString(want) {
		got = r.line()
	}
	if got == want {
		return true
	}
	for _, key := range []string{r.last + " -> " + want, want} {
		if d, ok := deviations[key]; ok && d == got {
			return r.rest(got, want)
		}
	}
	if strings.HasPrefix(r.last, "NOOP ") && got == replyCommandTooLong {
		return true // found out before the line had ended
	}
	r.t.Fatalf("line %d: after %.80q got %q; recorded %q", n+1, r.last, got, want)
	return false
}

// rest reads what follows the first line of a reply where one line was
// recorded, and resets a transaction that was refused in the recording.
func (r *replay) rest(got, want string) bool {
	for got[3] == '-' && want[3] != '-' {
		got = r.line()
	}
	if strings.HasPrefix(r.last, "MAIL") && got[0] == '2' && want[0] != '2' {
		r.c.send("RSET\r\n")
		r.line()
	}
	if strings.HasPrefix(r.last, "EHLO") || strings.HasPrefix(r.last, "HELO") {
		return true
	}
	return !r.closed
}

func (r *replay) line() string {
	line, err := r.c.r.ReadString('\n')
	r.closed = err != nil
	return normal(strings.TrimSuffix(line, "\r\n"))
}

// pythonBytes reads b"..." literals with *n, + and parentheses.
func pythonBytes(t *testing.T, s string) string {
	t.Helper()
	v, rest := pySum(t, s)
	if strings.TrimSpace(rest) != "" {
		t.Fatalf("cannot read %q", rest)
	}
	return v
}

func pySum(t *testing.T, s string) (v, rest string) {
	v, rest = pyTerm(t, s)
	for strings.HasPrefix(rest, "+") {
		var w string
		w, rest = pyTerm(t, rest[1:])
		v += w
	}
	return v, rest
}

var number = regexp.MustCompile(`^\*(\d+)`)

func pyTerm(t *testing.T, s string) (v, rest string) {
	s = strings.TrimSpace(s)
	switch {
	case strings.HasPrefix(s, "("):
		v, rest = pySum(t, s[1:])
		rest = strings.TrimPrefix(rest, ")")
	case strings.HasPrefix(s, `b"`):
		end := 2
		for s[end] != '"' {
			if s[end] == '\\' {
				end++
			}
			end++
		}
		var err error
		if v, err = strconv.Unquote(s[1 : end+1]); err != nil {
			t.Fatal(err)
		}
		rest = s[end+1:]
	default:
		t.Fatalf("cannot read %q", s)
	}
	if m := number.FindStringSubmatch(rest); m != nil {
		n, _ := strconv.Atoi(m[1])
		v, rest = strings.Repeat(v, n), rest[len(m[0]):]
	}
	return v, rest
}
