package enqueue

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var (
	alice = User{Login: "alice"}
	when  = time.Date(2026, 11, 20, 23, 25, 33, 0, time.UTC)
)

const domain = "mx.example.org"

// compose is Read and Complete; what is sent comes back without line ends of
// the network.
func compose(t *testing.T, text string, o *Options, user User) (*Message, string, error) {
	t.Helper()
	m, err := Read(strings.NewReader(text), o)
	if err != nil {
		return nil, "", err
	}
	t.Cleanup(m.Close)
	if err := m.Complete(user, domain, when); err != nil {
		return m, "", err
	}
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	if err := errors.Join(m.write(&dotWriter{w: w}), w.Flush()); err != nil {
		t.Fatal(err)
	}
	return m, strings.ReplaceAll(b.String(), "\r\n", "\n"), nil
}

func TestCompose(t *testing.T) {
	const added = "From: <alice@mx.example.org>\nDate: Fri, 20 Nov 2026 23:25:33 +0000 (UTC)\n"
	const mimeLines = "MIME-Version: 1.0\nContent-Type: text/plain; charset=unknown-8bit\nContent-Disposition: inline\nContent-Transfer-Encoding: quoted-printable\n"
	zeros := strings.Repeat("0", 1200)
	tests := map[string]struct {
		in   string
		opts Options
		user User
		want string
	}{
		"plain":             {in: "Subject: hi\n\nbody\n", want: added + "Subject: hi\n\nbody\n"},
		"crlf":              {in: "Subject: hi\r\n\r\nbody\r\n", want: added + "Subject: hi\n\nbody\n"},
		"no final line end": {in: "Subject: hi\n\nbody", want: added + "Subject: hi\n\nbody\n"},
		"header alone":      {in: "Subject: hi", want: added + "Subject: hi\n\n"},
		"nothing":           {in: "", want: added + "\n"},
		"no header":         {in: "no header at all\nline2\n", want: added + "\nno header at all\nline2\n"},
		"header ends early": {in: "Subject: x\nnot a field\n", want: added + "Subject: x\n\nnot a field\n"},
		"empty line first":  {in: "\nbody\n", want: added + "\nbody\n"},
		"dots":              {in: "Subject: x\n\n.\n..a\nb.\n", want: added + "Subject: x\n\n..\n...a\nb.\n"},
		"mbox separator":    {in: "From bob Fri Nov 20\nSubject: x\n\nFrom me\n", want: added + "Subject: x\n\nFrom me\n"},
		"dropped fields": {in: "Return-Path: <x@y>\nBcc: hidden@x,\n hidden2@x\nSubject: x\nbcc : again@x\n\n",
			want: added + "Subject: x\n\n"},
		"complete":          {in: "From: a@b.org\nDate: today\n\n", want: "From: a@b.org\nDate: today\n\n"},
		"folded":            {in: "Subject: a\n b\n\tc\n\n", want: added + "Subject: a\n b\n\tc\n\n"},
		"name":              {in: "\n", opts: Options{Name: "The Boss", SenderSet: true, Sender: "boss@corp.org"}, want: "From: The Boss <boss@corp.org>\nDate: Fri, 20 Nov 2026 23:25:33 +0000 (UTC)\n\n"},
		"full name":         {in: "\n", user: User{Login: "alice", Name: "Dr. Alice"}, want: "From: \"Dr. Alice\" <alice@mx.example.org>\nDate: Fri, 20 Nov 2026 23:25:33 +0000 (UTC)\n\n"},
		"foreign name":      {in: "\n", opts: Options{Name: "André"}, want: "From: =?utf-8?q?Andr=C3=A9?= <alice@mx.example.org>\nDate: Fri, 20 Nov 2026 23:25:33 +0000 (UTC)\n\n"},
		"null sender":       {in: "\n", opts: Options{SenderSet: true, Sender: "<>"}, want: added + "\n"},
		"control in header": {in: "Subject: a\x00b\rc\n\n", want: added + "Subject: a b c\n\n"},
		"latin1 in header":  {in: "Subject: \xe9\n\n", want: added + "Subject: \xe9\n\n"},
		"990":               {in: "\n" + zeros[:990] + "\n", want: added + "\n" + zeros[:990] + "\n"},
		"long line": {in: "Subject: l\n\n" + zeros + "\n\xe9 8bit and trailing space \na=b\n",
			want: added + mimeLines + "Subject: l\n\n" + strings.Repeat(zeros[:75]+"=\n", 15) + zeros[:75] + "\n=E9 8bit and trailing space=20\na=3Db\n"},
		"long line, own type": {in: "Content-Type: text/html\nMime-Version: 1.0\n\n" + zeros[:991] + "\n",
			want: added + "Content-Disposition: inline\nContent-Transfer-Encoding: quoted-printable\nContent-Type: text/html\nMime-Version: 1.0\n\n" + strings.Repeat(zeros[:75]+"=\n", 13) + zeros[:16] + "\n"},
		"long line, encoded": {in: "Content-Transfer-Encoding: 8bit\n\n" + zeros + "\n",
			want: added + "Content-Transfer-Encoding: 8bit\n\n" + zeros + "\n"},
		"long line, multipart": {in: "Content-Type: Multipart/mixed; boundary=x\n\n" + zeros + "\n",
			want: added + "Content-Type: Multipart/mixed; boundary=x\n\n" + zeros + "\n"},
		"binary":         {in: "\na\x00b\rc\r\n", want: added + mimeLines + "\na=00b=0Dc\n"},
		"long body line": {in: "\n" + strings.Repeat("x", 3*lineBuffer) + "\n", want: added + mimeLines + "\n" + strings.Repeat(strings.Repeat("x", 75)+"=\n", 3*lineBuffer/75) + strings.Repeat("x", 3*lineBuffer%75) + "\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.user.Login == "" {
				tt.user = alice
			}
			tt.opts.Recipients = []string{"bob"}
			_, got, err := compose(t, tt.in, &tt.opts, tt.user)
			if err != nil || got != tt.want {
				t.Errorf("got %v\n%.2000q\nwant\n%.2000q", err, got, tt.want)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	tests := map[string]struct {
		in     string
		opts   Options
		sender string
		rcpts  []string
		fail   string
	}{
		"login":      {opts: Options{Recipients: []string{"bob"}}, sender: "alice@mx.example.org", rcpts: []string{"bob@mx.example.org"}},
		"-f":         {opts: Options{Sender: "<boss>", SenderSet: true, Recipients: []string{"bob@x.org"}}, sender: "boss@mx.example.org", rcpts: []string{"bob@x.org"}},
		"-f wins":    {in: "From: a@b.org\n\n", opts: Options{Sender: "c@d.org", SenderSet: true, Recipients: []string{"b"}}, sender: "c@d.org", rcpts: []string{"b@mx.example.org"}},
		"null":       {opts: Options{SenderSet: true, Recipients: []string{"b@x"}}, sender: "", rcpts: []string{"b@x"}},
		"from field": {in: "From: Someone <some@one.org>\n\n", opts: Options{Recipients: []string{"b@x"}}, sender: "some@one.org", rcpts: []string{"b@x"}},
		"commas":     {opts: Options{Recipients: []string{"a, b@x", "Carol <carol@y>"}}, sender: "alice@mx.example.org", rcpts: []string{"a@mx.example.org", "b@x", "carol@y"}},
		"-t": {in: "To: bob, \"Carol C\" <carol>\nCc: dave@mx.example.org\nBcc: hidden@x,\n eve@y\nTo: team: a@z, b@z;\n\n",
			opts:   Options{FromHeader: true, Recipients: []string{"arg@x", "bob@mx.example.org"}},
			sender: "alice@mx.example.org",
			rcpts:  []string{"arg@x", "bob@mx.example.org", "carol@mx.example.org", "dave@mx.example.org", "hidden@x", "eve@y", "a@z", "b@z"}},
		"no -t":           {in: "To: bob\n\n", fail: "no recipients"},
		"-t, none":        {in: "To: undisclosed-recipients:;\n\n", opts: Options{FromHeader: true}, fail: "no recipients"},
		"empty":           {opts: Options{Recipients: []string{""}}, fail: "invalid recipient: "},
		"angle within":    {opts: Options{Recipients: []string{"<a@b> SIZE=1 <c@d>"}}, fail: "invalid recipient: <a@b> SIZE=1 <c@d>"},
		"space":           {opts: Options{Sender: "a@b> SIZE=1", SenderSet: true, Recipients: []string{"b"}}, fail: "invalid sender: a@b> SIZE=1"},
		"too long":        {opts: Options{Recipients: []string{strings.Repeat("x", 256) + "@y"}}, fail: "invalid recipient: " + strings.Repeat("x", 100)},
		"control, header": {in: "To: a\x1bb@c\n\n", opts: Options{FromHeader: true}, fail: "invalid recipient: a?b@c"},
		"too many":        {in: "To: " + strings.Repeat("a@b,\n ", maxRecipients+1) + "\n\n", opts: Options{FromHeader: true}, fail: "too many recipients"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, _, err := compose(t, tt.in, &tt.opts, alice)
			if tt.fail != "" {
				if _, ok := errors.AsType[*Refused](err); !ok || err.Error() != tt.fail {
					t.Errorf("got %v; want %q", err, tt.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var rcpts []string
			for _, r := range m.Recipients {
				rcpts = append(rcpts, r.String())
			}
			if m.Sender.String() != tt.sender || !slices.Equal(rcpts, tt.rcpts) {
				t.Errorf("got %s, %q; want %s, %q", m.Sender, rcpts, tt.sender, tt.rcpts)
			}
		})
	}
}

func TestReadRefused(t *testing.T) {
	tests := map[string]struct {
		in   io.Reader
		want string
	}{
		"long field":  {strings.NewReader("Subject: " + strings.Repeat("x", lineBuffer) + "\n\n"), "header line too long"},
		"long header": {strings.NewReader(strings.Repeat("Subject: "+strings.Repeat("x", 1000)+"\n", 2000)), "header too large"},
		"many fields": {strings.NewReader(strings.Repeat("A: b\n", maxParts+2)), "header too large"},
		"i/o error":   {iotest.ErrReader(io.ErrClosedPipe), io.ErrClosedPipe.Error()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Read(tt.in, &Options{}); err == nil || err.Error() != tt.want {
				t.Errorf("got %v; want %s", err, tt.want)
			}
		})
	}
}

// A body that does not fit the memory set aside comes out the same.
func TestLargeBody(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	line := strings.Repeat("0123456789", 8) + "\n"
	body := strings.Repeat(line, 3*maxMemory/len(line))
	_, got, err := compose(t, "From: a@b\nDate: x\n\n"+body, &Options{Recipients: []string{"b"}}, alice)
	if err != nil || got != "From: a@b\nDate: x\n\n"+body {
		t.Errorf("got %d octets, %v; want %d", len(got), err, len(body))
	}
}

func TestFullName(t *testing.T) {
	for _, tt := range [][3]string{{"Alice A,Room 1,555", "alice", "Alice A"}, {"& Smith", "bob", "Bob Smith"}, {"", "x", ""}, {"a\nb", "x", "a?b"}} {
		if got := FullName(tt[0], tt[1]); got != tt[2] {
			t.Errorf("%q: got %q; want %q", tt[0], got, tt[2])
		}
	}
}

// Whatever comes in, what goes out is a message whose lines a server accepts,
// and the body decodes to what it was.
func FuzzCompose(f *testing.F) {
	f.Add("Subject: hi\n\nbody\n.\n")
	f.Add("From x\r\nTo: a\r\n\r\n" + strings.Repeat("x", 1200))
	f.Add("\n\x00\r\r\n\t \n")
	f.Fuzz(func(t *testing.T, in string) {
		m, err := Read(strings.NewReader(in), &Options{Recipients: []string{"bob"}})
		if err != nil {
			return
		}
		defer m.Close()
		if err := m.Complete(alice, domain, when); err != nil {
			return
		}
		var b bytes.Buffer
		w := bufio.NewWriter(&b)
		if err := errors.Join(m.write(&dotWriter{w: w}), w.Flush()); err != nil {
			t.Fatal(err)
		}
		out := b.String()
		if strings.Contains("\r\n"+out, "\r\n.\r\n") {
			t.Fatalf("ends early: %q", out)
		}
		if m.encode || !m.scan.binary {
			if rest := strings.ReplaceAll(out, "\r\n", ""); strings.ContainsAny(rest, "\r\n") {
				t.Fatalf("bare CR or LF: %q", out)
			}
		}
		_, body, ok := strings.Cut(out, "\r\n\r\n")
		if !ok {
			t.Fatalf("no body: %q", out)
		}
		body = strings.TrimPrefix(strings.ReplaceAll("\r\n"+body, "\r\n.", "\r\n"), "\r\n")
		if m.encode {
			got, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			body = string(got)
		}
		want, err := io.ReadAll(m.body.reader())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(body, "\r\n", "\n"); got != string(want) {
			t.Fatalf("body: got %q; want %q", got, want)
		}
		if _, err := mail.ReadMessage(strings.NewReader(out)); err != nil && !strings.ContainsAny(in, ":") {
			t.Fatalf("%v: %q", err, out)
		}
	})
}
