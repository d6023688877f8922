package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

// store is an LMTP server that writes down what it is told.
type store struct{ got []string }

func (s *store) NewSession(c *smtp.Conn) (smtp.Session, error) { return &session{s}, nil }

type session struct{ s *store }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.s.got = append(s.s.got, "from "+from)
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if to == "nobody@c" { // go-smtp wants a domain
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no mailbox"}
	}
	s.s.got = append(s.s.got, "to "+to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.s.got = append(s.s.got, string(b))
	return err
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

func TestRun(t *testing.T) {
	env := map[string]string{"USER": "alice@c", "SENDER": "a@b", "RECIPIENT": "alice+tag@c"}
	tests := map[string]struct {
		args   []string
		want   string
		status int
		stderr string
	}{
		"user":      {args: []string{"-u"}, want: "from a@b|to alice@c|Subject: x\r\n\r\n.\r\n"},
		"recipient": {args: []string{"-r"}, want: "from a@b|to alice+tag@c|Subject: x\r\n\r\n.\r\n"},
		"named":     {args: []string{"-f", "<>", "-l", "me.example", "bob@c"}, want: "from |to bob@c|Subject: x\r\n\r\n.\r\n"},
		"refused": {args: []string{"nobody@c"}, want: "from a@b", status: 69,
			stderr: "mail.lmtp: LMTP server error: 550 5.1.1 no mailbox\n"},
		"both":   {args: []string{"-r", "-u"}, status: 64, stderr: "usage: "},
		"nobody": {args: []string{"-d", "/none"}, status: 75, stderr: "mail.lmtp: connect: No such file or directory\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &store{}
			server := smtp.NewServer(s)
			server.LMTP, server.Domain = true, "store"
			path := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() { defer close(done); _ = server.Serve(ln) }()
			var stderr bytes.Buffer
			got := run(context.Background(), append([]string{"-d", path}, tt.args...), func(k string) string { return env[k] },
				strings.NewReader("Subject: x\n\n.\n"), &stderr)
			if got != tt.status || !strings.HasPrefix(stderr.String(), tt.stderr) {
				t.Errorf("status %d, %q", got, stderr.String())
			}
			ln.Close()
			server.Close()
			<-done
			if lines := strings.Join(s.got, "|"); lines != tt.want {
				t.Errorf("the store got %q", lines)
			}
		})
	}
}
