package table

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
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
func sniffMap(path string) (mapKind, error) {
	f, err := os.Open(path)
	if err != nil {
		return kindUnknown, err
	}
	defer f.Close()
	var head [32]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return kindUnknown, nil // too short for any map
	}
	if binary.NativeEndian.Uint32(head[16:]) == boltMagic {
		return kindBolt, nil
	}
	if _, _, ok := berkeleyOrder(head[:]); ok {
		return kindBerkeley, nil
	}
	return kindUnknown, nil
}

// isMapFile reports whether the file is a map, ours or one of Berkeley DB,
// rather than text.
func isMapFile(path string) (bool, error) {
	kind, err := sniffMap(path)
	return kind != kindUnknown, err
}

// readMapFile calls yield for each entry of a map file of either kind.
func readMapFile(path string, yield func(key, value string) error) error {
	kind, err := sniffMap(path)
	if err != nil {
		return err
	}
	switch kind {
	case kindBolt:
		err = readBolt(path, yield)
	case kindBerkeley:
		err = readBerkeley(path, yield)
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
func readBolt(path string, yield func(key, value string) error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			err = errDamaged
		}
	}()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: lockWait})
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
