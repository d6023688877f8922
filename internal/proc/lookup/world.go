package lookup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/table"
)

// world is what belongs to one configuration: its rules, tables and filter
// programs. A question works in the one that it began in, however long it takes,
// and the questions of a session in the one that the session began in.
type world struct {
	conf   *config.Config
	tables *table.Set
	expand *expand.Expander
	procs  map[string]*proc // filter programs, by processor; from its first use on
	users  int              // questions that work in it
}

// worlds hands out the worlds by the generation of their configuration. Those
// before the present one are closed once no session works by them any more and
// no question in them. It is safe for concurrent use.
type worlds struct {
	mu      sync.Mutex
	present *world
	staged  *world           // of a configuration that may come into force; or nil
	old     []*world         // those before it
	used    imsg.Generations // as smtp said last
	end     func(*world)     // closes one, on a goroutine of its own
	closing sync.WaitGroup
}

// swap makes w the present world; nil: there is none any more.
func (ws *worlds) swap(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if before := ws.present; before != nil {
		ws.old = append(ws.old, before)
	}
	if ws.present = w; ws.staged == w {
		ws.staged = nil
	}
	ws.sweep()
}

// stage holds a world ready, in place of one that was held before; nil: none.
func (ws *worlds) stage(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if before := ws.staged; before != nil {
		ws.close(before)
	}
	ws.staged = w
}

// unstage gives up a world that was held ready.
func (ws *worlds) unstage(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.staged == w {
		ws.staged = nil
		ws.close(w)
	}
}

// stagedFor is the world that was made ready for a configuration, or nil.
func (ws *worlds) stagedFor(c *config.Config) *world {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.staged != nil && ws.staged.conf == c {
		return ws.staged
	}
	return nil
}

// nextTable is a table of the world that is held ready, or nil.
func (ws *worlds) nextTable(name string) *table.Table {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.staged == nil {
		return nil
	}
	return ws.staged.tables.Table(name)
}

// acquire is the world of a generation, nil when it is gone; 0: the present one.
func (ws *worlds) acquire(generation uint64) *world {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.find(generation)
	if w != nil {
		w.users++
	}
	return w
}

func (ws *worlds) find(generation uint64) *world {
	if generation == 0 || ws.present == nil {
		return ws.present
	}
	for _, w := range append([]*world{ws.present, ws.staged}, ws.old...) {
		if w != nil && w.conf.Generation == generation {
			return w
		}
	}
	return nil
}

func (ws *worlds) release(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.users--
	ws.sweep()
}

// inUse notes which generations sessions work by.
func (ws *worlds) inUse(m *imsg.Generations) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.used = *m
	ws.sweep()
}

// noSessions notes that there is no session any more.
func (ws *worlds) noSessions() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.used = imsg.Generations{Present: ^uint64(0)}
	ws.sweep()
}

// sweep closes the old worlds that nobody works in, with the lock held. One
// that smtp may not have heard the end of yet stays.
func (ws *worlds) sweep() {
	ws.old = slices.DeleteFunc(ws.old, func(w *world) bool {
		g := w.conf.Generation
		wanted := ws.present != nil && (g >= ws.used.Present || slices.Contains(ws.used.Used, g))
		if w.users > 0 || wanted {
			return false
		}
		ws.close(w)
		return true
	})
}

// close ends a world. Programs of tables may take a moment for that.
func (ws *worlds) close(w *world) { ws.closing.Go(func() { ws.end(w) }) }

// newWorld opens the tables of a configuration, which may be large.
func (s *server) newWorld(c *config.Config) (w *world, err error) {
	s.env.Cores.All(func() { w, err = s.openWorld(c) })
	return w, err
}

// openWorld makes a world. What is in memory already, and is what it would be
// read again, is shared.
func (s *server) openWorld(c *config.Config) (*world, error) {
	var before *world
	s.worlds.mu.Lock()
	if before = s.worlds.present; before != nil {
		before.users++
	}
	s.worlds.mu.Unlock()
	if before != nil {
		defer s.worlds.release(before)
	}
	set, err := table.OpenSet(c.Tables, table.Options{
		Delim:    c.SMTP.SubAddrDelim,
		Accounts: s.system.account,
		Warn:     s.tableSays,
		Open:     s.openFile,
		Share:    func(name string) *table.Table { return shared(before, c, name) },
	})
	if err != nil {
		return nil, err
	}
	return &world{conf: c, tables: set, expand: &expand.Expander{
		Config: c, Tables: set, System: s.system, Now: s.env.Now,
		Daemon: s.daemon, Unprivileged: s.env.Unprivileged,
	}}, nil
}

// shared is a table of the world before that will do for the new configuration,
// or nil. Tables of servers and programs are opened anew: what those read may
// have changed.
func shared(before *world, c *config.Config, name string) *table.Table {
	if before == nil || before.conf.SMTP.SubAddrDelim != c.SMTP.SubAddrDelim {
		return nil
	}
	was, is, t := before.conf.Tables[name], c.Tables[name], before.tables.Table(name)
	if c.Renewal && t != nil {
		return t.Share() // nobody has asked for tables to be read
	}
	if was == nil || t == nil || !is.InFile() && is.Backend != "static" && is.Backend != "" {
		return nil
	}
	one, other := *was, *is
	one.Pos, other.Pos = config.Pos{}, config.Pos{}
	if !reflect.DeepEqual(one, other) || t.Stale() {
		return nil
	}
	return t.Share()
}

// openTime bounds the wait for a file that the parent opens.
const openTime = 10 * time.Second

// openFile opens a table file: one that this process may not read, by way of
// the parent.
func (s *server) openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if !errors.Is(err, fs.ErrPermission) || s.env.Unprivileged {
		return f, err
	}
	ctx, cancel := context.WithTimeout(s.life, openTime)
	defer cancel()
	a, f, err := ipc.AskFile[*imsg.TableOpened](ctx, s.env.Parent, &imsg.TableOpen{Path: path})
	switch {
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", path, err)
	case f == nil || a.Error != "":
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("open %s: %s", path, mail.Clean(a.Error, mail.MaxStatusText))
	}
	return f, nil
}

// prepare opens the tables of a configuration before it comes into force.
func (s *server) prepare(c *config.Config) (abort func(), err error) {
	w, err := s.newWorld(c)
	if err != nil {
		return nil, err
	}
	s.worlds.stage(w)
	return func() { s.worlds.unstage(w) }, nil
}

// closeWorld ends what belongs to a world.
func (s *server) closeWorld(w *world) {
	s.filters.release(w.procs)
	// A program that does not end well has said so itself.
	_ = w.tables.Close()
	w.tables, w.expand = nil, nil
	debug.FreeOSMemory() // large tables are there twice for a moment
}

// tableSays writes to the log what a table has to say. Programs of
// opensmtpd-extras put the severity into their lines.
func (s *server) tableSays(name, text string) {
	line := "table " + name + ": " + mail.Clean(text, mail.MaxStatusText)
	switch {
	case strings.Contains(text, ": debug: "):
		s.env.Log.Debug("debug: " + line)
	case strings.Contains(text, ": info: "):
		s.env.Log.Info("info: " + line)
	default:
		s.env.Log.Warn("warn: " + line)
	}
}

// watch reads the tables again whose files have changed. A broken file leaves
// the old contents and is not looked at again until it changes once more.
func (s *server) watch(ctx context.Context) {
	w := s.worlds.acquire(0)
	defer s.worlds.release(w)
	for _, t := range w.tables.All() {
		if t.Changed() {
			s.update(ctx, t)
		}
	}
}

// largeTable is from how many entries on the memory of old contents is given
// back at once. Ours: some megabytes.
const largeTable = 50000

// update reads one table again and says so in the log.
func (s *server) update(ctx context.Context, t *table.Table) error {
	var err error
	s.env.Cores.All(func() { err = t.Update(ctx) })
	if err != nil {
		s.env.Log.Warn("warn: " + mail.Clean(err.Error(), mail.MaxStatusText) + ": keeping the old contents")
		return err
	}
	s.tellStale(ctx, t.Name())
	s.env.Log.Info("info: table " + t.Name() + " updated")
	if t.Stats().Entries >= largeTable {
		debug.FreeOSMemory() // the old contents
	}
	return nil
}
