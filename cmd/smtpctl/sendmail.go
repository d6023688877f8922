package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"smtpd/internal/ctl"
	"smtpd/internal/enqueue"
)

const sendmailUsage = "usage: sendmail [-tv] [-f from] [-F name] to ...\n"

// sendmail hands in the message on standard input.
func (p *program) sendmail(ctx context.Context, args []string) error {
	o, err := enqueue.ParseArgs(args)
	if err != nil {
		return p.badArgs(err)
	}
	if o.Resubmit {
		// An offline mail is not kept offline again, so the group is not needed;
		// without it the parent may name its socket in the environment.
		if err := p.dropGroup(); err != nil {
			return err
		}
	}
	if o.Resubmit && p.getenv(ctl.SocketVar) == "" {
		p.own = true
	}
	if err := p.settle(); err != nil {
		return err
	}
	if len(o.Recipients) == 0 && !o.FromHeader {
		if o.Queue && p.needRoot() == nil {
			return p.command(ctx, []string{"show", "queue"})
		}
		return &exit{enqueue.ExitSoftware, "no recipients"}
	}
	// Asked first, because a mail can be kept offline only while the group that
	// the file mode gave is there, and nothing of the message is to be read with
	// it.
	c, err := ctl.Dial(ctx, p.socket)
	if errors.Is(err, ctl.ErrNotRunning) {
		return p.keep(o, args)
	}
	if err != nil {
		return &exit{enqueue.ExitUnavailable, err.Error()}
	}
	c.Close()
	if err := p.dropGroup(); err != nil {
		return err
	}
	m, err := enqueue.Read(p.stdin, o)
	if err != nil {
		return intakeError(err)
	}
	defer m.Close()
	return p.submit(ctx, m)
}

func (p *program) badArgs(err error) error {
	if errors.Is(err, enqueue.ErrQueueRun) {
		return &exit{status: enqueue.ExitSoftware}
	}
	u, ok := errors.AsType[*enqueue.UsageError](err)
	if !ok {
		return &exit{enqueue.ExitSoftware, err.Error()}
	}
	if u.Text != "" {
		fmt.Fprintf(p.stderr, "%s: %s\n", p.path, u.Text)
	}
	fmt.Fprint(p.stderr, sendmailUsage)
	return &exit{status: enqueue.ExitUsage}
}

// intakeError is the end for a message that could not be read.
func intakeError(err error) error {
	if _, ok := errors.AsType[*enqueue.Refused](err); ok {
		return &exit{enqueue.ExitSoftware, err.Error()}
	}
	return &exit{enqueue.ExitUnavailable, err.Error()}
}

// submit hands the message in. Whatever goes wrong now, the message is saved:
// who called may have no other copy.
func (p *program) submit(ctx context.Context, m *enqueue.Message) error {
	u := caller(p.who.uid)
	err := p.deliver(ctx, m, u)
	if err == nil {
		return nil
	}
	if p.home != "" {
		u.Home = p.home
	}
	if serr := m.SaveDeadLetter(u.Home); serr != nil {
		fmt.Fprintf(p.stderr, "%s: %v\n", p.name, serr)
	}
	return err
}

func (p *program) deliver(ctx context.Context, m *enqueue.Message, u enqueue.User) error {
	conn, domain, derr := p.session(ctx)
	if derr == nil {
		defer conn.Close()
	}
	if domain == "" {
		name, err := enqueue.MailName(ctl.ConfDirs(), os.Hostname)
		if err != nil {
			return &exit{enqueue.ExitNoHost, err.Error()}
		}
		domain = name
	}
	err := m.Complete(u, domain, p.now())
	if derr != nil {
		return derr
	}
	if err != nil {
		return intakeError(err)
	}
	err = m.Submit(conn, p.stdout)
	if c, ok := errors.AsType[*enqueue.CommandError](err); ok {
		fmt.Fprintf(p.stderr, "%s: %v\n\n", p.name, c)
		return &exit{status: enqueue.ExitSoftware}
	}
	if err != nil {
		return &exit{enqueue.ExitUnavailable, err.Error()}
	}
	return nil
}

// session asks the daemon for a session with its local listener.
func (p *program) session(ctx context.Context) (conn net.Conn, domain string, err error) {
	c, err := ctl.Dial(ctx, p.socket)
	if errors.Is(err, ctl.ErrNotRunning) {
		return nil, "", &exit{enqueue.ExitTempFail, err.Error()}
	}
	if err != nil {
		return nil, "", &exit{enqueue.ExitUnavailable, err.Error()}
	}
	defer c.Close()
	conn, domain, err = c.Submit()
	if f, ok := errors.AsType[*ctl.Failure](err); ok && f.Reason == ctl.ReasonRefused {
		return nil, "", &exit{exitFailed, f.Reason}
	}
	if err != nil {
		return nil, "", &exit{enqueue.ExitUnavailable, err.Error()}
	}
	return conn, domain, nil
}

// keep stores the message for a daemon that is not running.
func (p *program) keep(o *enqueue.Options, args []string) error {
	if o.Resubmit || p.spool == "" {
		return &exit{enqueue.ExitTempFail, ctl.ErrNotRunning.Error()}
	}
	k, err := enqueue.OpenOffline(filepath.Join(p.spool, "offline"), args, p.now())
	if err != nil {
		return intakeError(err)
	}
	if err := k.Store(p.stdin); err != nil {
		return intakeError(err)
	}
	return &exit{status: enqueue.ExitTempFail}
}

// caller is the account of the real user.
func caller(uid int) enqueue.User {
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return enqueue.User{Login: "uid-" + strconv.Itoa(uid)}
	}
	return enqueue.User{Login: u.Username, Name: enqueue.FullName(u.Name, u.Username), Home: u.HomeDir}
}
