package mda

import (
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultMaildir = "~/Maildir"
	junkFolder     = ".Junk"
	// maxName bounds the name of a file or folder, in octets (POSIX: NAME_MAX).
	maxName = 255
)

// maildir delivers into a Maildir: a file in tmp, on disk, renamed to new, the
// folder on disk. The name comes from the message, so that a delivery that is
// repeated after a crash does not make a second file, whichever of the
// recipients that share the folder comes first then.
func (d *Deliverer) maildir(v *Delivery) error {
	path, err := v.maildirPath()
	if err != nil {
		return err
	}
	err = d.intoFolders(path, v)
	if missing(err) {
		// Somebody took the folders away under our hands: make them again.
		d.folders.forget(path)
		err = d.intoFolders(path, v)
	}
	if err != nil {
		return tempfail(exTempfail, "mail.maildir: ", visible(path, maxLine/2), err)
	}
	return nil
}

func (v *Delivery) maildirPath() (string, error) {
	if v.Path == "" {
		return v.path(defaultMaildir)
	}
	return v.path(v.Path)
}

// intoFolders picks the folder at or below path.
func (d *Deliverer) intoFolders(path string, v *Delivery) error {
	inbox, err := d.folders.get(path, d.o.UID)
	if err != nil {
		return err
	}
	defer d.folders.put(inbox)
	if v.Junk {
		junk, err := d.folders.get(path+"/"+junkFolder, d.o.UID)
		if err != nil {
			return err
		}
		defer d.folders.put(junk)
		if spam, err := v.Text.spam(); err != nil || spam {
			if err != nil {
				return err
			}
			return d.store(junk, v)
		}
	}
	if name := tagFolder(v.tag()); name != "" && isDir(path+"/"+name) {
		sub, err := d.folders.get(path+"/"+name, d.o.UID)
		if err != nil {
			return err
		}
		defer d.folders.put(sub)
		return d.store(sub, v)
	}
	return d.store(inbox, v)
}

// tagFolder is the name of the sub-folder for a sub-address; empty: there can
// be none.
func tagFolder(tag string) string {
	name := "." + strings.ReplaceAll(sanitise(tag, usePath), "/", ":")
	if tag == "" || name == ".." || len(name) > maxName || strings.IndexByte(name, 0) >= 0 {
		return ""
	}
	return name
}

func isDir(path string) bool {
	var st unix.Stat_t
	return retry(func() error { return unix.Stat(path, &st) }) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// store makes one file in f, for all recipients of a message together.
func (d *Deliverer) store(f *folder, v *Delivery) error {
	if v.ID == 0 {
		return d.add(f, v)
	}
	return d.copies.once(copyKey{v.ID.Message(), f.dev, f.ino}, func() error { return d.add(f, v) })
}

func (d *Deliverer) add(f *folder, v *Delivery) error {
	j := &job{v: v, name: fileName(v, d.o.Now()), fd: -1, lead: make(chan struct{}, 1), done: make(chan struct{})}
	if d.maybeRepeated(v) {
		dir, err := f.holder(j.name, v.Created)
		if err != nil {
			return err
		}
		if dir >= 0 {
			return syncNames(d, dir) // the earlier attempt may have ended before that
		}
	}
	return f.store(d, j)
}

// maybeRepeated tells the deliveries that may have been made before: those that
// were tried, and those whose envelope is older than this process, for the one
// before it may have ended between the delivery and its report.
func (d *Deliverer) maybeRepeated(v *Delivery) bool {
	return v.ID != 0 && (v.Retry > 0 || v.Created.Before(d.start))
}

// fileName is `<epoch>.<16 hex digits>.<hostname>`; the digits are the id of the
// message's first envelope.
func fileName(v *Delivery, now time.Time) string {
	id, at := uint64(v.ID.Message().Envelope(1)), v.Created
	if v.ID == 0 {
		var r [8]byte
		_, _ = rand.Read(r[:]) // never fails
		id, at = binary.BigEndian.Uint64(r[:]), now
	}
	b := make([]byte, 0, 64)
	b = strconv.AppendInt(b, at.Unix(), 10)
	b = append(b, '.')
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[id>>shift&15])
	}
	b = append(b, '.')
	host := v.Hostname[:min(len(v.Hostname), maxName-64)]
	return string(b) + eachOctet(host, func(c byte) byte {
		if c <= ' ' || c == '/' || c == ':' || c == ',' || c == 0x7f {
			return '_'
		}
		return c
	})
}
