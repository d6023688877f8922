package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"go.etcd.io/bbolt"

	"smtpd/internal/mail"
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
	if m.foreign() {
		return nil, s.refusal("%s is not a spool", dbName)
	}
	found := m.salvage()
	if found.format > Format {
		return nil, s.refusal("format %d is newer than this smtpd understands (%d)", found.format, Format)
	}
	if err := s.checkKey(found.meta[string(metaKey)], len(found.items[kindMessage]) == 0); err != nil {
		return nil, err
	}
	moved := s.orphans(found)
	old := fmt.Sprintf("%s-%d", dbName, s.o.Now().Unix())
	fresh, err := s.replaceDB(found, old)
	if err != nil {
		return nil, s.refusal("%s is damaged (%w) and cannot be mended: %w", dbName, damage, err)
	}
	s.mended = true
	s.o.Moved(Moved{Name: old, Reason: fmt.Sprintf("%v; found again: %d messages, %d envelopes",
		damage, len(found.items[kindMessage]), len(found.items[kindEnvelope]))})
	for _, m := range moved {
		s.o.Moved(m)
	}
	return fresh, nil
}

// replaceDB writes what was found and puts it in the place of the old database,
// which it keeps. At no moment is there neither.
func (s *Bolt) replaceDB(v *salvage, old string) (*os.File, error) {
	if err := s.rebuild(v); err != nil {
		return nil, err
	}
	if err := s.fs.Mkdir(s.path(corruptDir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	fresh, err := s.openLocked(newName)
	if err != nil {
		return nil, err
	}
	// A second name first: the rename below then never leaves a gap.
	err = s.fs.Link(s.path(dbName), s.path(corruptDir, old))
	if errors.Is(err, os.ErrExist) {
		err = nil // an attempt at mending was cut off in this very second
	}
	if err == nil {
		err = s.fs.SyncDir(s.path(corruptDir))
	}
	if err == nil {
		err = s.fs.Rename(s.path(newName), s.path(dbName))
	}
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		fresh.Close()
		return nil, err
	}
	return fresh, nil
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

// foreign tells a file that is no damaged database, but something else.
func (m *image) foreign() bool {
	if t, _ := m.trees(); len(t) > 0 {
		return false
	}
	ne := binary.NativeEndian
	for at := 0; at <= 1<<16; at = max(1<<10, at<<1) {
		if len(m.b) >= at+pageHeader+4 && ne.Uint32(m.b[at+pageHeader:]) == metaMagic {
			return false
		}
	}
	return true
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
	aside map[string][]byte
	meta  map[string][]byte

	// Of the tree that is walked.
	tree tree
	lost map[byte][]span
	seen map[uint64]bool

	format uint32
}

// itemKinds are the kinds whose items have a checksum.
var itemKinds = [...]byte{kindEnvelope, kindMessage, kindBody}

// salvage finds what can be found: what the newest state still leads to, then
// in the gaps what the state before it had, then what lies about there and
// belongs to something that was found.
func (m *image) salvage() *salvage {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	v := &salvage{m: m, items: map[byte]map[string][]byte{}, bad: map[byte]map[string][]byte{},
		aside: map[string][]byte{}, meta: map[string][]byte{}}
	gaps := map[byte][]span{}
	for _, k := range itemKinds {
		v.items[k], v.bad[k] = map[string][]byte{}, map[string][]byte{}
		gaps[k] = []span{{}}
	}
	trees, _ := m.trees()
	for _, t := range trees {
		v.tree, v.lost, v.seen = t, map[byte][]span{}, map[uint64]bool{}
		v.buckets(gaps)
		if gaps = v.lost; len(gaps) == 0 {
			break
		}
	}
	if len(gaps) > 0 && len(trees) > 0 {
		v.tree = trees[0] // which knows all pages
		v.strays(gaps)
	}
	v.mendKeys()
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

// buckets walks one state. Items outside the gaps are known already.
func (v *salvage) buckets(gaps map[byte][]span) {
	reached := map[byte]bool{}
	v.walk(v.tree.root, 0, span{}, rootPage, func(r run) {
		for i := range r.elements(4) {
			key, value, ok := r.data(i)
			kind := bucketNamed(key)
			if !ok || kind == 0 || len(value) < bucketSize || reached[kind] {
				continue
			}
			reached[kind] = true
			take := func(r run) { v.leaves(r, kind, gaps[kind]) }
			if root := binary.NativeEndian.Uint64(value); root != 0 {
				v.walk(root, 1, span{}, kind, take)
			} else if len(value) > bucketSize+pageHeader {
				b := value[bucketSize:]
				take(run{flags: pageLeaf, count: int(binary.NativeEndian.Uint16(b[10:])), b: b})
			}
		}
	})
	for _, kind := range itemKinds {
		if !reached[kind] {
			v.lost[kind] = []span{{}}
		}
	}
}

// bucketNamed is the kind of a bucket whose name has at most one wrong octet.
func bucketNamed(name []byte) byte {
	for known, kind := range bucketKinds {
		wrong := 0
		for i := range min(len(known), len(name)) {
			if name[i] != known[i] {
				wrong++
			}
		}
		if len(name) == len(known) && wrong <= 1 {
			return kind
		}
	}
	return 0
}

// walk visits the leaves below a page; what cannot be reached is noted as lost.
func (v *salvage) walk(id uint64, depth int, keys span, kind byte, visit func(run)) {
	ok := guarded(func() {
		r, err := v.m.page(v.tree, id)
		if r.b == nil || v.seen[id] || depth > maxDepth {
			panic("out of reach")
		}
		v.seen[id] = true
		if r.flags != pageBranch {
			visit(r)
			if err != nil {
				panic("in part")
			}
			return
		}
		n := r.elements(0)
		for i := range n {
			part := keys
			if key, ok := r.key(i); ok && i > 0 {
				part.low = key
			}
			if key, ok := r.key(i + 1); ok && i+1 < n {
				part.high = key
			}
			at := pageHeader + i*elemSize
			v.walk(binary.NativeEndian.Uint64(r.b[at+8:]), depth+1, part, kind, visit)
		}
		if n == 0 {
			panic("nothing below")
		}
	})
	if !ok && kind != rootPage {
		v.lost[kind] = append(v.lost[kind], keys)
	}
}

// elements is how many elements a page has, as far as can be told: what its
// header says, or where its first data begin; pos is at octet field of an
// element. More than there are do no harm.
func (r *run) elements(field int) int {
	room := (len(r.b) - pageHeader) / elemSize
	n := r.count
	if room > 0 {
		if d := r.start(0, field) - pageHeader; d%elemSize == 0 && d/elemSize <= room && (d/elemSize > n || n > room) {
			n = d / elemSize
		}
	}
	return min(n, room)
}

// key is the key of element i of a branch page.
func (r *run) key(i int) ([]byte, bool) {
	at := pageHeader + i*elemSize
	if at+elemSize > len(r.b) {
		return nil, false
	}
	start, size := uint64(r.start(i, 0)), uint64(binary.NativeEndian.Uint32(r.b[at+4:]))
	if start+size > uint64(len(r.b)) {
		return nil, false
	}
	return r.b[start : start+size], true
}

// data is key and value of element i of a leaf page.
func (r *run) data(i int) (key, value []byte, ok bool) {
	at := pageHeader + i*elemSize
	if at+elemSize > len(r.b) {
		return nil, nil, false
	}
	ne := binary.NativeEndian
	start, k, n := uint64(r.start(i, 4)), uint64(ne.Uint32(r.b[at+8:])), uint64(ne.Uint32(r.b[at+12:]))
	if start+k+n > uint64(len(r.b)) {
		return nil, nil, false
	}
	return r.b[start : start+k], r.b[start+k : start+k+n], true
}

// leaves takes the elements of a leaf page. Where the place or the length of an
// item makes no sense its neighbours tell them: items lie side by side.
func (v *salvage) leaves(r run, kind byte, gaps []span) {
	n := r.elements(4)
	before := pageHeader + n*elemSize // end of the item before
	for i := range n {
		key, value, ok := r.data(i)
		if kind == 'a' || kind == 'M' {
			if ok {
				v.take(kind, key, value, nil)
			}
			continue
		}
		after := len(r.b)
		if i+1 < n {
			after = r.start(i+1, 4)
		}
		own := r.start(i, 4)
		if !itemWhole(kind, key, value) {
			for _, p := range [][2]int{{before, after}, {own, after}, {before, before + len(key) + len(value)}} {
				k, val, fits := cutItem(r.b, p[0], p[1], kind)
				if fits && itemWhole(kind, k, val) {
					key, value, ok, own = k, val, true, p[0]
					break
				}
			}
		}
		if ok {
			v.take(kind, key, value, gaps)
			before = own + len(key) + len(value)
		}
	}
}

// cutItem takes the octets from start to end as an item.
func cutItem(b []byte, start, end int, kind byte) (key, value []byte, ok bool) {
	k := keySize(kind)
	if start < pageHeader || end > len(b) || start+k > end {
		return nil, nil, false
	}
	return b[start : start+k], b[start+k : end], true
}

// take keeps an item that nobody has found yet.
func (v *salvage) take(kind byte, key, value []byte, gaps []span) {
	switch kind {
	case 'a':
		keepNew(v.aside, key, value)
		return
	case 'M':
		keepNew(v.meta, key, value)
		return
	}
	inside := false
	for _, g := range gaps {
		inside = inside || g.holds(key)
	}
	switch {
	case !inside:
	case itemWhole(kind, key, value):
		keepNew(v.items[kind], key, value)
	case len(key) == keySize(kind):
		keepNew(v.bad[kind], key, value)
	}
}

func keepNew(m map[string][]byte, key, value []byte) {
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

// mendKeys finds the one octet of a key that makes a bad item right: the
// checksum covers the key.
func (v *salvage) mendKeys() {
	for kind, items := range v.bad {
		for key, value := range items {
			if right, ok := mendKey(kind, []byte(key), value); ok {
				keepNew(v.items[kind], right, value)
				delete(items, key)
			}
		}
	}
}

func mendKey(kind byte, key, value []byte) ([]byte, bool) {
	for i := range key {
		was := key[i]
		for x := 1; x < 256; x++ {
			key[i] = was ^ byte(x)
			if itemWhole(kind, key, value) {
				return key, true
			}
		}
		key[i] = was
	}
	return nil, false
}

// strays looks through all pages that nothing leads to for items in the gaps. A
// page may be an old one, so an item counts only when something that was
// reached wants it: a body or a record, when its envelopes are there; an
// envelope, when its message is. An old envelope that was delivered since may
// be among them: twice is better than never.
func (v *salvage) strays(gaps map[byte][]span) {
	wanted := map[string]bool{}
	for _, kind := range []byte{kindEnvelope, kindMessage} {
		for key := range v.items[kind] {
			wanted[key[:4]] = true
		}
	}
	for id := uint64(2); id < min(v.tree.limit, uint64(len(v.m.b)/v.m.pageSize)); id++ {
		if v.seen[id] {
			continue
		}
		guarded(func() {
			r, _ := v.m.page(v.tree, id)
			for i := range r.elements(4) {
				key, value, ok := r.data(i)
				if !ok || len(key) < 4 || !wanted[string(key[:4])] {
					continue
				}
				for _, kind := range itemKinds {
					if itemWhole(kind, key, value) {
						v.take(kind, key, value, gaps[kind])
					}
				}
			}
		})
	}
}

// orphans moves aside what has lost what it belongs to: the new database shall
// be one that agrees with itself. Items with a wrong checksum stay where they
// are unless there is a whole one: who reads them moves them aside, with what
// belongs to them.
func (s *Bolt) orphans(v *salvage) []Moved {
	for kind, items := range v.bad {
		for key, value := range items {
			keepNew(v.items[kind], []byte(key), value)
		}
	}
	groups := map[string]map[byte]bool{}
	for _, kind := range itemKinds {
		for key := range v.items[kind] {
			if groups[key[:4]] == nil {
				groups[key[:4]] = map[byte]bool{}
			}
			groups[key[:4]][kind] = true
		}
	}
	var moved []Moved
	for prefix, has := range groups {
		if has[kindMessage] && has[kindEnvelope] {
			continue
		}
		id := mail.MessageID(binary.BigEndian.Uint32([]byte(prefix)))
		a := &Aside{Name: "msg-" + id.String(), Reason: "the rest of the message is lost", When: s.o.Now(),
			file: !has[kindBody]}
		m := Moved{Name: a.Name, Reason: a.Reason}
		for _, kind := range itemKinds {
			for key, value := range v.items[kind] {
				if key[:4] != prefix {
					continue
				}
				a.parts = append(a.parts, part{kind, []byte(key), value})
				delete(v.items[kind], key)
				if kind == kindEnvelope {
					m.Envelopes = append(m.Envelopes, mail.EnvelopeID(binary.BigEndian.Uint64([]byte(key))))
				}
			}
		}
		if b, err := a.encode(); err == nil {
			keepNew(v.aside, []byte(a.Name), b)
		}
		moved = append(moved, m)
	}
	return moved
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
	v.meta[string(metaFormat)] = binary.BigEndian.AppendUint32(nil, Format)
	v.meta[string(metaIDs)] = v.nextID()
	delete(v.meta, string(metaLog)) // whoever opens it next, too, shall read all of the log
	for name, items := range map[string]map[string][]byte{"meta": v.meta, "env": v.items[kindEnvelope],
		"msg": v.items[kindMessage], "body": v.items[kindBody], "aside": v.aside} {
		if err == nil {
			err = fill(db, []byte(name), items)
		}
	}
	return errors.Join(err, db.Close())
}

// nextID is an id behind all that are in use. What meta says may be of an older
// state than the messages are.
func (v *salvage) nextID() []byte {
	var base, ahead uint32 // ids wrap: what is more than half of all ahead is behind
	old := v.meta[string(metaIDs)]
	if len(old) == 4 {
		base = binary.BigEndian.Uint32(old)
	}
	for key, item := range v.items[kindMessage] {
		d := binary.BigEndian.Uint32([]byte(key)) + 1 - base
		if itemWhole(kindMessage, []byte(key), item) && (len(old) != 4 || int32(d) > 0) {
			ahead = max(ahead, d+idBlock)
		}
	}
	if base+ahead == 0 {
		return nil // anywhere
	}
	return binary.BigEndian.AppendUint32(nil, base+ahead)
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
			for k, v := range batch {
				if err == nil {
					err = b.Put([]byte(k), v)
				}
			}
			return err
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
