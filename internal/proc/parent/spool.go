package parent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// queueDir is the part of the spool that belongs to the queue process, and its
// root folder.
func queueDir(spool string) string { return filepath.Join(spool, "queue") }

// offlineDir takes the mail that sendmail accepts while the daemon is down.
func offlineDir(spool string) string { return filepath.Join(spool, "offline") }

// place is a folder of the spool as it has to be.
type place struct {
	path     string
	mode     fs.FileMode
	uid, gid int
}

func places(o Options) []place {
	if o.Unprivileged {
		uid, gid := os.Getuid(), os.Getgid()
		return []place{
			{o.Spool, 0o700, uid, gid},
			{queueDir(o.Spool), 0o700, uid, gid},
			{offlineDir(o.Spool), 0o700, uid, gid},
		}
	}
	return []place{
		{o.Empty, 0o755, 0, 0},
		{o.Spool, 0o711, 0, 0},
		{queueDir(o.Spool), 0o700, o.QueueUser.UID, 0},
		{offlineDir(o.Spool), 0o770, 0, o.QueueUser.GID},
	}
}

// CheckSpool reports why this process, an ordinary user's, cannot keep its queue in
// a folder, or make that; nil: it can.
func CheckSpool(dir string) error {
	at := dir
	for at != "/" {
		if _, err := os.Lstat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("spool %s: an ordinary user cannot write there, -q names another: %s: %w", dir, at, err)
	}
	return nil
}

// checkSpool looks at what exists and changes nothing.
func checkSpool(o Options) error {
	if o.Unprivileged {
		if err := CheckSpool(o.Spool); err != nil {
			return err
		}
	}
	for _, pl := range places(o) {
		st, err := os.Lstat(pl.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		if err := pl.check(st, o.Unprivileged); err != nil {
			return err
		}
	}
	return nil
}

func (pl place) check(st fs.FileInfo, unprivileged bool) error {
	if !st.IsDir() {
		return fmt.Errorf("spool: %s is not a folder", pl.path)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if int(sys.Uid) != pl.uid {
		return fmt.Errorf("spool: %s belongs to uid %d, it must belong to uid %d (chown %d %s)",
			pl.path, sys.Uid, pl.uid, pl.uid, pl.path)
	}
	if extra := st.Mode().Perm() & 0o022 &^ pl.mode; extra != 0 && !unprivileged {
		return fmt.Errorf("spool: %s may be written by others, its mode must be %04o (chmod %04o %s)",
			pl.path, pl.mode, pl.mode, pl.path)
	}
	return nil
}

// createSpool makes what is not there, durably: what is brought to disk in a folder
// is lost with the name of the folder.
func createSpool(o Options) error {
	for _, pl := range places(o) {
		if _, err := os.Lstat(pl.path); err == nil {
			continue
		}
		if err := makeDir(pl.path, pl.mode); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
		if err := os.Chmod(pl.path, pl.mode); err != nil { // whatever the umask is
			return fmt.Errorf("spool: %w", err)
		}
		if err := os.Lchown(pl.path, pl.uid, pl.gid); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	return nil
}

// makeDir makes a folder, and those above it that are not there; a folder of the
// system that may not be read, and so not synced, is left to the system.
func makeDir(path string, mode fs.FileMode) error {
	err := os.Mkdir(path, mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeDir(filepath.Dir(path), mode); err == nil {
			err = os.Mkdir(path, mode)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
