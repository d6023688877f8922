package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	osuser "os/user"
	"strconv"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/ctl"
	"smtpd/internal/expand"
	"smtpd/internal/explain"
	"smtpd/table"
)

// Exit statuses of --explain and --cases.
const (
	exitAccepted = explain.ExitAccepted
	exitRefused  = explain.ExitRefused
	exitError    = explain.ExitError
)

// explainMail is smtpd -n --explain: what would become of a recipient, and why.
func explainMail(ctx context.Context, f *flags, conf *config.Config, stdout, stderr io.Writer) int {
	d, err := newDecider(conf)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer d.close()
	q, err := explain.ParseFacts(conf, f.operands)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	v := explain.Decide(ctx, d.x, q)
	if f.json {
		fmt.Fprint(stdout, v.JSON())
	} else {
		fmt.Fprint(stdout, v.Text())
	}
	return v.Exit()
}

// decider evaluates rules and expansion from the file alone, without a daemon.
type decider struct {
	conf   *config.Config
	tables *table.Set
	x      *expand.Expander
}

func newDecider(conf *config.Config) (*decider, error) {
	tables, err := table.OpenSet(conf.Tables, table.Options{Delim: conf.SMTP.SubAddrDelim, Accounts: systemAccount})
	if err != nil {
		return nil, err
	}
	d := &decider{conf: conf, tables: tables}
	// The daemon is meant, whoever asks.
	daemon := expand.User{Name: ctl.DaemonUser}
	if u, err := (hostSystem{}).User(context.Background(), ctl.DaemonUser); err == nil {
		daemon = u
	}
	d.x = &expand.Expander{Config: conf, Tables: tables, System: hostSystem{}, Now: time.Now, Daemon: daemon}
	return d, nil
}

func (d *decider) close() { _ = d.tables.Close() }

// hostSystem answers expansion from this host, with the rights of who asks.
type hostSystem struct{}

// User implements expand.System.
func (hostSystem) User(_ context.Context, name string) (expand.User, error) {
	u, err := osuser.Lookup(name)
	if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown {
		return expand.User{}, table.ErrNotFound
	}
	if err != nil {
		return expand.User{}, err
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return expand.User{Name: u.Username, UID: uint32(uid), GID: uint32(gid), Home: u.HomeDir}, errors.Join(err1, err2)
}

// maxForward is the size of a .forward file that the daemon still reads.
const maxForward = 4095

// Forward implements expand.System. The daemon checks owner and mode as well;
// here the file is read when it can be.
func (hostSystem) Forward(_ context.Context, u expand.User) (expand.Forward, error) {
	b, err := os.ReadFile(u.Home + "/.forward")
	if err != nil || len(b) > maxForward {
		return expand.Forward{}, nil
	}
	return expand.Forward{Present: true, Data: b}, nil
}

// Include implements expand.System.
func (hostSystem) Include(_ context.Context, path string) (string, error) {
	b, err := os.ReadFile(path)
	if len(b) > expand.MaxInclude {
		b = b[:expand.MaxInclude]
	}
	return string(b), err
}

// systemAccount answers getpwnam tables.
func systemAccount(ctx context.Context, name string) (table.Account, error) {
	u, err := hostSystem{}.User(ctx, name)
	if err != nil {
		return table.Account{}, err
	}
	return table.Account{UID: u.UID, GID: u.GID, Home: u.Home}, nil
}
