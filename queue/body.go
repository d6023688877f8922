package queue

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

// bodyFiles are the files of NewBody that Accept has not seen yet. The zero
// value works.
type bodyFiles struct {
	mu   sync.Mutex
	open map[mail.MessageID]bool // true: Accept is at it
	dirs map[string]bool         // folders that are there and durable
}

// add reports whether id was free.
func (b *bodyFiles) add(id mail.MessageID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.open[id]; ok {
		return false
	}
	if b.open == nil {
		b.open = map[mail.MessageID]bool{}
	}
	b.open[id] = false
	return true
}

// take reports whether id is there and nobody has taken it.
func (b *bodyFiles) take(id mail.MessageID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if taken, ok := b.open[id]; !ok || taken {
		return false
	}
	b.open[id] = true
	return true
}

// has reports whether somebody is at a body of this message.
func (b *bodyFiles) has(id mail.MessageID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, has := b.open[id]
	return has
}

func (b *bodyFiles) forget(id mail.MessageID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.open, id)
}

// bodyPath is where a body of its own lives: body/xx/ID, xx the last two digits
// so that neighbours in time do not share a folder.
func (s *Bolt) bodyPath(id mail.MessageID) (dir, name string) {
	hex := id.String()
	dir = s.path(bodyDir, hex[len(hex)-2:])
	return dir, dir + "/" + hex
}

// NewBody implements Store.
func (s *Bolt) NewBody(id mail.MessageID) (*os.File, error) {
	if id == 0 || !s.bodies.add(id) {
		return nil, ErrExists
	}
	name := s.path(bodyDir, tmpDir, id.String())
	f, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		s.bodies.forget(id)
		return nil, s.diskError(err)
	}
	return f, nil
}

// DropBody implements Store.
func (s *Bolt) DropBody(id mail.MessageID) {
	if s.bodies.take(id) {
		s.fs.Remove(s.path(bodyDir, tmpDir, id.String()))
		s.bodies.forget(id)
	}
}

// known reports whether there is a message id already.
func (s *Bolt) known(id mail.MessageID) (known bool, err error) {
	err = s.view(func(v *view) error {
		known = v.get(bucketMsg, msgKey(id)) != nil
		return nil
	})
	return known, err
}

// keepBody makes the body in a file durable, under its final name. Only then
// may the index name it. After an error nothing of it is left.
func (s *Bolt) keepBody(a *accepted) error {
	tmp := s.path(bodyDir, tmpDir, a.id.String())
	f, err := s.fs.OpenFile(tmp, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		s.fs.Remove(tmp) // the name is gone unless something failed
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != a.rec.size {
		return fmt.Errorf("%w: body of %d octets, %d promised", ErrInvalid, info.Size(), a.rec.size)
	}
	final := tmp
	compress := s.pack.compress.Load()
	if s.pack.seal == nil && !compress {
		a.rec.sum, err = sumOf(f)
		if err == nil {
			err = s.fs.Sync(f)
		}
	} else {
		final = tmp + ".packed"
		a.rec.sum, a.rec.stored, err = s.packFile(final, f, msgKey(a.id), compress)
	}
	if err != nil {
		return err
	}
	dir, name := s.bodyPath(a.id)
	if err := s.makeBodyDir(dir); err != nil {
		return err
	}
	if err := s.fs.Rename(final, name); err != nil {
		return err
	}
	return s.fs.SyncDir(dir)
}

// makeBodyDir makes a folder below body/ durable once.
func (s *Bolt) makeBodyDir(dir string) error {
	b := &s.bodies
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dirs[dir] {
		return nil
	}
	if err := s.fs.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.fs.SyncDir(s.path(bodyDir)); err != nil {
		return err
	}
	if b.dirs == nil {
		b.dirs = map[string]bool{}
	}
	b.dirs[dir] = true
	return nil
}

func sumOf(f *os.File) (uint32, error) {
	h := crc32.New(castagnoli())
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	_, err := io.Copy(struct{ io.Writer }{h}, f)
	return h.Sum32(), err
}

// packFile writes what is in f to a new file as the configuration wants it
// stored, and syncs it. sum is of what f holds.
func (s *Bolt) packFile(name string, f *os.File, key []byte, compress bool) (sum uint32, how uint8, err error) {
	out, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, 0, err
	}
	h := crc32.New(castagnoli())
	if compress {
		how |= storedGzip
	}
	if s.pack.seal != nil {
		how |= storedSealed
	}
	if _, err = f.Seek(0, io.SeekStart); err == nil {
		err = s.pack.packStream(out, io.TeeReader(f, h), key, compress)
	}
	if err == nil {
		err = s.fs.Sync(out)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		s.fs.Remove(name)
	}
	return h.Sum32(), how, err
}

// packStream copies r to w, compressed and sealed as configured.
func (p *packer) packStream(w io.Writer, r io.Reader, key []byte, compress bool) error {
	if !compress {
		return p.seal.sealStream(w, r, key)
	}
	if p.seal == nil {
		return p.gzipStream(w, r)
	}
	pr, pw := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { pw.CloseWithError(p.gzipStream(pw, r)) })
	err := p.seal.sealStream(w, pr, key)
	pr.CloseWithError(err)
	wg.Wait()
	return err
}

func (p *packer) gzipStream(w io.Writer, r io.Reader) error {
	z := p.gzip(w)
	defer p.writers.Put(z)
	if _, err := io.Copy(z, r); err != nil {
		return err
	}
	return z.Close()
}

// unpackStream reverses packStream.
func (p *packer) unpackStream(w io.Writer, r io.Reader, key []byte, how uint8) error {
	if how&storedSealed != 0 && p.seal == nil {
		return errSealed
	}
	switch how {
	case storedSealed:
		return p.seal.openStream(w, r, key)
	case storedGzip:
		return gunzipStream(w, r)
	case storedGzip | storedSealed:
		pr, pw := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { pw.CloseWithError(p.seal.openStream(pw, r, key)) })
		err := gunzipStream(w, pr)
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // the end of the sealed stream counts too
		}
		pr.CloseWithError(io.ErrClosedPipe)
		wg.Wait()
		return err
	}
	return errFlags
}

func gunzipStream(w io.Writer, r io.Reader) error {
	z, err := gzip.NewReader(r)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, z)
	return err
}

// Message implements Store.
func (s *Bolt) Message(id mail.MessageID) (Info, error) {
	r, err := s.record(id, nil)
	if err != nil {
		return Info{}, err
	}
	return Info{Size: r.size, Arrival: r.arrival, InFile: r.inFile}, nil
}

// record reads a message's record, and with it the item of its body when that
// is in the database and body is not nil.
func (s *Bolt) record(id mail.MessageID, body *[]byte) (record, error) {
	var r record
	var bad error
	err := s.view(func(v *view) error {
		item := v.get(bucketMsg, msgKey(id))
		if item == nil && !v.hasEnvelope(id) {
			return ErrNotFound
		}
		if item == nil {
			bad = errNoRecord
			return nil
		}
		if r, bad = s.unpackRecord(id, item); bad != nil || r.inFile || body == nil {
			return nil
		}
		b := v.get(bucketBody, msgKey(id))
		if b == nil {
			bad = errNoBody
		}
		*body = append([]byte(nil), b...)
		return nil
	})
	if err == nil && bad != nil {
		s.moveMessage(id, bad)
		err = ErrCorrupt
	}
	return r, err
}

var (
	errNoBody   = errors.New("the body is missing")
	errNoRecord = errors.New("the message is missing")
)

func (v *view) hasEnvelope(id mail.MessageID) bool {
	return bytes.HasPrefix(v.first(bucketEnv, msgKey(id)), msgKey(id))
}

// Body implements Store.
func (s *Bolt) Body(id mail.MessageID) (*Body, error) {
	var item []byte
	r, err := s.record(id, &item)
	if err != nil {
		return nil, err
	}
	b := &Body{Size: r.size}
	if r.inFile {
		b.File, err = s.bodyFile(id, r)
	} else if b.Inline, err = s.pack.unpack(kindBody, msgKey(id), item); err == nil {
		err = r.check(crc32.Checksum(b.Inline, castagnoli()), int64(len(b.Inline)))
	}
	if err == nil {
		return b, nil
	}
	if !isDamage(err) {
		return nil, s.diskError(err)
	}
	if known, _ := s.known(id); !known {
		return nil, ErrNotFound // it went while we looked
	}
	s.moveMessage(id, err)
	return nil, ErrCorrupt
}

// isDamage tells an item that is bad for good from trouble that may pass.
func isDamage(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return errors.Is(err, fs.ErrNotExist)
	}
	return !isFull(err)
}

func (r *record) check(sum uint32, size int64) error {
	switch {
	case size != r.size:
		return fmt.Errorf("body %w: %d octets, not %d", errSize, size, r.size)
	case sum != r.sum:
		return fmt.Errorf("body: %w", errSum)
	}
	return nil
}

// bodyFile opens a body in a file of its own, checked. One that is not stored
// plainly is unpacked to a file without a name.
func (s *Bolt) bodyFile(id mail.MessageID, r record) (*os.File, error) {
	_, name := s.bodyPath(id)
	f, err := s.fs.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	h, n := crc32.New(castagnoli()), &counter{max: r.size}
	if r.stored == storedPlain {
		err = s.readStored(f, io.MultiWriter(n, h), id, storedPlain)
	} else {
		f, err = s.unpackFile(f, io.MultiWriter(n, h), id, r.stored)
	}
	if err == nil {
		err = r.check(h.Sum32(), n.n)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readStored copies a body, however it is stored, to w.
func (s *Bolt) readStored(f *os.File, w io.Writer, id mail.MessageID, how uint8) error {
	if how == storedPlain {
		_, err := io.Copy(w, struct{ io.Reader }{f})
		return err
	}
	return s.pack.unpackStream(w, f, msgKey(id), how)
}

// unpackFile copies a packed file to w and to a nameless file, and closes the
// first. The file that it gives is to be closed whatever the error.
func (s *Bolt) unpackFile(packed *os.File, w io.Writer, id mail.MessageID, how uint8) (*os.File, error) {
	defer packed.Close()
	name := s.path(bodyDir, tmpDir, fmt.Sprintf("read-%d", s.reads.Add(1)))
	out, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return packed, err
	}
	defer out.Close()
	// Whoever gets the descriptor shall not write: open it once more to read.
	in, err := s.fs.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err = errors.Join(err, s.fs.Remove(name)); err != nil {
		return out, err
	}
	return in, s.readStored(packed, io.MultiWriter(w, out), id, how)
}

// counter counts what is written and stops behind max.
type counter struct{ n, max int64 }

func (c *counter) Write(b []byte) (int, error) {
	if c.n += int64(len(b)); c.n > c.max {
		return 0, errSize
	}
	return len(b), nil
}

// cleanBodies removes body files that no message names: what was being written,
// and what a crash left between the index and the file.
func (s *Bolt) cleanBodies() error {
	dirs, err := s.fs.ReadDir(s.path(bodyDir))
	if err != nil {
		return plain(err)
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		files, err := s.fs.ReadDir(s.path(bodyDir, d.Name()))
		if err != nil {
			return plain(err)
		}
		for _, f := range files {
			name := s.path(bodyDir, d.Name(), f.Name())
			if d.Name() == tmpDir {
				err = s.fs.Remove(name)
			} else {
				err = s.cleanBody(d.Name(), f.Name(), name)
			}
			if err != nil {
				return plain(err)
			}
		}
	}
	return nil
}

// cleanBody removes one file unless a message names it. What an index that was
// mended does not name is kept aside, and so is what was to be.
func (s *Bolt) cleanBody(dir, file, name string) error {
	id, err := mail.ParseMessageID(file)
	if err != nil || file[len(file)-2:] != dir {
		return s.fs.Remove(name)
	}
	named, aside := false, ""
	err = s.view(func(v *view) error {
		if item := v.get(bucketMsg, msgKey(id)); item != nil {
			r, err := s.unpackRecord(id, item)
			named = err != nil || r.inFile
		}
		prefix := []byte("msg-" + file)
		for k, item := range v.from(bucketAside, prefix) {
			if !bytes.HasPrefix(k, prefix) {
				break
			}
			if a, err := decodeAside(string(k), item); err == nil && a.file {
				aside = a.Name
			}
		}
		return nil
	})
	switch {
	case err != nil || named:
		return err
	case aside != "":
		return s.fs.Rename(name, s.path(corruptDir, aside))
	case s.mended:
		return s.fs.Rename(name, s.path(corruptDir, "body-"+file))
	}
	return s.fs.Remove(name)
}
