package queue

import (
	"bytes"
	"context"
)

// noteKey is where meta has a note.
func noteKey(name string) []byte { return []byte("note/" + name) }

// Note implements Store.
func (s *Bolt) Note(ctx context.Context, name string, value []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	key := noteKey(name)
	if len(value) == 0 {
		return s.do(&job{apply: func(t *txn) error { return t.delete(bucketMeta, key) }})
	}
	item, err := s.pack.pack(kindNote, key, value)
	if err != nil {
		return err
	}
	return s.do(&job{size: len(item), apply: func(t *txn) error { return t.put(bucketMeta, key, item) }})
}

// Noted implements Store.
func (s *Bolt) Noted(name string) (value []byte, err error) {
	key := noteKey(name)
	var bad error
	err = s.view(func(v *view) error {
		if item := v.get(bucketMeta, key); item != nil {
			value, bad = s.pack.unpack(kindNote, key, item)
			value = bytes.Clone(value)
		}
		return nil
	})
	if err == nil && bad != nil {
		value, err = nil, ErrCorrupt
	}
	return value, err
}
