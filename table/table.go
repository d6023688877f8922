// Package table answers named lookups: the tables of smtpd.conf. A Table is
// asked by service (the kind of question) and key; its backend holds the data
// in memory (inline, file, db, passwd), asks a server (socketmap), a program
// (the table protocols) or the system's accounts (getpwnam). The package owns
// what it has read, the sockets and the programs of its tables; Close ends
// them. It never writes to a table, and a table that cannot answer is always
// told apart from one that answers "no".
package table

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
)

// Bounds of what travels in and out of a table.
const (
	MaxKey   = 1023       // octets of a key: what OpenSMTPD looks up at most
	MaxValue = 64<<10 - 1 // ours: octets of a value; a long alias list
)

// Errors that callers tell apart. Every other error means that the table could
// not answer: try again later.
var (
	ErrNotFound = errors.New("not found")
	ErrService  = errors.New("the table does not offer this service")
	ErrKey      = errors.New("the key is too long or holds a control character")
)

// Service is a kind of question; several may be or-ed where a set is asked for.
// The numbers are those of the binary table protocol.
type Service uint16

// The services.
const (
	Alias       Service = 1 << iota // name -> list of Items
	Domain                          // is this domain in it
	Credentials                     // login or label -> user:secret
	Netaddr                         // is this address in it
	Userinfo                        // user -> uid:gid:home
	Source                          // the next address to send from
	Mailaddr                        // is this mail address in it
	Addrname                        // address -> host name
	Mailaddrmap                     // login -> mail addresses it may use
	Relayhost                       // the next relay URL, or domain -> relay URL
	String                          // is this text in it
	Regex                           // does a regular expression in it match
	Auth                            // is user:password right
)

// allServices is every service there is.
const allServices = Auth<<1 - 1

var serviceNames = []string{"alias", "domain", "credentials", "netaddr", "userinfo", "source",
	"mailaddr", "addrname", "mailaddrmap", "relayhost", "string", "regex", "auth"}

// String is the service's word in the table protocol; several are joined by
// commas.
func (s Service) String() string {
	var words []string
	for i, w := range serviceNames {
		if s&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, ",")
}

// ParseService is the inverse of String for one service.
func ParseService(word string) (Service, bool) {
	for i, w := range serviceNames {
		if w == word {
			return 1 << i, true
		}
	}
	return 0, false
}

// Backend is what answers for a table. Keys arrive checked and folded, see
// Table. All methods are safe for concurrent use and end when ctx does; an
// error other than ErrNotFound and ErrService is temporary.
type Backend interface {
	// Lookup is the value of key, or ErrNotFound.
	Lookup(ctx context.Context, s Service, key string) (string, error)
	// Check reports whether key is in the table, by the comparison that the
	// service asks for.
	Check(ctx context.Context, s Service, key string) (bool, error)
	// Fetch is the next value of a list, in turn, or ErrNotFound.
	Fetch(ctx context.Context, s Service) (string, error)
	// Update reads the table again; after an error the old contents stay.
	Update(ctx context.Context) error
	// Services is what may be asked; it may change with Update.
	Services() Service
	// Close frees what the backend holds; nothing may be asked after it.
	Close() error
}

// watched is a Backend that can tell that what it read has changed since.
type watched interface {
	Changed() bool
	Stale() bool
}

// counted is a Backend that knows how many entries it has.
type counted interface{ Len() int }

// listed is a Backend that has all its keys at hand; see Table.Keys.
type listed interface {
	Keys(max int) (keys []string, ok bool)
}

// Table is a backend by the name that smtpd.conf gives it. It folds and checks
// keys, checks values and counts. It is safe for concurrent use.
type Table struct {
	name    string
	kind    string // backend word of smtpd.conf
	backend Backend

	lookups, misses, failures atomic.Int64
	lastError                 atomic.Pointer[string]
	loaded                    atomic.Int64 // unix time
	shares                    atomic.Int32 // besides the first
}

// New makes a table of a backend. kind is the backend's word in smtpd.conf.
func New(name, kind string, b Backend) *Table {
	t := &Table{name: name, kind: kind, backend: b}
	t.loaded.Store(time.Now().Unix())
	return t
}

// Name is the table's name in smtpd.conf.
func (t *Table) Name() string { return t.name }

// Services is what may be asked.
func (t *Table) Services() Service { return t.backend.Services() }

// Close frees what the table holds, once all who share it have closed it.
func (t *Table) Close() error {
	if t.shares.Add(-1) >= 0 {
		return nil
	}
	return t.backend.Close()
}

// Share is the table for one more, who closes it as well.
func (t *Table) Share() *Table {
	t.shares.Add(1)
	return t
}

// Lookup is the value of key as the service defines it, checked: Alias and
// Mailaddrmap lists, Userinfo, Addrname, Relayhost and Source as written,
// Credentials always as user:secret. Errors are ErrNotFound, ErrService, or
// temporary.
func (t *Table) Lookup(ctx context.Context, s Service, key string) (string, error) {
	key, err := foldKey(s, key)
	if err != nil {
		return "", t.count(s, err)
	}
	v, err := t.backend.Lookup(ctx, s, key)
	if err == nil {
		v, err = normalize(s, key, v)
	}
	return v, t.count(s, err)
}

// Check reports whether key is in the table, by the comparison of the service.
func (t *Table) Check(ctx context.Context, s Service, key string) (bool, error) {
	key, err := foldKey(s, key)
	if err != nil {
		return false, t.count(s, err)
	}
	ok, err := t.backend.Check(ctx, s, key)
	if err == nil && !ok {
		t.lookups.Add(1)
		t.misses.Add(1)
		return false, nil
	}
	return ok, t.count(s, err)
}

// Fetch is the next value of a list of Source or Relayhost, in turn, or
// ErrNotFound.
func (t *Table) Fetch(ctx context.Context, s Service) (string, error) {
	v, err := t.backend.Fetch(ctx, s)
	if err == nil {
		v, err = normalize(s, "", v)
	}
	return v, t.count(s, err)
}

// Keys are all keys of the table: a list of them answers Check as the table does.
// ok is false for a table that only answers, and when the keys with one octet
// more for each are longer than max.
func (t *Table) Keys(max int) (keys []string, ok bool) {
	if l, has := t.backend.(listed); has {
		return l.Keys(max)
	}
	return nil, false
}

// Update reads the table again. After an error the old contents stay.
func (t *Table) Update(ctx context.Context) error {
	err := t.backend.Update(ctx)
	if err != nil {
		t.noteError(err)
		return fmt.Errorf("table %s: %w", t.name, err)
	}
	t.loaded.Store(time.Now().Unix())
	return nil
}

// Changed reports whether what was read has changed on disk since, and has come
// to rest: it looks as it did when Changed was asked before. It costs a stat.
func (t *Table) Changed() bool {
	w, ok := t.backend.(watched)
	return ok && w.Changed()
}

// Stale reports whether what was read has changed on disk since.
func (t *Table) Stale() bool {
	w, ok := t.backend.(watched)
	return ok && w.Stale()
}

// Stats is what `smtpctl show tables` prints of a table.
type Stats struct {
	Name, Backend           string
	Entries                 int // -1: only asking could tell
	Lookups, Misses, Errors int64
	LastError               string
	Loaded                  time.Time
}

// Stats is the table's counters.
func (t *Table) Stats() Stats {
	st := Stats{Name: t.name, Backend: t.kind, Entries: -1, Lookups: t.lookups.Load(),
		Misses: t.misses.Load(), Errors: t.failures.Load(), Loaded: time.Unix(t.loaded.Load(), 0)}
	if c, ok := t.backend.(counted); ok {
		st.Entries = c.Len()
	}
	if p := t.lastError.Load(); p != nil {
		st.LastError = *p
	}
	return st
}

// Book adds questions that a copy of the table answered elsewhere.
func (t *Table) Book(lookups, misses, errors int64) {
	t.lookups.Add(lookups)
	t.misses.Add(misses)
	t.failures.Add(errors)
}

// count books the end of a question and wraps what is neither found nor missed.
func (t *Table) count(s Service, err error) error {
	t.lookups.Add(1)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		t.misses.Add(1)
		return ErrNotFound
	}
	t.noteError(err)
	return fmt.Errorf("table %s: %s: %w", t.name, s, err)
}

func (t *Table) noteError(err error) {
	t.failures.Add(1)
	text := err.Error()
	t.lastError.Store(&text)
}

// foldKey checks a key and makes it lower case. The password in a key of Auth
// is left as it is (OpenSMTPD folds it, which makes it wrong).
func foldKey(s Service, key string) (string, error) {
	if len(key) > MaxKey || hasControl(key) {
		return "", ErrKey
	}
	if s != Auth {
		return Fold(key), nil
	}
	user, password, ok := strings.Cut(key, ":")
	if !ok {
		return "", ErrKey
	}
	return Fold(user) + ":" + password, nil
}

// Fold makes the letters of ASCII lower case and leaves every other octet as it
// is, so that no two keys become one that were not the same address.
func Fold(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// hasControl reports an octet that could end a line or a string somewhere.
func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// typeOf is the shape that a table of a configuration shows to those who ask.
func typeOf(isList bool) config.TableType {
	if isList {
		return config.TableList
	}
	return config.TableMapping
}
