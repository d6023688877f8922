package query

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"smtpd/table"
)

// Open makes the engine of a configuration and the queries it takes, their
// texts checked. It does not wait for a server.
type Open func(s *Settings) (Engine, []Query, error)

// verifyTime is how long a server may take to look at the queries: less than
// smtpd waits for a table program.
const verifyTime = 5 * time.Second

// Main is the whole of a table program: it reads the configuration file that
// args names, has the server look at it, and answers the table protocol until
// in ends. `update` reads the file again; after a mistake the old configuration
// stays in force. What the log should say goes to errw. It returns the exit
// status.
func Main(ctx context.Context, args []string, in io.Reader, out, errw io.Writer, open Open) int {
	if len(args) != 1 {
		fmt.Fprintln(errw, "usage: table-program file")
		return 1
	}
	t := &program{path: args[0], open: open, errw: errw, now: time.Now}
	if err := t.Update(ctx); err != nil {
		fmt.Fprintln(errw, err)
		return 1
	}
	defer t.Close()
	if err := table.Serve(ctx, in, out, t); err != nil {
		fmt.Fprintln(errw, err)
		return 1
	}
	return 0
}

// program is a table whose configuration can be replaced while it works.
type program struct {
	path string
	open Open
	errw io.Writer
	now  func() time.Time

	updating sync.Mutex // one at a time

	mu      sync.Mutex
	present *generation // nil before the first Update
}

// generation is one configuration and those who work with it.
type generation struct {
	*backend
	users sync.WaitGroup
}

// Update implements table.Backend: it reads the configuration file again.
func (t *program) Update(ctx context.Context) error {
	t.updating.Lock()
	defer t.updating.Unlock()
	b, err := t.load(ctx)
	if err != nil {
		return err
	}
	t.mu.Lock()
	old := t.present
	t.present = &generation{backend: b}
	t.mu.Unlock()
	if old == nil {
		return nil
	}
	old.users.Wait() // at most queryTime
	return old.Close()
}

// load makes a table of the file.
func (t *program) load(ctx context.Context) (*backend, error) {
	s, err := ReadSettings(t.path)
	if err != nil {
		return nil, err
	}
	e, queries, err := t.open(s)
	if err != nil {
		return nil, err
	}
	b, err := newBackend(s, e, queries, t.now)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, verifyTime)
		defer cancel()
		if err = e.Verify(ctx); err != nil && !errors.Is(err, ErrRefused) {
			fmt.Fprintf(t.errw, "warn: %v: trying again when asked\n", err)
			err = nil
		}
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	for _, line := range s.unused() {
		fmt.Fprintln(t.errw, "warn: "+line)
	}
	return b, nil
}

func (t *program) acquire() *generation {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.present.users.Add(1)
	return t.present
}

// Lookup implements table.Backend.
func (t *program) Lookup(ctx context.Context, s table.Service, key string) (string, error) {
	g := t.acquire()
	defer g.users.Done()
	return g.Lookup(ctx, s, key)
}

// Check implements table.Backend.
func (t *program) Check(ctx context.Context, s table.Service, key string) (bool, error) {
	g := t.acquire()
	defer g.users.Done()
	return g.Check(ctx, s, key)
}

// Fetch implements table.Backend.
func (t *program) Fetch(ctx context.Context, s table.Service) (string, error) {
	g := t.acquire()
	defer g.users.Done()
	return g.Fetch(ctx, s)
}

// Services implements table.Backend.
func (t *program) Services() table.Service {
	g := t.acquire()
	defer g.users.Done()
	return g.Services()
}

// Close implements table.Backend.
func (t *program) Close() error { return t.present.Close() }
