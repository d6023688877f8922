package smtp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"strings"
	"testing"
)

// convert sends a message through unbinary in pieces.
func convert(in string, size int) (string, error) {
	var out bytes.Buffer
	u := &unbinary{out: func(b []byte) error { out.Write(b); return nil }}
	for in != "" {
		n := min(size, len(in))
		if err := u.write([]byte(in[:n])); err != nil {
			return out.String(), err
		}
		in = in[n:]
	}
	err := u.end()
	return out.String(), err
}

func TestUnbinary(t *testing.T) {
	const bin = "Content-Transfer-Encoding: binary\r\n"
	const b64 = "Content-Transfer-Encoding: base64\r\n"
	mp := "Content-Type: multipart/mixed; boundary=\"B b\"\r\n"
	tests := map[string]struct{ in, want string }{
		"no MIME":      {"A: b\r\n\r\ntext\r\n", "A: b\r\n\r\ntext\r\n"},
		"header only":  {"A: b\r\n", "A: b\r\n"},
		"empty":        {"", ""},
		"leaf":         {"A: b\r\n" + bin + "X: y\r\n\r\n\x00\r\n\n\r", "A: b\r\n" + b64 + "X: y\r\n\r\n" + "AA0KCg0=\r\n"},
		"leaf, folded": {"Content-Transfer-Encoding:\r\n Binary\r\n\r\nx", b64 + "\r\neA==\r\n"},
		"leaf, empty":  {bin + "\r\n", b64 + "\r\n"},
		"not binary":   {"Content-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n", "Content-Transfer-Encoding: 8bit\r\n\r\n\xff\r\n"},
		"multipart": {mp + bin + "\r\npre\r\n--B b\r\n" + bin + "\r\n--\r\n--B\r\nx\r\n\r\n--B b \r\n\r\ntext\r\n--B b--\r\npost\r\n",
			mp + "Content-Transfer-Encoding: 8bit\r\n" + "\r\npre\r\n--B b\r\n" + b64 + "\r\nLS0NCi0tQg0KeA0K\r\n--B b \r\n\r\ntext\r\n--B b--\r\npost\r\n"},
		"nested": {mp + "\r\n--B b\r\nContent-Type: message/rfc822\r\n" + bin + "\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n" + bin + "\r\nx\r\n--in\r\n" + bin + "\r\ny\r\n--B b\r\n\r\n--in\r\n--B b--\r\n",
			mp + "\r\n--B b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nContent-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n" + b64 + "\r\neA==\r\n--in\r\n" + b64 + "\r\neQ==\r\n--B b\r\n\r\n--in\r\n--B b--\r\n"},
		"header cut by delimiter": {mp + "\r\n--B b\r\nX: y\r\n--B b--\r\n", mp + "\r\n--B b\r\nX: y\r\n--B b--\r\n"},
		"never closed":            {mp + "\r\n--B b\r\n" + bin + "\r\nx\r\n", mp + "\r\n--B b\r\n" + b64 + "\r\neA0K\r\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1 << 20, 7, 1} {
				if got, err := convert(tt.in, size); err != nil || got != tt.want {
					t.Fatalf("pieces of %d: got %q, %v\nwant %q", size, got, err, tt.want)
				}
			}
		})
	}
	if _, err := convert("A: "+strings.Repeat("x", 70000), 1000); !errors.Is(err, errMIME) {
		t.Errorf("long header: %v", err)
	}
	deep := ""
	for i := range 40 {
		deep += fmt.Sprintf("Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	if _, err := convert(deep, 1000); !errors.Is(err, errMIME) {
		t.Errorf("deep: %v", err)
	}
}

// Binary parts arrive whole: what net/mail and mime/multipart read out of what
// was stored is what was sent.
func TestBinarySession(t *testing.T) {
	part := strings.Repeat("\x00\r\n\n\r.\r\n--x\xff", 9000)
	head := "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=x1\r\n\r\n--x1\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n"
	text := head + part + "\r\n--x1--\r\n"
	for _, chunk := range []int{1 << 20, 5000, 777} {
		u := newSetup()
		c := u.dial(t)
		c.reply()
		c.must("EHLO c", "MAIL FROM:<a@b.org> BODY=BINARYMIME", "RCPT TO:<alice@md.test>")
		for rest := text; rest != ""; {
			n := min(chunk, len(rest))
			last := ""
			if n == len(rest) {
				last = " LAST"
			}
			c.send(fmt.Sprintf("BDAT %d%s\r\n%s", n, last, rest[:n]))
			if got := c.reply(); !strings.HasPrefix(got, "250 2.0.0") {
				t.Fatalf("got %q", got)
			}
			rest = rest[n:]
		}
		body := u.b.stored()[0].body
		if strings.Contains(body, "\r") || strings.Contains(body, "\x00") {
			t.Fatal("control octets are stored")
		}
		m, err := mail.ReadMessage(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_, params, _ := mime.ParseMediaType(m.Header.Get("Content-Type"))
		p, err := multipart.NewReader(m.Body, params["boundary"]).NextPart()
		if err != nil || p.Header.Get("Content-Transfer-Encoding") != "base64" {
			t.Fatalf("part %v, %v", p, err)
		}
		got, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, p))
		if err != nil || string(got) != part {
			t.Fatalf("chunks of %d: got %d octets, %v; want %d", chunk, len(got), err, len(part))
		}
	}
}

// FuzzUnbinary: pieces do not matter, and a message without binary parts stays
// as it is.
func FuzzUnbinary(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Transfer-Encoding: binary\r\n\r\n\x00\r\n--x--\r\n", 3)
	f.Add("Content-Type: message/rfc822\r\n\r\nContent-Transfer-Encoding: binary\r\n\r\nx", 1)
	f.Fuzz(func(t *testing.T, in string, size int) {
		a, err1 := convert(in, 1<<20)
		b, err2 := convert(in, 1+(size&0xff))
		if a != b && err1 == nil && err2 == nil {
			t.Fatalf("%q gives %q, in pieces %q", in, a, b)
		}
		if err1 == nil && !strings.Contains(strings.ToLower(in), "binary") && a != in {
			t.Fatalf("%q became %q", in, a)
		}
	})
}
