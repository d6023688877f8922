package lookup

import (
	"context"
	"runtime/debug"
	"strings"
	"sync"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/internal/mail"
	"smtpd/table"
)

// world is what belongs to one configuration. A question works in the one that
// it began in, however long it takes.
type world struct {
	conf   *config.Config
	tables *table.Set
	expand *expand.Expander
	users  int  // questions that work in it
	old    bool // no new ones
}

// worlds hands out the present world and closes those before it once nobody
// works in them. It is safe for concurrent use.
type worlds struct {
	mu      sync.Mutex
	present *world
	closing sync.WaitGroup
}

// swap makes w the present world; nil: there is none any more.
func (ws *worlds) swap(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if before := ws.present; before != nil {
		before.old = true
		ws.closeUnused(before)
	}
	ws.present = w
}

func (ws *worlds) acquire() *world {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.present.users++
	return ws.present
}

func (ws *worlds) release(w *world) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.users--
	ws.closeUnused(w)
}

// closeUnused closes an old world that nobody works in. Programs of tables may
// take a moment to end.
func (ws *worlds) closeUnused(w *world) {
	if w.old && w.users == 0 {
		ws.closing.Go(func() {
			w.tables.Close()
			w.tables, w.expand = nil, nil
			debug.FreeOSMemory() // large tables are there twice for a moment
		})
	}
}

// newWorld opens the tables of a configuration.
func (s *server) newWorld(c *config.Config) (*world, error) {
	set, err := table.OpenSet(c.Tables, table.Options{
		Delim:    c.SMTP.SubAddrDelim,
		Accounts: s.system.account,
		Warn:     s.tableSays,
	})
	if err != nil {
		return nil, err
	}
	return &world{conf: c, tables: set, expand: &expand.Expander{
		Config: c, Tables: set, System: s.system, Now: s.env.Now,
		Daemon: s.daemon, Unprivileged: s.env.Unprivileged,
	}}, nil
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
	w := s.worlds.acquire()
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
	err := t.Update(ctx)
	if err != nil {
		s.env.Log.Warn("warn: " + mail.Clean(err.Error(), mail.MaxStatusText) + ": keeping the old contents")
		return err
	}
	s.env.Log.Info("info: table " + t.Name() + " updated")
	if t.Stats().Entries >= largeTable {
		debug.FreeOSMemory() // the old contents
	}
	return nil
}
