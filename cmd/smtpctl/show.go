package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
)

// show prints lines that a process makes about itself.
func show(what string) handler {
	return func(p *program, ctx context.Context, _ []string) error { return p.print(ctx, ctl.ReqShow, what) }
}

// showOf is show of something that has a name.
func showOf(what string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		return p.print(ctx, ctl.ReqShow, what+" "+params[0])
	}
}

// print copies lines to standard output as they come. They may quote remote
// servers: nothing in them may steer a terminal.
func (p *program) print(ctx context.Context, request ...string) error {
	return p.printEach(ctx, func(string) {}, request...)
}

// printEach is print that tells seen of each line.
func (p *program) printEach(ctx context.Context, seen func(line string), request ...string) error {
	_, err := p.ask(ctx, func(f ctl.Frame) error {
		for line := range strings.Lines(f.Arg(0)) {
			text, ended := strings.CutSuffix(line, "\n")
			seen(text)
			p.stdout.WriteString(mail.Clean(text, len(text)))
			if ended {
				p.stdout.WriteByte('\n')
			}
		}
		return p.stdout.Flush() // some commands take long: their progress is to be seen
	}, request...)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return p.refused(f)
	}
	return err
}

func showStats(p *program, ctx context.Context, _ []string) error {
	_, err := p.ask(ctx, func(f ctl.Frame) error {
		_, err := fmt.Fprintf(p.stdout, "%s=%s\n", f.Arg(0), f.Arg(1))
		return err
	}, ctl.ReqStats)
	return err
}

func showStatus(p *program, ctx context.Context, _ []string) error {
	_, err := p.ask(ctx, func(f ctl.Frame) error {
		_, err := fmt.Fprintf(p.stdout, "%s %s\n", f.Arg(0), f.Arg(1))
		return err
	}, ctl.ReqStatus)
	return err
}

// missing is what OpenSMTPD says when the file of an envelope or message cannot
// be opened.
const missing = "fopen: No such file or directory"

func showEnvelope(p *program, ctx context.Context, params []string) error {
	return p.stored(ctx, ctl.ReqEnvelope, params[0])
}

// showMessage prints a message, by its id or that of one of its envelopes.
func showMessage(p *program, ctx context.Context, params []string) error {
	return p.stored(ctx, ctl.ReqMessage, params[0][:8])
}

// stored prints what the queue keeps: the daemon's words, or without one what
// is read from the spool.
func (p *program) stored(ctx context.Context, request, id string) error {
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return err
	}
	c, err := ctl.Dial(ctx, p.socket)
	switch {
	case errors.Is(err, ctl.ErrNotRunning):
		return p.offlineItem(request, id)
	case err != nil:
		return err
	}
	defer c.Close()
	_, err = c.Do(func(f ctl.Frame) error {
		_, err := p.stdout.WriteString(f.Arg(0))
		return err
	}, request, id)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		if f.Reason == ctl.ReasonMissing {
			return failed(missing)
		}
		return p.refused(f)
	}
	return err
}
