package smtp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// recorder is a Filter that decides by a table and writes down what it sees.
type recorder struct {
	mu       sync.Mutex
	seen     []string
	verdicts map[Phase]Verdict
	rcpts    map[string]Verdict         // by parameter, of PhaseRcptTo
	lines    func(line string) []string // nil: not asked for
	broken   bool
	closed   bool
}

func (f *recorder) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, fmt.Sprintf(format, args...))
}

func (f *recorder) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.seen)
}

func (f *recorder) Ask(_ context.Context, p Phase, param string) Verdict {
	f.note("? %s %s", p, param)
	if v, ok := f.rcpts[param]; ok && p == PhaseRcptTo {
		return v
	}
	return f.verdicts[p]
}

func (f *recorder) Report(e Event, fields ...string) {
	f.note("%s", strings.Join(append([]string{string(e)}, fields...), "|"))
}

func (f *recorder) Idle() {}

func (f *recorder) Hears() bool { return true }

func (f *recorder) Close() { f.closed = true }

func (f *recorder) Lines(_ context.Context, out func([]byte)) Lines {
	if f.lines == nil {
		return nil
	}
	l := &lineRecorder{f: f, in: make(chan string, 4), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for line := range l.in {
			for _, o := range f.lines(line) {
				out([]byte(o))
			}
		}
	}()
	return l
}

type lineRecorder struct {
	f    *recorder
	in   chan string
	done chan struct{}
}

func (l *lineRecorder) Write(line []byte) error {
	l.f.note("> %s", line)
	l.in <- string(line)
	return nil
}

func (l *lineRecorder) Close(bool) error {
	close(l.in)
	<-l.done
	if l.f.broken {
		return fmt.Errorf("lost processor")
	}
	return nil
}

func filtered(t *testing.T, f *recorder) (*setup, *client) {
	u := newSetup()
	u.b.filter = func(*Client) Filter { return f }
	return u, u.dial(t)
}

// The events of a whole session, in the order of the recordings.
func TestFilterEvents(t *testing.T) {
	f := &recorder{lines: func(s string) []string { return []string{s} }}
	u, c := filtered(t, f)
	c.reply()
	c.must("HELO c", "MAIL FROM:<a@b.org> SIZE=10", "RCPT TO:<team@x>", "DATA", "Subject: x\r\n\r\n..dot\r\n.", "MAIL FROM:<>", "RSET", "QUIT")
	c.wait()
	want := `link-connect|localhost|pass|127.0.0.1:40000|127.0.0.1:25
? connect localhost|127.0.0.1
protocol-server|220 mx.example.org ESMTP smtpd
link-greeting|mx.example.org
protocol-client|HELO c
? helo c
link-identify|HELO|c
protocol-server|250 mx.example.org Hello c [127.0.0.1], pleased to meet you
protocol-client|MAIL FROM:<a@b.org> SIZE=10
? mail-from a@b.org
protocol-server|250 2.0.0 Ok
tx-begin|102118e0
tx-mail|102118e0|ok|a@b.org
protocol-client|RCPT TO:<team@x>
? rcpt-to team@x
tx-envelope|102118e0|102118e000000001
tx-envelope|102118e0|102118e000000002
protocol-server|250 2.1.5 Destination address valid: Recipient ok
tx-rcpt|102118e0|ok|team@x
protocol-client|DATA
? data 
> Received: from c (localhost [127.0.0.1])
> 	by mx.example.org (smtpd) with SMTP id 102118e0
> 	for <team@x>;
> 	Fri, 20 Nov 2026 23:17:50 +0000 (UTC)
protocol-server|354 Enter mail, end with "." on a line by itself
tx-data|102118e0|ok
> Subject: x
> 
> ..dot
protocol-client|.
? commit 
protocol-server|250 2.0.0 102118e0 Message accepted for delivery
tx-commit|102118e0|SIZE
tx-reset|102118e0
protocol-client|MAIL FROM:<>
? mail-from 
protocol-server|250 2.0.0 Ok
tx-begin|102118e1
tx-mail|102118e1|ok|
protocol-client|RSET
? rset 
protocol-server|250 2.0.0 Reset state
tx-rollback|102118e1
tx-reset|102118e1
protocol-client|QUIT
? quit 
protocol-server|221 2.0.0 Bye
link-disconnect`
	want = strings.Replace(want, "SIZE\n", fmt.Sprint(u.b.stored()[0].size)+"\n", 1)
	if got := strings.Join(f.all(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !strings.HasSuffix(u.b.stored()[0].body, "\n\n.dot\n") || !f.closed {
		t.Errorf("stored %q, closed %v", u.b.stored()[0].body, f.closed)
	}
}

func TestFilterDecisions(t *testing.T) {
	reject := Verdict{Reject, "550 5.7.1 no"}
	hello := "250 mx.example.org Hello c [127.0.0.1], pleased to meet you"
	tests := map[string]struct {
		phase Phase
		v     Verdict
		cmds  []string // the last one's reply counts
		want  string
		gone  bool
	}{
		"connect":             {PhaseConnect, reject, nil, "550 5.7.1 no", true},
		"connect, disconnect": {PhaseConnect, Verdict{Disconnect, "550 no rdns"}, nil, "550 no rdns", true},
		"helo":                {PhaseHelo, reject, []string{"HELO c"}, "550 5.7.1 no", false},
		"helo, not ehlo":      {PhaseEhlo, reject, []string{"HELO c"}, hello, false},
		"helo, rewrite":       {PhaseHelo, Verdict{Rewrite, "c"}, []string{"HELO d"}, hello, false},
		"noop":                {PhaseNoop, reject, []string{"NOOP"}, "550 5.7.1 no", false},
		"rset":                {PhaseRset, reject, []string{"RSET"}, "550 5.7.1 no", false},
		"quit":                {PhaseQuit, reject, []string{"QUIT"}, "550 5.7.1 no", false},
		"mail":                {PhaseMailFrom, reject, []string{"HELO c", "MAIL FROM:<a@b.org>"}, "550 5.7.1 no", false},
		"mail, 421":           {PhaseMailFrom, Verdict{Reject, "421 later"}, []string{"HELO c", "MAIL FROM:<a@b.org>"}, "421 later", true},
		"mail, rewrite":       {PhaseMailFrom, Verdict{Rewrite, "<new@b.org>"}, []string{"HELO c", "MAIL FROM:<a@b.org>"}, "250 2.0.0 Ok", false},
		"mail, bad rewrite":   {PhaseMailFrom, Verdict{Rewrite, "new@b.org"}, []string{"HELO c", "MAIL FROM:<a@b.org>"}, replySenderSyntax, false},
		"rcpt":                {PhaseRcptTo, reject, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>"}, "550 5.7.1 no", false},
		"rcpt, rewrite":       {PhaseRcptTo, Verdict{Rewrite, "<nosuch@example.org>"}, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>"}, "550 5.1.1 Invalid recipient: <nosuch@example.org>", false},
		"rcpt, bad rewrite":   {PhaseRcptTo, Verdict{Rewrite, "x"}, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>"}, replyRcptSyntax, false},
		"data":                {PhaseData, reject, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA"}, "550 5.7.1 no", false},
		"bdat":                {PhaseData, reject, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "BDAT 4\r\nA:"}, "550 5.7.1 no", false},
		"commit":              {PhaseCommit, reject, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA", "A: b\r\n."}, "550 5.7.1 no", false},
		"commit, disconnect":  {PhaseCommit, Verdict{Disconnect, "550 bye"}, []string{"HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA", "A: b\r\n."}, "550 bye", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := &recorder{verdicts: map[Phase]Verdict{tt.phase: tt.v}}
			u, c := filtered(t, f)
			got := c.reply()
			for _, cmd := range tt.cmds {
				got = c.cmd(cmd)
			}
			if got != tt.want {
				t.Fatalf("got %q; want %q", got, tt.want)
			}
			if tt.gone {
				c.wait()
			} else if f.verdicts[PhaseNoop].Action == Proceed {
				c.must("NOOP")
			}
			if len(u.b.stored()) != 0 {
				t.Error("stored")
			}
		})
	}
}

// Junk marks the message, from MAIL on; before it the session, with all its
// messages.
func TestFilterJunk(t *testing.T) {
	for _, phase := range []Phase{PhaseConnect, PhaseMailFrom, PhaseRcptTo, PhaseData} {
		f := &recorder{verdicts: map[Phase]Verdict{phase: {Action: Junk}}}
		u, c := filtered(t, f)
		c.reply()
		c.must("HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA", "A: b\r\n.")
		if got := u.b.stored()[0].body; !strings.HasPrefix(got, "X-Spam: Yes\nReceived: ") {
			t.Errorf("%s: got %q", phase, got)
		}
		f.verdicts = nil
		c.must("MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA", "A: b\r\n.")
		if got, want := strings.HasPrefix(u.b.stored()[1].body, "X-Spam: Yes\n"), phase == PhaseConnect; got != want {
			t.Errorf("%s: the next message: %v", phase, got)
		}
	}
}

// Our own trace field passes the filters: it neither counts nor takes the
// client's first line for its continuation.
func TestFilterOwnField(t *testing.T) {
	for in, want := range map[string]string{
		strings.Repeat("Received: x\r\n", 99) + ".":  accepted,
		strings.Repeat("Received: x\r\n", 100) + ".": replyLoop,
		" x\r\nA: b\r\n.": replyShape,
	} {
		_, c := filtered(t, &recorder{lines: func(s string) []string { return []string{s} }})
		c.reply()
		c.must("HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA")
		if got := normal(c.cmd(in)); got != want {
			t.Errorf("%.20q: got %q; want %q", in, got, want)
		}
	}
}

func TestFilterLines(t *testing.T) {
	tests := map[string]struct {
		lines  func(string) []string
		broken bool
		reply  string
		want   string // end of what is stored
	}{
		"no header": {func(s string) []string { return []string{"text", s} }, false, replyShape, ""},
		"inserted": {func(s string) []string {
			if s == "A: b" {
				return []string{s, "New: yes", "Bcc: x"}
			}
			return []string{s}
		}, false, accepted, "A: b\nNew: yes\n\n.x\ny\n"},
		"swallowed": {func(s string) []string {
			if strings.HasPrefix(s, "..") {
				return nil
			}
			return []string{s}
		}, false, accepted, "A: b\n\ny\n"},
		"line ends":  {func(s string) []string { return []string{strings.ReplaceAll(s, "y", "y\r\n.\r\nQUIT")} }, false, accepted, "A: b\n\n.x\ny  .  QUIT\n"},
		"lost":       {func(s string) []string { return []string{s} }, true, "451 4.3.0 Temporary failure", ""},
		"everything": {func(string) []string { return nil }, false, accepted, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u, c := filtered(t, &recorder{lines: tt.lines, broken: tt.broken})
			c.reply()
			c.must("HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA")
			if got := normal(c.cmd("A: b\r\n\r\n..x\r\ny\r\n.")); got != tt.reply {
				t.Fatalf("got %q; want %q", got, tt.reply)
			}
			if tt.reply != accepted {
				return
			}
			got := varying.ReplaceAllString(u.b.stored()[0].body, "")
			got = strings.ReplaceAll(strings.ReplaceAll(got, "\n\nMessage-ID: mx.example.org>", ""), "Message-ID: mx.example.org>\n", "")
			if !strings.HasSuffix(got, tt.want) {
				t.Errorf("got %q; want %q", got, tt.want)
			}
		})
	}
}

// What filters say of a message in our name stays; what the client says in our
// name does not reach them, however it is written.
func TestFilterForged(t *testing.T) {
	f := &recorder{lines: func(s string) []string {
		if strings.HasPrefix(s, "Received: ") {
			return []string{"Authentication-Results: mx.example.org;", "\tdkim=pass", s}
		}
		return []string{s}
	}}
	u, c := filtered(t, f)
	c.reply()
	c.must("HELO c", "MAIL FROM:<>", "RCPT TO:<alice@x>", "DATA")
	if got := normal(c.cmd("Authentication-Results: mx.example.org; dkim=forged\r\n.Authentication-Results: mx.example.org;\r\n\tdkim=forged\r\n" +
		"AUTHENTICATION-RESULTS :\r\n mx.example.org; dkim=forged\r\nAuthentication-Results: other;\r\n\tspf=pass\r\nA: b\r\n\r\n" +
		"Authentication-Results: mx.example.org; text\r\n.")); got != accepted {
		t.Fatal(got)
	}
	body := u.b.stored()[0].body
	if seen := strings.Join(f.all(), "\n"); strings.Contains(seen, "forged") || strings.Contains(body, "forged") {
		t.Errorf("seen:\n%s\nstored:\n%s", seen, body)
	}
	for _, want := range []string{"Authentication-Results: mx.example.org;\n\tdkim=pass\nReceived: ",
		"\nAuthentication-Results: other;\n\tspf=pass\nA: b\n", "\n\nAuthentication-Results: mx.example.org; text\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing in\n%s", want, body)
		}
	}
}

// What a filter says at length goes out in lines of at most 512 octets, each with
// the codes, and nothing of it is lost; reports tell of each line, the log of all.
func TestFilterLongReply(t *testing.T) {
	words := strings.TrimSpace(strings.Repeat("because of that ", 120))
	for name, tt := range map[string]struct {
		codes, text, glue string
		lines             int
	}{
		"words":    {"550 5.7.1 ", words, " ", 4},
		"no enh":   {"451 ", words, " ", 4},
		"one word": {"550 5.7.1 ", strings.Repeat("x", 2000), "", 4},
		"UTF-8":    {"550 5.7.1 ", strings.Repeat("ü", 1000), "", 4},
		"just fit": {"550 5.7.1 ", strings.Repeat("y", 500), "", 1},
		"one more": {"550 5.7.1 ", strings.Repeat("y", 501), "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := &recorder{verdicts: map[Phase]Verdict{PhaseNoop: {Reject, tt.codes + tt.text}}}
			u, c := filtered(t, f)
			c.reply()
			c.must("EHLO c")
			lines := strings.Split(c.cmd("NOOP"), "\n")
			c.must("QUIT")
			c.wait()
			var text []string
			for i, line := range lines {
				codes := tt.codes
				if i < len(lines)-1 {
					codes = codes[:3] + "-" + codes[4:]
				}
				part, ok := strings.CutPrefix(line, codes)
				if !ok || len(line) > 510 || !utf8.ValidString(line) {
					t.Errorf("line %d: %d octets, %q", i, len(line), line)
				}
				if !slices.Contains(f.all(), "protocol-server|"+line) {
					t.Errorf("not reported: %q", line)
				}
				text = append(text, part)
			}
			if got := strings.Join(text, tt.glue); len(lines) != tt.lines || got != tt.text {
				t.Errorf("%d lines, want %d: %q", len(lines), tt.lines, got)
			}
			if want := `result="` + tt.codes + tt.text + `"`; !strings.Contains(u.log.String(), want) {
				t.Errorf("log has no %.60s", want)
			}
		})
	}
}
