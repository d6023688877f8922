package mta

import (
	"context"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"

	"smtpd/internal/config"
)

// converted is a text as it goes to a host without 8BITMIME.
func converted(t testing.TB, text string) (string, bool) {
	c := &fakeConn{}
	s := &session{e: &Engine{}}
	s.use(c)
	x := &transaction{text: Text{Data: []byte(text)}}
	var err error
	if x.convert, err = needSevenBit(&x.text); err != nil {
		t.Fatal(err)
	}
	if err := s.sendText(x); err != nil {
		t.Fatal(err)
	}
	if err := s.w.flush(1); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(c.out.String(), ".\r\n"), x.convert != nil
}

func TestSevenBit(t *testing.T) {
	tests := map[string]struct{ in, want string }{ // no want: goes as it is
		"ASCII":            {"Subject: x\r\n\r\nhello\r\n", ""},
		"header only":      {"Subject: ü\r\n\r\nhello\r\n", ""},
		"already encoded":  {"Content-Transfer-Encoding: quoted-printable\r\n\r\n\xff broken\r\n", ""},
		"base64 and wrong": {"content-transfer-encoding:\r\n BASE64\r\n\r\n\xff\r\n", ""},
		"plain text": {"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nSubject: x\r\n\r\nbücher = gut \r\n.\r\n",
			"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nSubject: x\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nb=C3=BCcher =3D gut=20\r\n..\r\n"},
		"no MIME": {"Subject: x\r\n\r\n\xff\r\n",
			"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=FF\r\n"},
		"no header": {"\r\n\xff\r\n",
			"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=unknown-8bit\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=FF\r\n"},
		"one part of three": {"MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=\"b b\"\r\nContent-Transfer-Encoding: 8bit\r\n\r\npreamble\r\n--b b\r\n\r\nascii\r\n--b b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<ü>\r\n--b b  \r\nContent-Transfer-Encoding: base64\r\n\r\n/w==\r\n--b b--\r\nepilogue\r\n",
			"MIME-Version: 1.0\r\nContent-Type: multipart/mixed;\r\n boundary=\"b b\"\r\nContent-Transfer-Encoding: 7bit\r\n\r\npreamble\r\n--b b\r\n\r\nascii\r\n--b b\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<=C3=BC>\r\n--b b  \r\nContent-Transfer-Encoding: base64\r\n\r\n/w==\r\n--b b--\r\nepilogue\r\n"},
		"nested, with a message": {"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\nContent-Type: multipart/alternative; boundary=aa\r\n\r\n--aa\r\n\r\n\xe9\r\n--aa--\r\n--a\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: in\r\n\r\n\xe8\r\n--a--\r\n",
			"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\nContent-Type: multipart/alternative; boundary=aa\r\n\r\n--aa\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E9\r\n--aa--\r\n--a\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 7bit\r\n\r\nSubject: in\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=E8\r\n--a--\r\n"},
		"long line": {"MIME-Version: 1.0\r\n\r\n" + strings.Repeat("ü", 30) + "\r\n",
			"MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.Repeat("=C3=BC", 12) + "=C3=\r\n=BC" + strings.Repeat("=C3=BC", 11) + "=C3=BC=\r\n" + strings.Repeat("=C3=BC", 5) + "\r\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, changed := converted(t, tt.in)
			if tt.want == "" {
				if changed {
					t.Errorf("was changed to %q", got)
				}
				return
			}
			if got != tt.want {
				t.Errorf("got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// A host that offers 8BITMIME gets the text as it is, one that does not gets it
// converted.
func TestSevenBitOnTheWire(t *testing.T) {
	for ext, want := range map[string]string{
		"8BITMIME": "MIME-Version: 1.0\r\n\r\nü\r\n",
		"SIZE":     "MIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=C3=BC\r\n",
	} {
		w := newWorld(t)
		w.mx("d.test", "10 mx.d.test 192.0.2.1")
		h := &goodHost{ext: []string{ext, "PIPELINING"}}
		w.hosts["192.0.2.1:25"] = h.serve
		w.run(func(e *Engine) {
			m := w.message(&config.Relay{}, "u@d.test")
			m.Open = func(context.Context) (Text, error) {
				return Text{Data: []byte("MIME-Version: 1.0\r\n\r\nü\r\n")}, nil
			}
			e.Submit(context.Background(), m)
			w.wait(1)
		})
		if len(h.bodies) != 1 || h.bodies[0] != want {
			t.Errorf("%s: got %q, want %q", ext, h.bodies, want)
		}
	}
}

// FuzzSevenBit: what goes out has no octet beyond ASCII in any text, and the
// texts decode to what they were.
func FuzzSevenBit(f *testing.F) {
	f.Add("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n\r\n\xe9\r\n--a--\r\n")
	f.Add("Subject: x\r\n\r\n\xff = \t \r\n.\r\n")
	f.Add("Content-Type: message/rfc822\r\n\r\nSubject: y\r\n\r\n\xff")
	f.Fuzz(func(t *testing.T, in string) {
		in = strings.ReplaceAll(strings.ReplaceAll(in, "\r", ""), "\n", "\r\n")
		if in != "" && !strings.HasSuffix(in, "\r\n") {
			in += "\r\n"
		}
		out, changed := converted(t, in)
		if !changed {
			return
		}
		if again, twice := converted(t, unstuffed(out)); twice {
			t.Fatalf("converted again: %q to %q to %q", in, out, again)
		}
		before, after := leafTexts(in), leafTexts(unstuffed(out))
		if len(before) != len(after) {
			t.Fatalf("%d texts became %d: %q, %q", len(before), len(after), in, out)
		}
		for i := range before {
			if before[i] != after[i] {
				t.Fatalf("text %d: %q became %q", i, before[i], after[i])
			}
		}
	})
}

// unstuffed takes the doubled dots off.
func unstuffed(s string) string {
	return strings.TrimPrefix(strings.ReplaceAll("\r\n"+s, "\r\n.", "\r\n"), "\r\n")
}

// leafTexts are the decoded texts of a message that the standard library can
// read, nil otherwise.
func leafTexts(s string) []string {
	m, err := mail.ReadMessage(strings.NewReader(s))
	if err != nil {
		return nil
	}
	kind, params, _ := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if kind == "message/rfc822" {
		return nil
	}
	if !strings.HasPrefix(kind, "multipart/") {
		return []string{decoded(m.Header.Get("Content-Transfer-Encoding"), m.Body)}
	}
	var texts []string
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextRawPart()
		if err != nil {
			return texts
		}
		if kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type")); strings.HasPrefix(kind, "multipart/") || kind == "message/rfc822" {
			return nil
		}
		texts = append(texts, decoded(p.Header.Get("Content-Transfer-Encoding"), p))
	}
}

func decoded(encoding string, r io.Reader) string {
	if strings.EqualFold(strings.TrimSpace(encoding), "quoted-printable") {
		r = quotedprintable.NewReader(r)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return ""
	}
	return string(b)
}
