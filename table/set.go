package table

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"smtpd/internal/config"
)

// Options are what tables need besides their own lines of a configuration. The
// zero value works for tables in memory.
type Options struct {
	Delim    string                   // of sub-addresses
	Accounts Accounts                 // behind getpwnam; nil: nobody is known
	Warn     func(table, text string) // is told what the log should say; may be nil
	Libexec  []string                 // folders with table programs; empty: LibexecDirs
	Open     Opener                   // opens table files; nil: with the rights of this process
	Share    func(name string) *Table // a table of that name to go on with, see Table.Share; may be nil
}

// LibexecDirs are the folders in which the program of a table is looked for,
// in this order; the first is the one that our own program is in.
func LibexecDirs() []string {
	dirs := []string{"/usr/local/libexec/smtpd", "/usr/local/libexec/opensmtpd",
		"/usr/libexec/smtpd", "/usr/libexec/opensmtpd"}
	if exe, err := os.Executable(); err == nil {
		dirs = slices.Insert(dirs, 0, filepath.Dir(exe))
	}
	return dirs
}

// Open opens one table of a configuration: what it reads is read now, a server
// or program is not waited for. The caller closes it.
func Open(c *config.Table, o Options) (*Table, error) {
	warn := func(text string) {
		if o.Warn != nil {
			o.Warn(c.Name, text)
		}
	}
	b, err := openBackend(c, o, warn)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", c.Name, err)
	}
	t := New(c.Name, c.Backend, b)
	return t, nil
}

func openBackend(c *config.Table, o Options, warn func(string)) (Backend, error) {
	mem := options{delim: o.Delim, warn: warn}
	switch c.Backend {
	case "static", "":
		if c.Param == "" {
			return newInline(c, mem), nil
		}
		return newFileTable(c.Param, o.Open, mem, loadAny)
	case "file":
		return newFileTable(c.Param, o.Open, mem, loadAny)
	case "db":
		return newFileTable(c.Param, o.Open, mem, loadMap)
	case "passwd":
		return newPasswd(c.Param, o.Open)
	case "getpwnam":
		find := o.Accounts
		if find == nil {
			find = func(context.Context, string) (Account, error) { return Account{}, ErrNotFound }
		}
		return NewGetpwnam(find), nil
	case "socketmap":
		return NewSocketmap(c.Name, c.Param)
	}
	path, err := findProgram(c.Backend, o.Libexec)
	if err != nil {
		return nil, err
	}
	return NewProgram(c.Name, path, c.Param, warn)
}

// newInline makes the backend of a table written out in the configuration.
func newInline(c *config.Table, o options) Backend {
	ix := newIndex(c.Type, len(c.List)+len(c.Pairs), o)
	for _, k := range c.List {
		ix.add(k, "")
	}
	for _, p := range c.Pairs {
		ix.add(p[0], p[1])
	}
	return newMemory(ix)
}

// loadAny reads a file by what it is: a map is not read as text.
func loadAny(f *os.File, path string, o options) (*index, error) {
	if sniffMap(f) != kindUnknown {
		return loadMap(f, path, o)
	}
	return loadText(f, path, o)
}

// findProgram finds table-BACKEND.
func findProgram(backend string, dirs []string) (string, error) {
	if len(dirs) == 0 {
		dirs = LibexecDirs()
	}
	if strings.ContainsAny(backend, "/\x00") {
		return "", fmt.Errorf("backend %q does not exist", backend)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, "table-"+backend)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("backend %q does not exist: no table-%s in %s", backend, backend, strings.Join(dirs, ", "))
}

// Set is all tables of a configuration. Its methods are safe for concurrent
// use, but for Close.
type Set struct{ tables map[string]*Table }

// OpenSet opens all tables of a configuration; on an error none stays open.
func OpenSet(tables map[string]*config.Table, o Options) (*Set, error) {
	s := &Set{tables: make(map[string]*Table, len(tables))}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		if o.Share != nil {
			if t := o.Share(name); t != nil {
				s.tables[name] = t
				continue
			}
		}
		t, err := Open(tables[name], o)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.tables[name] = t
	}
	return s, nil
}

// Table finds a table by its name; nil: there is none.
func (s *Set) Table(name string) *Table { return s.tables[name] }

// All is every table, by name.
func (s *Set) All() []*Table {
	all := make([]*Table, 0, len(s.tables))
	for _, name := range slices.Sorted(maps.Keys(s.tables)) {
		all = append(all, s.tables[name])
	}
	return all
}

// Close closes all tables.
func (s *Set) Close() error {
	var errs []error
	for _, t := range s.tables {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

func (s *Set) find(name string) (*Table, error) {
	if t := s.tables[name]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("no table %q", name)
}

// Check asks the named table, see Table.Check.
func (s *Set) Check(ctx context.Context, name string, service Service, key string) (bool, error) {
	t, err := s.find(name)
	if err != nil {
		return false, err
	}
	return t.Check(ctx, service, key)
}

// Lookup asks the named table, see Table.Lookup.
func (s *Set) Lookup(ctx context.Context, name string, service Service, key string) (string, error) {
	t, err := s.find(name)
	if err != nil {
		return "", err
	}
	return t.Lookup(ctx, service, key)
}

// Fetch asks the named table, see Table.Fetch.
func (s *Set) Fetch(ctx context.Context, name string, service Service) (string, error) {
	t, err := s.find(name)
	if err != nil {
		return "", err
	}
	return t.Fetch(ctx, service)
}
