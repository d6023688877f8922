package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"smtpd/internal/mail"
)

// Apply implements Store.
func (s *Bolt) Apply(ctx context.Context, changes []Change) ([]Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(changes) == 0 {
		return nil, nil
	}
	var out []Outcome
	j := &job{size: 512 * len(changes), apply: func(t *txn) error {
		out = make([]Outcome, len(changes)) // anew each time it runs
		for i := range changes {
			if err := t.change(&changes[i], &out[i]); err != nil {
				return err
			}
		}
		return nil
	}}
	if err := s.do(j); err != nil {
		return nil, err
	}
	for i := range out {
		if errors.Is(out[i].Err, ErrCorrupt) {
			s.moveEnvelope(changes[i].ID, errSum)
		}
	}
	return out, nil
}

// change carries out one change. Its error is that of the whole transaction;
// what concerns this change alone goes into o.
func (t *txn) change(c *Change, o *Outcome) error {
	key := envKey(c.ID)
	item := t.get(bucketEnv, key)
	if item == nil {
		o.Err = ErrNotFound
		return nil
	}
	e, err := t.s.unpackEnvelope(c.ID, item)
	if err != nil {
		o.Err = ErrCorrupt
		return nil
	}
	o.Envelope = e
	if c.Attempt != AnyAttempt && int(e.Retry) != c.Attempt {
		o.Err = ErrStale
		return nil
	}
	before := e
	v := c.Edit(&e)
	e.ID = c.ID
	var changed []byte
	if !v.Delete && e != before {
		var buf []byte
		if changed, o.Err = t.s.packEnvelope(&e, &buf); o.Err != nil {
			return nil
		}
	}
	if v.Add != nil {
		if o.Added, o.Err, err = t.add(c.ID.Message(), *v.Add); err != nil || o.Err != nil {
			return err
		}
	}
	o.Envelope, o.Deleted = e, v.Delete
	switch {
	case v.Delete:
		return t.remove(c.ID)
	case changed != nil:
		return t.put(bucketEnv, key, changed)
	}
	return nil
}

// add stores one more envelope of a message, under a number that none of its
// envelopes has had. own concerns this envelope, err the transaction.
func (t *txn) add(id mail.MessageID, e mail.Envelope) (added *mail.Envelope, own, err error) {
	item := t.get(bucketMsg, msgKey(id))
	if item == nil {
		return nil, ErrNotFound, nil
	}
	r, err := t.s.unpackRecord(id, item)
	if err != nil {
		return nil, ErrCorrupt, nil
	}
	e.ID = id.Envelope(r.next)
	if r.next++; r.next == 0 {
		return nil, ErrInvalid, nil
	}
	var buf []byte
	eitem, own := t.s.packEnvelope(&e, &buf)
	if own != nil {
		return nil, own, nil
	}
	ritem, err := t.s.pack.pack(kindMessage, msgKey(id), r.encode())
	if err == nil {
		err = t.put(bucketMsg, msgKey(id), ritem)
	}
	if err == nil {
		err = t.put(bucketEnv, envKey(e.ID), eitem)
	}
	return &e, nil, err
}

// remove deletes an envelope, and its message when it was the last.
func (t *txn) remove(id mail.EnvelopeID) error {
	if err := t.delete(bucketEnv, envKey(id)); err != nil {
		return err
	}
	t.after = append(t.after, func() { t.s.leases.Drop(id) })
	prefix := msgKey(id.Message())
	if bytes.HasPrefix(t.first(bucketEnv, prefix), prefix) {
		return nil
	}
	return t.removeMessage(id.Message())
}

// removeMessage deletes record and body of a message.
func (t *txn) removeMessage(id mail.MessageID) error {
	key := msgKey(id)
	item := t.get(bucketMsg, key)
	if item == nil {
		return nil
	}
	r, err := t.s.unpackRecord(id, item)
	if err != nil || r.inFile {
		_, name := t.s.bodyPath(id)
		t.after = append(t.after, func() { t.s.fs.Remove(name) }) // what stays is removed at open
	}
	if err := t.delete(bucketMsg, key); err != nil {
		return err
	}
	if !r.inFile {
		return t.delete(bucketBody, key)
	}
	return nil
}

// takeBack removes messages whose senders were told that they are not there.
func (t *txn) takeBack(ids []mail.MessageID) error {
	for _, id := range ids {
		prefix := msgKey(id)
		for k := t.first(bucketEnv, prefix); bytes.HasPrefix(k, prefix); k = t.first(bucketEnv, prefix) {
			if err := t.delete(bucketEnv, k); err != nil {
				return err
			}
		}
		n := len(t.after)
		if err := t.removeMessage(id); err != nil {
			return err
		}
		_, name := t.s.bodyPath(id)
		t.after = append(t.after[:n], func() {
			if !t.s.bodies.has(id) { // or it comes once more, and the file is the new one
				t.s.fs.Remove(name)
			}
		})
	}
	return nil
}

// Load implements Store.
func (s *Bolt) Load(id mail.EnvelopeID) (mail.Envelope, error) {
	var e mail.Envelope
	var bad error
	err := s.view(func(v *view) error {
		item := v.get(bucketEnv, envKey(id))
		if item == nil {
			return ErrNotFound
		}
		e, bad = s.unpackEnvelope(id, item)
		return nil
	})
	if err == nil && bad != nil {
		s.moveEnvelope(id, bad)
		err = ErrCorrupt
	}
	return e, err
}

// List implements Store.
func (s *Bolt) List(after mail.EnvelopeID, max int) (l []mail.Envelope, end bool, err error) {
	max = min(max, MaxList)
	if after == ^mail.EnvelopeID(0) || max <= 0 {
		return nil, max > 0, nil
	}
	type bad struct {
		id  mail.EnvelopeID
		err error
	}
	var damaged []bad
	l = make([]mail.Envelope, 0, max)
	err = s.view(func(v *view) error {
		for k, item := range v.from(bucketEnv, envKey(after+1)) {
			if len(l) == max {
				return nil
			}
			if len(k) != 8 {
				continue
			}
			id := mail.EnvelopeID(binary.BigEndian.Uint64(k))
			if e, err := s.unpackEnvelope(id, item); err != nil {
				damaged = append(damaged, bad{id, err})
			} else {
				l = append(l, e)
			}
		}
		end = true
		return nil
	})
	for _, b := range damaged {
		s.moveEnvelope(b.id, b.err)
	}
	if end && after != 0 {
		s.trim() // a whole listing has mapped every page
	}
	return l, end, err
}

// Lease implements Store.
func (s *Bolt) Lease(ctx context.Context, owner string, until time.Time, ids []mail.EnvelopeID) ([]mail.Envelope, error) {
	var l []mail.Envelope
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return l, err
		}
		e, err := s.Load(id)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
			continue
		}
		if err != nil {
			return l, err
		}
		if s.leases.Take(id, Lease{owner, until, e.Retry}, s.o.Now()) {
			l = append(l, e)
		}
	}
	return l, nil
}

// LeaseOf implements Store.
func (s *Bolt) LeaseOf(id mail.EnvelopeID) (Lease, bool) { return s.leases.Get(id, s.o.Now()) }

// EndLeases implements Store.
func (s *Bolt) EndLeases(owner string, ids []mail.EnvelopeID) []mail.EnvelopeID {
	return s.leases.End(owner, ids)
}

// Leases implements Store.
func (s *Bolt) Leases(owner string) []mail.EnvelopeID { return s.leases.Of(owner) }

// idBlock is how many ids are taken from the counter on disk at a time. Ours:
// so many are skipped after a crash, and one commit serves so many messages.
const idBlock = 4 * MaxReserve

// idPool hands out message ids from next up to limit; the disk says that those
// below limit are taken.
type idPool struct {
	mu          sync.Mutex
	next, limit uint32
}

// load begins where the last store ended. A fresh spool begins anywhere, so that
// a spool made anew does not repeat the ids of the one before, which logs and
// mailboxes remember; in the lower half, so that ids grow for a long time. was is what
// the database said before all of a log was carried out again, which may be older.
func (p *idPool) load(meta *bbolt.Bucket, was []byte) error {
	if v := meta.Get(metaIDs); len(v) == 4 {
		p.next = binary.BigEndian.Uint32(v)
		if len(was) == 4 {
			p.next = later(p.next, binary.BigEndian.Uint32(was))
		}
	} else {
		p.next = 1<<28 + rand.Uint32N(1<<30)
	}
	p.limit = p.next
	return meta.Put(metaIDs, binary.BigEndian.AppendUint32(nil, p.limit))
}

// later is the one of two ids that comes later: they wrap.
func later(a, b uint32) uint32 {
	if int32(a-b) > 0 {
		return a
	}
	return b
}

// Reserve implements Store.
func (s *Bolt) Reserve(ctx context.Context, n int) (mail.MessageID, error) {
	if n < 1 || n > MaxReserve {
		return 0, ErrInvalid
	}
	p := &s.ids
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if uint64(p.next)+uint64(n) > uint64(p.limit) {
		var start, end uint32
		err := s.do(&job{apply: func(t *txn) (err error) { start, end, err = t.moreIDs(p.limit); return err }})
		if err != nil {
			return 0, err
		}
		if start != p.limit {
			p.next = start // there is a gap; what was left before it is not used
		}
		p.limit = end
	}
	first := p.next
	p.next += uint32(n)
	return mail.MessageID(first), nil
}

// moreIDs finds ids from start on that no message has, and takes them: idBlock
// of them, or in a crowded spool as many as one Reserve may want.
func (t *txn) moreIDs(start uint32) (first, end uint32, err error) {
	for _, n := range []uint32{idBlock, MaxReserve} {
		for wraps := 0; wraps < 2; {
			if start == 0 || start > ^uint32(0)-n {
				start = 1
				wraps++
			}
			k := t.first(bucketMsg, msgKey(mail.MessageID(start)))
			if len(k) != 4 || binary.BigEndian.Uint32(k) >= start+n {
				return start, start + n, t.put(bucketMeta, metaIDs, binary.BigEndian.AppendUint32(nil, start+n))
			}
			start = binary.BigEndian.Uint32(k) + 1
		}
	}
	return 0, 0, statusFailed()
}

// coming reports whether id is one that Reserve will hand out: nobody can have
// it yet.
func (p *idPool) coming(id mail.MessageID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return uint32(id) >= p.next && uint32(id) < p.limit
}
