package mda

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFolders bounds the Maildir folders kept open. Ours: a virtual user owns
	// very many, a real one a few; each takes three descriptors.
	maxFolders = 64
	// staleTmp is the age at which a file in tmp is known to be abandoned (the
	// rule of the Maildir format).
	staleTmp = 36 * time.Hour
	// clockSlack covers the difference between the clock of files and ours.
	clockSlack = 2 * time.Second
)

// folder is one Maildir folder, checked and open. It is shared by the
// deliveries that use it at the same time.
type folder struct {
	path          string
	dev, ino      uint64
	tmp, new, cur int

	refs int  // guarded by folders.mu
	gone bool // likewise: no longer in folders, closed with the last reference

	mu      sync.Mutex
	waiting []*job // of the next batch
	leading bool   // a batch is being written
}

// folders are the open Maildir folders by path. The zero value is empty.
type folders struct {
	mu     sync.Mutex
	open   map[string]*folder
	serial atomic.Uint64 // for names in tmp
}

// get opens the folder, or takes it as it is open when the path still leads
// there. Each is given back with put.
func (fs *folders) get(path string, uid int) (*folder, error) {
	fs.mu.Lock()
	f := fs.open[path]
	if f != nil {
		f.refs++
	}
	fs.mu.Unlock()
	if f != nil {
		if f.current() {
			return f, nil
		}
		fs.put(f)
		fs.forget(path)
	}
	f, err := openFolder(path, uid)
	if err != nil {
		return nil, err
	}
	return fs.add(f), nil
}

// add keeps a fresh folder, or drops it for one that was added meanwhile.
func (fs *folders) add(f *folder) *folder {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if old := fs.open[f.path]; old != nil && old.dev == f.dev && old.ino == f.ino {
		f.close()
		old.refs++
		return old
	}
	fs.remove(f.path)
	if fs.open == nil {
		fs.open = map[string]*folder{}
	}
	for path, other := range fs.open {
		if len(fs.open) < maxFolders {
			break
		}
		if other.refs == 0 {
			fs.remove(path)
		}
	}
	f.refs = 1
	fs.open[f.path] = f
	return f
}

func (fs *folders) put(f *folder) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f.refs--
	if f.gone && f.refs == 0 {
		f.close()
	}
}

// forget makes the next get open the folder, and those below it, afresh.
func (fs *folders) forget(path string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for p := range fs.open {
		if p == path || strings.HasPrefix(p, path+"/") {
			fs.remove(p)
		}
	}
}

func (fs *folders) remove(path string) {
	f := fs.open[path]
	if f == nil {
		return
	}
	delete(fs.open, path)
	f.gone = true
	if f.refs == 0 {
		f.close()
	}
}

func (fs *folders) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for p := range fs.open {
		fs.remove(p)
	}
}

// openFolder opens a Maildir folder and makes what is missing of it.
func openFolder(path string, uid int) (*folder, error) {
	w := &walker{uid: uid}
	base, err := w.open(path, true)
	if err != nil {
		return nil, err
	}
	defer unix.Close(base)
	st, err := owned(base, uid)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path, dev: uint64(st.Dev), ino: uint64(st.Ino), tmp: -1, new: -1, cur: -1}
	fresh := false
	for _, sub := range []struct {
		name string
		fd   *int
	}{{"cur", &f.cur}, {"tmp", &f.tmp}, {"new", &f.new}} {
		made, err := subFolder(base, sub.name, uid, sub.fd)
		if err != nil {
			f.close()
			return nil, err
		}
		if sub.fd == &f.tmp && !made {
			f.tidy()
		}
		fresh = fresh || made
	}
	if fresh {
		if err := syncDir(base); err != nil {
			f.close()
			return nil, err
		}
	}
	return f, nil
}

func subFolder(base int, name string, uid int, fd *int) (made bool, err error) {
	*fd, err = openDirAt(base, name, unix.O_RDONLY)
	if err == unix.ENOENT {
		made = true
		if err = makeDir(base, name); err == nil {
			*fd, err = openDirAt(base, name, unix.O_RDONLY)
		}
	}
	if err == nil {
		_, err = owned(*fd, uid)
	}
	return made, err
}

func (f *folder) close() {
	for _, fd := range []int{f.tmp, f.new, f.cur} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	f.tmp, f.new, f.cur = -1, -1, -1
}

// current reports whether the path still leads to this folder.
func (f *folder) current() bool {
	var st unix.Stat_t
	err := retry(func() error { return unix.Stat(f.path, &st) })
	return err == nil && uint64(st.Dev) == f.dev && uint64(st.Ino) == f.ino
}

// names lists an open folder, at most max names.
func names(dir, max int) ([]string, error) {
	fd, err := openDirAt(dir, ".", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "maildir")
	defer file.Close()
	return file.Readdirnames(max)
}

// tidy removes what deliveries that were cut short have left in tmp long ago.
func (f *folder) tidy() {
	list, err := names(f.tmp, 1000)
	if err != nil {
		return // nothing depends on it
	}
	limit := time.Now().Add(-staleTmp)
	for _, name := range list {
		var st unix.Stat_t
		if unix.Fstatat(f.tmp, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil &&
			st.Mode&unix.S_IFMT == unix.S_IFREG && modified(&st).Before(limit) {
			_ = unix.Unlinkat(f.tmp, name, 0)
		}
	}
}

func modified(st *unix.Stat_t) time.Time { return time.Unix(st.Mtim.Unix()) }

// holder is where a file of that name was delivered to: new, or cur when a reader
// has moved it there and added flags; -1: it was not. cur, which may be large, is
// read only when it has changed since the envelope was made.
func (f *folder) holder(name string, created time.Time) (dir int, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(f.new, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return f.new, nil
	}
	if err := unix.Fstat(f.cur, &st); err != nil {
		return -1, err
	}
	if modified(&st).Before(created.Add(-clockSlack)) {
		return -1, nil
	}
	list, err := names(f.cur, -1)
	if err != nil {
		return -1, err
	}
	for _, n := range list {
		if rest, ok := strings.CutPrefix(n, name); ok && (rest == "" || rest[0] == ':' || rest[0] == ',' || rest[0] == ';') {
			return f.cur, nil
		}
	}
	return -1, nil
}
