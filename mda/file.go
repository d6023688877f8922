package mda

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const mboxFile = "mail.mboxfile: "

// file appends to the mbox file that an alias or .forward names. The name is
// the user's own, so links are followed; what is opened must be a plain file or
// a device such as /dev/null, and nothing that blocks.
func (d *Deliverer) file(ctx context.Context, v *Delivery) error {
	path, err := v.path(v.Path)
	if err != nil {
		return err
	}
	if err := d.boxes.lock(ctx, path); err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	defer d.boxes.unlock(path)
	fd, err := openFile(path)
	if err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFCHR {
		return tempfail(exTempfail, mboxFile, "", errors.New("neither a file nor a device"))
	}
	err = d.waitLock(ctx, path, func() (bool, error) { return tryKernelLock(fd) })
	if err == nil && kind == unix.S_IFREG && st.Size == 0 {
		err = d.syncParent(path)
	}
	if err == nil {
		err = d.appendTo(fd, v, true)
	}
	if err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	return nil
}

// openFile opens the file to append to, made when it is not there, and to look at
// its end, unless the user himself may not read it.
func openFile(path string) (fd int, err error) {
	const flags = unix.O_APPEND | unix.O_CREAT | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err = openat(unix.AT_FDCWD, path, flags|unix.O_RDWR, 0o600)
	if err == unix.EACCES {
		fd, err = openat(unix.AT_FDCWD, path, flags|unix.O_WRONLY, 0o600)
	}
	return fd, err
}

// syncParent brings the name of a file that may be new to disk, where its links
// lead.
func (d *Deliverer) syncParent(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	dir, err := openat(unix.AT_FDCWD, filepath.Dir(path), oWalk|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return d.syncNew(dir)
}
