package table

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Ways in which a map file can be unfit.
var (
	errNotMap  = errors.New("not a map made by makemap")
	errDamaged = errors.New("the map is damaged")
)

// boltMagic is the number in the meta page of bbolt, at offset 16.
const boltMagic = 0xED0CDAED

// mapKind tells what made a map file.
type mapKind int

const (
	kindUnknown mapKind = iota
	kindBolt
	kindBerkeley
)

// sniffMap tells a map file by its first octets.
func sniffMap(f *os.File) mapKind {
	var head [32]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return kindUnknown // too short for any map
	}
	if binary.NativeEndian.Uint32(head[16:]) == boltMagic {
		return kindBolt
	}
	if _, _, ok := berkeleyOrder(head[:]); ok {
		return kindBerkeley
	}
	return kindUnknown
}

// readMapFile calls yield for each entry of a map file of either kind.
func readMapFile(path string, yield func(key, value string) error) error {
	f, _, err := Opener(nil).openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return readMap(f, path, yield)
}

// readMap is readMapFile for a file that is open.
func readMap(f *os.File, path string, yield func(key, value string) error) (err error) {
	switch sniffMap(f) {
	case kindBolt:
		err = readBolt(f, path, yield)
	case kindBerkeley:
		err = readBerkeley(f, yield)
	default:
		err = errNotMap
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// lockWait bounds the wait for the lock of a map file that somebody writes in
// place, which makemap never does.
const lockWait = 2 * time.Second

// readBolt reads a map of ours. The file is input like any other: bbolt answers
// a damaged page with a panic, or touches a page that a shortened file has
// lost; both are turned into an error here.
func readBolt(f *os.File, path string, yield func(key, value string) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errDamaged
		}
	}()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: lockWait,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return duplicate(f) }})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		if fi, err := os.Stat(path); err != nil || fi.Size() < tx.Size() {
			return errDamaged // its end is missing
		}
		meta, data := tx.Bucket([]byte(bucketMeta)), tx.Bucket([]byte(bucketData))
		if meta == nil || data == nil || !bytes.Equal(meta.Get([]byte(keyFormat)), []byte(mapFormat)) {
			return errNotMap
		}
		return data.ForEach(func(k, v []byte) error {
			if len(k) > MaxKey || len(v) > MaxValue {
				return errDamaged
			}
			return yield(string(k), string(v))
		})
	})
}

// duplicate is a second descriptor of an open file.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
