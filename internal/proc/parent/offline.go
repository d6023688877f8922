package parent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/enqueue"
)

// maxOffline is how many offline mails are resubmitted at a time (OpenSMTPD
// does as many).
const maxOffline = 5

// unfinishedAge is for how long after its last change a file that sendmail has
// begun may still be written. Ours: who feeds sendmail may take its time.
const unfinishedAge = 24 * time.Hour

// resubmit hands in, once at start, the mail that sendmail kept while the
// daemon was down: each file by sendmail run as the file's owner. What fails
// is logged and kept.
func (p *parent) resubmit() {
	if p.o.Smtpctl == "" {
		return
	}
	p.tasks.Go(func() {
		names, err := os.ReadDir(offlineDir(p.o.Spool))
		if err != nil {
			p.log.Warn("warn: offline mail: " + err.Error())
			return
		}
		slots := make(chan struct{}, maxOffline)
		for _, n := range names {
			slots <- struct{}{}
			p.tasks.Go(func() {
				defer func() { <-slots }()
				if err := p.resubmitFile(n.Name()); err != nil {
					p.log.Warn(fmt.Sprintf("warn: couldn't enqueue offline message %s: %v", n.Name(), err))
				}
			})
		}
	})
}

func (p *parent) resubmitFile(name string) error {
	dir := offlineDir(p.o.Spool)
	kept, err := enqueue.ReadOffline(dir, name)
	switch {
	case errors.Is(err, enqueue.ErrOfflineEmpty):
		return os.Remove(filepath.Join(dir, name))
	case errors.Is(err, enqueue.ErrOfflineBusy):
		return p.removeUnfinished(dir, name)
	case err != nil:
		return err
	}
	defer kept.File.Close()
	cmd := &exec.Cmd{
		Path:  p.o.Smtpctl,
		Args:  append([]string{"sendmail", "-S"}, kept.Args...),
		Env:   []string{"PATH=/usr/bin:/bin", ctl.SocketVar + "=" + p.o.Socket},
		Dir:   "/",
		Stdin: kept.File,
	}
	if !p.o.Unprivileged {
		if err := asOwner(cmd, kept.UID); err != nil {
			return err
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return os.Remove(filepath.Join(dir, name))
}

// removeUnfinished removes what a sendmail that was cut short has left: it has told
// nobody that it took the mail.
func (p *parent) removeUnfinished(dir, name string) error {
	path := filepath.Join(dir, name)
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || p.o.Now().Sub(st.ModTime()) < unfinishedAge {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	p.log.Warn("warn: offline mail " + name + " removed: the sendmail that began it has never ended it")
	return nil
}

// asOwner has cmd run as a user, in that user's home.
func asOwner(cmd *exec.Cmd, uid uint32) error {
	owner, err := osuser.LookupId(strconv.Itoa(int(uid)))
	if err != nil {
		return err
	}
	gid, err := strconv.ParseUint(owner.Gid, 10, 32)
	if err != nil {
		return err
	}
	if d, err := os.Stat(owner.HomeDir); err == nil && d.IsDir() {
		cmd.Dir = owner.HomeDir
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
		Uid: uid, Gid: uint32(gid), Groups: []uint32{uint32(gid)}}}
	return nil
}
