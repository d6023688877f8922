package log

import (
	"bufio"
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

// Syslog is a writer of lines with a severity in front ("<6>text"), one a
// Write, that sends them to the system's log daemon. While that is not there
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
}

// retryDial is how long a log daemon that is gone is left alone.
const retryDial = time.Second

// writeWait is how long a log daemon may take for a line before it counts as
// gone. Ours: all processes log through one writer and wait meanwhile.
const writeWait = 250 * time.Millisecond

// NewSyslog uses the daemon at path, usually /dev/log. Nothing is opened yet.
func NewSyslog(path string, fallback io.Writer, now func() time.Time) *Syslog {
	return &Syslog{path: path, fallback: fallback, now: now}
}

// Write sends one line as this process's.
func (s *Syslog) Write(line []byte) (int, error) {
	s.Line(os.Getpid(), line)
	return len(line), nil
}

// Line sends one line as that of another process.
func (s *Syslog) Line(pid int, line []byte) {
	severity := byte('6')
	if len(line) >= 3 && line[0] == '<' && line[2] == '>' && line[1] >= '0' && line[1] <= '7' {
		severity, line = line[1], line[3:]
	}
	for len(line) > 0 && line[len(line)-1] == '\n' {
		line = line[:len(line)-1]
	}
	pri := facilityMail<<3 | int(severity-'0')
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reach() && s.send(s.message(pri, pid, line)) {
		return
	}
	// The log must not be lost: an operator in trouble looks here next.
	s.buf = append(append(s.buf[:0], line...), '\n')
	_, _ = s.fallback.Write(s.buf) // there is no other place
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
		_ = s.conn.SetWriteDeadline(time.Now().Add(writeWait)) // cannot fail on an open socket
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
	s.conn, s.tried = conn, time.Time{}
	return true
}

// Forward reads lines from r until it ends and hands each to line, cut to a
// bound. It is how what a child writes reaches the log.
func Forward(r io.Reader, line func([]byte)) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := br.ReadSlice('\n')
		if len(b) > 0 {
			line(b)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}
