package main

import (
	"context"
	"path/filepath"
	"strings"

	"smtpd/internal/ctl"
)

// importSpool has the daemon take over the old spool that lies in its own
// queue folder, where OpenSMTPD kept it, or in a folder below that. Of others
// it says what is to be done first: the process that keeps the queue cannot see
// them.
func importSpool(p *program, ctx context.Context, params []string) error {
	if len(params) == 0 {
		return p.spoolCommand(ctx, "queue import")
	}
	if err := p.settle(); err != nil {
		return err
	}
	dir, err := filepath.Abs(params[0])
	if err != nil {
		return failed("%v", err)
	}
	own := filepath.Join(p.spool, "queue")
	if p.spool == "" {
		own = "the queue folder of the daemon's spool"
	} else if dir == filepath.Clean(p.spool) {
		dir = own
	}
	if rel, err := filepath.Rel(own, dir); p.spool != "" && err == nil && !escapes(rel) {
		if rel == "." {
			return p.spoolCommand(ctx, "queue import")
		}
		if strings.ContainsAny(rel, " \t\n") {
			return failed("%s: the name may not hold spaces", dir)
		}
		return p.spoolCommand(ctx, "queue import "+rel)
	}
	if isDir(filepath.Join(dir, "queue")) {
		dir = filepath.Join(dir, "queue")
	}
	return failed("the daemon sees only its own spool: move the folders 00 to ff of %s to %s, owned by %s, and say: smtpctl queue import",
		ctl.Vis(dir), own, p.group)
}

// escapes reports whether a relative path leads out of where it begins.
func escapes(rel string) bool { return rel == ".." || strings.HasPrefix(rel, "../") }

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
