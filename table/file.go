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

// Opener opens a file that a table is made of.
type Opener func(path string) (*os.File, error)

// openRegular opens a regular file for reading; anything else is refused
// without waiting for it.
func (o Opener) openRegular(path string) (*os.File, os.FileInfo, error) {
	if o == nil {
		o = openFile
	}
	f, err := o(path)
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

// openFile opens a file with the rights of this process.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// readText reads a whole file of text.
func readText(f *os.File, path string) (string, error) {
	var b strings.Builder
	if fi, err := f.Stat(); err == nil {
		b.Grow(int(min(fi.Size(), maxFile)))
	}
	n, err := io.Copy(&b, io.LimitReader(f, maxFile+1))
	if err == nil && n > maxFile {
		err = fmt.Errorf("%s: %w", path, errFileSize)
	}
	return b.String(), err
}

// loadText makes an index of a table file.
func loadText(f *os.File, path string, o options) (*index, error) {
	text, err := readText(f, path)
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
func loadMap(f *os.File, path string, o options) (*index, error) {
	var text strings.Builder
	var lengths []uint32
	err := readMap(f, path, func(key, value string) error {
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
	open Opener

	mu   sync.Mutex
	seen fileState // when it was last read, well or not
	when time.Time // of that reading
	last fileState // when it was last looked at
}

// fileState is what tells one state of a file from another. The zero value is
// a file that is not there.
type fileState struct {
	info  os.FileInfo
	size  int64
	mtime time.Time
}

// state is the present state of the file. One in a folder that is closed to us is
// opened for that.
func (w *watch) state() fileState {
	fi, err := os.Stat(w.path)
	if errors.Is(err, os.ErrPermission) {
		var f *os.File
		if f, fi, err = w.open.openRegular(w.path); err == nil {
			f.Close()
		}
	}
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

// reading opens the file and notes that it is read now; the caller closes it.
func (w *watch) reading() (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f, fi, err := w.open.openRegular(w.path)
	if err != nil {
		w.seen, w.when = w.state(), time.Now()
		return nil, err
	}
	w.seen, w.when = fileState{fi, fi.Size(), fi.ModTime()}, time.Now()
	return f, nil
}

// Stale reports whether the file is another than the one last read, or may be
// since it was read so soon after it was written.
func (w *watch) Stale() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.differs(w.state())
}

func (w *watch) differs(now fileState) bool {
	return !now.same(w.seen) || now.info != nil && w.when.Sub(now.mtime) < settle && time.Since(now.mtime) >= settle
}

// Changed is Stale for a file that has come to rest as well: it looks as it did
// the last time it was asked about. One that is being written does not.
func (w *watch) Changed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.state()
	rests := now.same(w.last)
	w.last = now
	return rests && w.differs(now)
}

// fileTable is a memory table that is read from a file.
type fileTable struct {
	memory
	watch
}

// newFileTable makes the backend of a file of text or a map.
func newFileTable(path string, open Opener, o options, load func(*os.File, string, options) (*index, error)) (*fileTable, error) {
	t := &fileTable{watch: watch{path: path, open: open}}
	t.load = func() (*index, error) {
		f, err := t.reading()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return load(f, path, o)
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
	return newFileTable(path, nil, options{delim, warn}, loadText)
}

// NewDB makes the backend of a map file, ours or one of Berkeley DB, read into
// memory at once and at each Update; see NewFile.
func NewDB(path, delim string, warn func(string)) (Backend, error) {
	return newFileTable(path, nil, options{delim, warn}, loadMap)
}
