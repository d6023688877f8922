package enqueue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// Bounds of a message. Ours.
const (
	maxMemory = 1 << 20 // octets of a body kept in memory; a longer one goes to a file
	maxBody   = 1 << 30 // octets of a body; the daemon's own limit is far lower
)

var errTooLarge = errors.New("message too large")

// spool keeps a body: in memory, or in a file without a name.
type spool struct {
	mem  bytes.Buffer
	file *os.File
	size int64
}

func (s *spool) Write(p []byte) (int, error) {
	if s.size += int64(len(p)); s.size > maxBody {
		return 0, errTooLarge
	}
	if s.file == nil && s.mem.Len()+len(p) <= maxMemory {
		return s.mem.Write(p)
	}
	if s.file == nil {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	return s.file.Write(p)
}

func (s *spool) spill() error {
	f, err := os.CreateTemp("", "sendmail") // mode 0600, a new file
	if err != nil {
		return fmt.Errorf("temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return fmt.Errorf("temporary file: %w", err)
	}
	if _, err := f.Write(s.mem.Bytes()); err != nil {
		f.Close()
		return fmt.Errorf("temporary file: %w", err)
	}
	s.mem = bytes.Buffer{}
	s.file = f
	return nil
}

// reader reads all from the start.
func (s *spool) reader() io.Reader {
	if s.file == nil {
		return bytes.NewReader(s.mem.Bytes())
	}
	return io.NewSectionReader(s.file, 0, s.size)
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}
