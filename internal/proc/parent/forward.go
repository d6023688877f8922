package parent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// Refusals of a .forward file: what the sender is told. Why is for the log.
func insecure() mail.Status {
	return mail.Status{Code: 550, Enh: [3]uint8{5, 2, 4}, Text: "Mailing list expansion problem"}
}

func troubled() mail.Status {
	return mail.Status{Code: 451, Enh: [3]uint8{4, 2, 4}, Text: "Mailing list expansion problem"}
}

// forward opens and reads ~/.forward of a user for lookup, which may open
// nothing. The file must be a plain file of the user that nobody else can
// write, in a home that nobody else can write; it is bounded, never a link, and
// never waited for.
func forward(q *imsg.ForwardOpen) *imsg.ForwardFile {
	data, present, st, err := readForward(q)
	answer := &imsg.ForwardFile{Present: present, Data: data, Status: st}
	if err != nil {
		answer.Reason = mail.Clean(err.Error(), imsg.MaxText)
	}
	return answer
}

func readForward(q *imsg.ForwardOpen) (data []byte, present bool, st mail.Status, err error) {
	path := q.Home + "/.forward"
	home, err := unix.Open(q.Home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return nil, false, st, fmt.Errorf("home folder %s of %s: %w", q.Home, q.User, err)
	case err != nil:
		return nil, false, troubled(), fmt.Errorf("home folder %s of %s: %w", q.Home, q.User, err)
	}
	defer unix.Close(home)
	var dir unix.Stat_t
	if err := unix.Fstat(home, &dir); err != nil {
		return nil, false, troubled(), fmt.Errorf("%s: %w", q.Home, err)
	}
	if dir.Mode&unix.S_ISVTX != 0 {
		return nil, false, troubled(), fmt.Errorf("%s: home folder is sticky", q.Home)
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
	if uint32(file.Mode)&unix.S_IFMT != unix.S_IFREG || !safe(&file, q.UID, false) || !safe(&dir, q.UID, true) {
		return nil, false, insecure(), fmt.Errorf("%s: insecure file", path)
	}
	// One octet more than allowed tells a file that is too large, even one that
	// grows while it is read.
	data, err = io.ReadAll(io.LimitReader(f, imsg.MaxForward+1))
	if err == nil && len(data) > imsg.MaxForward {
		err = errors.New("file too large")
	}
	if err != nil {
		return nil, false, troubled(), fmt.Errorf("%s: %w", path, err)
	}
	return data, true, st, nil
}

// safe reports whether only the user can change what st describes; a folder may
// be root's instead.
func safe(st *unix.Stat_t, uid uint32, folder bool) bool {
	if st.Uid != uid && !(folder && st.Uid == 0) {
		return false
	}
	return st.Mode&0o022 == 0
}
