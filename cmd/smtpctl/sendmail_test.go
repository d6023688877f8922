package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/ctl"
)

// listener answers ReqSubmit with a session in which the recipients that begin
// with "no" are refused, and keeps what was handed in.
type listener struct {
	*daemon
	mails chan string // commands and lines of each session
}

func startListener(t *testing.T) *listener {
	l := &listener{mails: make(chan string, 8)}
	l.daemon = startDaemon(t, func(c *ctl.Conn, _ []string) (string, error) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			return "", err
		}
		near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
		defer far.Close()
		conn, err := net.FileConn(near)
		near.Close()
		if err != nil {
			return "", err
		}
		go func() { l.mails <- session(conn) }()
		return "mx.example.org", c.SendFile(far)
	})
	return l
}

// session is a server that is just good enough.
func session(conn net.Conn) (got string) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err.Error()
	}
	fmt.Fprint(conn, "220 mx.example.org ESMTP smtpd\r\n")
	data := false
	for s := bufio.NewScanner(conn); s.Scan(); {
		line := s.Text()
		got += line + "\n"
		switch {
		case data && line != ".":
		case strings.HasPrefix(line, "RCPT TO:<no"):
			fmt.Fprint(conn, "550 Invalid recipient: <nosuch@mx.example.org>\r\n")
		case line == "DATA":
			data = true
			fmt.Fprint(conn, "354 go\r\n")
		default:
			data = false
			fmt.Fprint(conn, "250 2.0.0 Ok\r\n")
		}
	}
	return got
}

func TestSendmail(t *testing.T) {
	l := startListener(t)
	check(t, run(t, "sendmail", l.socket, "From: a@b.org\nDate: x\nSubject: hi\n\nbody\n", "-f", "me", "-oi", "bob"), outcome{})
	want := "EHLO localhost\nMAIL FROM:<me@mx.example.org>  \nRCPT TO:<bob@mx.example.org> \nDATA\n" +
		"From: a@b.org\nDate: x\nSubject: hi\n\nbody\n.\nQUIT\n"
	if got := <-l.mails; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	got := run(t, "send-mail", l.socket, "\n", "-v", "bob")
	<-l.mails
	if got.status != 0 || !strings.HasPrefix(got.out, "<<< 220 mx.example.org ESMTP smtpd\n>>> EHLO localhost\r\n") {
		t.Errorf("-v: got %+v", got)
	}
}

func TestSendmailErrors(t *testing.T) {
	usage := "usage: sendmail [-tv] [-f from] [-F name] to ...\n"
	tests := map[string]struct {
		args  string
		stdin string
		want  outcome
	}{
		"no recipients":     {"", "Subject: x\n\n", outcome{"", "sendmail: no recipients\n", 70}},
		"other modes":       {"-bs", "", outcome{"", "sendmail: no recipients\n", 70}},
		"none in header":    {"-t", "Subject: x\n\n", outcome{"", "sendmail: no recipients\n", 70}},
		"queue run":         {"-q30m", "", outcome{"", "", 70}},
		"unknown option":    {"-Z", "", outcome{"", "/usr/sbin/sendmail: invalid option -- 'Z'\n" + usage, 1}},
		"-J":                {"-J", "", outcome{"", usage, 1}},
		"line end":          {"a\nb", "", outcome{"", "sendmail: a?b contains illegal character\n", 70}},
		"invalid recipient": {"a<b", "\n", outcome{"", "sendmail: invalid recipient: a<b\n", 70}},
		"refused":           {"bob nosuch", "\n", outcome{"", "sendmail: command failed: 550 Invalid recipient: <nosuch@mx.example.org>\n\n", 70}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := startListener(t)
			args := strings.Split(tt.args, " ")
			if tt.args == "" {
				args = nil
			}
			got := runWith(t, "sendmail", l.socket, tt.stdin, func(p *program) { p.home = t.TempDir() }, args...)
			check(t, got, tt.want)
		})
	}
}

// A message that was not taken is in the user's home.
func TestSendmailDeadLetter(t *testing.T) {
	tests := map[string]struct {
		answer answer // nil: a listener that refuses the recipient
		want   outcome
	}{
		"refused": {nil, outcome{"", "sendmail: command failed: 550 Invalid recipient: <nosuch@mx.example.org>\n\n", 70}},
		"paused":  {says("", &ctl.Failure{Reason: ctl.ReasonRefused}), outcome{"", "sendmail: server disallowed submission request\n", 1}},
		"busy":    {says("", &ctl.Failure{Reason: ctl.ReasonBusy}), outcome{"", "sendmail: server too busy\n", 69}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var socket string
			if tt.answer == nil {
				socket = startListener(t).socket
			} else {
				socket = startDaemon(t, tt.answer).socket
			}
			home := t.TempDir()
			got := runWith(t, "sendmail", socket, "Date: x\nFrom: a@b.org\n\nkeep me\n", func(p *program) { p.home = home }, "nosuch")
			check(t, got, tt.want)
			b, err := os.ReadFile(filepath.Join(home, "dead.letter"))
			if string(b) != "Date: x\nFrom: a@b.org\n\nkeep me\n\n" || err != nil {
				t.Errorf("dead.letter: got %q, %v", b, err)
			}
		})
	}
}

func TestSendmailOffline(t *testing.T) {
	spool := t.TempDir()
	offline := filepath.Join(spool, "offline")
	if err := os.Mkdir(offline, 0o770); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "none")
	keep := func(stdin string, args ...string) outcome {
		return runWith(t, "sendmail", none, stdin, func(p *program) {
			getenv := p.getenv
			p.getenv = func(name string) string {
				if name == ctl.SpoolVar {
					return spool
				}
				return getenv(name)
			}
		}, args...)
	}
	check(t, keep("\n", "-F", "a|b", "bob"), outcome{"", "sendmail: a|b contains illegal character\n", 70})
	check(t, keep("\n", "-S", "bob"), outcome{"", "sendmail: smtpd doesn't seem to be running\n", 75})
	if names, err := os.ReadDir(offline); len(names) != 0 || err != nil {
		t.Errorf("left behind: %v, %v", names, err)
	}
	check(t, keep("Subject: offline\n\nbody\n", "-v", "bob"), outcome{"", "", 75})
	names, err := os.ReadDir(offline)
	if len(names) != 1 || err != nil {
		t.Fatalf("got %v, %v; want one file", names, err)
	}
	b, err := os.ReadFile(filepath.Join(offline, names[0].Name()))
	if string(b) != "-v|bob\nSubject: offline\n\nbody\n" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	// A daemon of one's own whose spool nobody knows keeps nothing.
	check(t, run(t, "sendmail", none, "\n", "bob"), outcome{"", "sendmail: smtpd doesn't seem to be running\n", 75})
}
