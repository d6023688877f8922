package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

// Format is the version of the spool that this package writes. It reads all up
// to it, which become it when they are opened, and refuses newer ones: an smtpd
// that does not know an item's version would take it for a damaged one.
//
//	1: the first
//	2: envelopes with a sub-address; notes in meta
//	3: queue.log
const Format = 3

// The files of a spool.
const (
	dbName      = "queue.db"
	newName     = "queue.db.new" // being written: by compaction or mending
	oldName     = "queue.db.old" // a second name while the first is given to another
	logName     = "queue.log"
	newLogName  = "queue.log.new"
	bodyDir     = "body"
	tmpDir      = "tmp" // below bodyDir; emptied at open
	corruptDir  = "corrupt"
	reserveName = "reserve"
)

// Keys of the bucket meta.
var (
	metaFormat = []byte("format") // 4 octets, big endian
	metaIDs    = []byte("ids")    // 4 octets: ids from here on are free
	metaKey    = []byte("key")    // something known, sealed
	metaLog    = []byte("log")    // 8 octets: records of the log up to this one are in here; its salt; CRC32C
)

// mapSize is the address room for the database, so that growing up to it does
// not wait for readers. It costs no memory.
const mapSize = 1 << 30

// reserveHalves is how many halves of the size of the log are kept on disk, to be
// given up when the disk is full: what is in the log must find room in the
// database, where it takes up to twice as much, and removing mail needs room
// first. Ours: half a log is more than any group of removals writes.
const reserveHalves = 5

// Options are how to open a store. The zero value works.
type Options struct {
	FS       FS               // nil: OS
	Key      []byte           // KeySize octets: items are sealed; nil: they are not
	Compress bool             // items are compressed
	LogSize  int              // of queue.log in octets, in whole blocks of 4096; 0: 8 MB
	Now      func() time.Time // nil: time.Now
	// Wait is how long Open waits for another process to let go of the spool: one
	// that was killed may take a moment to be gone.
	Wait time.Duration
	// Moved is told of items that were moved aside, and of a database that was
	// mended, on the store's own goroutine or in Open. It must not call the store.
	Moved func(Moved)
	// Slow is told, there too, when the log or the reserve cannot be used, and why:
	// mail goes into the database at once, which takes longer. nil: no longer so.
	Slow func(why error)
}

// Bolt is the Store on bbolt. Besides Store it can be checked, compacted and
// mended.
type Bolt struct {
	dir  string
	o    Options
	fs   FS
	pack packer

	swap sync.RWMutex // held shared by readers, whole while db or over is replaced
	db   *bbolt.DB
	over *layer   // what is in the log and not in db
	file *os.File // db's, which has the lock
	log  wal

	commits committer
	leases  LeaseTable
	ids     idPool
	bodies  bodyFiles
	reserve bool // the loop's, and Open's
	mended  bool // Open had to mend the database
	slow    bool // Options.Slow was told why
	reads   atomic.Uint64
	looked  atomic.Int64 // octets mapped since the last trim, about

	dead atomic.Pointer[error]
	gone chan struct{} // closed when dead is set
	once sync.Once
}

var _ Store = (*Bolt)(nil)

// Open opens the spool in dir, or makes one in an empty folder. Its errors are
// whole lines for the operator: the folder is not ours, another process has it,
// its format is newer, the key is wrong; nothing has been touched then. Items
// and pages that are damaged do not keep it from opening.
func Open(dir string, o Options) (*Bolt, error) {
	if o.FS == nil {
		o.FS = OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Moved == nil {
		o.Moved = func(Moved) {}
	}
	if o.Slow == nil {
		o.Slow = func(error) {}
	}
	s := &Bolt{dir: dir, o: o, fs: o.FS, gone: make(chan struct{}), over: &layer{}}
	s.log = wal{fs: o.FS, size: logSize}
	if o.LogSize != 0 {
		s.log.size = min(maxLogSize, max(2*logBlock, blocks(int64(o.LogSize))))
	}
	s.Compress(o.Compress)
	if o.Key != nil {
		seal, err := newSealer(o.Key)
		if err != nil {
			return nil, s.refusal("queue encryption: %v", err)
		}
		s.pack.seal = seal
	}
	s.commits.init()
	if err := s.open(); err != nil {
		if s.db != nil {
			s.db.Close()
		}
		return nil, err
	}
	go s.commitLoop() // ends with Close
	return s, nil
}

// refusal is an error of Open: one line that names the spool.
func (s *Bolt) refusal(format string, args ...any) error {
	return fmt.Errorf("spool %s: %w", s.dir, fmt.Errorf(format, args...))
}

func (s *Bolt) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Bolt) open() error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := s.checkOwner(); err != nil {
		return err
	}
	if err := s.openDB(); err != nil {
		return err
	}
	old, err := s.readLog()
	if err != nil {
		return err
	}
	fresh, err := s.checkFormat()
	if err != nil {
		return err
	}
	// Nothing has been changed up to here.
	if err = s.prepare(fresh); isFull(err) {
		s.dropReserve() // what the log holds needs room
		if err = s.prepare(fresh); isFull(err) && !fresh && s.inPieces(s.over) == nil {
			s.over = &layer{} // the log is still read from where it was
			err = s.prepare(fresh)
		}
	}
	if err != nil {
		return s.refusal("%w", err)
	}
	if err := s.tellOfLog(old); err != nil {
		return s.refusal("%s: %w", logName, plain(err))
	}
	if err := s.cleanBodies(); err != nil {
		return s.refusal("%w", err)
	}
	s.fs.Remove(s.path(oldName)) // a crash has left it
	if s.mostlyFree() {
		if err := s.compact(); err != nil && s.broken() != nil {
			return s.refusal("compact: %w", err)
		}
	}
	s.tellSlow(s.furnish())
	s.trim()
	if s.size() > largeDB || len(old.b) > 0 {
		debug.FreeOSMemory() // what looking at every page took
	}
	return nil
}

// lockStep is how often a lock is asked for while Open waits. Ours.
const lockStep = 20 * time.Millisecond

// largeDB is the size of a database from which opening it leaves much garbage,
// in octets. Ours.
const largeDB = 32 << 20

// checkOwner refuses a spool that somebody else could change.
func (s *Bolt) checkOwner() error {
	for _, name := range []string{".", dbName, logName, bodyDir, corruptDir} {
		info, err := s.fs.Stat(s.path(name))
		if errors.Is(err, fs.ErrNotExist) && name != "." {
			continue
		}
		if err != nil {
			return s.refusal("%w", plain(err))
		}
		st, isFile := stat(info), name == dbName || name == logName
		switch {
		case info.IsDir() == isFile || (isFile && !info.Mode().IsRegular()):
			return s.refusal("%s is not what it should be: %s", name, info.Mode())
		case st.uid != os.Geteuid():
			return s.refusal("%s belongs to user id %d, not to %d who runs the queue", what(name), st.uid, os.Geteuid())
		case info.Mode().Perm()&0o022 != 0:
			return s.refusal("%s may be written by others (mode %04o)", what(name), info.Mode().Perm())
		}
	}
	return nil
}

func what(name string) string {
	if name == "." {
		return "the folder"
	}
	return name
}

// plain takes the path out of an error: refusals name the spool themselves.
func plain(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", p.Op, p.Err)
	}
	return err
}

func (s *Bolt) options() *bbolt.Options {
	return &bbolt.Options{
		Timeout:         time.Nanosecond, // it is locked already, or refused
		NoFreelistSync:  true,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapSize,
	}
}

// openDB locks, checks and opens the database. One that is damaged is mended
// before bbolt sees it: bbolt believes every page.
func (s *Bolt) openDB() error {
	if _, err := s.fs.Stat(s.path(dbName)); errors.Is(err, fs.ErrNotExist) {
		if err := s.createDB(); err != nil || s.db != nil {
			return err
		}
	}
	f, err := s.openLocked(dbName)
	if err != nil {
		return err
	}
	if f, err = s.mendIfDamaged(f); err != nil {
		return err
	}
	s.file = f
	s.db, err = s.fs.OpenDB(f, s.options())
	if err != nil {
		return s.refusal("%s: %w", dbName, plain(err))
	}
	return nil
}

// createDB makes an empty database under another name, so that there never is
// half of one. When another process was quicker, s.db stays nil.
func (s *Bolt) createDB() error {
	f, err := s.openLocked(newName)
	if err != nil {
		return err
	}
	if _, err := s.fs.Stat(s.path(dbName)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(s.fs.Remove(s.path(newName)), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return s.refusal("%s: %w", newName, plain(err))
	}
	db, err := s.fs.OpenDB(f, s.options())
	if err != nil {
		return s.refusal("%s: %w", newName, plain(err))
	}
	s.db, s.file = db, f
	if err := s.fs.Rename(s.path(newName), s.path(dbName)); err != nil {
		return s.refusal("%w", err)
	}
	return nil // prepare makes the name durable
}

// openLocked opens a database file for this process alone.
func (s *Bolt) openLocked(name string) (*os.File, error) {
	f, err := s.fs.OpenFile(s.path(name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, s.refusal("%s: %w", name, plain(err))
	}
	for end := time.Now().Add(s.o.Wait); ; time.Sleep(lockStep) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !time.Now().Before(end) {
			break
		}
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, s.refusal("in use by another smtpd")
	}
	return nil, s.refusal("lock %s: %w", name, err)
}

// checkFormat refuses what it may not touch, without touching it.
func (s *Bolt) checkFormat() (fresh bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta.name())
		if meta == nil {
			if k, _ := tx.Cursor().First(); k != nil {
				return s.refusal("%s is not a spool", dbName)
			}
			fresh = true
			return nil
		}
		switch n, ok := formatOf(meta); {
		case !ok:
			return s.refusal("%s does not say its format", dbName)
		case n == 0:
			return s.refusal("%s has a format that never was: 0", dbName)
		case n > Format:
			return s.refusal("format %d is newer than this smtpd understands (%d)", n, Format)
		}
		return s.checkKey(meta.Get(metaKey), isEmpty(&view{tx: tx, layers: []*layer{s.over}}))
	})
	return fresh, err
}

// formatOf is the format that meta names, also when an octet of the name is
// wrong: the mail can be read, so it shall be.
func formatOf(meta *bbolt.Bucket) (n uint32, ok bool) {
	if v := meta.Get(metaFormat); len(v) == 4 {
		return binary.BigEndian.Uint32(v), true
	}
	c := meta.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		wrong := len(metaFormat)
		for i := range min(len(k), len(metaFormat)) {
			if k[i] == metaFormat[i] {
				wrong--
			}
		}
		if len(k) == len(metaFormat) && len(v) == 4 && wrong <= 1 {
			return binary.BigEndian.Uint32(v), true
		}
	}
	return 0, false
}

// keyText is what meta holds sealed, to know the key by.
const keyText = "the key of this spool"

// checkKey compares the key with the one that sealed what the spool holds, by
// what meta has of it. An empty spool takes any.
func (s *Bolt) checkKey(known []byte, empty bool) error {
	if known == nil || empty {
		return nil
	}
	if s.pack.seal == nil {
		return s.refusal("is encrypted, and the configuration has no queue encryption key")
	}
	if text, err := s.pack.seal.open(known, metaKey); err != nil || string(text) != keyText {
		return s.refusal("is encrypted with another key")
	}
	return nil
}

func isEmpty(v *view) bool {
	for _, b := range []bucket{bucketMsg, bucketEnv, bucketBody, bucketAside} {
		if v.first(b, nil) != nil {
			return false
		}
	}
	return true
}

// prepare makes what a spool needs and does not have, and brings what the log
// held into the database.
func (s *Bolt) prepare(fresh bool) error {
	made := fresh
	for _, d := range []string{bodyDir, bodyDir + "/" + tmpDir, corruptDir} {
		err := s.fs.Mkdir(s.path(d), 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return plain(err)
		}
		made = made || err == nil
	}
	if made {
		if err := errors.Join(s.fs.SyncDir(s.path(bodyDir)), s.fs.SyncDir(s.dir)); err != nil {
			return plain(err)
		}
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b.name()); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta.name())
		ids := bytes.Clone(meta.Get(metaIDs))
		if err := s.write(tx, s.over); err != nil {
			return err
		}
		if err := s.prepareKey(tx, meta); err != nil {
			return err
		}
		if err := s.ids.load(meta, ids); err != nil {
			return err
		}
		return meta.Put(metaFormat, binary.BigEndian.AppendUint32(nil, Format))
	})
	if err == nil {
		s.over = &layer{}
		s.log.begin()
	}
	return err
}

// prepareKey keeps what the key is known by.
func (s *Bolt) prepareKey(tx *bbolt.Tx, meta *bbolt.Bucket) error {
	known := meta.Get(metaKey)
	if s.pack.seal == nil {
		if known == nil {
			return nil
		}
		return meta.Delete(metaKey) // the spool is empty
	}
	if known != nil {
		if text, err := s.pack.seal.open(known, metaKey); err == nil && string(text) == keyText {
			return nil
		}
	}
	box, err := s.pack.seal.seal(nil, []byte(keyText), metaKey)
	if err != nil {
		return err
	}
	return meta.Put(metaKey, box)
}

// Compress says whether what is stored from now on is compressed; what is there
// can be read either way.
func (s *Bolt) Compress(on bool) { s.pack.compress.Store(on) }

// Gone is closed when the database turned out to be damaged while it was in
// use. Nothing can be changed any more; Open mends it.
func (s *Bolt) Gone() <-chan struct{} { return s.gone }

func (s *Bolt) broken() error {
	if p := s.dead.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *Bolt) setBroken(err error) {
	s.once.Do(func() {
		s.dead.Store(&err)
		close(s.gone)
	})
}

// Close ends the store once what it was asked for is done.
func (s *Bolt) Close() error {
	c := &s.commits
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return ErrClosed
	}
	c.closed = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	<-c.ended
	s.swap.Lock()
	defer s.swap.Unlock()
	if s.log.f != nil {
		s.log.f.Close()
	}
	if err := s.broken(); err != nil {
		// The database may hold a lock inside for ever, and its map stays: the
		// lock of the file would stay with it.
		return errors.Join(err, unix.Flock(int(s.file.Fd()), unix.LOCK_UN), s.file.Close())
	}
	return s.db.Close()
}

// view runs f on the spool as it is now.
func (s *Bolt) view(f func(*view) error) (err error) {
	s.swap.RLock()
	defer s.swap.RUnlock()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer s.guard("read", &err)
	s.looked.Add(lookedAt)
	return s.db.View(func(tx *bbolt.Tx) error { return f(&view{tx: tx, layers: []*layer{s.over}}) })
}

// Accept implements Store.
func (s *Bolt) Accept(ctx context.Context, m *Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ids.coming(m.ID) {
		return ErrExists
	}
	s.commits.crowd.Store(int64(m.Crowd))
	a, err := s.accepted(m)
	if err != nil {
		return err
	}
	if !m.InFile {
		return s.do(a.job())
	}
	if !s.bodies.take(m.ID) {
		return fmt.Errorf("%w: message %s has no body", ErrInvalid, m.ID)
	}
	defer s.bodies.forget(m.ID)
	if known, err := s.known(m.ID); err != nil || known {
		s.fs.Remove(s.path(bodyDir, tmpDir, m.ID.String()))
		return errors.Join(err, ErrExists)
	}
	if err := s.keepBody(a); err != nil {
		return s.diskError(err)
	}
	return s.do(a.job())
}

// accepted is what one message puts into the database.
type accepted struct {
	id   mail.MessageID
	rec  record
	body []byte // item; nil when it is in a file
	envs [][]byte
	size int
}

func (a *accepted) job() *job { return &job{grows: true, id: a.id, size: a.size, apply: a.apply} }

// accepted makes all items of m; the body's, when it is inline.
func (s *Bolt) accepted(m *Message) (*accepted, error) {
	if m.ID == 0 || len(m.Envelopes) == 0 || len(m.Envelopes) > MaxRecipients ||
		(!m.InFile && (len(m.Body) > MaxInline || int64(len(m.Body)) != m.Size)) {
		return nil, fmt.Errorf("%w: message %s", ErrInvalid, m.ID)
	}
	n := uint32(len(m.Envelopes))
	a := &accepted{id: m.ID, envs: make([][]byte, n),
		rec: record{size: m.Size, arrival: m.Arrival, rcpts: n, next: n + 1, inFile: m.InFile}}
	var buf []byte
	for i := range m.Envelopes {
		e := &m.Envelopes[i]
		e.ID = m.ID.Envelope(uint32(i) + 1)
		item, err := s.packEnvelope(e, &buf)
		if err != nil {
			return nil, err
		}
		a.envs[i] = item
		a.size += len(item)
	}
	if !m.InFile {
		a.rec.sum = crc32.Checksum(m.Body, castagnoli())
		var err error
		if a.body, err = s.pack.pack(kindBody, msgKey(m.ID), m.Body); err != nil {
			return nil, fmt.Errorf("%w: %w", statusFailed(), err)
		}
		a.size += len(a.body)
	}
	return a, nil
}

// packEnvelope makes the item of e; buf is room that it may use.
func (s *Bolt) packEnvelope(e *mail.Envelope, buf *[]byte) ([]byte, error) {
	if err := checkText(e); err != nil {
		return nil, err
	}
	b, err := appendEnvelope((*buf)[:0], e)
	*buf = b
	if err != nil {
		return nil, err
	}
	item, err := s.pack.pack(kindEnvelope, envKey(e.ID), b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", statusFailed(), err)
	}
	return item, nil
}

func (a *accepted) apply(t *txn) error {
	key := msgKey(a.id)
	if old := t.get(bucketMsg, key); old != nil {
		r, err := t.s.unpackRecord(a.id, old)
		if err == nil && r.sum == a.rec.sum && r.size == a.rec.size && r.rcpts == a.rec.rcpts {
			return nil // told twice
		}
		return ErrExists
	}
	item, err := t.s.pack.pack(kindMessage, key, a.rec.encode())
	if err == nil {
		err = t.put(bucketMsg, key, item)
	}
	if err == nil && a.body != nil {
		err = t.put(bucketBody, key, a.body)
	}
	for i, item := range a.envs {
		if err == nil {
			err = t.put(bucketEnv, envKey(a.id.Envelope(uint32(i)+1)), item)
		}
	}
	return err
}

func (s *Bolt) unpackRecord(id mail.MessageID, item []byte) (record, error) {
	b, err := s.pack.unpack(kindMessage, msgKey(id), item)
	if err != nil {
		return record{}, err
	}
	return decodeRecord(b)
}

func (s *Bolt) unpackEnvelope(id mail.EnvelopeID, item []byte) (mail.Envelope, error) {
	b, err := s.pack.unpack(kindEnvelope, envKey(id), item)
	if err != nil {
		return mail.Envelope{ID: id}, err
	}
	return decodeEnvelope(id, b)
}
