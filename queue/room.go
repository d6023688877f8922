package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// minCompact is the size below which a database is left as it is, in octets.
// Ours: not worth the writing.
const minCompact = 8 << 20

// compactTx is how many octets compaction moves in one transaction. Ours.
const compactTx = 4 << 20

// mostlyFree reports whether more than half of the database is free.
func (s *Bolt) mostlyFree() bool {
	size := s.size()
	return size > minCompact && int64(s.db.Stats().FreeAlloc) > size/2
}

// size is how much of the file is in use or free inside, in octets.
func (s *Bolt) size() (n int64) {
	s.view(func(v *view) error { n = v.tx.Size(); return nil })
	return n
}

// Compact writes the database anew without its free pages. Nothing else is read
// or written meanwhile. It gives the size before and after, in octets.
func (s *Bolt) Compact(ctx context.Context) (before, after int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	before = s.size()
	err = s.do(&job{apply: func(*txn) error { return nil }, alone: s.compact})
	return before, s.size(), err
}

// compact replaces the database by a copy. It runs on the loop, or in Open.
func (s *Bolt) compact() (err error) {
	defer s.guard("compact", &err)
	if err := s.checkpoint(); err != nil {
		return err
	}
	s.swap.Lock()
	defer s.swap.Unlock()
	name := s.path(newName)
	if err := s.fs.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := s.openLocked(newName)
	if err != nil {
		return err
	}
	fresh, err := s.fs.OpenDB(f, s.options())
	if err != nil {
		return err
	}
	err = bbolt.Compact(fresh, s.db, compactTx)
	if err == nil {
		// The old one keeps another name until that of the new one is on disk:
		// without a journal a file system may forget a file without names before it
		// knows the new name, and there was no database.
		s.fs.Remove(s.path(oldName))
		s.fs.Link(s.path(dbName), s.path(oldName))
		// The lock of the new one is held from before it gets the name: there is
		// no moment when another process could open the spool.
		err = s.fs.Rename(name, s.path(dbName))
	}
	if err != nil {
		s.fs.Remove(s.path(oldName))
		return errors.Join(err, fresh.Close(), s.fs.Remove(name))
	}
	old := s.db
	s.db, s.file = fresh, f
	// Should the new name be lost in a crash, the old file is there, and what
	// was committed since is not: so nothing is before this.
	if err := s.fs.SyncDir(s.dir); err != nil {
		s.setBroken(s.diskError(err))
		return err
	}
	// It is closed, and so its inode free for others, when the disk has no name for
	// it: a folder with that inode would have two.
	s.fs.Remove(s.path(oldName))
	return errors.Join(s.fs.SyncDir(s.dir), old.Close())
}

func (s *Bolt) reserveSize() int64 { return s.log.size * reserveHalves / 2 }

// hasRoom gives an error when fewer octets are free: filling the disk to see it
// would take the last room from others.
func (s *Bolt) hasRoom(octets int64) error {
	if free := s.fs.Free(s.dir); free < octets {
		return fmt.Errorf("%d KB are free, %d are needed: %w", free>>10, octets>>10, unix.ENOSPC)
	}
	return nil
}

// makeReserve fills a file that is given up when the disk is full: removing
// mail must write before it frees anything. Without room there is no reserve.
func (s *Bolt) makeReserve() error {
	name, size := s.path(reserveName), s.reserveSize()
	info, err := s.fs.Stat(name)
	if err == nil && info.Size() == size {
		s.reserve = true
		return nil
	}
	if err == nil {
		s.fs.Remove(name) // another size
	}
	if err := s.hasRoom(size); err != nil {
		return fmt.Errorf("%s: %w", reserveName, err)
	}
	f, err := s.fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", reserveName, plain(err))
	}
	// Octets that no file system stores as less than they are.
	b := make([]byte, 64<<10)
	r := rand.NewChaCha8([32]byte{})
	for n := int64(0); n < size && err == nil; n += int64(len(b)) {
		b = b[:min(int64(len(b)), size-n)]
		r.Read(b)
		_, err = f.Write(b)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.fs.Remove(name)
		return fmt.Errorf("%s: %w", reserveName, plain(err))
	}
	s.reserve = true
	return nil
}

// dropReserve gives the reserve up, and reports whether there was one.
func (s *Bolt) dropReserve() bool {
	had := s.reserve
	s.reserve = false
	s.fs.Remove(s.path(reserveName))
	return had
}

// trim lets go of the database's pages in the memory of this process: the map
// would otherwise count every page ever looked at as ours. The file cache of
// the system keeps them as long as it likes.
func (s *Bolt) trim() {
	s.view(func(v *view) error {
		unmapPages(s.db.Info().Data, uintptr(v.tx.Size()))
		return nil
	})
	s.looked.Store(0)
}
