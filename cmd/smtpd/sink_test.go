package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gosmtp "github.com/emersion/go-smtp"
)

// sink is an independent mail server (go-smtp) that keeps each mail in a file
// and answers recipients as their address says: "4..." and "5..." users are
// refused with that code, "flaky..." once.
type sink struct {
	srv  *gosmtp.Server
	addr string
	dir  string

	sessions atomic.Int64 // with clients

	mu    sync.Mutex
	n     int
	seen  map[string]int // tries by recipient
	Names []string
}

// relaySink starts the host that rootConf relays to, and says where it puts its
// mail.
func relaySink(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "sink")
	s, err := startSink("127.0.0.1:2525", dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return dir
}

func startSink(addr, dir string, set ...func(*gosmtp.Server)) (*sink, error) {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return nil, err
	}
	s := &sink{addr: ln.Addr().String(), dir: dir, seen: map[string]int{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	s.srv = gosmtp.NewServer(s)
	s.srv.Domain = "sink.test"
	s.srv.EnableDSN = true
	s.srv.EnableSMTPUTF8 = true
	for _, f := range set {
		f(s.srv)
	}
	go func() { _ = s.srv.Serve(ln) }() // ends with close
	return s, nil
}

func (s *sink) close() { _ = s.srv.Close() }

// NewSession implements gosmtp.Backend.
func (s *sink) NewSession(*gosmtp.Conn) (gosmtp.Session, error) {
	s.sessions.Add(1)
	return &sinkSession{s: s}, nil
}

type sinkSession struct {
	s    *sink
	from string
	to   []string
}

func (c *sinkSession) Mail(from string, _ *gosmtp.MailOptions) error { c.from = from; return nil }

func (c *sinkSession) Rcpt(to string, _ *gosmtp.RcptOptions) error {
	c.s.mu.Lock()
	c.s.seen[to]++
	try := c.s.seen[to]
	c.s.mu.Unlock()
	switch {
	case strings.HasPrefix(to, "4"), strings.HasPrefix(to, "flaky") && try == 1:
		return &gosmtp.SMTPError{Code: 450, EnhancedCode: gosmtp.EnhancedCode{4, 2, 1}, Message: "come back later"}
	case strings.HasPrefix(to, "5"):
		return &gosmtp.SMTPError{Code: 550, EnhancedCode: gosmtp.EnhancedCode{5, 1, 1}, Message: "no such person here"}
	}
	c.to = append(c.to, to)
	return nil
}

func (c *sinkSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.n++
	text := fmt.Appendf(nil, "MAIL <%s>\nRCPT <%s>\n\n", c.from, strings.Join(c.to, ">,<"))
	text = append(text, bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))...)
	part := c.s.dir + ".part" // who waits for the file reads it as soon as it has its name
	if err := os.WriteFile(part, text, 0o644); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(c.s.dir, fmt.Sprintf("%05d", c.s.n)))
}

func (c *sinkSession) Reset()        { c.from, c.to = "", nil }
func (c *sinkSession) Logout() error { c.s.sessions.Add(-1); return nil }

// dialogue plays a file of "C: line" and "S: prefix" lines over conn: a C line
// is sent with CRLF (with \xNN for other octets, and without CRLF when it ends
// in \c), an S line must be the start of the next reply line, an R line is the
// code of a whole reply.
func dialogue(conn net.Conn, script string) (string, error) {
	br := bufio.NewReader(conn)
	var out strings.Builder
	for i, line := range strings.Split(script, "\n") {
		switch {
		case strings.HasPrefix(line, "C: "):
			text := strings.TrimPrefix(line, "C: ")
			end := "\r\n"
			if t, ok := strings.CutSuffix(text, `\c`); ok {
				text, end = t, ""
			}
			text = strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00").Replace(text)
			if _, err := io.WriteString(conn, text+end); err != nil {
				return out.String(), fmt.Errorf("line %d: %w", i+1, err)
			}
		case strings.HasPrefix(line, "S: "):
			got, err := br.ReadString('\n')
			out.WriteString(got)
			want := strings.TrimPrefix(line, "S: ")
			if err != nil || !strings.HasPrefix(got, want) {
				return out.String(), fmt.Errorf("line %d: got %q, %v; want %q", i+1, got, err, want)
			}
			if !strings.HasSuffix(got, "\r\n") {
				return out.String(), fmt.Errorf("line %d: reply %q does not end in CRLF", i+1, got)
			}
		case strings.HasPrefix(line, "R: "):
			code, more := strings.TrimPrefix(line, "R: "), true
			for more {
				got, err := br.ReadString('\n')
				out.WriteString(got)
				if err != nil || !strings.HasPrefix(got, code) {
					return out.String(), fmt.Errorf("line %d: got %q, %v; want a reply %s", i+1, got, err, code)
				}
				more = strings.HasPrefix(got[len(code):], "-")
			}
		case line == "S.EOF":
			if got, err := br.ReadString('\n'); err != io.EOF || got != "" {
				return out.String(), fmt.Errorf("line %d: got %q, %v; want the end", i+1, got, err)
			}
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
		default:
			return out.String(), fmt.Errorf("line %d: %q is neither C: nor S:", i+1, line)
		}
	}
	return out.String(), nil
}
