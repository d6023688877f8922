package mda

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links followed on one path (POSIX: SYMLOOP_MAX).
const maxLinks = 40

// dirMode is the mode of folders that a delivery makes.
const dirMode = 0o700

// walker opens a folder one name at a time and so decides itself which links to
// follow: those that root or the user made. A link that somebody else put in
// the way, even between two deliveries, leads nowhere.
type walker struct {
	uid   int
	links int
}

// open opens the folder at an absolute, clean path, for use with the *at calls
// only. With create what is missing is made, the parents too.
func (w *walker) open(path string, create bool) (int, error) {
	fd, err := openDirAt(unix.AT_FDCWD, "/", oWalk)
	if err != nil {
		return -1, err
	}
	names := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		next, target, err := w.enter(fd, name, create)
		if err == nil && target != "" {
			names = append(strings.FieldsFunc(target, func(r rune) bool { return r == '/' }), names...)
			if target[0] != '/' {
				continue
			}
			next, err = openDirAt(unix.AT_FDCWD, "/", oWalk)
		}
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// enter opens one name, or gives the target when it is a link to follow.
func (w *walker) enter(dir int, name string, create bool) (fd int, target string, err error) {
	fd, err = openDirAt(dir, name, oWalk)
	switch {
	case err == nil:
		return fd, "", nil
	case err == unix.ENOENT && create:
		if err = makeDir(dir, name); err == nil {
			err = syncDir(dir)
		}
		if err == nil {
			fd, err = openDirAt(dir, name, oWalk)
		}
		return fd, "", err
	case err != unix.ELOOP && err != unix.ENOTDIR && err != unix.EMLINK:
		return -1, "", err
	}
	target, lerr := w.follow(dir, name)
	if lerr != nil {
		return -1, "", lerr
	}
	if target == "" {
		return -1, "", err
	}
	return -1, target, nil
}

var errForeign = errors.New("belongs to another user")

// follow reads a link; empty: the name is no link.
func (w *walker) follow(dir int, name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	if st.Uid != 0 && int(st.Uid) != w.uid {
		return "", fmt.Errorf("link %s %w", name, errForeign)
	}
	if w.links++; w.links > maxLinks {
		return "", unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// makeDir makes a folder; one that came to be meanwhile is as good. The name is
// not on disk before syncDir.
func makeDir(dir int, name string) error {
	err := retry(func() error { return unix.Mkdirat(dir, name, dirMode) })
	if err == unix.EEXIST {
		return nil
	}
	return err
}

// syncDir brings the names in a folder to disk. In one that may be written but not
// read nothing is left but the syncs of what is made there, which on most file
// systems bring its name along.
func syncDir(dir int) error {
	fd, err := openDirAt(dir, ".", unix.O_RDONLY)
	if err == unix.EACCES {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return retry(func() error { return unix.Fsync(fd) })
}

// openDirAt opens a folder and never follows name.
func openDirAt(dir int, name string, mode int) (int, error) {
	return openat(dir, name, mode|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// openat is openat(2), close-on-exec, repeated when a signal interrupts it.
func openat(dir int, name string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// writeAll writes all of b.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// owned checks that an open folder belongs to the user.
func owned(fd, uid int) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return st, err
	}
	if int(st.Uid) != uid {
		return st, fmt.Errorf("folder %w", errForeign)
	}
	return st, nil
}

// missing reports that something is not there.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
