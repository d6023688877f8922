package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"
)

// mendIfDamaged looks at a database before bbolt does. One that is damaged is
// replaced by a new one with all that could be found; the old file goes to
// corrupt/. f belongs to it; it gives the locked file to go on with.
func (s *Bolt) mendIfDamaged(f *os.File) (_ *os.File, err error) {
	m, err := mapImage(f)
	if err != nil {
		f.Close()
		return nil, s.refusal("map %s: %w", dbName, err)
	}
	defer m.release()
	damage := m.checkGuarded()
	if damage == nil {
		return f, nil
	}
	defer f.Close() // closing it unlocks it: last of all
	if err := m.foreign(); err != nil {
		return nil, s.refusal("%s is %w", dbName, err)
	}
	old := fmt.Sprintf("%s-%d", dbName, s.o.Now().Unix())
	found := m.salvage()
	if found.format > Format {
		return nil, s.refusal("format %d is newer than this smtpd understands (%d)", found.format, Format)
	}
	if err := s.rebuild(found); err != nil {
		return nil, s.refusal("%s is damaged (%w) and cannot be mended: %w", dbName, damage, err)
	}
	fresh, err := s.openLocked(newName)
	if err != nil {
		return nil, err
	}
	if err := s.replaceDB(old); err != nil {
		fresh.Close()
		return nil, s.refusal("%s is damaged (%w) and cannot be mended: %w", dbName, damage, err)
	}
	s.mended = true
	s.o.Moved(Moved{Name: old, Reason: fmt.Sprintf("%v; found again: %d messages, %d envelopes",
		damage, len(found.items[kindMessage]), len(found.items[kindEnvelope]))})
	return fresh, nil
}

// replaceDB puts the new database in the place of the old, which it keeps. At no
// moment is there neither.
func (s *Bolt) replaceDB(old string) error {
	if err := s.fs.Mkdir(s.path(corruptDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// A second name first: the rename below then never leaves a gap.
	if err := s.fs.Link(s.path(dbName), s.path(corruptDir, old)); err != nil {
		return err
	}
	if err := s.fs.SyncDir(s.path(corruptDir)); err != nil {
		return err
	}
	if err := s.fs.Rename(s.path(newName), s.path(dbName)); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// checkGuarded is check where a read error of the disk counts as damage.
func (m *image) checkGuarded() (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading failed: %v", r)
		}
	}()
	return m.check()
}

// foreign refuses a file that is no damaged database of ours but something else.
func (m *image) foreign() error {
	if len(m.trees()) > 0 {
		return nil
	}
	ne := binary.NativeEndian
	for size := 0; size <= 1<<16; size = max(1<<10, size<<1) {
		if len(m.b) >= size+pageHeader+4 && ne.Uint32(m.b[size+pageHeader:]) == metaMagic {
			return nil
		}
	}
	return errors.New("not a spool")
}

// span is a range of keys that could not be reached: from low up to, not
// including, high; nil is no bound.
type span struct{ low, high []byte }

func (p span) holds(key []byte) bool {
	return bytes.Compare(key, p.low) >= 0 && (p.high == nil || bytes.Compare(key, p.high) < 0)
}

// salvage is what was found in a damaged file. Values refer to the mapped file.
type salvage struct {
	m     *image
	items map[byte]map[string][]byte // kind -> key -> item with a right checksum
	bad   map[byte]map[string][]byte // items whose checksum is wrong
	lost  map[byte][]span
	aside map[string][]byte
	meta  map[string][]byte
	seen  map[uint64]bool // pages of the tree that is walked

	format uint32
}

var bucketKinds = map[string]byte{"env": kindEnvelope, "msg": kindMessage, "body": kindBody, "aside": 'a', "meta": 'M'}

// salvage finds what can be found: what the newest state still leads to, then
// in the gaps what the state before it had, then what lies about there and
// belongs to something that was found.
func (m *image) salvage() *salvage {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	v := &salvage{m: m, items: map[byte]map[string][]byte{}, bad: map[byte]map[string][]byte{},
		aside: map[string][]byte{}, meta: map[string][]byte{}}
	for _, k := range []byte{kindEnvelope, kindMessage, kindBody} {
		v.items[k], v.bad[k] = map[string][]byte{}, map[string][]byte{}
	}
	trees := m.trees()
	all := []span{{}}
	gaps := map[byte][]span{kindEnvelope: all, kindMessage: all, kindBody: all}
	for _, t := range trees {
		v.lost, v.seen = map[byte][]span{}, map[uint64]bool{}
		v.tree(t, gaps)
		gaps = v.lost
		if len(gaps) == 0 {
			break
		}
	}
	if len(trees) > 0 && len(gaps) > 0 {
		v.strays(trees[0], gaps)
	}
	if f := v.meta[string(metaFormat)]; len(f) == 4 {
		v.format = binary.BigEndian.Uint32(f)
	}
	return v
}

// guarded runs f and reports whether it got through.
func guarded(f func()) (ok bool) {
	defer func() { ok = recover() == nil }()
	f()
	return true
}

// tree walks one state. Items outside the gaps are known already.
func (v *salvage) tree(t tree, gaps map[byte][]span) {
	reached := map[byte]bool{}
	v.walk(t, t.root, 0, span{}, func(key, value []byte, bucket bool) {
		kind, ok := bucketKinds[string(key)]
		if !ok || len(value) < bucketSize || reached[kind] {
			return
		}
		reached[kind] = true
		take := func(key, value []byte, _ bool) { v.take(kind, key, value, gaps[kind]) }
		root := binary.NativeEndian.Uint64(value)
		if root != 0 {
			v.walk(t, root, 1, span{}, take, kind)
			return
		}
		if r, err := inlineBucket(value); err == nil {
			v.leaves(r, take)
		} else {
			v.lost[kind] = append(v.lost[kind], span{})
		}
	})
	for _, kind := range []byte{kindEnvelope, kindMessage, kindBody} {
		if !reached[kind] {
			v.lost[kind] = []span{{}}
		}
	}
}

// walk visits the leaves below a page; what cannot be reached is noted as lost
// for the kind, if one is given.
func (v *salvage) walk(t tree, id uint64, depth int, keys span, visit func(key, value []byte, bucket bool), kind ...byte) {
	ok := guarded(func() {
		r, err := v.m.page(t, id)
		if r.b == nil || v.seen[id] || depth > maxDepth {
			panic("out of reach")
		}
		v.seen[id] = true
		if r.flags == pageBranch {
			v.branches(t, r, depth, keys, visit, kind...)
			return
		}
		whole := v.leaves(r, visit)
		if err != nil || !whole {
			panic("in part")
		}
	})
	if !ok && len(kind) > 0 {
		v.lost[kind[0]] = append(v.lost[kind[0]], keys)
	}
}

func (v *salvage) branches(t tree, r run, depth int, keys span, visit func(key, value []byte, bucket bool), kind ...byte) {
	for i := range min(r.count, len(r.b)/elemSize) {
		key, child, err := r.branch(i)
		part := span{keys.low, keys.high}
		if err == nil && i > 0 {
			part.low = key
		}
		if next, _, nerr := r.branch(i + 1); nerr == nil && i+1 < r.count {
			part.high = next
		}
		v.walk(t, child, depth+1, part, visit, kind...)
	}
	if r.count == 0 {
		panic("empty")
	}
}

// leaves visits the elements of a leaf that lie inside it, and reports whether
// all do.
func (v *salvage) leaves(r run, visit func(key, value []byte, bucket bool)) bool {
	whole := r.flags == pageLeaf
	for i := range min(r.count, len(r.b)/elemSize) {
		key, value, bucket, err := r.leaf(i)
		if err != nil {
			whole = false
			continue
		}
		visit(key, value, bucket)
	}
	return whole
}

// take keeps an item that nobody has found yet.
func (v *salvage) take(kind byte, key, value []byte, gaps []span) {
	switch kind {
	case 'a':
		v.keep(v.aside, key, value)
		return
	case 'M':
		v.keep(v.meta, key, value)
		return
	}
	inside := false
	for _, g := range gaps {
		inside = inside || g.holds(key)
	}
	if !inside {
		return
	}
	if itemWhole(kind, key, value) {
		v.keep(v.items[kind], key, value)
	} else if len(key) == keySize(kind) {
		v.keep(v.bad[kind], key, value)
	}
}

func (v *salvage) keep(m map[string][]byte, key, value []byte) {
	if _, ok := m[string(key)]; !ok {
		m[string(key)] = value
	}
}

func keySize(kind byte) int {
	if kind == kindEnvelope {
		return 8
	}
	return 4
}

func itemWhole(kind byte, key, item []byte) bool {
	return len(key) == keySize(kind) && len(item) >= 5 &&
		itemSum(kind, key, item[:len(item)-4]) == binary.BigEndian.Uint32(item[len(item)-4:])
}

// strays looks through all pages that nothing leads to for items in the gaps. A
// page may be an old one, so an item counts only when something that was
// reached wants it: a body or a record, when its envelopes are there; an
// envelope, when its message is. An old envelope that was delivered since may
// be among them: twice is better than never.
func (v *salvage) strays(t tree, gaps map[byte][]span) {
	wanted := v.wanted()
	for id := uint64(2); id < min(t.limit, uint64(len(v.m.b)/v.m.pageSize)); id++ {
		if v.seen[id] {
			continue
		}
		guarded(func() {
			r, err := v.m.page(t, id)
			if err != nil || r.flags != pageLeaf {
				return
			}
			v.leaves(r, func(key, value []byte, _ bool) {
				if len(key) < 4 || !wanted[string(key[:4])] {
					return
				}
				for _, kind := range []byte{kindEnvelope, kindMessage, kindBody} {
					if itemWhole(kind, key, value) {
						v.take(kind, key, value, gaps[kind])
					}
				}
			})
		})
	}
}

// wanted are the messages of which something was reached that has not been
// delivered and removed.
func (v *salvage) wanted() map[string]bool {
	w := map[string]bool{}
	for _, kind := range []byte{kindEnvelope, kindMessage} {
		for key := range v.items[kind] {
			w[key[:4]] = true
		}
	}
	return w
}

// rebuild writes what was found to a new database.
func (s *Bolt) rebuild(v *salvage) error {
	if err := s.fs.Remove(s.path(newName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := s.openLocked(newName)
	if err != nil {
		return err
	}
	o := s.options()
	o.InitialMmapSize = 0
	db, err := s.fs.OpenDB(f, o)
	if err != nil {
		return err
	}
	v.keepBad()
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists(bucketMeta)
		if err != nil {
			return err
		}
		v.meta[string(metaFormat)] = binary.BigEndian.AppendUint32(nil, Format)
		v.meta[string(metaIDs)] = v.nextID()
		return putAll(meta, v.meta)
	})
	for name, items := range map[string]map[string][]byte{"env": v.items[kindEnvelope], "msg": v.items[kindMessage],
		"body": v.items[kindBody], "aside": v.aside} {
		if err == nil {
			err = fill(db, []byte(name), items)
		}
	}
	return errors.Join(err, db.Close())
}

// nextID is an id behind all that are in use.
func (v *salvage) nextID() []byte {
	old := v.meta[string(metaIDs)]
	if len(old) == 4 {
		return old
	}
	var next uint32
	for key := range v.items[kindMessage] {
		next = max(next, binary.BigEndian.Uint32([]byte(key)))
	}
	return binary.BigEndian.AppendUint32(nil, next+1+idBlock)
}

// keepBad takes over items that are damaged themselves and of which there is no
// whole copy: who reads them moves them aside, with what belongs to them.
func (v *salvage) keepBad() {
	for kind, items := range v.bad {
		for key, value := range items {
			v.keep(v.items[kind], []byte(key), value)
		}
	}
}

func putAll(b *bbolt.Bucket, items map[string][]byte) error {
	for k, v := range items {
		if err := b.Put([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}

// fillBatch bounds the octets of one transaction of fill.
const fillBatch = 8 << 20

// fill puts items into a bucket, in several transactions.
func fill(db *bbolt.DB, bucket []byte, items map[string][]byte) error {
	batch, size := map[string][]byte{}, 0
	flush := func() error {
		defer func() { batch, size = map[string][]byte{}, 0 }()
		return db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bucket)
			if err != nil {
				return err
			}
			return putAll(b, batch)
		})
	}
	for k, v := range items {
		batch[k] = v
		if size += len(v); size > fillBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
