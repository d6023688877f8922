package table

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"smtpd/internal/mail"
)

// Serve answers the line protocol 0.1 for a backend until the input ends: it is
// the whole of a table program but for the backend. Questions are answered as
// they are ready, maxAsked at a time. Auth is registered when the backend
// offers it. The caller closes the backend.
func Serve(ctx context.Context, in io.Reader, out io.Writer, b Backend) error {
	s := &server{backend: b, out: out}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLine)
	lines.Split(scanText)
	if err := s.greet(lines); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel() // the input has ended: nobody waits for an answer
	slots := make(chan struct{}, maxAsked)
	for lines.Scan() {
		q, err := parseQuestion(lines.Text())
		if err != nil {
			return err
		}
		slots <- struct{}{}
		open.Go(func() {
			defer func() { <-slots }()
			s.write(s.answer(ctx, q))
		})
	}
	return lines.Err()
}

// errBinary ends a program at once when it is tried in the binary protocol, whose
// frames need not hold the end of a line.
var errBinary = errors.New("the server speaks another protocol: NUL in a line")

// scanText is bufio.ScanLines for lines that hold no NUL.
func scanText(data []byte, atEOF bool) (int, []byte, error) {
	n, line, err := bufio.ScanLines(data, atEOF)
	if bytes.IndexByte(data[:cmp.Or(n, len(data))], 0) >= 0 {
		return 0, nil, errBinary
	}
	return n, line, err
}

type server struct {
	backend Backend
	mu      sync.Mutex
	out     io.Writer
}

// write writes one line.
func (s *server) write(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := io.WriteString(s.out, line+"\n")
	return err
}

// greet reads the server's configuration and registers.
func (s *server) greet(lines *bufio.Scanner) error {
	for {
		if !lines.Scan() {
			return cmp.Or(lines.Err(), errors.New("the server ended before it was ready"))
		}
		line := lines.Text()
		if line == "config|ready" {
			break
		}
		if !strings.HasPrefix(line, "config|") {
			return fmt.Errorf("%.80q before the server was ready", line)
		}
		if v, ok := strings.CutPrefix(line, "config|protocol|"); ok && v != lineVersion {
			return fmt.Errorf("the server speaks version %.20q of the protocol", v)
		}
	}
	for i := range serviceNames {
		if s.backend.Services()&(1<<i) != 0 {
			if err := s.write("register|" + serviceNames[i]); err != nil {
				return err
			}
		}
	}
	return s.write("register|ready")
}

// asked is a question as it comes over the line.
type asked struct {
	op      operation
	service Service
	id, key string
}

// parseQuestion reads table|VERSION|TIME|NAME|check|SERVICE|ID|KEY and the
// like.
func parseQuestion(line string) (asked, error) {
	bad := fmt.Errorf("not a question: %.80q", line)
	f := strings.SplitN(line, "|", 6)
	if len(f) != 6 || f[0] != "table" {
		return asked{}, bad
	}
	if f[4] == "update" {
		return asked{op: opUpdate, id: f[5]}, nil
	}
	word, rest, _ := strings.Cut(f[5], "|")
	q := asked{}
	var known bool
	if q.service, known = ParseService(word); !known {
		return asked{}, bad
	}
	switch f[4] {
	case "fetch":
		q.op, q.id = opFetch, rest
		return q, nil
	case "check":
		q.op = opCheck
	case "lookup":
		q.op = opLookup
	default:
		return asked{}, bad
	}
	var ok bool
	if q.id, q.key, ok = strings.Cut(rest, "|"); !ok {
		return asked{}, bad
	}
	return q, nil
}

// answer asks the backend and writes the line for what it said.
func (s *server) answer(ctx context.Context, q asked) string {
	var value string
	var found bool
	var err error
	word := "lookup-result|"
	switch q.op {
	case opUpdate:
		if err = s.backend.Update(ctx); err == nil {
			return "update-result|" + q.id + "|ok"
		}
		word = "update-result|"
	case opCheck:
		word = "check-result|"
		found, err = s.backend.Check(ctx, q.service, q.key)
	case opFetch:
		word = "fetch-result|"
		value, err = s.backend.Fetch(ctx, q.service)
	case opLookup:
		value, err = s.backend.Lookup(ctx, q.service, q.key)
	}
	line := word + q.id + "|"
	switch {
	case errors.Is(err, ErrNotFound) || (q.op == opCheck && err == nil && !found):
		return line + "not-found"
	case err != nil:
		return line + "error|" + mail.Clean(err.Error(), mail.MaxStatusText)
	case q.op == opCheck:
		return line + "found"
	case value == "" || len(value) > MaxValue || strings.ContainsAny(value, "\r\n\x00"):
		return line + "error|the value cannot be sent"
	}
	return line + "found|" + value
}
