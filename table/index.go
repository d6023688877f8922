package table

import (
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"smtpd/internal/config"
)

// index is a table in memory. It is built once and then only read; what a
// service needs besides equality is prepared when first asked for. The cost of
// an entry is that of a Go map: 17 to 38 octets in a list, 33 to 75 in a
// mapping, over the text.
type index struct {
	list     map[string]struct{}
	pairs    map[string]string // nil in a list
	patterns []string          // keys that hold '*' or begin with '.'
	raw      map[string]string // key -> as written, where a regular expression would not survive folding
	delim    string
	warn     func(string)

	domains struct {
		once sync.Once
		set  domainSet
	}
	nets struct {
		once sync.Once
		set  netSet
	}
	mails struct {
		once     sync.Once
		patterns []string
	}
	regexes struct {
		once sync.Once
		list []*regexp.Regexp
	}
	turns struct {
		once sync.Once
		keys []string
	}
}

// options are what a table in memory must know of the configuration.
type options struct {
	delim string
	warn  func(string) // may be nil
}

func newIndex(typ config.TableType, size int, o options) *index {
	ix := &index{delim: o.delim, warn: o.warn}
	if typ == config.TableList {
		ix.list = make(map[string]struct{}, size)
	} else {
		ix.pairs = make(map[string]string, size)
	}
	return ix
}

// add enters a key, folded, and its value; of two equal ones the later counts.
func (ix *index) add(written, value string) {
	key := Fold(written)
	if key != written && strings.Contains(key, `\\`) {
		if ix.raw == nil {
			ix.raw = map[string]string{}
		}
		ix.raw[key] = written
	}
	if ix.list != nil {
		ix.list[key] = struct{}{}
	} else {
		ix.pairs[key] = value
	}
	if isPattern(key) || strings.Contains(key, "@.") {
		ix.patterns = append(ix.patterns, key)
	}
}

func (ix *index) len() int { return len(ix.list) + len(ix.pairs) }

func (ix *index) has(key string) bool {
	if ix.list != nil {
		_, ok := ix.list[key]
		return ok
	}
	_, ok := ix.pairs[key]
	return ok
}

// keys calls yield with every key.
func (ix *index) keys(yield func(string) bool) {
	if ix.list != nil {
		maps.Keys(ix.list)(yield)
		return
	}
	maps.Keys(ix.pairs)(yield)
}

func (ix *index) lookup(key string) (string, error) {
	if ix.list != nil {
		if ix.has(key) {
			return key, nil
		}
		return "", ErrNotFound
	}
	v, ok := ix.pairs[key]
	if !ok {
		return "", ErrNotFound
	}
	return v, nil
}

func (ix *index) check(s Service, key string) bool {
	switch s {
	case Domain:
		return ix.checkDomain(key)
	case Netaddr:
		return ix.checkNetaddr(key)
	case Mailaddr:
		return ix.checkMailaddr(key)
	case Regex:
		return ix.checkRegex(key)
	}
	return ix.has(key)
}

func (ix *index) checkDomain(domain string) bool {
	if !isPattern(domain) && ix.has(domain) {
		return true
	}
	if len(ix.patterns) == 0 {
		return false
	}
	ix.domains.once.Do(func() {
		for _, p := range ix.patterns {
			ix.domains.set.add(p)
		}
	})
	return ix.domains.set.match(domain)
}

func (ix *index) checkNetaddr(key string) bool {
	if key == "local" {
		return ix.has(key)
	}
	a, err := ParseAddr(key)
	if err != nil {
		return false
	}
	if ix.has(a.String()) {
		return true
	}
	// Addresses written in their usual form were found above; only the others,
	// and networks, need more.
	ix.nets.once.Do(func() {
		for k := range ix.keys {
			p, err := parseNet(k)
			if err != nil {
				if k != "local" {
					ix.complain(k, err)
				}
			} else if !p.IsSingleIP() || p.Addr().String() != k {
				ix.nets.set.add(p)
			}
		}
	})
	return ix.nets.set.match(a)
}

func (ix *index) checkMailaddr(addr string) bool {
	if ix.has("@") || (addr == "" && ix.has("")) {
		return true
	}
	if addr == "" {
		return false
	}
	user, domain, _ := cutLast(addr, '@')
	if !isPattern(domain) && !isPattern(user) && ix.hasMailaddr(user, domain) {
		return true
	}
	if len(ix.patterns) == 0 {
		return false
	}
	ix.mails.once.Do(func() { // most patterns of a list of domains are none here
		for _, p := range ix.patterns {
			if _, d, ok := cutLast(p, '@'); ok && isPattern(d) || strings.HasPrefix(p, ".") {
				ix.mails.patterns = append(ix.mails.patterns, p)
			}
		}
	})
	for _, p := range ix.mails.patterns {
		if matchMailFolded(addr, p, ix.delim) {
			return true
		}
	}
	// A user may hold '*', which is a plain character there.
	return ix.hasMailaddr(user, domain)
}

// hasMailaddr looks for the entries without patterns that the address matches.
func (ix *index) hasMailaddr(user, domain string) bool {
	if ix.has("@"+domain) || ix.has(user+"@"+domain) || ix.has(user) || ix.has(user+"@") {
		return true
	}
	if ix.delim == "" {
		return false
	}
	bare, _, tagged := strings.Cut(user, ix.delim)
	return tagged && (ix.has(bare+"@"+domain) || ix.has(bare) || ix.has(bare+"@"))
}

func (ix *index) checkRegex(key string) bool {
	ix.regexes.once.Do(func() {
		for k := range ix.keys {
			if raw, ok := ix.raw[k]; ok {
				k = raw
			}
			re, err := compileRegex(k)
			if err != nil {
				ix.complain(k, err)
				continue
			}
			ix.regexes.list = append(ix.regexes.list, re)
		}
	})
	return slices.ContainsFunc(ix.regexes.list, func(re *regexp.Regexp) bool { return re.MatchString(key) })
}

// written are the keys as they were written, where that matters, if they have
// no more than max octets in all.
func (ix *index) written(max int) (keys []string, ok bool) {
	if ix.len() > max {
		return nil, false
	}
	keys = make([]string, 0, ix.len())
	for k := range ix.keys {
		if raw, ok := ix.raw[k]; ok {
			k = raw
		}
		if max -= len(k) + 1; max < 0 {
			return nil, false
		}
		keys = append(keys, k)
	}
	return keys, true
}

// complain tells the log of an entry that can never match.
func (ix *index) complain(entry string, err error) {
	if ix.warn != nil {
		ix.warn("entry \"" + entry + "\": " + err.Error())
	}
}

// fetch is the n-th key, in turn, in the order of the alphabet.
func (ix *index) fetch(n uint64) (string, error) {
	ix.turns.once.Do(func() { ix.turns.keys = slices.Sorted(ix.keys) })
	if len(ix.turns.keys) == 0 {
		return "", ErrNotFound
	}
	return ix.turns.keys[n%uint64(len(ix.turns.keys))], nil
}

// memory is a Backend on an index, which load makes again.
type memory struct {
	current atomic.Pointer[index]
	turn    atomic.Uint64
	load    func() (*index, error) // nil: cannot change
	mu      sync.Mutex             // one load at a time
}

// NewStatic makes the backend of a table written out in smtpd.conf as a
// mapping. Keys are folded.
func NewStatic(entries map[string]string) Backend {
	ix := newIndex(config.TableMapping, len(entries), options{delim: "+"})
	for k, v := range entries {
		ix.add(k, v)
	}
	return newMemory(ix)
}

// NewList makes the backend of a table written out in smtpd.conf as a list.
func NewList(entries ...string) Backend {
	ix := newIndex(config.TableList, len(entries), options{delim: "+"})
	for _, k := range entries {
		ix.add(k, "")
	}
	return newMemory(ix)
}

func newMemory(ix *index) *memory {
	m := &memory{}
	m.current.Store(ix)
	return m
}

// Lookup implements Backend.
func (m *memory) Lookup(_ context.Context, s Service, key string) (string, error) {
	return m.current.Load().lookup(key)
}

// Check implements Backend.
func (m *memory) Check(_ context.Context, s Service, key string) (bool, error) {
	return m.current.Load().check(s, key), nil
}

// Fetch implements Backend.
func (m *memory) Fetch(_ context.Context, s Service) (string, error) {
	return m.current.Load().fetch(m.turn.Add(1) - 1)
}

// Update implements Backend.
func (m *memory) Update(context.Context) error {
	if m.load == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ix, err := m.load()
	if err != nil {
		return err
	}
	m.current.Store(ix)
	return nil
}

// Services implements Backend. Auth is for tables that check passwords
// themselves.
func (m *memory) Services() Service { return allServices &^ Auth }

// Close implements Backend.
func (m *memory) Close() error { return nil }

// Keys implements listed.
func (m *memory) Keys(max int) ([]string, bool) { return m.current.Load().written(max) }

// Len is the number of entries.
func (m *memory) Len() int { return m.current.Load().len() }
