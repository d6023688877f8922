package enqueue

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// play is a server that knows one dialogue: lines ">>> command" and "<<< reply".
// It gives back what came as the message.
func play(conn net.Conn, dialogue string) (message string, err error) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	data := false
	for line := range strings.Lines(dialogue) {
		dir, text := line[:4], strings.TrimRight(line[4:], "\r\n")
		if dir == "<<< " {
			if _, err := fmt.Fprintf(conn, "%s\r\n", text); err != nil {
				return message, err
			}
			data = strings.HasPrefix(text, "354")
			continue
		}
		for {
			got, err := r.ReadString('\n')
			if err != nil {
				return message, err
			}
			if data && got != ".\r\n" {
				message += got
				continue
			}
			if got != text+"\r\n" {
				return message, fmt.Errorf("got command %q; want %q", got, text)
			}
			break
		}
	}
	return message, nil
}

// The dialogues that OpenSMTPD's sendmail was recorded with.
func TestSubmitRecorded(t *testing.T) {
	tests := map[string]struct {
		in   string
		args string
		fail string
		body string // what the message ends with
	}{
		"plain":  {in: "Subject: hi\n\nbody\n", args: "-v bob", body: "Subject: hi\r\n\r\nbody\r\n"},
		"dsn":    {in: "no header at all\nline2\n", args: "-v -N success,failure -R hdrs -V envid42 bob", body: "(UTC)\r\n\r\nno header at all\r\nline2\r\n"},
		"from":   {in: "From: Someone <some@one.org>\nSubject: from hdr\n\n", args: "-v bob", body: "Subject: from hdr\r\n\r\n"},
		"nosuch": {in: "Subject: x\n\n", args: "-v nosuch", fail: "command failed: 550 Invalid recipient: <nosuch@mx.example.org>"},
		"second": {in: "Subject: x\n\n", args: "-v bob nosuch", fail: "command failed: 550 Invalid recipient: <nosuch@mx.example.org>"},
		"header": {in: "To: bob, \"Carol C\" <carol>\nCc: dave@mx.example.org\nBcc: hidden@mx.example.org\nSubject: t\n\nbody\n.\nafter dot\n",
			args: "-t -v -oi -i -f boss@corp.org -F TheBoss", fail: "command failed: 550 Invalid recipient: <hidden@mx.example.org>"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", name+".dialogue"))
			if err != nil {
				t.Fatal(err)
			}
			o, err := ParseArgs(strings.Fields(tt.args))
			if err != nil {
				t.Fatal(err)
			}
			m, err := Read(strings.NewReader(tt.in), o)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Complete(alice, domain, when); err != nil {
				t.Fatal(err)
			}
			here, there := net.Pipe()
			defer here.Close()
			type result struct {
				message string
				err     error
			}
			played := make(chan result, 1)
			go func() {
				message, err := play(there, string(b))
				played <- result{message, err}
			}()
			var trace bytes.Buffer
			err = m.Submit(here, &trace)
			here.Close()
			r := <-played
			if r.err != nil {
				t.Error(r.err)
			}
			if got := errText(err); got != tt.fail {
				t.Errorf("got %q; want %q", got, tt.fail)
			}
			if trace.String() != string(b) {
				t.Errorf("printed\n%s\nwant\n%s", trace.String(), b)
			}
			if !strings.HasSuffix(r.message, tt.body) {
				t.Errorf("message %q", r.message)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestSubmitBadServer(t *testing.T) {
	long := strings.Repeat("x", maxReplyLine+1)
	tests := map[string]struct {
		replies string
		fail    string
	}{
		"gone":           {"", io.ErrUnexpectedEOF.Error()},
		"cut":            {"22", io.ErrUnexpectedEOF.Error()},
		"no reply":       {"hello\r\n", "malformed reply"},
		"line too long":  {"220 " + long + "\r\n", "reply line too long"},
		"too many lines": {strings.Repeat("220-x\r\n", maxReplyLines), "reply of too many lines"},
		"refuses":        {"554 go\x1b away\r\n", "command failed: 554 go? away"},
		"data refused":   {"220 a\r\n250 b\r\n250 c\r\n250 d\r\n250 no, say 354\r\n", "command failed: 250 no, say 354"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, err := Read(strings.NewReader("\nx\n"), &Options{Recipients: []string{"bob"}})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Complete(alice, domain, when); err != nil {
				t.Fatal(err)
			}
			here, there := net.Pipe()
			defer here.Close()
			read := make(chan struct{})
			go func() { // reads whatever comes until the client leaves
				defer close(read)
				_, _ = io.Copy(io.Discard, there)
			}()
			go func() {
				_, _ = io.WriteString(there, tt.replies) // the client may have given up
				if !strings.HasSuffix(tt.replies, "354\r\n") {
					there.Close()
				}
			}()
			err = m.Submit(here, io.Discard)
			if got := errText(err); got != tt.fail {
				t.Errorf("got %q; want %q", got, tt.fail)
			}
			here.Close()
			<-read
		})
	}
}

func TestUTF8Parameter(t *testing.T) {
	for want, reply := range map[string]string{" SMTPUTF8": "250-x\r\n250-smtputf8\r\n250 HELP\r\n", "": "250 x\r\n"} {
		m, err := Read(strings.NewReader("\n"), &Options{Recipients: []string{"bøb@x.org"}})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Complete(alice, domain, when); err != nil {
			t.Fatal(err)
		}
		s := &session{r: bufio.NewReader(strings.NewReader(reply)), trace: io.Discard, conn: noConn{}}
		if err := s.expect(2); err != nil {
			t.Fatal(err)
		}
		if got := s.utf8(m); got != want {
			t.Errorf("%q: got %q; want %q", reply, got, want)
		}
	}
}

// noConn has deadlines and nothing else.
type noConn struct{ net.Conn }

func (noConn) SetReadDeadline(time.Time) error { return nil }

func TestDeadLetter(t *testing.T) {
	m, err := Read(strings.NewReader("Subject: x\n\n.\n"), &Options{Recipients: []string{"bob"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Complete(alice, domain, when); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	path := filepath.Join(home, "dead.letter")
	if err := os.WriteFile(path, []byte(strings.Repeat("old", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.SaveDeadLetter(home); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if want := "From: <alice@mx.example.org>\nDate: Fri, 20 Nov 2026 23:25:33 +0000 (UTC)\nSubject: x\n\n.\n\n"; string(b) != want || err != nil {
		t.Errorf("got %q, %v; want %q", b, err, want)
	}

	for name, make := range map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(filepath.Join(home, "target"), path) },
		"folder": func(path string) error { return os.Mkdir(path, 0o700) },
		"fifo":   mkfifo,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := make(filepath.Join(dir, "dead.letter")); err != nil {
				t.Fatal(err)
			}
			if err := m.SaveDeadLetter(dir); err == nil {
				t.Error("written")
			}
		})
	}
	if _, err := os.Stat(filepath.Join(home, "target")); err == nil {
		t.Error("written through a link")
	}
	if err := m.SaveDeadLetter(""); !errors.Is(err, errNoHome) {
		t.Errorf("got %v", err)
	}
}
