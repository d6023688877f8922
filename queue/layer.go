package queue

import (
	"iter"
	"maps"
	"slices"
	"sort"
	"strings"

	"go.etcd.io/bbolt"
)

// bucket is one of the database's.
type bucket uint8

const (
	bucketEnv   bucket = iota // envelope id -> item of an envelope
	bucketMsg                 // message id -> item of a record
	bucketBody                // message id -> item of a body
	bucketAside               // name -> what was moved aside
	bucketMeta
	buckets // how many there are
)

// name is the name of the bucket in the database.
func (b bucket) name() []byte {
	return []byte([buckets]string{"env", "msg", "body", "aside", "meta"}[b])
}

// entry is what a layer says of one key.
type entry struct {
	key   string
	item  []byte // nil: the key is deleted
	under bool   // of a deleted key: the database has it
}

// chunkLen is how many entries lie in one piece of a sorted list. Ours.
const chunkLen = 256

// sorted is entries in the order of their keys, in pieces, so that one more
// moves few others. The zero value is empty.
type sorted struct{ chunks [][]entry }

// find is where key is, or would be: at the end of a piece, too.
func (s *sorted) find(key string) (c, i int, found bool) {
	c = sort.Search(len(s.chunks), func(c int) bool { return s.chunks[c][0].key > key }) - 1
	if c < 0 {
		return 0, 0, false
	}
	i, found = slices.BinarySearchFunc(s.chunks[c], key, func(e entry, key string) int { return strings.Compare(e.key, key) })
	return c, i, found
}

func (s *sorted) get(key string) (entry, bool) {
	if c, i, found := s.find(key); found {
		return s.chunks[c][i], true
	}
	return entry{}, false
}

func (s *sorted) set(e entry) {
	c, i, found := s.find(e.key)
	switch {
	case found:
		s.chunks[c][i] = e
	case len(s.chunks) == 0:
		s.chunks = append(s.chunks, []entry{e})
	case len(s.chunks[c]) < chunkLen:
		s.chunks[c] = slices.Insert(s.chunks[c], i, e)
	case i == chunkLen: // keys mostly grow: what is full stays full
		s.chunks = slices.Insert(s.chunks, c+1, []entry{e})
	default:
		tail := slices.Clone(s.chunks[c][chunkLen/2:])
		clear(s.chunks[c][chunkLen/2:])
		s.chunks[c] = s.chunks[c][:chunkLen/2]
		s.chunks = slices.Insert(s.chunks, c+1, tail)
		s.set(e)
	}
}

func (s *sorted) remove(key string) {
	c, i, found := s.find(key)
	if !found {
		return
	}
	if s.chunks[c] = slices.Delete(s.chunks[c], i, i+1); len(s.chunks[c]) == 0 {
		s.chunks = slices.Delete(s.chunks, c, c+1)
	}
}

// place is an entry of a sorted list that nobody changes meanwhile.
type place struct {
	s    *sorted
	c, i int
}

func (s *sorted) seek(key string) place {
	p := place{s: s}
	p.c, p.i, _ = s.find(key)
	return p
}

// entry is nil at the end.
func (p *place) entry() *entry {
	if p.c < len(p.s.chunks) && p.i == len(p.s.chunks[p.c]) {
		p.c, p.i = p.c+1, 0
	}
	if p.c >= len(p.s.chunks) {
		return nil
	}
	return &p.s.chunks[p.c][p.i]
}

// layer is changes that lie over the database. The zero value is empty.
type layer struct {
	of    [buckets]sorted
	count int // entries
}

func (l *layer) set(b bucket, e entry) {
	if _, had := l.of[b].get(e.key); !had {
		l.count++
	}
	l.of[b].set(e)
}

func (l *layer) remove(b bucket, key string) {
	if _, had := l.of[b].get(key); had {
		l.count--
		l.of[b].remove(key)
	}
}

// all goes through the entries.
func (l *layer) all() iter.Seq2[bucket, *entry] {
	return func(yield func(bucket, *entry) bool) {
		for b := range buckets {
			for _, chunk := range l.of[b].chunks {
				for i := range chunk {
					if !yield(b, &chunk[i]) {
						return
					}
				}
			}
		}
	}
}

// pieces cuts a layer into parts of some messages each. What is said of one message
// stays together: the database agrees with itself after each part.
func (l *layer) pieces(messages int) iter.Seq[*layer] {
	return func(yield func(*layer) bool) {
		type change struct {
			in bucket
			*entry
		}
		of := map[string][]change{}
		for b, e := range l.all() {
			id := ""
			if b == bucketEnv || b == bucketMsg || b == bucketBody {
				id = e.key[:min(4, len(e.key))]
			}
			of[id] = append(of[id], change{b, e})
		}
		piece, n := &layer{}, 0
		for _, id := range slices.Sorted(maps.Keys(of)) {
			for _, c := range of[id] {
				piece.set(c.in, *c.entry)
			}
			if n++; n%messages == 0 {
				if !yield(piece) {
					return
				}
				piece = &layer{}
			}
		}
		if piece.count > 0 {
			yield(piece)
		}
	}
}

// take lays the changes of above over those of l. What came and went in the
// layers, and the database never had, leaves nothing behind.
func (l *layer) take(above *layer) {
	for b, e := range above.all() {
		if e.item == nil && !e.under {
			l.remove(b, e.key)
		} else {
			l.set(b, *e)
		}
	}
}

// view is one state of the spool: the database, and the layers over it. What it
// gives is not to be changed, and good as long as the transaction.
type view struct {
	tx     *bbolt.Tx
	base   [buckets]*bbolt.Bucket
	layers []*layer // the uppermost first
}

// under is the bucket in the database; nil: it has none.
func (v *view) under(b bucket) *bbolt.Bucket {
	if v.base[b] == nil {
		v.base[b] = v.tx.Bucket(b.name())
	}
	return v.base[b]
}

// get gives the item of a key; nil: there is none.
func (v *view) get(b bucket, key []byte) []byte {
	for _, l := range v.layers {
		if e, ok := l.of[b].get(string(key)); ok {
			return e.item
		}
	}
	if base := v.under(b); base != nil {
		return base.Get(key)
	}
	return nil
}

// from goes through a bucket in the order of keys, from key on. Nobody may
// change the layers meanwhile.
func (v *view) from(b bucket, key []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, item []byte) bool) {
		var c *bbolt.Cursor
		var k, item []byte
		if base := v.under(b); base != nil {
			c = base.Cursor()
			k, item = c.Seek(key)
		}
		places := make([]place, len(v.layers))
		for i, l := range v.layers {
			places[i] = l.of[b].seek(string(key))
		}
		for {
			top := least(places)
			if top == nil || (k != nil && string(k) < top.key) {
				if k == nil || !yield(k, item) {
					return
				}
				k, item = c.Next()
				continue
			}
			if k != nil && string(k) == top.key {
				k, item = c.Next()
			}
			for i := range places { // the others are below it
				if e := places[i].entry(); e != nil && e.key == top.key {
					places[i].i++
				}
			}
			if top.item != nil && !yield([]byte(top.key), top.item) {
				return
			}
		}
	}
}

// least is the entry with the least key; of several, the uppermost.
func least(places []place) (top *entry) {
	for i := range places {
		if e := places[i].entry(); e != nil && (top == nil || e.key < top.key) {
			top = e
		}
	}
	return top
}

// first is the first key of a bucket from key on; nil: there is none.
func (v *view) first(b bucket, key []byte) []byte {
	for k := range v.from(b, key) {
		return k
	}
	return nil
}
