package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The layout of a bbolt file (its internal/common, version 2), in the byte
// order of the machine.
const (
	pageHeader  = 16 // id u64, flags u16, count u16, overflow u32
	elemSize    = 16 // branch: pos u32, ksize u32, page u64; leaf: flags, pos, ksize, vsize u32
	bucketSize  = 16 // root u64, sequence u64
	metaSize    = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	pageBranch  = 0x01
	pageLeaf    = 0x02
	elemBucket  = 0x01
	maxDepth    = 32 // ours: levels of a tree; 32 hold more than any disk
)

// image is a database file as it lies on disk, read without any trust in it:
// bbolt itself believes what it reads, and a wrong page ends the process.
type image struct {
	b        []byte
	pageSize int
}

// tree is one state of the database: that of one meta page.
type tree struct {
	root, limit uint64 // page of the root bucket; pages in use are below limit
	txid        uint64
}

// mapImage maps a file for reading. Unmap it with release.
func mapImage(f *os.File) (*image, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return &image{}, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return &image{b: b}, nil
}

func (m *image) release() {
	if m.b != nil {
		unix.Munmap(m.b)
	}
}

// trees finds the states that the file holds, the newest first: a commit leaves
// the one before it whole. A meta page with one wrong octet is put right, for
// falling back on the state before it would lose what was acknowledged last;
// what was wrong is the error.
func (m *image) trees() (t []tree, err error) {
	for size := 1 << 10; size <= 1<<16 && m.pageSize == 0; size <<= 1 {
		if _, s, ok := m.meta(size); ok && s == size {
			m.pageSize = size
		}
	}
	if _, size, ok := m.meta(0); ok {
		m.pageSize = size
	}
	if m.pageSize == 0 {
		return nil, errors.New("no meta page is whole")
	}
	for _, at := range []int{0, m.pageSize} {
		one, size, ok := m.meta(at)
		if !ok {
			if one, size, ok = m.mendMeta(at); ok {
				err = errors.New("a meta page was wrong")
			}
		}
		if ok && size == m.pageSize {
			t = append(t, one)
		}
	}
	if len(t) == 2 && t[1].txid > t[0].txid {
		t[0], t[1] = t[1], t[0]
	}
	return t, err
}

// meta reads the meta page at an offset.
func (m *image) meta(at int) (t tree, pageSize int, ok bool) {
	if len(m.b) < at+pageHeader+metaSize {
		return t, 0, false
	}
	return parseMeta(m.b[at+pageHeader:][:metaSize])
}

func parseMeta(b []byte) (t tree, pageSize int, ok bool) {
	ne := binary.NativeEndian
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	pageSize = int(ne.Uint32(b[8:]))
	if ne.Uint32(b) != metaMagic || ne.Uint32(b[4:]) != metaVersion || ne.Uint64(b[56:]) != h.Sum64() ||
		pageSize < 1<<10 || pageSize > 1<<16 || pageSize&(pageSize-1) != 0 {
		return t, 0, false
	}
	return tree{root: ne.Uint64(b[16:]), limit: ne.Uint64(b[40:]), txid: ne.Uint64(b[48:])}, pageSize, true
}

// mendMeta looks for the one octet that makes a meta page right.
func (m *image) mendMeta(at int) (t tree, pageSize int, ok bool) {
	if len(m.b) < at+pageHeader+metaSize {
		return t, 0, false
	}
	b := bytes.Clone(m.b[at+pageHeader:][:metaSize])
	for i := range b {
		was := b[i]
		for x := 1; x < 256; x++ {
			b[i] = was ^ byte(x)
			if t, pageSize, ok = parseMeta(b); ok {
				return t, pageSize, true
			}
		}
		b[i] = was
	}
	return t, 0, false
}

// run is a page with its overflow.
type run struct {
	id    uint64
	flags uint16
	count int
	b     []byte // the whole run, header included
}

// page reads page id of a tree. With an error, the run is as far as it goes.
func (m *image) page(t tree, id uint64) (run, error) {
	if id < 2 || id >= t.limit || id >= uint64(len(m.b)/m.pageSize) {
		return run{}, fmt.Errorf("page %d is outside", id)
	}
	b := m.b[int(id)*m.pageSize:]
	ne := binary.NativeEndian
	r := run{id: id, flags: ne.Uint16(b[8:]), count: int(ne.Uint16(b[10:]))}
	pages := uint64(ne.Uint32(b[12:])) + 1
	if pages > t.limit-id || pages*uint64(m.pageSize) > uint64(len(b)) {
		r.b = b[:min(len(b), 64*m.pageSize)] // how far it went is lost; items are checked
		return r, fmt.Errorf("page %d overflows", id)
	}
	r.b = b[:int(pages)*m.pageSize]
	switch {
	case ne.Uint64(b) != id:
		return r, fmt.Errorf("page %d says it is %d", id, ne.Uint64(b))
	case r.flags != pageBranch && r.flags != pageLeaf:
		return r, fmt.Errorf("page %d is of no kind", id)
	case pageHeader+r.count*elemSize > len(r.b):
		return r, fmt.Errorf("page %d holds too much", id)
	}
	return r, nil
}

var errElem = errors.New("an element is outside its page")

// start is where the data of element i begins; its field pos is at octet field
// of the element. It may lie anywhere.
func (r *run) start(i, field int) int {
	at := pageHeader + i*elemSize
	return at + int(binary.NativeEndian.Uint32(r.b[at+field:]))
}

// leaf reads element i of a leaf page.
func (r *run) leaf(i int) (key, value []byte, bucket bool, err error) {
	at := pageHeader + i*elemSize
	if at+elemSize > len(r.b) {
		return nil, nil, false, errElem
	}
	ne, e := binary.NativeEndian, r.b[at:]
	flags, pos, k, v := ne.Uint32(e), uint64(ne.Uint32(e[4:])), uint64(ne.Uint32(e[8:])), uint64(ne.Uint32(e[12:]))
	start := uint64(at) + pos
	if start+k+v > uint64(len(r.b)) || flags&^elemBucket != 0 || start < uint64(pageHeader+r.count*elemSize) {
		return nil, nil, false, errElem
	}
	return r.b[start : start+k], r.b[start+k : start+k+v], flags == elemBucket, nil
}

// branch reads element i of a branch page.
func (r *run) branch(i int) (key []byte, child uint64, err error) {
	at := pageHeader + i*elemSize
	if at+elemSize > len(r.b) {
		return nil, 0, errElem
	}
	ne, e := binary.NativeEndian, r.b[at:]
	pos, k := uint64(ne.Uint32(e)), uint64(ne.Uint32(e[4:]))
	start := uint64(at) + pos
	if start+k > uint64(len(r.b)) || start < uint64(pageHeader+r.count*elemSize) {
		return nil, ne.Uint64(e[8:]), errElem
	}
	return r.b[start : start+k], ne.Uint64(e[8:]), nil
}

// checker walks a tree and stops at the first thing that is wrong.
type checker struct {
	m    *image
	t    tree
	seen []uint64 // bits: pages that somebody refers to
	keys map[byte][]uint32
}

// check reports what is wrong with the newest state in the file, as far as the
// way to its items goes; the items have checksums of their own.
func (m *image) check() error {
	if len(m.b) == 0 {
		return nil
	}
	trees, err := m.trees()
	if err != nil {
		return err
	}
	t := trees[0]
	if t.limit > uint64(len(m.b)/m.pageSize) {
		return errors.New("the file is cut short")
	}
	c := &checker{m: m, t: t, seen: make([]uint64, t.limit/64+1), keys: map[byte][]uint32{}}
	if err := c.walk(t.root, nil, nil, 0, rootPage); err != nil {
		return err
	}
	return c.agree()
}

// rootPage is the kind of the pages that hold the buckets themselves.
const rootPage = 'R'

// agree compares the buckets: a message has envelopes, an envelope a message, a
// body a message. A wrong way to whole pages shows here.
func (c *checker) agree() error {
	msgs := c.keys[kindMessage]
	if !slices.Equal(slices.Compact(c.keys[kindEnvelope]), msgs) {
		return errors.New("messages and envelopes do not agree")
	}
	i := 0
	for _, id := range c.keys[kindBody] {
		for i < len(msgs) && msgs[i] < id {
			i++
		}
		if i == len(msgs) || msgs[i] != id {
			return errors.New("messages and bodies do not agree")
		}
	}
	return nil
}

// mark notes the pages of r; each belongs to one owner.
func (c *checker) mark(r run) error {
	for i := range uint64(len(r.b) / c.m.pageSize) {
		id := r.id + i
		if c.seen[id/64]&(1<<(id%64)) != 0 {
			return fmt.Errorf("page %d is used twice", id)
		}
		c.seen[id/64] |= 1 << (id % 64)
	}
	return nil
}

// walk checks the subtree at page id, whose keys are in [low, high).
func (c *checker) walk(id uint64, low, high []byte, depth int, kind byte) error {
	r, err := c.m.page(c.t, id)
	if err == nil {
		err = c.mark(r)
	}
	if err != nil {
		return err
	}
	if depth > maxDepth || (r.flags == pageBranch && r.count == 0) {
		return fmt.Errorf("page %d: the tree is malformed", id)
	}
	if r.flags == pageBranch {
		err = c.branches(r, low, high, depth, kind)
	} else {
		err = c.leaves(r, low, high, depth, kind)
	}
	if err != nil && depth == 0 {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return err
}

// order compares a key with its neighbours.
func order(key, low, high []byte, first bool) error {
	cmp := bytes.Compare(key, low)
	if (low != nil && (cmp < 0 || (cmp == 0 && !first))) || (high != nil && bytes.Compare(key, high) >= 0) {
		return errors.New("keys are out of order")
	}
	return nil
}

func (c *checker) branches(r run, low, high []byte, depth int, kind byte) error {
	at := pageHeader + r.count*elemSize // keys follow each other without gaps
	for i := range r.count {
		key, child, err := r.branch(i)
		if err == nil && r.start(i, 0) != at {
			err = errElem
		}
		if err == nil {
			err = order(key, low, high, i == 0)
		}
		if err != nil {
			return err
		}
		at += len(key)
		next := high
		if i+1 < r.count {
			if next, _, err = r.branch(i + 1); err != nil {
				return err
			}
		}
		if err := c.walk(child, key, next, depth+1, kind); err != nil {
			return err
		}
		low = key
	}
	return nil
}

func (c *checker) leaves(r run, low, high []byte, depth int, kind byte) error {
	at := pageHeader + r.count*elemSize // what keys and values begin behind
	for i := range r.count {
		key, value, bucket, err := r.leaf(i)
		if err == nil && r.start(i, 4) != at {
			err = errElem
		}
		if err == nil {
			err = order(key, low, high, i == 0)
		}
		if err == nil && bucket != (kind == rootPage) {
			err = errors.New("a bucket where none is, or none where one is")
		}
		if err == nil && bucket {
			err = c.bucket(key, value, depth)
		}
		if err != nil {
			return err
		}
		if len(key) == keySize(kind) && (kind == kindEnvelope || kind == kindMessage || kind == kindBody) {
			c.keys[kind] = append(c.keys[kind], binary.BigEndian.Uint32(key))
		}
		at += len(key) + len(value)
		low = key
	}
	return nil
}

// bucket checks the value that stands for a bucket.
func (c *checker) bucket(name, value []byte, depth int) error {
	kind, ok := bucketKinds[string(name)]
	if !ok || len(value) < bucketSize {
		return fmt.Errorf("bucket %q is not one of ours", name)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.walk(root, nil, nil, depth+1, kind)
	}
	r, err := inlineBucket(value)
	if err != nil {
		return err
	}
	return c.leaves(r, nil, nil, depth, kind)
}

// bucketKinds are the kinds of what is in the buckets.
var bucketKinds = map[string]byte{"env": kindEnvelope, "msg": kindMessage, "body": kindBody, "aside": 'a', "meta": 'M'}

// inlineBucket is the page inside the value of a small bucket.
func inlineBucket(value []byte) (run, error) {
	b := value[bucketSize:]
	if len(b) < pageHeader {
		return run{}, errElem
	}
	r := run{flags: binary.NativeEndian.Uint16(b[8:]), count: int(binary.NativeEndian.Uint16(b[10:])), b: b}
	if r.flags != pageLeaf || pageHeader+r.count*elemSize > len(b) {
		return r, errElem
	}
	return r, nil
}
