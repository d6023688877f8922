package privsep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/stat"
)

// maxConfig bounds a configuration on the channel. Ours: the text it comes
// from is bounded by the parser.
const maxConfig = 256 << 20

// Main is the life of a child from its start to its end: it takes the channel,
// confines itself, builds Env and the links to the role's neighbours, and runs
// run. Its result is the exit status. The process ends at once when the parent
// is gone.
func Main(role imsg.Role, b Boot, run func(context.Context, *Env, func(imsg.Role) *ipc.Link) error) int {
	tuneHeap()
	profile(role)
	logger := newLogger(b)
	conn, err := channel()
	if err == nil {
		err = Confine(role, b)
	}
	if err != nil {
		logger.Fatal(fmt.Sprintf("fatal: %s: %v", role, err))
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := newChild(role, b, logger, cancel)
	c.env.Cores = newCores()
	c.parent.Serve(c.fromParent, nil, func(error) { os.Exit(1) })
	c.parent.Attach(conn)
	if err := run(ctx, c.env, func(r imsg.Role) *ipc.Link { return c.links[r] }); err != nil {
		return c.lastWord(err)
	}
	return 0
}

// lastWordTime is how long a process that cannot work waits for the parent to
// hear why and end it. Ours.
const lastWordTime = 2 * time.Second

// lastWord tells the parent, which tells the operator, why the process ends;
// without a parent the log has to do.
func (c *child) lastWord(err error) int {
	text := mail.Clean(err.Error(), imsg.MaxText)
	if c.parent.Send(&imsg.Fatal{Text: text}, nil) != nil {
		c.env.Log.Fatal(fmt.Sprintf("fatal: %s: %s", c.role, text))
		return 1
	}
	// The end of the channel ends the process before this does.
	<-time.After(lastWordTime)
	return 1
}

// Worker is the life of a delivery worker: it was started as the user it
// delivers for, and its only channel is the one to mda. Its result is the exit
// status.
func Worker(b Boot, run func(context.Context, *ipc.Link, *log.Logger) error) int {
	logger := newLogger(b)
	conn, err := channel()
	if err == nil {
		err = noCore()
	}
	if err == nil && !b.Unprivileged && os.Getuid() == 0 {
		err = errors.New("refusing to run as root")
	}
	if err == nil && b.Store {
		err = confine(imsg.Deliver, b)
	}
	if err == nil {
		link := ipc.NewLink(imsg.Deliver, imsg.MDA)
		link.Attach(conn)
		err = run(context.Background(), link, logger)
	}
	if err != nil {
		logger.Fatal(fmt.Sprintf("fatal: deliver: %v", err))
		return 1
	}
	return 0
}

func newLogger(b Boot) *log.Logger {
	form := log.FormPlain
	switch {
	case b.JSONLog:
		form = log.FormJSON
	case b.Severity:
		form = log.FormSeverity
	}
	return log.New(os.Stderr, form)
}

// child is the side of a process that the parent talks to.
type child struct {
	role   imsg.Role
	env    *Env
	cancel context.CancelFunc
	parent *ipc.Link
	links  map[imsg.Role]*ipc.Link

	config   chan *config.Config
	switches chan *imsg.Switches
	sockets  chan Socket
	pending  bytes.Buffer // parts of a configuration
	staged   staged
}

// maxSockets bounds the listening sockets that wait for smtp to take them.
const maxSockets = 4096

func newChild(role imsg.Role, b Boot, logger *log.Logger, cancel context.CancelFunc) *child {
	c := &child{
		role: role, cancel: cancel,
		parent:   ipc.NewLink(role, imsg.Parent),
		links:    map[imsg.Role]*ipc.Link{},
		config:   make(chan *config.Config, 1),
		switches: make(chan *imsg.Switches, 1),
		sockets:  make(chan Socket, maxSockets),
	}
	for _, n := range imsg.Neighbours(role) {
		l := ipc.NewLink(role, n)
		l.Violation = func(err error) {
			logger.Warn(fmt.Sprintf("warn: %s: %v", n, err))
			// The parent may be busy; what it does not hear now it hears next time.
			_ = c.parent.Send(&imsg.Violation{Peer: n, Text: err.Error()}, nil)
		}
		c.links[n] = l
	}
	var ready sync.Once
	c.env = &Env{
		Role: role, Log: logger, Stat: &stat.Set{}, Now: time.Now,
		Config: c.config, Switches: c.switches, Sockets: c.sockets,
		Parent: c.parent, Unprivileged: b.Unprivileged,
		Applied: func(conf *config.Config) {
			_ = c.parent.Send(&imsg.Applied{Generation: conf.Generation}, nil) // the end of the channel ends us
		},
		Ready: func() { ready.Do(func() { _ = c.parent.Send(&imsg.Ready{}, nil) }) },
	}
	return c
}

// fromParent handles what the parent says. It trusts the parent.
func (c *child) fromParent(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.PeerLink:
		c.attach(m.Peer, r.File)
	case *imsg.Configure:
		c.configure(m)
	case *imsg.Apply:
		c.staged.apply(m, func(conf *config.Config) { latest(c.config, conf) })
	case *imsg.Switches:
		c.env.Log.SetVerbose(m.Verbose)
		trace := map[string]bool{}
		for _, t := range m.Trace {
			trace[t] = true
		}
		c.env.Log.SetTrace(trace)
		latest(c.switches, m)
	case *imsg.ListenSocket:
		c.sockets <- Socket{Addr: m.Addr, File: r.File, Last: m.Last}
	case *imsg.Shutdown:
		c.cancel()
	}
}

func (c *child) attach(peer imsg.Role, f *os.File) {
	l := c.links[peer]
	if f == nil || l == nil {
		return
	}
	conn, err := ipc.Conn(f)
	if err != nil {
		c.env.Log.Warn(fmt.Sprintf("warn: %s: %v", peer, err))
		return
	}
	l.Attach(conn)
}

func (c *child) configure(m *imsg.Configure) {
	if c.pending.Len()+len(m.Data) > maxConfig {
		c.env.Log.Fatal("fatal: configuration too large")
		os.Exit(1)
	}
	c.pending.Write(m.Data)
	if !m.Last {
		return
	}
	conf := &config.Config{}
	err := json.Unmarshal(c.pending.Bytes(), conf)
	c.pending = bytes.Buffer{}
	if err != nil {
		c.env.Log.Fatal(fmt.Sprintf("fatal: configuration: %v", err))
		os.Exit(1)
	}
	if m.Stage {
		c.staged.prepare(c.env, conf, func(err error) {
			answer := &imsg.Prepared{Generation: conf.Generation}
			if err != nil {
				answer.Error = mail.Clean(err.Error(), imsg.MaxText)
			}
			_ = c.parent.Send(answer, nil) // the end of the channel ends us
		})
		return
	}
	latest(c.config, conf)
}

// latest puts v into a channel of one place, in place of what nobody has
// taken yet. There is one sender.
func latest[T any](ch chan T, v T) {
	for {
		select {
		case ch <- v:
			return
		default:
		}
		select {
		case <-ch:
		default:
		}
	}
}
