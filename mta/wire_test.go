package mta

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// fakeConn is a connection that plays input and keeps output.
type fakeConn struct {
	net.Conn
	in     io.Reader
	out    bytes.Buffer
	writes int
	fail   error
}

func (c *fakeConn) Read(p []byte) (int, error) { return c.in.Read(p) }
func (c *fakeConn) Write(p []byte) (int, error) {
	if c.fail != nil {
		return 0, c.fail
	}
	c.writes++
	return c.out.Write(p)
}
func (c *fakeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *fakeConn) SetWriteDeadline(time.Time) error { return nil }

// onWire is a text as it leaves, when it comes in parts of n octets.
func onWire(t testing.TB, text []byte, n int) string {
	c := &fakeConn{}
	w := writer{conn: c}
	w.begin(time.Second)
	for len(text) > 0 {
		part := text[:min(n, len(text))]
		text = text[len(part):]
		if err := w.text(part); err != nil {
			t.Fatal(err)
		}
	}
	w.end()
	if err := w.flush(time.Second); err != nil {
		t.Fatal(err)
	}
	return c.out.String()
}

func TestText(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"plain":             {"a\r\nb\r\n", "a\r\nb\r\n.\r\n"},
		"empty":             {"", ".\r\n"},
		"no end of line":    {"a", "a\r\n.\r\n"},
		"dots":              {".\r\n..\r\n.a\r\na.\r\n", "..\r\n...\r\n..a\r\na.\r\n.\r\n"},
		"bare LF":           {"a\n.\nb\n", "a\r\n..\r\nb\r\n.\r\n"},
		"bare CR":           {"a\r.\r\nb\r", "a .\r\nb \r\n.\r\n"},
		"CR CR LF":          {"a\r\r\n.\r\n", "a \r\n..\r\n.\r\n"},
		"LF CR":             {"a\n\r.\n", "a\r\n .\r\n.\r\n"},
		"smuggling LF":      {"a\n.\nMAIL FROM:<x>\n", "a\r\n..\r\nMAIL FROM:<x>\r\n.\r\n"},
		"smuggling CR":      {"a\r.\rMAIL", "a . MAIL\r\n.\r\n"},
		"smuggling CRLF CR": {"a\r\n.\rb", "a\r\n.. b\r\n.\r\n"},
		"only CR":           {"\r", " \r\n.\r\n"},
		"only a dot":        {".", "..\r\n.\r\n"},
		"NUL and 8 bit":     {"a\x00\xff\r\n", "a\x00\xff\r\n.\r\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for n := 1; n <= len(tt.in)+1; n++ {
				if got := onWire(t, []byte(tt.in), n); got != tt.want {
					t.Fatalf("in parts of %d: got %q, want %q", n, got, tt.want)
				}
			}
		})
	}
}

// unstuff reads what onWire made as a strict host does, and fails on anything
// that a sloppy one could take for an end of line.
func unstuff(t *testing.T, s string) string {
	var b strings.Builder
	for {
		line, rest, ok := strings.Cut(s, "\r\n")
		switch {
		case !ok:
			t.Fatalf("no final dot; left: %q", s)
		case strings.ContainsAny(line, "\r\n"):
			t.Fatalf("a bare CR or LF leaves: %q", line)
		case line == ".":
			if rest != "" {
				t.Fatalf("after the final dot: %q", rest)
			}
			return b.String()
		}
		b.WriteString(strings.TrimPrefix(line, "."))
		b.WriteString("\n")
		s = rest
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\n", "\r", "\n.\r", ".\r.\n..", "x\r\r\n"} {
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, text []byte, n uint8) {
		parts := onWire(t, text, int(n)+1)
		if whole := onWire(t, text, len(text)+1); whole != parts {
			t.Fatalf("whole %q, in parts of %d %q", whole, n+1, parts)
		}
		// What arrives is the text with its line ends made one kind.
		want := strings.ReplaceAll(string(text), "\r\n", "\n")
		want = strings.ReplaceAll(want, "\r", " ")
		if want != "" && !strings.HasSuffix(want, "\n") {
			want += "\n"
		}
		if got := unstuff(t, parts); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

func TestCommandRefusesControl(t *testing.T) {
	w := writer{conn: &fakeConn{}}
	for c := range 256 {
		bad := c < ' ' || c == 0x7f
		w.out = append(w.out[:0], "kept"...)
		err := w.command("MAIL FROM:<", "a"+string([]byte{byte(c)})+"b", ">")
		if (err != nil) != bad || (bad && !errors.Is(err, errUnfit)) {
			t.Errorf("octet %#x: %v", c, err)
		}
		if bad && string(w.out) != "kept" {
			t.Errorf("octet %#x: left %q", c, w.out)
		}
	}
	if err := w.command(strings.Repeat("x", maxCommand+1)); err == nil {
		t.Error("an endless command is taken")
	}
}

func TestWirePath(t *testing.T) {
	tests := map[string]struct {
		in   mail.Address
		utf8 bool
		want string // user+domain; empty: refused
	}{
		"plain":              {mail.Address{User: "a", Domain: "b.test"}, false, "a@b.test"},
		"null":               {mail.Address{}, false, "-"},
		"user alone":         {mail.Address{User: "postmaster"}, false, "postmaster"},
		"quoted":             {mail.Address{User: `"a b>c"`, Domain: "b.test"}, false, `"a b>c"@b.test`},
		"literal":            {mail.Address{User: "a", Domain: "[192.0.2.1]"}, false, "a@[192.0.2.1]"},
		"CR":                 {mail.Address{User: "a\r", Domain: "b.test"}, false, ""},
		"LF in the domain":   {mail.Address{User: "a", Domain: "b\n.test"}, false, ""},
		"NUL":                {mail.Address{User: "a\x00", Domain: "b.test"}, false, ""},
		"end of path":        {mail.Address{User: "a>", Domain: "b.test"}, false, ""},
		"parameter":          {mail.Address{User: "a", Domain: "b.test> NOTIFY=NEVER"}, false, ""},
		"open quote":         {mail.Address{User: `"a`, Domain: `b.test" x`}, false, ""},
		"escaped quote":      {mail.Address{User: `"a\" b"`, Domain: "b.test"}, false, `"a\" b"@b.test`},
		"escape at the end":  {mail.Address{User: `"a\`, Domain: "b.test"}, false, ""},
		"CR in quotes":       {mail.Address{User: "\"a\r\"", Domain: "b.test"}, false, ""},
		"escaped CR":         {mail.Address{User: "\"a\\\r\"", Domain: "b.test"}, false, ""},
		"other letters":      {mail.Address{User: "a", Domain: "bücher.test"}, false, "a@xn--bcher-kva.test"},
		"other letters kept": {mail.Address{User: "a", Domain: "bücher.test"}, true, "a@bücher.test"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			user, domain, ok := wirePath(tt.in, tt.utf8)
			got := user + domain
			if ok && got == "" {
				got = "-"
			}
			if !ok {
				got = ""
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestReplyBounds(t *testing.T) {
	tests := map[string]struct {
		in   string
		want error
	}{
		"1 MB in many lines":   {strings.Repeat("250-0123456789abcdef0123456789abcdef\r\n", 30000), errTooMuch},
		"1 MB in one line":     {"250 " + strings.Repeat("x", 1<<20), errTooMuch},
		"line without an end":  {"250 ok", errClosed},
		"only a continuation":  {"553-\r\n", errClosed},
		"nothing":              {"", errClosed},
		"as long as it may be": {"250 " + strings.Repeat("x", maxReplyLine-6) + "\r\n", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := replyReader{conn: &fakeConn{in: strings.NewReader(tt.in)}}
			rep, err := r.read(time.Second, true)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && len(rep.status().Text) > mail.MaxStatusText {
				t.Errorf("text of %d octets", len(rep.status().Text))
			}
		})
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\n250 b\n", "553-", "220-2.0.0 a\r\n220 2.0.0 b\r\n", "\x00\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := replyReader{conn: &fakeConn{in: bytes.NewReader(in)}}
		for {
			rep, err := r.read(time.Second, true)
			if err != nil {
				return
			}
			st := rep.status()
			if st.Code < 200 || st.Code > 599 || len(st.Text) > mail.MaxStatusText ||
				strings.ContainsFunc(st.Text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("%q gives %+v", in, st)
			}
			again, ok := mail.ParseStatus(st.String())
			if !ok || again.Code != st.Code {
				t.Fatalf("%q gives %+v, printed and read again %+v", in, st, again)
			}
		}
	})
}

// What BDAT announces is what follows, and the same text as with DATA.
func FuzzChunk(f *testing.F) {
	for _, s := range []string{"", "a\r\n", "a\n.\n", "\r", "a\r\r\n", ".", "x\n\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		w := writer{}
		w.chunk(text)
		head, got, _ := strings.Cut(string(w.out), "\r\n")
		if want := fmt.Sprintf("BDAT %d LAST", len(got)); head != want {
			t.Fatalf("%q: %q is followed by %d octets", text, head, len(got))
		}
		if want := unstuff(t, onWire(t, text, len(text)+1)); strings.ReplaceAll(got, "\r\n", "\n") != want {
			t.Fatalf("%q: got %q, with DATA %q", text, got, want)
		}
		if strings.ContainsAny(strings.ReplaceAll(got, "\r\n", ""), "\r\n") {
			t.Fatalf("%q: a bare CR or LF leaves: %q", text, got)
		}
	})
}
