package mda

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const mailLocal = "mail.local: "

// mbox appends to the system mailbox of the user.
func (d *Deliverer) mbox(ctx context.Context, v *Delivery) error {
	name := v.User
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") || strings.HasSuffix(name, ".lock") || len(name) > maxName-16 {
		return tempfail(exTempfail, mailLocal, "", fmt.Errorf("no mailbox can be named %s", visible(name, maxLine/2)))
	}
	path := d.o.SpoolDir + "/" + name
	dir, err := openSpool(d.o.SpoolDir)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := d.boxes.lock(ctx, path); err != nil {
		return tempfail(exTempfail, mailLocal, path, err)
	}
	defer d.boxes.unlock(path)
	var box *mailbox
	err = d.waitLock(ctx, path, func() (bool, error) {
		box, err = d.tryBox(dir, name)
		return box != nil, err
	})
	if err != nil {
		return tempfail(exTempfail, mailLocal, path, err)
	}
	defer box.close()
	if err := d.appendTo(box.fd, v, false); err != nil {
		return tempfail(exTempfail, mailLocal, path, err)
	}
	return nil
}

// CheckSpool reports why the folder of system mailboxes cannot be delivered to,
// with the remedy; nil: it can. It is for the start of the daemon.
func CheckSpool(dir string) error {
	fd, err := openSpool(dir)
	if err != nil {
		if f, ok := errors.AsType[*failure](err); ok && !f.perm && strings.Contains(f.text, "world-writable") {
			return fmt.Errorf("%s is writable by every user: no mail will be delivered there (chmod o-w %s)", dir, dir)
		}
		return err
	}
	return unix.Close(fd)
}

// CheckMailbox reports why this process, which runs as the user uid, cannot deliver
// to the system mailbox of that name, with the remedy; nil: it can. Without a name
// any mailbox is meant.
func CheckMailbox(dir, name string, uid int) error {
	if err := CheckSpool(dir); err != nil {
		return err
	}
	path := dir + "/" + name
	var st unix.Stat_t
	var err error = unix.ENOENT
	if name != "" {
		err = unix.Lstat(path, &st)
	}
	switch {
	case err == unix.ENOENT && unix.Access(dir, unix.W_OK|unix.X_OK) == nil:
		return nil
	case err == unix.ENOENT && name == "":
		return fmt.Errorf("no mailboxes can be made in %s", dir)
	case err == unix.ENOENT:
		return fmt.Errorf("%s is not there and cannot be made (as root: install -m 600 -o %s /dev/null %s)", path, name, path)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
		return fmt.Errorf("%s: %w", path, errSpecial)
	case int(st.Uid) != uid:
		return fmt.Errorf("%s: mailbox %w", path, errForeign)
	}
	if err := unix.Access(path, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// openSpool opens the folder of system mailboxes. Where everybody can make
// files, anybody could wait with a link for a mailbox that is not there yet.
func openSpool(path string) (int, error) {
	dir, err := openat(unix.AT_FDCWD, path, oWalk|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, tempfail(exTempfail, mailLocal, path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		unix.Close(dir)
		return -1, tempfail(exTempfail, mailLocal, path, err)
	}
	if st.Mode&0o002 != 0 {
		unix.Close(dir)
		return -1, tempfail(exTempfail, "lockspool: ", path, errors.New("will not deliver to world-writable spool"))
	}
	return dir, nil
}

// SpoolGroup is the group that a process must be in to make mailboxes and locks
// in the folder of system mailboxes; false when none may.
func SpoolGroup(dir string) (gid int, ok bool) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil || st.Mode&0o020 == 0 {
		return 0, false
	}
	return int(st.Gid), true
}

// mailbox is a system mailbox, open and locked.
type mailbox struct {
	fd  int
	dot *dotLock
}

func (b *mailbox) close() {
	unix.Close(b.fd)
	b.dot.release()
}

// tryBox locks and opens a mailbox; nil: somebody else has it locked.
func (d *Deliverer) tryBox(dir int, name string) (*mailbox, error) {
	if err := d.makeBox(dir, name); err != nil {
		return nil, err
	}
	dot, err := d.tryDotLock(dir, name)
	if err == unix.EEXIST {
		d.breakStale(dir, name)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fd, err := openBox(dir, name, d.o.UID)
	if err != nil {
		dot.release()
		if err == unix.ENOENT {
			err = nil // a reader has removed it: once more
		}
		return nil, err
	}
	box := &mailbox{fd: fd, dot: dot}
	held, err := tryKernelLock(fd)
	if held && err == nil {
		// A reader may have put a new file in place while we waited.
		held, err = sameFile(dir, name, fd)
	}
	if !held || err != nil {
		box.close()
		return nil, err
	}
	return box, nil
}

// sameFile reports whether the name still leads to the open file, and no other
// name does: at this moment, and as seen from the name, for a link may have come
// and gone since the file was opened.
func sameFile(dir int, name string, fd int) (bool, error) {
	var open, named unix.Stat_t
	if err := unix.Fstat(fd, &open); err != nil {
		return false, err
	}
	if err := unix.Fstatat(dir, name, &named, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, err
	}
	return open.Dev == named.Dev && open.Ino == named.Ino && named.Nlink == 1, nil
}

// makeBox makes a mailbox that is not there, and brings the name of one that may
// be new, as it is empty, to disk. That is before it is locked: the name of a lock
// that has gone must not be on disk, where the file system has no journal, for
// what got its inode afterwards had two names then, and a folder loses one of them.
func (d *Deliverer) makeBox(dir int, name string) error {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err == unix.ENOENT {
		var fd int
		if fd, err = openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600); err == nil {
			err = retry(func() error { return unix.Fsync(fd) }) // else the first sync of its text does it, with the lock
			unix.Close(fd)
		} else if err == unix.EEXIST {
			err = nil
		}
	}
	if err != nil || st.Size > 0 {
		return err
	}
	return d.syncNew(dir)
}

// syncNew brings the name of what may be new in a folder to disk.
func (d *Deliverer) syncNew(dir int) error {
	if err := d.step("dirsync"); err != nil {
		return err
	}
	return syncDir(dir)
}

// openBox opens a mailbox. It must be a plain file of the user with one name:
// anything else was put there to lead us elsewhere.
func openBox(dir int, name string, uid int) (int, error) {
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := openat(dir, name, flags, 0)
	if err == unix.ELOOP || err == unix.EMLINK || err == unix.ENXIO {
		return -1, errSpecial
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1:
		err = errSpecial
	case int(st.Uid) != uid:
		err = fmt.Errorf("mailbox %w", errForeign)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

var errSpecial = errors.New("linked or special file")

// frontRoom is for what an mbox has besides the text, in octets. Ours.
const frontRoom = 4 << 10

// appendTo adds the message to an mbox file that is open and locked, and syncs
// it. When that fails the file is cut back to what it was.
func (d *Deliverer) appendTo(fd int, v *Delivery, everyFrom bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	regular := st.Mode&unix.S_IFMT == unix.S_IFREG
	var err error
	if regular {
		err = reserve(fd, st.Size, v.Text.size()+frontRoom)
	}
	if err == nil {
		err = d.writeMbox(fd, v, everyFrom, separator(fd, st.Size))
	}
	if err == nil && regular {
		if err = d.step("sync"); err == nil {
			err = retry(func() error { return unix.Fsync(fd) })
		}
	}
	if err != nil && regular {
		if terr := retry(func() error { return unix.Ftruncate(fd, st.Size) }); terr != nil {
			d.o.Report(fmt.Sprintf("warn: mda: a mailbox of %s keeps a part of a mail: %s", visible(v.User, maxLine), sentence(terr)))
		}
		_ = retry(func() error { return unix.Fsync(fd) })
	}
	return err
}

// separator is what an mbox needs so that the next `From ` line follows an
// empty one; a delivery that a crash cut short may have left it without.
func separator(fd int, size int64) string {
	b, n := [2]byte{'\n', '\n'}, min(size, 2)
	if got, err := unix.Pread(fd, b[2-n:], size-n); err != nil || got != int(n) {
		return "" // opened for writing only
	}
	switch {
	case b[1] != '\n':
		return "\n\n"
	case b[0] != '\n':
		return "\n"
	}
	return ""
}

// writeMbox writes one message in the mbox format.
func (d *Deliverer) writeMbox(fd int, v *Delivery, everyFrom bool, before string) error {
	p := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	b := append((*p)[:0], before...)
	b = append(b, "From "...)
	b = append(b, eachOctet(v.from(), func(c byte) byte {
		if c <= ' ' {
			return '-' // the line is read by words
		}
		return c
	})...)
	b = d.o.Now().AppendFormat(b, " Mon Jan _2 15:04:05 2006\n")
	b = v.front(b)
	q := quoter{every: everyFrom, start: true, empty: v.AsIs}
	err := v.Text.pieces(func(piece []byte) error {
		if len(b)+len(piece)+1 > cap(b) {
			if err := d.flush(fd, b); err != nil {
				return err
			}
			b = b[:0]
		}
		b = q.append(b, piece)
		return nil
	})
	if err != nil {
		return err
	}
	if !q.start {
		b = append(b, '\n')
	}
	return d.flush(fd, append(b, '\n'))
}

func (d *Deliverer) flush(fd int, b []byte) error {
	if err := d.step("write"); err != nil {
		return err
	}
	return writeAll(fd, b)
}

// quoter puts '>' before lines that would look like the start of a message:
// `From ` after an empty line, or every such line.
type quoter struct {
	every bool
	start bool // at the start of a line
	empty bool // the line before was empty
}

// append adds a piece of text: a line, or part of a long one, as Text.pieces
// gives them.
func (q *quoter) append(b, piece []byte) []byte {
	if q.start {
		if (q.every || q.empty) && bytes.HasPrefix(piece, []byte("From ")) {
			b = append(b, '>')
		}
		q.empty = len(piece) == 1 && piece[0] == '\n'
	}
	q.start = piece[len(piece)-1] == '\n'
	return append(b, piece...)
}
