package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
)

// copyStep is after how many messages a line of progress is printed. Ours.
const copyStep = 1000

// importSpool has the daemon take over an old spool. The process that keeps the
// queue sees nothing but its own folder: a spool that lies elsewhere is copied
// there first, and its messages are put away once the daemon has them.
func importSpool(p *program, ctx context.Context, params []string) error {
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return err
	}
	c, err := p.dial(ctx) // before anything is touched
	if err != nil {
		return err
	}
	c.Close()
	if p.spool == "" && len(params) == 0 {
		return p.spoolCommand(ctx, "queue import")
	}
	if p.spool == "" {
		return failed("which folder is the daemon's spool? Say so with -q")
	}
	own, err := openOwn(filepath.Join(p.spool, "queue"))
	if err != nil {
		return failed("%v", err)
	}
	defer own.root.Close()
	dir := own.path
	if len(params) > 0 {
		if dir, err = filepath.Abs(params[0]); err != nil {
			return failed("%v", err)
		}
		if same(dir, p.spool) {
			dir = own.path
		}
	}
	if rel, err := filepath.Rel(own.path, dir); err == nil && !escapes(rel) {
		return p.importBelow(ctx, own, rel)
	}
	return p.importFrom(ctx, own, dir)
}

// escapes reports whether a relative path leads out of where it begins.
func escapes(rel string) bool { return rel == ".." || strings.HasPrefix(rel, "../") }

func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// ownQueue is the folder of the daemon's queue. Whoever runs the queue may
// write there, so nothing in it is touched but through root, which links do not
// lead out of.
type ownQueue struct {
	path     string
	root     *os.Root
	uid, gid int
}

func openOwn(dir string) (*ownQueue, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, err
	}
	st, err := root.Stat(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	o := &ownQueue{path: abs, root: root, uid: -1, gid: -1}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		o.uid, o.gid = int(sys.Uid), int(sys.Gid)
	}
	return o, nil
}

// importBelow imports a spool that lies in the folder of the queue, which is
// where OpenSMTPD kept its own. It may have run as another user.
func (p *program) importBelow(ctx context.Context, own *ownQueue, rel string) error {
	if strings.ContainsAny(rel, " \t\n") {
		return failed("%s: the name may not hold spaces", rel)
	}
	if p.who.euid == 0 {
		if err := own.adopt(rel); err != nil {
			return failed("%v", err)
		}
	}
	if rel == "." {
		return p.spoolCommand(ctx, "queue import")
	}
	return p.spoolCommand(ctx, "queue import "+rel)
}

// adopt gives what an old spool has to the user of the queue.
func (o *ownQueue) adopt(rel string) error {
	if st, err := o.root.Stat(path.Join(rel, "queue")); err == nil && st.IsDir() {
		if err := o.root.Lchown(path.Join(rel, "queue"), o.uid, o.gid); err != nil {
			return err
		}
		rel = path.Join(rel, "queue")
	}
	top, err := fs.ReadDir(o.root.FS(), path.Clean(rel))
	if err != nil {
		return nil // the daemon says it
	}
	for _, d := range top {
		if !isBucket(d) {
			continue
		}
		err := fs.WalkDir(o.root.FS(), path.Join(rel, d.Name()), func(name string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return o.root.Lchown(name, o.uid, o.gid)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// isBucket reports whether an entry is one of the folders 00 to ff.
func isBucket(d fs.DirEntry) bool {
	_, err := strconv.ParseUint(d.Name(), 16, 8)
	return err == nil && len(d.Name()) == 2 && d.IsDir()
}

// importFrom imports a spool from anywhere: it copies the messages, has them
// imported, and puts those away in the old spool that the daemon has.
func (p *program) importFrom(ctx context.Context, own *ownQueue, dir string) error {
	if isDir(filepath.Join(dir, "queue")) {
		dir = filepath.Join(dir, "queue")
	}
	from, err := os.OpenRoot(dir)
	if err != nil {
		return failed("%v", err)
	}
	defer from.Close()
	stage := "import." + strconv.Itoa(os.Getpid())
	if err := own.mkdir(stage); err != nil {
		return failed("%v", err)
	}
	defer own.root.RemoveAll(stage) // what stays does no harm
	n, err := p.copyMessages(own, from, stage)
	if err != nil {
		return failed("copy %s to %s: %v", ctl.Vis(dir), own.path, err)
	}
	fmt.Fprintf(p.stdout, "%d message%s copied\n", n, plural(n != 1))
	if err := p.stdout.Flush(); err != nil {
		return err
	}
	ierr := p.spoolCommand(ctx, "queue import "+stage)
	done, err := fs.ReadDir(own.root.FS(), path.Join(stage, "imported"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(ierr, failed("%v", err))
	}
	for _, d := range done {
		if err := putAway(from, d.Name()); err != nil {
			return errors.Join(ierr, failed("%s is in the queue now, and could not be put away in %s: %v", d.Name(), ctl.Vis(dir), err))
		}
	}
	return ierr
}

// putAway moves a message of an old spool to its folder imported.
func putAway(from *os.Root, name string) error {
	if _, err := mail.ParseMessageID(name); err != nil {
		return err
	}
	if err := from.Mkdir("imported", 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return from.Rename(path.Join(name[:2], name), path.Join("imported", name))
}

// copyMessages copies the messages of an old spool into a folder of the queue.
func (p *program) copyMessages(own *ownQueue, from *os.Root, stage string) (n int, err error) {
	top, err := fs.ReadDir(from.FS(), ".")
	if err != nil {
		return 0, err
	}
	for _, d := range top {
		if !isBucket(d) {
			continue
		}
		messages, err := fs.ReadDir(from.FS(), d.Name())
		if err == nil {
			err = own.mkdir(path.Join(stage, d.Name()))
		}
		if err != nil {
			return n, err
		}
		for _, m := range messages {
			if _, err := mail.ParseMessageID(m.Name()); err != nil || !m.IsDir() {
				continue
			}
			if err := own.copyFolder(from, path.Join(d.Name(), m.Name()), stage); err != nil {
				return n, err
			}
			if n++; n%copyStep == 0 {
				fmt.Fprintf(p.stdout, "%d messages copied so far\n", n)
				if err := p.stdout.Flush(); err != nil {
					return n, err
				}
			}
		}
	}
	return n, nil
}

func (o *ownQueue) mkdir(name string) error {
	if err := o.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	return o.give(name)
}

// give makes the user of the queue the owner of what root has made.
func (o *ownQueue) give(name string) error {
	if os.Geteuid() != 0 || o.uid < 0 {
		return nil
	}
	return o.root.Lchown(name, o.uid, o.gid)
}

// copyFolder copies one message: its text and its envelopes.
func (o *ownQueue) copyFolder(from *os.Root, name, stage string) error {
	if err := o.mkdir(path.Join(stage, name)); err != nil {
		return err
	}
	files, err := fs.ReadDir(from.FS(), name)
	if err != nil {
		return err
	}
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		if err := o.copyFile(from, path.Join(name, f.Name()), stage); err != nil {
			return err
		}
	}
	return nil
}

func (o *ownQueue) copyFile(from *os.Root, name, stage string) error {
	in, err := from.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return err // it was another thing a moment ago
	}
	out, err := o.root.OpenFile(path.Join(stage, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), o.give(path.Join(stage, name)))
}

// onSpool is a command about the spool, with a name behind it or not.
func onSpool(what string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		return p.spoolCommand(ctx, strings.Join(append([]string{what}, params...), " "))
	}
}

// spoolCommand prints what the queue says of a command. One that failed says so
// in its lines.
func (p *program) spoolCommand(ctx context.Context, what string) error {
	bad := false
	err := p.printEach(ctx, func(line string) { bad = bad || strings.HasPrefix(line, "error: ") }, ctl.ReqShow, what)
	if err == nil && bad {
		return &exit{status: exitFailed}
	}
	return err
}
