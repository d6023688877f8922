package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// logReader reads a log as it was left, without any trust in it.
//
// A record is used when its number is greater than that of the one before, and
// than what the database says it has: what lies there from before the log was
// begun anew has lesser ones. To carry out again what the database has does no
// harm, as operations set and delete and each record is followed by all later
// ones.
//
// One wrong octet is put right, wherever it is. What cannot be put right was
// being written when the power failed, unless a newer record follows: that one
// was written after this one had been acknowledged. Then this one is damaged,
// and what can still be read of it is used.
type logReader struct {
	b    []byte
	salt [saltSize]byte
	last uint64 // the greatest number seen
	over *layer // what the records add up to

	mended  int    // octets that were put right
	damaged int    // records, or places between records, that could not be
	torn    []torn // records that are not whole, since the last whole one
	gap     bool   // something is between the last whole record and here
	foreign bool   // it is no log
	other   bool   // it is the log of another database, and not used
}

// torn is a record that is not whole.
type torn struct {
	seq uint64
	ops []byte
}

// readRecords reads the log b. Records up to the number known are in the
// database.
func readRecords(b []byte, known uint64) *logReader {
	r := &logReader{b: b, last: known, over: &layer{}}
	if !r.header() {
		r.foreign = len(bytes.TrimRight(b, "\x00")) > 0
		return r
	}
	for at := logBlock; at+recordHead <= len(b); {
		at += r.record(at)
	}
	return r
}

// header reads the salt: from the first record, when the header is beyond repair.
func (r *logReader) header() bool {
	if len(r.b) < logBlock {
		return false
	}
	h := bytes.Clone(r.b[:logHead])
	right := func(b []byte) bool { return string(b[:len(logMagic)]) == logMagic && sumAtEnd(b) }
	whole := right(h)
	if whole || mendOctet(h, right) {
		if !whole {
			r.mended++
		}
		copy(r.salt[:], h[len(logMagic)+4:])
		return true
	}
	if len(r.b) >= logBlock+recordHead && sumAtEnd(r.b[logBlock:][:recordHead]) {
		copy(r.salt[:], r.b[logBlock:])
		r.damaged++
	}
	return r.salt != [saltSize]byte{}
}

// record reads what begins at an offset, and says how far it goes.
func (r *logReader) record(at int) int {
	h, mended := r.head(r.b[at:][:recordHead])
	if h == nil {
		r.gap = true
		return logBlock
	}
	seq, size := binary.BigEndian.Uint64(h[saltSize:]), int64(binary.BigEndian.Uint32(h[saltSize+8:]))
	if seq <= r.last || size > int64(len(r.b)-at-recordHead) {
		r.gap = true
		return logBlock
	}
	ops := r.b[at+recordHead:][:size]
	c, ieee := binary.BigEndian.Uint32(h[saltSize+12:]), binary.BigEndian.Uint32(h[saltSize+16:])
	if crc32.Checksum(ops, castagnoli()) != c || crc32.ChecksumIEEE(ops) != ieee {
		right := mendSum(ops, c)
		if right == nil || crc32.ChecksumIEEE(right) != ieee {
			r.torn = append(r.torn, torn{seq, ops})
			r.gap = true
			return logBlock
		}
		ops, mended = right, true
	}
	if mended {
		r.mended++
	}
	if r.gap { // there was damage, then
		r.damaged++
		for _, t := range r.torn {
			if t.seq < seq { // a greater one is the newest of all, and was being written
				r.carryOut(t.ops)
			}
		}
	}
	r.last, r.gap, r.torn = seq, false, nil
	if !r.carryOut(ops) {
		r.damaged++
	}
	return int(blocks(int64(recordHead) + size))
}

// head gives the head of a record, with one wrong octet put right; nil: it is
// none.
func (r *logReader) head(b []byte) (h []byte, mended bool) {
	wrong := 0
	for i := range r.salt {
		if b[i] != r.salt[i] {
			wrong++
		}
	}
	switch {
	case wrong == 0 && sumAtEnd(b):
		return b, false
	case wrong > 1:
		return nil, false
	}
	h = bytes.Clone(b)
	copy(h, r.salt[:])
	if sumAtEnd(h) || (wrong == 0 && mendOctet(h, sumAtEnd)) {
		return h, true
	}
	return nil, false
}

// carryOut carries out operations, as far as they make sense. An item with a
// wrong checksum is used too: who reads it names it and moves it aside.
func (r *logReader) carryOut(ops []byte) bool {
	for len(ops) > 0 {
		b := bucket(ops[0] &^ opDelete)
		gone := ops[0]&opDelete != 0
		key, rest, ok := cutString(ops[1:])
		if !ok || b >= buckets || !keyFits(key) {
			return false
		}
		e := entry{key: string(key), under: true}
		if !gone {
			if e.item, rest, ok = cutString(rest); !ok {
				return false
			}
			e.under = false
		}
		r.over.set(b, e)
		ops = rest
	}
	return true
}

// cutString takes a string with its length before it off b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)-k) {
		return nil, nil, false
	}
	return b[k:][:n:n], b[uint64(k)+n:], true
}

// keyFits reports whether the database can hold a key.
func keyFits(key []byte) bool { return len(key) > 0 && len(key) <= bbolt.MaxKeySize }

// sumAtEnd reports whether b ends with the CRC32C of what is before.
func sumAtEnd(b []byte) bool {
	n := len(b) - 4
	return crc32.Checksum(b[:n], castagnoli()) == binary.BigEndian.Uint32(b[n:])
}

// mendOctet makes b right by changing at most one octet of it; otherwise b is as
// it was.
func mendOctet(b []byte, right func([]byte) bool) bool {
	if right(b) {
		return true
	}
	for i, was := range b {
		for x := 1; x < 256; x++ {
			if b[i] = was ^ byte(x); right(b) {
				return true
			}
		}
		b[i] = was
	}
	return false
}

// mendSum finds the one octet of b that makes its CRC32C what it should be, and
// gives b with it put right; nil: there is none. The difference of two sums
// depends on the wrong octet and the number of octets behind it alone, so it is
// followed back from the end until it is that of an octet with none behind.
func mendSum(b []byte, want uint32) []byte {
	table := castagnoli()
	var back [256]byte // the index of an entry by its first octet, which no two share
	for i, v := range table {
		back[v>>24] = byte(i)
	}
	diff := crc32.Checksum(b, table) ^ want
	for at := len(b) - 1; at >= 0 && diff != 0; at-- {
		i := back[diff>>24]
		if table[i] == diff {
			right := bytes.Clone(b)
			right[at] ^= i
			return right
		}
		diff = (diff^table[i])<<8 | uint32(i)
	}
	return nil
}

// readLog reads the log that the last store left, and lays what it holds over
// the database. It changes nothing.
func (s *Bolt) readLog() (*logReader, error) {
	s.over = &layer{}
	err := s.db.View(func(tx *bbolt.Tx) error {
		s.log.seq, s.log.bound = inDatabase(tx)
		return nil
	})
	if err != nil {
		return nil, err
	}
	f, err := s.fs.OpenFile(s.path(logName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return &logReader{over: s.over}, nil
	}
	if err != nil {
		return nil, s.refusal("%s: %w", logName, plain(err))
	}
	defer f.Close()
	b, err := readBlocks(f)
	if err != nil {
		return nil, s.refusal("%s: %w", logName, plain(err))
	}
	known := s.log.seq
	if s.mended {
		known = 0 // what the database had, and has no more, may be in the log still
	}
	r := readRecords(b, known)
	none := [saltSize]byte{}
	switch {
	case r.salt == none:
	case s.log.bound == none:
		s.log.bound = r.salt
	case s.log.bound != r.salt: // another one's, unless it was just made
		r = &logReader{other: readRecords(b, 0).over.count > 0, over: &layer{}}
	}
	s.over, s.log.seq, s.log.salt = r.over, max(r.last, s.log.seq), r.salt
	return r, nil
}

// readBlocks reads a whole log. A block that the disk does not give is zeros.
func readBlocks(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(info.Size(), maxLogSize))
	for at := 0; at < len(b); at += logBlock {
		if _, err := f.ReadAt(b[at:min(at+logBlock, len(b))], int64(at)); err != nil && !errors.Is(err, io.EOF) {
			clear(b[at:min(at+logBlock, len(b))])
		}
	}
	return b, nil
}

// tellOfLog says what was wrong with the log that was read, in whose place comes a
// new one then. One with damage that could not be put right is kept aside. Its records are in the database.
func (s *Bolt) tellOfLog(r *logReader) error {
	if r.foreign || r.other || r.damaged > 0 || r.mended > 0 {
		s.log.salt = [saltSize]byte{} // a new one is made
	}
	switch {
	case r.foreign || r.other || r.damaged > 0:
		name := fmt.Sprintf("%s-%d", logName, s.o.Now().Unix())
		reason := fmt.Sprintf("damaged in %d places; what could be read there is in the queue", r.damaged)
		if r.foreign {
			reason = "it is no log"
		}
		if r.other {
			reason = "it is the log of another queue.db; nothing of it is in the queue"
		}
		if err := s.fs.Rename(s.path(logName), s.path(corruptDir, name)); err != nil {
			return err
		}
		s.o.Moved(Moved{Name: name, Reason: reason})
	case r.mended > 0:
		s.o.Moved(Moved{Name: logName, Reason: fmt.Sprintf("wrong octets: %d", r.mended), Mended: true})
	}
	return nil
}
