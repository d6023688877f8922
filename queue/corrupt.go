package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

// Moved tells of something that was moved aside.
type Moved struct {
	Name      string            // as Corrupt lists it; a file name for a whole database
	Reason    string            // one line
	Envelopes []mail.EnvelopeID // that are no longer in the queue because of it
	Mended    bool              // it was put right where it is, and not moved at all
}

// Aside is one item that was moved aside.
type Aside struct {
	Name      string
	Reason    string
	When      time.Time
	Envelopes []mail.EnvelopeID
	Size      int64 // octets of what is kept

	parts []part
	file  bool // the body is the file corrupt/Name
}

// part is one entry of the database as it was found.
type part struct {
	kind       byte // kindEnvelope, kindMessage, kindBody
	key, value []byte
}

const asideVersion = 1

func (c *coder) bytes(b *[]byte, max int) {
	s := string(*b)
	c.str(&s, max)
	if c.reading {
		*b = []byte(s)
	}
}

func (c *coder) aside(a *Aside) {
	c.str(&a.Reason, maxText)
	c.time(&a.When)
	var file uint8
	if a.file {
		file = 1
	}
	num(c, &file)
	a.file = file == 1
	n := c.uint(uint64(len(a.parts)), MaxRecipients+2)
	if c.reading {
		a.parts = make([]part, min(n, uint64(len(c.in))))
	}
	for i := range a.parts {
		p := &a.parts[i]
		num(c, &p.kind)
		c.bytes(&p.key, 64)
		c.bytes(&p.value, maxPayload)
		a.Size += int64(len(p.value))
		if p.kind == kindEnvelope && len(p.key) == 8 && c.reading {
			a.Envelopes = append(a.Envelopes, mail.EnvelopeID(binary.BigEndian.Uint64(p.key)))
		}
	}
}

func (a *Aside) encode() ([]byte, error) {
	c := coder{out: []byte{asideVersion}}
	c.aside(a)
	return c.out, c.err
}

func decodeAside(name string, b []byte) (Aside, error) {
	a := Aside{Name: name}
	if len(b) == 0 || b[0] != asideVersion {
		return a, errVersion
	}
	c := coder{in: string(b[1:]), reading: true}
	c.aside(&a)
	if c.err == nil && c.in != "" {
		c.err = errLeftover
	}
	return a, c.err
}

// moveEnvelope moves a damaged envelope aside, soon.
func (s *Bolt) moveEnvelope(id mail.EnvelopeID, reason error) {
	s.submit(&job{apply: func(t *txn) error {
		item := t.get(bucketEnv, envKey(id))
		if item == nil {
			return nil
		}
		if _, err := s.unpackEnvelope(id, item); err == nil {
			return nil // it was replaced since
		}
		return t.moveAside("env-"+id.String(), reason, id.Message(), &id)
	}})
}

// moveMessage moves a message with a damaged record or body aside, soon, with
// all its envelopes.
func (s *Bolt) moveMessage(id mail.MessageID, reason error) {
	s.submit(&job{apply: func(t *txn) error {
		if t.get(bucketMsg, msgKey(id)) == nil && !t.hasEnvelope(id) {
			return nil
		}
		return t.moveAside("msg-"+id.String(), reason, id, nil)
	}})
}

// moveAside moves one envelope, or a whole message when env is nil or was the
// last one.
func (t *txn) moveAside(name string, reason error, id mail.MessageID, env *mail.EnvelopeID) error {
	a := &Aside{Name: name, Reason: mail.Clean(reason.Error(), 200), When: t.s.o.Now()}
	prefix := msgKey(id)
	others := false
	for k, v := range t.from(bucketEnv, prefix) {
		if !bytes.HasPrefix(k, prefix) {
			break
		}
		if env != nil && (len(k) != 8 || binary.BigEndian.Uint64(k) != uint64(*env)) {
			others = true
			continue
		}
		a.parts = append(a.parts, part{kindEnvelope, bytes.Clone(k), bytes.Clone(v)})
	}
	if !others {
		if v := t.get(bucketMsg, prefix); v != nil {
			a.parts = append(a.parts, part{kindMessage, prefix, bytes.Clone(v)})
		}
		if v := t.get(bucketBody, prefix); v != nil {
			a.parts = append(a.parts, part{kindBody, prefix, bytes.Clone(v)})
		} else {
			a.file = true
		}
	}
	return t.keepAside(a, id)
}

// keepAside takes the parts of a out of the queue and keeps them.
func (t *txn) keepAside(a *Aside, id mail.MessageID) error {
	for n := 1; t.get(bucketAside, []byte(a.Name)) != nil; n++ {
		a.Name = fmt.Sprintf("%.12s-%d", a.Name, n)
	}
	m := Moved{Name: a.Name, Reason: a.Reason}
	for _, p := range a.parts {
		if p.kind == kindEnvelope && len(p.key) == 8 {
			m.Envelopes = append(m.Envelopes, mail.EnvelopeID(binary.BigEndian.Uint64(p.key)))
		}
		if err := t.delete(bucketOf(p.kind), p.key); err != nil {
			return err
		}
	}
	b, err := a.encode()
	if err != nil {
		return err
	}
	if err := t.put(bucketAside, []byte(a.Name), b); err != nil {
		return err
	}
	if a.file {
		// The file follows the index: should the name in corrupt/ never come to
		// be, the body stays where it was until it is looked for.
		_, from := t.s.bodyPath(id)
		t.after = append(t.after, func() { t.s.moveFile(from, t.s.path(corruptDir, a.Name)) })
	}
	t.after = append(t.after, func() {
		for _, id := range m.Envelopes {
			t.s.leases.Drop(id)
		}
		t.s.o.Moved(m)
	})
	return nil
}

// moveFile renames durably; the new name first.
func (s *Bolt) moveFile(from, to string) {
	if s.fs.Rename(from, to) == nil {
		s.fs.SyncDir(s.path(corruptDir)) // at worst it is moved again
	}
}

func bucketOf(kind byte) bucket {
	switch kind {
	case kindEnvelope:
		return bucketEnv
	case kindMessage:
		return bucketMsg
	}
	return bucketBody
}

// Corrupt lists what was moved aside, by name, up to max items behind after.
func (s *Bolt) Corrupt(after string, max int) (l []Aside, end bool, err error) {
	err = s.view(func(v *view) error {
		for k, item := range v.from(bucketAside, []byte(after)) {
			if string(k) == after {
				continue
			}
			if len(l) >= max {
				return nil
			}
			a, err := decodeAside(string(k), item)
			if err != nil {
				a = Aside{Name: string(k), Reason: "what was kept is damaged too: " + err.Error()}
			}
			l = append(l, a)
		}
		end = true
		return nil
	})
	return l, end, err
}

// Inspect gives one item moved aside, and what can be read of its envelopes and
// of its body, whatever the checksums say: all of an inline body, up to MaxInline
// octets of one in a file.
func (s *Bolt) Inspect(name string) (a Aside, envs []mail.Envelope, body []byte, err error) {
	err = s.view(func(v *view) error {
		item := v.get(bucketAside, []byte(name))
		if item == nil {
			return ErrNotFound
		}
		a, err = decodeAside(name, item)
		return err
	})
	for _, p := range a.parts {
		if len(p.value) < 5 {
			continue
		}
		b, uerr := s.pack.unpackUnchecked(p.kind, p.key, p.value[:len(p.value)-4])
		if uerr != nil {
			continue
		}
		switch {
		case p.kind == kindBody:
			body = bytes.Clone(b)
		case p.kind == kindEnvelope && len(p.key) == 8:
			e, derr := decodeEnvelope(mail.EnvelopeID(binary.BigEndian.Uint64(p.key)), b)
			if derr == nil {
				envs = append(envs, e)
			}
		}
	}
	if err == nil && a.file {
		body = s.lookInto(&a)
	}
	return a, envs, body, err
}

// head takes what is written up to MaxInline octets, and ends the writing then.
type head struct{ bytes.Buffer }

func (h *head) Write(b []byte) (int, error) {
	room := MaxInline - h.Len()
	h.Buffer.Write(b[:min(len(b), room)])
	if len(b) > room {
		return room, errSize
	}
	return len(b), nil
}

// lookInto reads the beginning of a body file that was moved aside, as far as it
// can be read; nil: not at all.
func (s *Bolt) lookInto(a *Aside) []byte {
	var id mail.MessageID
	how := uint8(storedPlain)
	for _, p := range a.parts {
		if len(p.key) < 4 {
			continue
		}
		id = mail.MessageID(binary.BigEndian.Uint32(p.key))
		if p.kind == kindMessage {
			if r, err := s.unpackRecord(id, p.value); err == nil {
				how = r.stored
			}
		}
	}
	f, _, err := s.openAside(a, id)
	if err != nil {
		return nil
	}
	defer f.Close()
	h := &head{}
	_ = s.readStored(f, h, id, how) // what came before a damage is what we are after
	return h.Bytes()
}

// openAside opens a body file that was moved aside, and names it.
func (s *Bolt) openAside(a *Aside, id mail.MessageID) (f *os.File, name string, err error) {
	name = s.path(corruptDir, a.Name)
	f, err = s.fs.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		_, name = s.bodyPath(id) // it never got away
		f, err = s.fs.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	return f, name, err
}

// Return puts an item moved aside back into the queue, with checksums made
// anew: what its octets hold now is what will be sent. It gives the envelopes
// that are in the queue again. ErrInvalid: the octets make no sense any more.
func (s *Bolt) Return(ctx context.Context, name string) ([]mail.Envelope, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, envs, body, err := s.Inspect(name)
	if err != nil {
		return nil, err
	}
	for _, e := range envs {
		if err := checkText(&e); err != nil {
			return nil, err
		}
	}
	if len(envs) == 0 {
		return nil, fmt.Errorf("%w: %s has no envelope that can be read", ErrInvalid, name)
	}
	id := envs[0].ID.Message()
	rec, whole, err := s.returnRecord(&a, id, body)
	if err != nil {
		return nil, err
	}
	err = s.do(&job{apply: func(t *txn) error {
		switch there := t.get(bucketMsg, msgKey(id)) != nil; {
		case there && whole:
			return fmt.Errorf("%w: message %s", ErrExists, id)
		case !there && !whole:
			return fmt.Errorf("%w: message %s is gone", ErrInvalid, id)
		}
		if whole {
			if err := t.putBack(kindMessage, msgKey(id), rec.encode()); err != nil {
				return err
			}
			if !rec.inFile {
				if err := t.putBack(kindBody, msgKey(id), body); err != nil {
					return err
				}
			}
		}
		for i := range envs {
			b, err := appendEnvelope(nil, &envs[i])
			if err == nil {
				err = t.putBack(kindEnvelope, envKey(envs[i].ID), b)
			}
			if err != nil {
				return err
			}
		}
		return t.delete(bucketAside, []byte(name))
	}})
	return envs, err
}

func (t *txn) putBack(kind byte, key, plain []byte) error {
	item, err := t.s.pack.pack(kind, key, plain)
	if err != nil {
		return err
	}
	return t.put(bucketOf(kind), key, item)
}

// returnRecord makes the record of a message that is to be returned. whole is
// false when only an envelope is, and its message never left.
func (s *Bolt) returnRecord(a *Aside, id mail.MessageID, body []byte) (r record, whole bool, err error) {
	next := uint32(0)
	for _, e := range a.Envelopes {
		next = max(next, uint32(e))
	}
	r = record{arrival: a.When, rcpts: uint32(len(a.Envelopes)), next: next + 1}
	for _, p := range a.parts {
		if p.kind != kindMessage && p.kind != kindBody {
			continue
		}
		whole = true
		if p.kind == kindMessage {
			if old, err := s.unpackRecord(id, p.value); err == nil {
				r = old
			}
		}
	}
	if !whole && !a.file {
		return r, false, nil
	}
	if a.file {
		r.inFile = true
		return r, true, s.returnFile(a, id, &r)
	}
	if body == nil {
		return r, true, fmt.Errorf("%w: the body cannot be read", ErrInvalid)
	}
	r.inFile, r.size, r.sum = false, int64(len(body)), crc32.Checksum(body, castagnoli())
	return r, true, nil
}

// returnFile brings a body file back and makes its sums anew.
func (s *Bolt) returnFile(a *Aside, id mail.MessageID, r *record) error {
	dir, name := s.bodyPath(id)
	f, from, err := s.openAside(a, id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, plain(err))
	}
	defer f.Close()
	h := crc32.New(castagnoli())
	n := &counter{max: 1 << 62}
	if err := s.readStored(f, io.MultiWriter(h, n), id, r.stored); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	r.sum, r.size = h.Sum32(), n.n
	if from == name {
		return nil
	}
	if err := s.makeBodyDir(dir); err != nil {
		return err
	}
	if err := s.fs.Rename(from, name); err != nil {
		return err
	}
	return s.fs.SyncDir(dir)
}

// Discard forgets an item moved aside for good.
func (s *Bolt) Discard(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.do(&job{apply: func(t *txn) error {
		v := t.get(bucketAside, []byte(name))
		if v == nil {
			return ErrNotFound
		}
		if a, err := decodeAside(name, v); err != nil || a.file {
			t.after = append(t.after, func() { t.s.fs.Remove(t.s.path(corruptDir, name)) })
		}
		return t.delete(bucketAside, []byte(name))
	}})
}
