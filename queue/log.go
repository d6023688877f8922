package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// The layout of queue.log. Numbers are big endian.
//
// It is blocks of logBlock octets. The first says what the file is: logMagic, the
// version (4 octets), the salt (8), and the CRC32C of these (4). Then come the
// records, each from the beginning of a block, filled up with zeros to the end
// of one: no write touches a block that holds what was acknowledged before. A
// record is its head (recordHead) and its operations, each a bucket (1 octet,
// with opDelete when the key is deleted), the length of the key (uvarint), the
// key, and unless it is deleted the length of the item (uvarint) and the item.
//
// The salt is drawn when the file is made: no mail can hold octets that pass for
// a record. The number of a record is greater than that of all before it, also
// of those that lie there from before the log was begun anew.
const (
	logMagic   = "smtpd queue.log\n"
	logVersion = 1
	logBlock   = 4096
	logHead    = len(logMagic) + 4 + saltSize + 4
	saltSize   = 8
	recordHead = saltSize + 8 + 4 + 4 + 4 + 4 // salt, number, length, CRC32C and CRC32 of the operations, CRC32C of these
	opDelete   = 0x80
)

// logSize is the length of queue.log in octets. Ours: a longer one makes the
// database's share cheaper, and takes more memory and longer to be read again.
const logSize = 8 << 20

// maxLogSize bounds what is taken for a log, in octets. Ours.
const maxLogSize = 64 << 20

// maxOver is how many entries lie over the database, before they go into it.
// Ours: some megabytes.
const maxOver = 32 << 10

// keepBuffer is up to which size the buffer of records is kept, in octets. Ours.
const keepBuffer = 1 << 20

// errNoLog says that a record does not fit, or that there is no log.
var errNoLog = errors.New("no room in the log")

// wal is queue.log while the store is open: the loop's own.
type wal struct {
	fs   FS
	f    *os.File // nil: there is none
	salt [saltSize]byte
	// bound is the salt of the log that belongs to the database, as that says.
	// Zeros: it does not say.
	bound [saltSize]byte
	size  int64  // of the file
	at    int64  // where the next record goes
	seq   uint64 // the number given last
	buf   []byte

	// doubt: something failed, and it is not known whether the disk has it. The
	// log is not written again before a checkpoint has succeeded.
	doubt bool
}

// begin has the next record go to the beginning. Whatever is in the log must be
// in the database then, durable, with its number.
func (l *wal) begin() { l.at = logBlock }

// used reports whether there may be records that the database does not say it has.
func (l *wal) used() bool { return l.doubt || l.at != logBlock }

// blocks is n octets in whole blocks.
func blocks(n int64) int64 { return (n + logBlock - 1) / logBlock * logBlock }

// append makes a layer of changes durable. After an error it is not known
// whether it is.
func (l *wal) append(own *layer) error {
	if l.f == nil || l.doubt {
		return errNoLog
	}
	l.buf = append(l.buf[:0], make([]byte, recordHead)...)
	for b, e := range own.all() {
		l.buf = appendOp(l.buf, b, e)
		if int64(len(l.buf)) > l.size-l.at {
			return errNoLog
		}
	}
	l.seq++
	l.buf = sealRecord(l.buf, l.salt, l.seq)
	_, err := l.fs.WriteAt(l.f, l.buf, l.at)
	if err == nil {
		err = l.fs.SyncData(l.f)
	}
	if err != nil {
		l.doubt = true
		return err
	}
	l.at += int64(len(l.buf))
	if cap(l.buf) > keepBuffer {
		l.buf = nil
	}
	return nil
}

func appendOp(b []byte, in bucket, e *entry) []byte {
	what := byte(in)
	if e.item == nil {
		what |= opDelete
	}
	b = append(b, what)
	b = binary.AppendUvarint(b, uint64(len(e.key)))
	b = append(b, e.key...)
	if e.item == nil {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(e.item)))
	return append(b, e.item...)
}

// sealRecord fills in the head of the record b, and fills b up to whole blocks.
func sealRecord(b []byte, salt [saltSize]byte, seq uint64) []byte {
	ops := b[recordHead:]
	h := append(b[:0], salt[:]...)
	h = binary.BigEndian.AppendUint64(h, seq)
	h = binary.BigEndian.AppendUint32(h, uint32(len(ops)))
	h = binary.BigEndian.AppendUint32(h, crc32.Checksum(ops, castagnoli()))
	h = binary.BigEndian.AppendUint32(h, crc32.ChecksumIEEE(ops))
	binary.BigEndian.AppendUint32(h, crc32.Checksum(h, castagnoli()))
	return append(b, make([]byte, blocks(int64(len(b)))-int64(len(b)))...)
}

// logHeader is the beginning of a log.
func logHeader(salt [saltSize]byte) []byte {
	b := append([]byte(logMagic), 0, 0, 0, logVersion)
	b = append(b, salt[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

// openLog opens the log to write it, or makes one that has the size it should
// have: all its blocks are there from then on, so that a record is one write of
// data and nothing besides. All that the old one holds must be in the database.
func (s *Bolt) openLog() (err error) {
	defer s.guard("log", &err)
	l, name := &s.log, s.path(logName)
	if info, err := s.fs.Stat(name); err != nil || info.Size() != l.size || l.salt == [saltSize]byte{} {
		if err := s.makeLog(); err != nil {
			l.salt = [saltSize]byte{}
			return fmt.Errorf("%s: %w", logName, plain(err))
		}
	}
	f, err := s.fs.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", logName, plain(err))
	}
	if was := l.bound; was != l.salt {
		// Twice: the state before the last commit, which is what is left when a
		// meta page is lost, shall know the log too.
		l.bound = l.salt
		for range 2 {
			if err := s.flush(&layer{}); err != nil {
				l.bound = was
				return errors.Join(fmt.Errorf("%s: %w", dbName, plain(err)), f.Close())
			}
		}
	}
	l.f = f
	l.begin()
	return nil
}

// makeLog makes an empty log in the place of the one that is there.
func (s *Bolt) makeLog() error {
	l, name := &s.log, s.path(newLogName)
	if err := s.hasRoom(l.size); err != nil {
		return err
	}
	f, err := s.fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(l.salt[:], rand.Uint64()|1)
	b := make([]byte, 64<<10)
	copy(b, logHeader(l.salt))
	for n := int64(0); n < l.size && err == nil; n += int64(len(b)) {
		b = b[:min(int64(len(b)), l.size-n)]
		_, err = f.Write(b)
		clear(b)
	}
	if err == nil {
		err = s.fs.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.fs.Rename(name, s.path(logName))
	}
	if err != nil {
		return errors.Join(err, s.fs.Remove(name)) // it may be all the room there was
	}
	return s.fs.SyncDir(s.dir)
}

// logs reports whether the changes of jobs may go into the log. New mail needs
// the reserve besides: only with that room is it sure that what is in the log
// can go into the database when the disk is full.
func (s *Bolt) logs(jobs []*job) bool {
	for _, j := range jobs {
		if j.grows && j.err == nil && !s.reserve {
			return false
		}
	}
	return s.log.f != nil
}

// publish shows readers what has become durable.
func (s *Bolt) publish(own *layer) {
	s.swap.Lock()
	defer s.swap.Unlock()
	s.over.take(own)
}

// checkpoint brings what lies over the database into it, and begins the log anew.
// After an error all is as before, but for the log: whether the disk holds the
// database as it was or as it was to be is not known, and a record fits only
// one of them. So nothing is logged until a checkpoint has succeeded.
func (s *Bolt) checkpoint() error {
	if s.over.count == 0 && !s.log.used() {
		return nil
	}
	err := s.flush(s.over)
	if isFull(err) && !s.reserve {
		if err = s.inPieces(s.over); err == nil {
			err = s.flush(&layer{})
		}
	}
	if err != nil {
		return err // also when the database shows it all: it may lie there as well
	}
	s.swap.Lock() // no reader is left that saw the database before
	s.over = &layer{}
	s.swap.Unlock()
	s.log.doubt = false
	s.log.begin()
	return nil
}

// flush writes a layer into the database, with a number greater than that of all
// records: none of them is looked at any more when this is durable, also none
// that failed.
func (s *Bolt) flush(l *layer) error {
	s.log.seq++
	err := s.db.Update(func(tx *bbolt.Tx) error { return s.write(tx, l) })
	if err != nil {
		s.log.doubt = true
	}
	return err
}

// inPieces brings a layer into the database some messages at a time, each piece in
// a commit of its own: what one frees is room for the next. The number stays
// what it was until all are there, so that the log is read from where it was.
func (s *Bolt) inPieces(l *layer) error {
	for piece := range l.pieces(fullGroup) {
		if err := s.db.Update(func(tx *bbolt.Tx) error { return put(tx, piece) }); err != nil {
			return err
		}
	}
	return nil
}

// write is flush within a transaction.
func (s *Bolt) write(tx *bbolt.Tx, l *layer) error {
	if err := put(tx, l); err != nil {
		return err
	}
	v := append(binary.BigEndian.AppendUint64(nil, s.log.seq), s.log.bound[:]...)
	return tx.Bucket(bucketMeta.name()).Put(metaLog, binary.BigEndian.AppendUint32(v, crc32.Checksum(v, castagnoli())))
}

// put carries out the changes of a layer.
func put(tx *bbolt.Tx, l *layer) error {
	var in [buckets]*bbolt.Bucket
	for b := range buckets {
		in[b] = tx.Bucket(b.name())
		if b == bucketEnv || b == bucketMsg || b == bucketBody {
			in[b].FillPercent = fillPercent
		}
	}
	for b, e := range l.all() {
		var err error
		if e.item == nil {
			err = in[b].Delete([]byte(e.key))
		} else {
			err = in[b].Put([]byte(e.key), e.item)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// inDatabase is the number up to which the database holds all records. Where it
// does not say, 0: to carry out all again does no harm. bound is the salt of its log.
func inDatabase(tx *bbolt.Tx) (seq uint64, bound [saltSize]byte) {
	meta := tx.Bucket(bucketMeta.name())
	if meta == nil {
		return 0, bound
	}
	v := append([]byte(nil), meta.Get(metaLog)...)
	if (len(v) != 8+4 && len(v) != 8+saltSize+4) || !mendOctet(v, sumAtEnd) {
		return 0, bound
	}
	copy(bound[:], v[8:len(v)-4]) // the first versions do not say it
	return binary.BigEndian.Uint64(v), bound
}

// settle is checkpoint when there is time for it. It may fail: the log keeps
// what it has.
func (s *Bolt) settle() (err error) {
	if err := s.broken(); err != nil {
		return err
	}
	defer s.guard("checkpoint", &err)
	return s.checkpoint()
}

// logFull reports whether it is time for a checkpoint: before a group has to
// wait for one.
func (s *Bolt) logFull() bool { return s.log.at > s.log.size*3/4 || s.over.count > maxOver }
