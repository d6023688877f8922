package table

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/config"
)

// maxFile bounds a file that is read into memory. Ours: ten times a list of
// every domain of a large registry.
const maxFile = 1 << 30

var (
	errNotRegular = errors.New("not a regular file")
	errFileSize   = errors.New("larger than 1 GB")
)

// openRegular opens a regular file for reading; anything else is refused
// without waiting for it.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, errNotRegular)
	}
	if err == nil && fi.Size() > maxFile {
		err = fmt.Errorf("%s: %w", path, errFileSize)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi, nil
}

// readText reads a whole file of text.
func readText(path string) (string, error) {
	f, fi, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b strings.Builder
	b.Grow(int(fi.Size()))
	n, err := io.Copy(&b, io.LimitReader(f, maxFile+1))
	if err == nil && n > maxFile {
		err = fmt.Errorf("%s: %w", path, errFileSize)
	}
	return b.String(), err
}

// loadText makes an index of a table file.
func loadText(path string, o options) (*index, error) {
	text, err := readText(path)
	if err != nil {
		return nil, err
	}
	var ix *index
	typ, err := parseText(path, text, func(key, value string) {
		if ix == nil { // the first entry tells the shape
			ix = newIndex(typeOf(value == ""), strings.Count(text, "\n")+1, o)
		}
		ix.add(key, value)
	})
	if err != nil {
		return nil, err
	}
	if ix == nil {
		ix = newIndex(typ, 0, o)
	}
	return ix, nil
}

// loadMap makes an index of a map file of either kind. The entries are
// collected in one text first, which costs less than a string for each.
func loadMap(path string, o options) (*index, error) {
	var text strings.Builder
	var lengths []uint32
	err := readMapFile(path, func(key, value string) error {
		text.WriteString(key)
		text.WriteString(value)
		lengths = append(lengths, uint32(len(key)), uint32(len(value)))
		return nil
	})
	if err != nil {
		return nil, err
	}
	ix := newIndex(config.TableMapping, len(lengths)/2, o)
	rest := text.String()
	for i := 0; i < len(lengths); i += 2 {
		k, v := lengths[i], lengths[i]+lengths[i+1]
		ix.add(rest[:k], rest[k:v])
		rest = rest[v:]
	}
	return ix, nil
}

// watch tells whether a file has changed since it was read. It is safe for
// concurrent use.
type watch struct {
	path string

	mu   sync.Mutex
	seen fileState // when it was last read, well or not
	when time.Time // of that reading
}

// fileState is what tells one state of a file from another. The zero value is
// a file that is not there.
type fileState struct {
	info  os.FileInfo
	size  int64
	mtime time.Time
}

func stateOf(path string) fileState {
	fi, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{fi, fi.Size(), fi.ModTime()}
}

func (s fileState) same(o fileState) bool {
	if s.info == nil || o.info == nil {
		return s.info == o.info
	}
	return os.SameFile(s.info, o.info) && s.size == o.size && s.mtime.Equal(o.mtime)
}

// settle is how long after a change a file system may give a second change the
// same time.
const settle = time.Second

// reading notes that the file is read now; call it before.
func (w *watch) reading() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen, w.when = stateOf(w.path), time.Now()
}

// Changed reports whether the file is another than the one last read, or may
// be since it was read so soon after it was written.
func (w *watch) Changed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := stateOf(w.path)
	if !now.same(w.seen) {
		return true
	}
	return now.info != nil && w.when.Sub(now.mtime) < settle && time.Since(now.mtime) >= settle
}

// fileTable is a memory table that is read from a file.
type fileTable struct {
	memory
	watch
}

// newFileTable makes the backend of a file of text or a map.
func newFileTable(path string, o options, load func(string, options) (*index, error)) (*fileTable, error) {
	t := &fileTable{watch: watch{path: path}}
	t.load = func() (*index, error) {
		t.reading()
		return load(path, o)
	}
	if err := t.Update(context.Background()); err != nil {
		return nil, err
	}
	return t, nil
}

// NewFile makes the backend of a file of text, read at once and at each
// Update. delim is the sub-address delimiter; warn, which may be nil, is told
// of entries that can never match.
func NewFile(path, delim string, warn func(string)) (Backend, error) {
	return newFileTable(path, options{delim, warn}, loadText)
}

// NewDB makes the backend of a map file, ours or one of Berkeley DB, read into
// memory at once and at each Update; see NewFile.
func NewDB(path, delim string, warn func(string)) (Backend, error) {
	return newFileTable(path, options{delim, warn}, loadMap)
}
