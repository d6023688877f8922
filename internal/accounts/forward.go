package accounts

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"smtpd/internal/mail"
)

// Refusals of a .forward file: what the sender is told. Why is for the log.
func insecure() mail.Status {
	return mail.Status{Code: 550, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"}
}

func troubled() mail.Status {
	return mail.Status{Code: 451, Enh: [3]uint8{4, 2, 4}, Text: "Mailing list expansion problem"}
}

// MaxForward is the size of a .forward file that is still read, in octets
// (OpenSMTPD refuses 4096 and more).
const MaxForward = 4095

// Forward is a user's .forward file.
type Forward struct {
	Present bool
	Data    []byte
	Refuse  *mail.Status // not nil: the recipient gets this
	Reason  string       // for the log; empty when there is nothing to say
	Denied  bool         // the caller may not look; Refuse is what root would not say
}

// ReadForward opens and reads ~/.forward of a user with the rights of the
// caller. The file must be a plain file of the user that nobody else can write,
// in a home that nobody else can write; it is bounded, never a link, and never
// waited for.
func ReadForward(name string, uid uint32, home string) Forward {
	data, present, st, err := readForward(name, uid, home)
	f := Forward{Present: present, Data: data}
	if st.Code != 0 {
		f.Refuse = &st
	}
	if err != nil {
		f.Reason, f.Denied = err.Error(), errors.Is(err, unix.EACCES)
	}
	return f
}

func readForward(name string, uid uint32, homeDir string) (data []byte, present bool, st mail.Status, err error) {
	path := homeDir + "/.forward"
	home, err := unix.Open(homeDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return nil, false, st, fmt.Errorf("home folder %s of %s: %w", homeDir, name, err)
	case err != nil:
		return nil, false, troubled(), fmt.Errorf("home folder %s of %s: %w", homeDir, name, err)
	}
	defer unix.Close(home)
	var dir unix.Stat_t
	if err := unix.Fstat(home, &dir); err != nil {
		return nil, false, troubled(), fmt.Errorf("%s: %w", homeDir, err)
	}
	if dir.Mode&unix.S_ISVTX != 0 {
		return nil, false, troubled(), fmt.Errorf("%s: home folder is sticky", homeDir)
	}
	var file unix.Stat_t
	if err := unix.Fstatat(home, ".forward", &file, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		// To open a device may do something; what came in its place meanwhile is
		// seen below.
		if kind := uint32(file.Mode) & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFLNK {
			return nil, false, insecure(), fmt.Errorf("%s: insecure file", path)
		}
	}
	fd, err := unix.Openat(home, ".forward", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, false, st, nil
	case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EMLINK): // EMLINK: FreeBSD
		return nil, false, insecure(), fmt.Errorf("%s: cannot follow symbolic links", path)
	case err != nil:
		return nil, false, troubled(), fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := unix.Fstat(fd, &file); err != nil {
		return nil, false, troubled(), fmt.Errorf("%s: %w", path, err)
	}
	if uint32(file.Mode)&unix.S_IFMT != unix.S_IFREG || !safe(&file, uid, false) || !safe(&dir, uid, true) {
		return nil, false, insecure(), fmt.Errorf("%s: insecure file", path)
	}
	// One octet more than allowed tells a file that is too large, even one that
	// grows while it is read.
	data, err = io.ReadAll(io.LimitReader(f, MaxForward+1))
	if err == nil && len(data) > MaxForward {
		err = errors.New("file too large")
	}
	if err != nil {
		return nil, false, troubled(), fmt.Errorf("%s: %w", path, err)
	}
	return data, true, st, nil
}

var (
	errPlainFile = errors.New("not a regular file")
	errTooLarge  = errors.New("too large")
)

// ReadInclude reads a file of addresses that an alias includes: a plain one of
// at most max octets. Only what reader may read is read, where the caller may
// more; nil: what the caller may.
func ReadInclude(path string, max int64, reader *User) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG:
		return "", fmt.Errorf("%s: %w", path, errPlainFile)
	case reader != nil && !readable(&st, reader):
		return "", &os.PathError{Op: "open", Path: path, Err: unix.EACCES}
	}
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("%s: %w", path, errTooLarge)
	}
	return string(text), err
}

// readable reports whether the mode of a file lets a user in.
func readable(st *unix.Stat_t, u *User) bool {
	switch {
	case st.Uid == u.UID:
		return st.Mode&0o400 != 0
	case st.Gid == u.GID:
		return st.Mode&0o040 != 0
	}
	return st.Mode&0o004 != 0
}

// safe reports whether only the user can change what st describes; a folder may
// be root's instead.
func safe(st *unix.Stat_t, uid uint32, folder bool) bool {
	if st.Uid != uid && !(folder && st.Uid == 0) {
		return false
	}
	return st.Mode&0o022 == 0
}
