package parent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxOffline is how many offline mails are resubmitted at a time (OpenSMTPD
// does as many).
const maxOffline = 5

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
				path := filepath.Join(offlineDir(p.o.Spool), n.Name())
				if err := p.resubmitFile(path); err != nil {
					p.log.Warn(fmt.Sprintf("warn: couldn't enqueue offline message %s: %v", n.Name(), err))
				}
			})
		}
	})
}

func (p *parent) resubmitFile(path string) error {
	f, st, err := openOffline(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st.Size == 0 {
		return os.Remove(path)
	}
	br := bufio.NewReader(f)
	line, err := br.ReadString('\n')
	if err != nil || len(line) > 64<<10 {
		return errors.New("no line of arguments at its start")
	}
	cmd := &exec.Cmd{
		Path:  p.o.Smtpctl,
		Args:  append([]string{"sendmail", "-S"}, strings.Split(strings.TrimSuffix(line, "\n"), "|")...),
		Env:   []string{"PATH=/usr/bin:/bin", "SMTPD_SOCKET=" + p.o.Socket},
		Dir:   "/",
		Stdin: io.Reader(br),
	}
	if !p.o.Unprivileged {
		owner, err := osuser.LookupId(strconv.Itoa(int(st.Uid)))
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
			Uid: st.Uid, Gid: uint32(gid), Groups: []uint32{uint32(gid)}}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return os.Remove(path)
}

// openOffline opens a file that an ordinary user left: a plain file with one
// name, and nothing else.
func openOffline(path string) (*os.File, *unix.Stat_t, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, nil, err
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		f.Close()
		return nil, nil, errors.New("not a plain file with one name")
	}
	return f, &st, nil
}
