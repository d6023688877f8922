package queue

import (
	"errors"
	"os"

	"go.etcd.io/bbolt"
)

// FS is the file system as a store uses it. Tests give their own, to stop the
// store at any write, sync or rename, or to let one fail.
type FS interface {
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
	// OpenDB opens a database on a file that was opened, and locked, before.
	OpenDB(f *os.File, o *bbolt.Options) (*bbolt.DB, error)
	Sync(f *os.File) error
	// WriteAt writes to a file where it has been written before.
	WriteAt(f *os.File, b []byte, off int64) (int, error)
	// SyncData makes what WriteAt has written durable.
	SyncData(f *os.File) error
	SyncDir(name string) error
	Rename(from, to string) error
	Link(from, to string) error
	Remove(name string) error
	Mkdir(name string, perm os.FileMode) error
	ReadDir(name string) ([]os.DirEntry, error)
	Stat(name string) (os.FileInfo, error)
	// Free is how many octets may still be written where a folder is, as far as
	// known.
	Free(dir string) int64
}

// OS is the file system of the operating system.
type OS struct{}

// OpenFile is os.OpenFile.
func (OS) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag, perm)
}

// OpenDB is bbolt.Open on f, which it takes over, also when it fails.
func (OS) OpenDB(f *os.File, o *bbolt.Options) (*bbolt.DB, error) {
	with := *o
	with.OpenFile = func(string, int, os.FileMode) (*os.File, error) { return f, nil }
	return bbolt.Open(f.Name(), 0o600, &with)
}

// Sync makes the content of f durable.
func (OS) Sync(f *os.File) error { return f.Sync() }

// WriteAt is f.WriteAt.
func (OS) WriteAt(f *os.File, b []byte, off int64) (int, error) { return f.WriteAt(b, off) }

// SyncData makes what WriteAt has written durable.
func (OS) SyncData(f *os.File) error { return syncData(f) }

// SyncDir makes the names in a folder durable.
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Rename is os.Rename.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Link is os.Link.
func (OS) Link(from, to string) error { return os.Link(from, to) }

// Remove is os.Remove.
func (OS) Remove(name string) error { return os.Remove(name) }

// Mkdir is os.Mkdir.
func (OS) Mkdir(name string, perm os.FileMode) error { return os.Mkdir(name, perm) }

// ReadDir is os.ReadDir.
func (OS) ReadDir(name string) ([]os.DirEntry, error) { return os.ReadDir(name) }

// Free asks the system.
func (OS) Free(dir string) int64 { return freeRoom(dir) }

// Stat is os.Lstat: a link in the spool is never followed.
func (OS) Stat(name string) (os.FileInfo, error) { return os.Lstat(name) }
