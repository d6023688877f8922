package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"smtpd/internal/ctl"
)

// standing is as whom the program runs.
type standing struct{ uid, euid, gid, egid int }

func standingNow() standing {
	return standing{os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid()}
}

// elevated reports whether the file mode gave the program rights that its
// caller does not have.
func (s standing) elevated() bool { return s.uid != s.euid || s.gid != s.egid }

// dropGroup gives up, for good, what the file mode gave.
func (p *program) dropGroup() error {
	if !p.who.elevated() {
		return nil
	}
	if err := errors.Join(syscall.Setregid(p.who.gid, p.who.gid), syscall.Setreuid(p.who.uid, p.who.uid)); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	p.who = standingNow()
	if p.who.elevated() {
		return errors.New("drop privileges: they are still there")
	}
	return nil
}

// settle decides which daemon is meant and whether the program may talk to it.
//
// The socket of the system's daemon is used with the rights of the program's
// file, and those must be right: setgid to the group of the queue, as sendmail
// needs it to keep mail while the daemon is down. Root needs no such bit: root
// can write there anyway. A socket that the caller names, by -s or in the
// environment, is a daemon of his own or one for tests: it gets no rights but
// the caller's, so those of the file are given up first, and the bit is not
// asked for. The environment counts only where the file gave none.
func (p *program) settle() error {
	if s := p.getenv(ctl.SocketVar); s != "" && !p.own && !p.who.elevated() {
		p.socket, p.own, p.spool = s, true, p.getenv(ctl.SpoolVar)
	}
	if p.own {
		if p.spool == "" {
			p.spool = p.getenv(ctl.SpoolVar)
		}
		if beside := filepath.Join(filepath.Dir(p.socket), "spool"); p.spool == "" && isDir(beside) {
			p.spool = beside
		}
		if p.spool == "" && p.socket == ctl.Socket {
			p.spool = ctl.Spool
		}
		return p.dropGroup()
	}
	if p.who.euid == 0 {
		return nil
	}
	g, err := user.LookupGroup(p.group)
	if err != nil {
		return failed("unknown group %s", p.group)
	}
	if g.Gid != strconv.Itoa(p.who.egid) {
		return failed("this program must be setgid %s", p.group)
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// needRoot refuses an ordinary user early; the daemon checks it again. Of his
// own daemon everyone may ask everything.
func (p *program) needRoot() error {
	if p.own || p.who.euid == 0 {
		return nil
	}
	return failed("need root privileges")
}

// dial connects to the daemon for an administrator.
func (p *program) dial(ctx context.Context) (*ctl.Client, error) {
	c, err := ctl.Dial(ctx, p.socket)
	if err != nil {
		return nil, failed("%v", err)
	}
	return c, nil
}

// becomeNobody takes root off a command that needs none, where there is a user
// for it.
func (p *program) becomeNobody() error {
	if p.who.euid != 0 {
		return p.dropGroup()
	}
	u, err := user.Lookup(ctl.DaemonUser)
	if err != nil {
		return nil // not installed: there is no such user
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	err = errors.Join(syscall.Setgroups([]int{gid}), syscall.Setregid(gid, gid), syscall.Setreuid(uid, uid))
	if err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	p.who = standingNow()
	return nil
}
