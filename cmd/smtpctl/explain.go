package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"smtpd/internal/ctl"
	"smtpd/internal/explain"
)

// explainMail asks the daemon what becomes of a mail, and why. The exit statuses
// are those of smtpd -n --explain.
func explainMail(json bool) handler {
	form := "text"
	if json {
		form = "json"
	}
	return func(p *program, ctx context.Context, facts []string) error {
		var row ctl.Frame
		_, err := p.ask(ctx, func(f ctl.Frame) error { row = f; return nil },
			append([]string{ctl.ReqExplain, form}, facts...)...)
		if f, ok := errors.AsType[*ctl.Failure](err); ok {
			return &exit{explain.ExitError, ctl.Vis(f.Reason)}
		}
		if err != nil {
			return &exit{explain.ExitError, err.Error()}
		}
		fmt.Fprint(p.stdout, row.Arg(1))
		status, err := strconv.Atoi(row.Arg(0))
		if err != nil {
			status = explain.ExitError
		}
		if status == explain.ExitAccepted {
			return nil
		}
		return &exit{status: status}
	}
}
