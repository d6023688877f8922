package parent

import (
	"os/exec"
	"strings"
	"sync/atomic"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// pidBox carries the pid of a child to the goroutine that reads its log, which
// runs before the pid is known.
type pidBox struct{ v atomic.Int64 }

func (b *pidBox) set(pid int) { b.v.Store(int64(pid)) }
func (b *pidBox) get() int    { return int(b.v.Load()) }

// fromChild runs on the link's reading goroutine: it hands what concerns the
// state to its owner, and what takes time to goroutines of its own, whose
// number the link bounds.
func (p *parent) fromChild(c *child, cmd *exec.Cmd, r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.Ready:
		p.do(func() { p.isReady(c) })
	case *imsg.Fatal:
		p.do(func() { p.childFatal(c, cmd, m.Text) })
	case *imsg.Violation:
		p.do(func() { p.reported(c, cmd, m) })
	case *imsg.Reload:
		p.do(func() { p.reload(func(warnings []string, err error) { r.Reply(reloaded(warnings, err), nil) }) })
	case *imsg.Prepared:
		p.do(func() { p.isPrepared(c, cmd, m) })
	case *imsg.Applied:
		p.do(func() { p.hasApplied(c, cmd, m) })
	case *imsg.TableOpen:
		p.do(func() { p.openTable(r, m.Path) })
	case *imsg.Switch:
		p.do(func() { r.Reply(&imsg.Done{OK: p.flip(m.Name, m.On)}, nil) })
	case *imsg.StatusGet:
		p.do(func() { s := p.switches; r.Reply(&s, nil) })
	case *imsg.UserQuery:
		p.tasks.Go(func() { r.Reply(p.user(m.Name), nil) })
	case *imsg.ForwardOpen:
		p.tasks.Go(func() { r.Reply(forward(m), nil) })
	case *imsg.SystemAuth:
		p.tasks.Go(func() { r.Reply(p.authenticate(m), nil) })
	case *imsg.DeliverStart:
		p.tasks.Go(func() { p.workers.start(r, m) })
	case *imsg.FilterStart:
		p.do(func() { p.programs.start(r, p.procOf(m.Proc, m.Generation), m.Generation) })
	}
}

// reloaded answers whoever asked for a reload: errors, or what it was warned of.
func reloaded(warnings []string, err error) *imsg.Done {
	d := done(err)
	for _, w := range warnings {
		if len(d.Text)+len(w) < maxTold {
			d.Text += w + "\n"
		}
	}
	return d
}

// maxTold bounds, in octets, the warnings of a reload. Ours.
const maxTold = 16 << 10

func done(err error) *imsg.Done {
	if err != nil {
		return &imsg.Done{Text: err.Error()}
	}
	return &imsg.Done{OK: true}
}

// childFatal: at start the daemon ends with the child's words; later the child
// is ended, and tried again like one that died.
func (p *parent) childFatal(c *child, cmd *exec.Cmd, text string) {
	if c.cmd != cmd || !c.running || c.fatal != "" {
		return
	}
	if c.role == imsg.Queue && !p.o.Unprivileged {
		// It knows its folder as the root folder; the operator does not.
		text = strings.Replace(text, "spool /: ", "spool "+queueDir(p.o.Spool)+": ", 1)
	}
	if c.fatal = text; !p.started {
		p.fail(text)
		return
	}
	p.log.Warn("warn: " + c.role.String() + ": " + text)
	_ = cmd.Process.Kill() // it may have ended by itself
}
