package log

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// facilityMail is the facility of the mail log (RFC 3164 section 4.1.1).
const facilityMail = 2

// maxLine bounds one forwarded log line, in octets. Ours: a datagram that every
// syslog daemon takes.
const maxLine = 8 << 10

// Syslog is a writer of lines with a severity in front ("<6>text") that sends them to the system's log daemon. While that is not there
// they go to the fallback. It reconnects by itself and is safe for concurrent
// use.
type Syslog struct {
	path     string
	fallback io.Writer
	now      func() time.Time

	mu    sync.Mutex
	conn  net.Conn
	tried time.Time // of the last failed connect

	buf, stamp []byte // of the last line, and of its second
	second     int64
	missed     []byte    // lines for the fallback
	until      time.Time // deadline of conn
}

// retryDial is how long a log daemon that is gone is left alone.
const retryDial = time.Second

// writeWait is how long a log daemon may take for a line before it counts as
// gone; it gets half of that at least. Ours: all processes log through one writer and wait meanwhile.
const writeWait = 250 * time.Millisecond

// NewSyslog uses the daemon at path, usually /dev/log. Nothing is opened yet.
func NewSyslog(path string, fallback io.Writer, now func() time.Time) *Syslog {
	return &Syslog{path: path, fallback: fallback, now: now}
}

// Write sends one line as this process's.
func (s *Syslog) Write(line []byte) (int, error) {
	s.Lines(os.Getpid(), line)
	return len(line), nil
}

// Lines sends lines as those of another process.
func (s *Syslog) Lines(pid int, lines []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed = s.missed[:0]
	for len(lines) > 0 {
		var line []byte
		line, lines, _ = bytes.Cut(lines, []byte{'\n'})
		s.line(pid, line)
	}
	if len(s.missed) > 0 {
		// The log must not be lost: an operator in trouble looks here next.
		_, _ = s.fallback.Write(s.missed) // there is no other place
	}
}

// line sends one line without its end, or keeps it for the fallback.
func (s *Syslog) line(pid int, line []byte) {
	severity := byte('6')
	if len(line) >= 3 && line[0] == '<' && line[2] == '>' && line[1] >= '0' && line[1] <= '7' {
		severity, line = line[1], line[3:]
	}
	pri := facilityMail<<3 | int(severity-'0')
	if !s.reach() || !s.send(s.message(pri, pid, line)) {
		s.missed = append(append(s.missed, line...), '\n')
	}
}

// message is a line as the daemon takes it.
func (s *Syslog) message(pri, pid int, line []byte) []byte {
	if now := s.now(); now.Unix() != s.second {
		s.second = now.Unix()
		s.stamp = now.AppendFormat(s.stamp[:0], time.Stamp)
	}
	b := append(strconv.AppendInt(append(s.buf[:0], '<'), int64(pri), 10), '>')
	b = append(append(b, s.stamp...), " smtpd["...)
	b = append(strconv.AppendInt(b, int64(pid), 10), "]: "...)
	s.buf = append(b, line...)
	return s.buf
}

// reach reports whether there is a connection, or one could be made.
func (s *Syslog) reach() bool { return s.conn != nil || s.dial() }

// send makes two tries: a daemon that was restarted has a new socket.
func (s *Syslog) send(msg []byte) bool {
	for range 2 {
		if !s.reach() {
			return false
		}
		if now := time.Now(); s.until.Sub(now) < writeWait/2 { // to set it costs as much as a line
			s.until = now.Add(writeWait)
			_ = s.conn.SetWriteDeadline(s.until) // cannot fail on an open socket
		}
		_, err := s.conn.Write(msg)
		if err == nil {
			return true
		}
		s.conn.Close()
		s.conn = nil
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.tried = s.now()
			return false
		}
	}
	return false
}

func (s *Syslog) dial() bool {
	if !s.tried.IsZero() && s.now().Sub(s.tried) < retryDial {
		return false
	}
	conn, err := net.Dial("unixgram", s.path)
	if err != nil {
		s.tried = s.now()
		return false
	}
	s.conn, s.tried, s.until = conn, time.Time{}, time.Time{}
	return true
}

// Forward reads lines from r until it ends and hands them to lines, whole ones
// as many as there are, each cut to a bound. It is how what a child writes
// reaches the log.
func Forward(r io.Reader, lines func([]byte)) {
	var buf [maxLine]byte
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += n
		whole := bytes.LastIndexByte(buf[:have], '\n') + 1
		if err != nil || (whole == 0 && have == len(buf)) {
			whole = have
		}
		if whole > 0 {
			lines(buf[:whole])
			have = copy(buf[:], buf[whole:have])
		}
		if err != nil {
			return
		}
	}
}
