package enqueue

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var errNoHome = errors.New("dead.letter: no home folder")

// SaveDeadLetter writes m to ~/dead.letter, in place of what was there, and
// never through a link or into anything but a plain file.
func (m *Message) SaveDeadLetter(home string) error {
	if home == "" {
		return errNoHome
	}
	path := filepath.Join(home, "dead.letter")
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a plain file", path)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	err = m.write(plainWriter{w})
	if err == nil {
		err = w.WriteByte('\n')
	}
	return errors.Join(err, w.Flush(), f.Sync(), f.Close()) // no other copy is left
}

// Bounds of offline mail.
const (
	maxOfflineArgs = 64 << 10 // octets of the first line
)

// Offline is a mail under way into the offline folder. Finish it with Store or
// Abort. The program keeps its right to write to the folder until then: the
// message is only copied, nothing in it is looked at.
type Offline struct {
	f   *os.File
	dir string
	tmp string
}

// CheckArgs refuses words that the first line of an offline mail, which joins
// them with bars, could not hold.
func CheckArgs(args []string) error {
	size := 0
	for _, a := range args {
		if strings.ContainsAny(a, "|\r\n\x00") {
			return illegal(a)
		}
		size += len(a) + 1
	}
	if size > maxOfflineArgs {
		return &Refused{"too many arguments"}
	}
	return nil
}

// OpenOffline makes a file in the offline folder dir of a spool, mode 0600,
// with the group of the folder. Its name begins with a dot until it is whole,
// so that a daemon that starts meanwhile leaves it alone.
func OpenOffline(dir string, args []string, now time.Time) (*Offline, error) {
	if err := CheckArgs(args); err != nil {
		return nil, err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "."+strconv.FormatInt(now.Unix(), 10)+".*") // mode 0600, a new file
	if err != nil {
		return nil, err
	}
	o := &Offline{f: f, dir: dir, tmp: f.Name()}
	if err := likeFolder(f, st); err != nil {
		o.Abort()
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if _, err := f.WriteString(strings.Join(args, "|") + "\n"); err != nil {
		o.Abort()
		return nil, err
	}
	return o, nil
}

// likeFolder gives f the group of its folder; the daemon wants it so. The
// kernel has done it already for a program with that group, and on BSD.
func likeFolder(f *os.File, folder os.FileInfo) error {
	gid, ok := groupOf(folder)
	st, err := f.Stat()
	if err != nil || !ok {
		return err
	}
	if have, _ := groupOf(st); have == gid {
		return nil
	}
	return f.Chown(-1, int(gid))
}

// Store copies the message and makes the file durable under its own name. When it
// fails nothing is left behind.
func (o *Offline) Store(r io.Reader) error {
	if err := o.store(r); err != nil {
		o.Abort()
		return err
	}
	return o.f.Close()
}

func (o *Offline) store(r io.Reader) error {
	n, err := io.Copy(o.f, io.LimitReader(r, maxBody+1))
	if err != nil {
		return err
	}
	if n > maxBody {
		return errTooLarge
	}
	if err := o.f.Sync(); err != nil {
		return err
	}
	// The name is durable only with the folder. One that may be written but not
	// read (as FreeBSD's port had it) cannot be synced: then the kernel does it
	// in its own time.
	d, err := os.Open(o.dir)
	unread := errors.Is(err, fs.ErrPermission)
	if err != nil && !unread {
		return err
	}
	defer d.Close()
	name := filepath.Join(o.dir, strings.TrimPrefix(filepath.Base(o.tmp), "."))
	if err := os.Rename(o.tmp, name); err != nil || unread {
		return err
	}
	o.tmp = name
	return d.Sync()
}

// Abort leaves nothing behind.
func (o *Offline) Abort() {
	o.f.Close()
	os.Remove(o.tmp)
}

// Errors of ReadOffline that callers tell apart.
var (
	ErrOfflineEmpty = errors.New("empty file") // to be removed
	ErrOfflineBusy  = errors.New("not finished")
)

// Kept is an offline mail to be handed in again.
type Kept struct {
	File *os.File // at the start of the message; the caller closes it
	UID  uint32   // the owner, as whom it is handed in
	Args []string // of sendmail, without the program's name
}

// ReadOffline opens a mail of the offline folder dir for resubmission: by
// `sendmail -S Args`, run as the owner with File as standard input. It refuses
// what an ordinary user may have put there to trick the daemon: anything but a
// plain file with one name and the group of the folder.
func ReadOffline(dir, name string) (*Kept, error) {
	if strings.HasPrefix(name, ".") {
		return nil, ErrOfflineBusy
	}
	folder, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	k, err := readKept(f, folder)
	if err != nil {
		f.Close()
		if errors.Is(err, ErrOfflineEmpty) {
			return nil, err
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func readKept(f *os.File, folder os.FileInfo) (*Kept, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	uid, links, ok := ownerOf(st)
	if !ok || !st.Mode().IsRegular() || links != 1 {
		return nil, errors.New("not a plain file with one name")
	}
	want, _ := groupOf(folder)
	if have, _ := groupOf(st); have != want {
		return nil, errors.New("not of the group of its folder")
	}
	if st.Size() == 0 {
		return nil, ErrOfflineEmpty
	}
	head := make([]byte, maxOfflineArgs+1)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	line, _, found := strings.Cut(string(head[:n]), "\n")
	if !found || strings.ContainsAny(line, "\r\x00") {
		return nil, errors.New("no line of arguments at its start")
	}
	if _, err := f.Seek(int64(len(line)+1), io.SeekStart); err != nil {
		return nil, err
	}
	k := &Kept{File: f, UID: uid}
	if line != "" {
		k.Args = strings.Split(line, "|")
	}
	return k, nil
}
