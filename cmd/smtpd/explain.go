package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"smtpd/internal/accounts"
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
	host := newHostSystem()
	tables, err := table.OpenSet(conf.Tables, table.Options{Delim: conf.SMTP.SubAddrDelim, Accounts: host.account})
	if err != nil {
		return nil, err
	}
	d := &decider{conf: conf, tables: tables}
	// The daemon is meant, whoever asks.
	daemon := expand.User{Name: ctl.DaemonUser}
	if u, err := host.User(context.Background(), ctl.DaemonUser); err == nil {
		daemon = u
	}
	d.x = &expand.Expander{Config: conf, Tables: tables, System: host, Now: time.Now, Daemon: daemon}
	return d, nil
}

func (d *decider) close() { _ = d.tables.Close() }

// hostSystem answers expansion from this host, with the rights of who asks.
type hostSystem struct {
	accounts *accounts.Accounts
	daemon   *accounts.User // whose rights include files are read with; nil: the caller's
}

func newHostSystem() hostSystem {
	h := hostSystem{accounts: accounts.New(time.Now)}
	if u, err := accounts.Local(ctl.DaemonUser); err == nil && u.Found && os.Geteuid() == 0 {
		h.daemon = &u
	}
	return h
}

// User implements expand.System.
func (h hostSystem) User(ctx context.Context, name string) (expand.User, error) {
	u, err := h.accounts.User(ctx, name)
	if err == nil && !u.Found {
		err = table.ErrNotFound
	}
	return expand.User{Name: u.Name, UID: u.UID, GID: u.GID, Home: u.Home}, err
}

// Forward implements expand.System: by the checks of the daemon. What only root
// may look at counts as not there for anybody else.
func (hostSystem) Forward(_ context.Context, u expand.User) (expand.Forward, error) {
	f := accounts.ReadForward(u.Name, u.UID, u.Home)
	if f.Denied && os.Geteuid() != 0 {
		return expand.Forward{Reason: f.Reason}, nil
	}
	return expand.Forward{Present: f.Present, Data: f.Data, Refuse: f.Refuse, Reason: f.Reason}, nil
}

// Include implements expand.System.
func (h hostSystem) Include(_ context.Context, path string) (string, error) {
	return accounts.ReadInclude(path, expand.MaxInclude, h.daemon)
}

// account answers getpwnam tables.
func (h hostSystem) account(ctx context.Context, name string) (table.Account, error) {
	u, err := h.User(ctx, name)
	return table.Account{UID: u.UID, GID: u.GID, Home: u.Home}, err
}
