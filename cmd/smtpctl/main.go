// Command smtpctl shows and steers a running smtpd. Under the names sendmail
// and send-mail it hands in mail, as mailq it lists the queue, as makemap and
// newaliases it makes map files. It is installed setgid to the group of the
// queue, only so that sendmail can keep mail while the daemon is down.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/enqueue"
)

func main() {
	out := bufio.NewWriter(os.Stdout)
	p := &program{
		name: filepath.Base(os.Args[0]), path: os.Args[0], stdin: os.Stdin, stdout: out, stderr: os.Stderr,
		getenv: os.Getenv, now: time.Now, who: standingNow(), socket: ctl.Socket, spool: ctl.Spool, group: ctl.QueueUser,
	}
	status := p.run(context.Background(), os.Args[1:])
	if err := out.Flush(); err != nil && status == 0 {
		fmt.Fprintf(os.Stderr, "%s: write: %v\n", p.name, err)
		status = 1
	}
	os.Exit(status)
}

// program is one run with its surroundings.
type program struct {
	name   string // as which it was called, without folders
	path   string // argv[0]
	stdin  io.Reader
	stdout *bufio.Writer
	stderr io.Writer
	getenv func(string) string
	now    func() time.Time
	who    standing

	socket, spool string
	group         string           // whose rights the program's file gives
	own           bool             // socket was named by the caller: no daemon of the system
	home          string           // for dead.letter; empty: that of the account
	tick          <-chan time.Time // of monitor; nil: every second
}

// Exit statuses of smtpctl.
const (
	exitFailed = 1
	exitParse  = 255
)

// exit is an error that ends the program with a status; text is printed after
// the program's name, unless empty.
type exit struct {
	status int
	text   string
}

func (e *exit) Error() string { return e.text }

func failed(format string, args ...any) error {
	return &exit{exitFailed, fmt.Sprintf(format, args...)}
}

// run does what the program's name and words ask for.
func (p *program) run(ctx context.Context, args []string) int {
	err := p.mode(ctx, args)
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exit](err); ok {
		if e.text != "" {
			fmt.Fprintf(p.stderr, "%s: %s\n", p.name, e.text)
		}
		return e.status
	}
	fmt.Fprintf(p.stderr, "%s: %v\n", p.name, err)
	return exitFailed
}

func (p *program) mode(ctx context.Context, args []string) error {
	switch p.name {
	case "sendmail", "send-mail":
		if enqueue.Aliases(args) {
			p.name = "newaliases"
			return p.newaliases(ctx, nil)
		}
		return p.sendmail(ctx, args)
	case "makemap":
		return p.makemap(args)
	case "newaliases":
		return p.newaliases(ctx, args)
	case "mailq":
		return p.command(ctx, append([]string{"show", "queue"}, args...))
	case "smtpctl":
		args, err := p.options(args)
		if err != nil {
			return err
		}
		return p.command(ctx, args)
	}
	p.name = "smtpctl"
	return failed("unsupported mode")
}

const usageText = "usage: smtpctl [-q spool] [-s socket] command [argument ...]\n"

// options takes the options of smtpctl off the words.
func (p *program) options(args []string) ([]string, error) {
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		word := args[0]
		args = args[1:]
		if word == "--" {
			break
		}
		value := word[2:]
		if value == "" && len(args) > 0 {
			value, args = args[0], args[1:]
		}
		switch {
		case value == "":
		case word[1] == 's':
			p.socket, p.own = value, true
			p.spool = ""
			continue
		case word[1] == 'q':
			defer func() { p.spool = value }() // whatever -s says later
			continue
		}
		fmt.Fprint(p.stderr, usageText)
		return nil, &exit{status: exitFailed}
	}
	return args, nil
}
