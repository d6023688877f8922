package mda

import (
	"context"
	"errors"

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
	fd, err := openat(unix.AT_FDCWD, path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFCHR {
		return tempfail(exTempfail, mboxFile, "", errors.New("neither a file nor a device"))
	}
	err = d.waitLock(ctx, path, func() (bool, error) { return tryKernelLock(fd) })
	if err == nil {
		err = d.appendTo(fd, v, true)
	}
	if err != nil {
		return tempfail(exTempfail, mboxFile, "", err)
	}
	return nil
}
