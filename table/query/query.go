// Package query is what the table programs for servers with a query language
// have in common: the configuration files of opensmtpd-extras with one query
// for each service, values made of the rows that come back, a list of sources
// taken in turn, waits after failures, and the frame of the program itself. An
// Engine knows one kind of server. The package owns the engine of the
// configuration in force; Main ends it. A key is never made part of the text of
// a query.
package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/table"
)

// Bounds.
const (
	MaxRows    = 10000            // ours: rows of one answer
	queryTime  = 10 * time.Second // ours: for one query, connecting included
	firstPause = 100 * time.Millisecond
	lastPause  = 2 * time.Second // ours: a server that is back is noticed after so long
	idleConns  = 4               // ours: connections kept; each table of smtpd.conf has a program of its own
	maxConns   = 8               // ours: connections at a time
)

// ErrRefused is wrapped by errors of an Engine that are the server's answer, or
// about it: asking again, or another connection, would not change it.
var ErrRefused = errors.New("refused")

var errAway = errors.New("the server is away")

// Query is what a configuration says about one service.
type Query struct {
	Name    string // its key: query_alias, fetch_source, ...
	Service table.Service
	Text    string // as it stands in the configuration
	Columns int    // what an answer must have
	Fetch   bool   // it has no key
}

// Engine asks one kind of server. Its methods are safe for concurrent use.
type Engine interface {
	// Rows runs a query. Each row has q.Columns values, or one that is already
	// in the form of a table's value. No rows: nothing is known of key.
	Rows(ctx context.Context, q *Query, key string) ([][]string, error)
	// Verify has the server look at every query. An error that wraps ErrRefused
	// names the one that is wrong; another means that the server is away.
	Verify(ctx context.Context) error
	// Close ends its connections.
	Close() error
}

// Kinds are the services of opensmtpd-extras with the columns of their rows;
// names and texts are empty.
func Kinds() []Query {
	return []Query{
		{Service: table.Alias, Columns: 1},
		{Service: table.Domain, Columns: 1},
		{Service: table.Credentials, Columns: 2},
		{Service: table.Netaddr, Columns: 1},
		{Service: table.Userinfo, Columns: 3},
		{Service: table.Source, Columns: 1},
		{Service: table.Mailaddr, Columns: 1},
		{Service: table.Addrname, Columns: 1},
		{Service: table.Mailaddrmap, Columns: 1},
	}
}

// fetchSource is the key of the query without a key.
const fetchSource = "fetch_source"

// Queries are the queries of a configuration, as query_SERVICE and fetch_source
// name them, with their texts unchecked. At least one must be there.
func Queries(s *Settings) ([]Query, error) {
	var list []Query
	for _, q := range Kinds() {
		q.Name = "query_" + q.Service.String()
		if q.Text = s.Text(q.Name, ""); q.Text != "" {
			list = append(list, q)
		}
	}
	if text := s.Text(fetchSource, ""); text != "" {
		list = append(list, Query{Name: fetchSource, Service: table.Source, Text: text, Columns: 1, Fetch: true})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no query", s.path)
	}
	return list, nil
}

// backend is an Engine and its queries as a table.
type backend struct {
	engine  Engine
	queries []Query
	offers  table.Service
	sources sources
	gate    gate
}

// newBackend makes the table of a configuration.
func newBackend(s *Settings, e Engine, queries []Query, now func() time.Time) (*backend, error) {
	b := &backend{engine: e, queries: queries, gate: gate{now: now}}
	var err1, err2 error
	expire, err1 := s.Number("fetch_source_expire", 60, 1<<30)
	b.sources.refresh, err2 = s.Number("fetch_source_refresh", 1000, 1<<30)
	b.sources.expire, b.sources.now = time.Duration(expire)*time.Second, now
	for _, q := range queries {
		b.offers |= q.Service
	}
	return b, errors.Join(err1, err2)
}

// find is the query for a service.
func (b *backend) find(s table.Service, fetch bool) (*Query, error) {
	i := slices.IndexFunc(b.queries, func(q Query) bool { return q.Service == s && q.Fetch == fetch })
	if i < 0 {
		return nil, table.ErrService
	}
	return &b.queries[i], nil
}

// rows asks the server, a second time when the first failed on the way: an
// idle connection may have outlived the server.
func (b *backend) rows(ctx context.Context, q *Query, key string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	if !b.gate.open() {
		return nil, errAway
	}
	rows, err := b.engine.Rows(ctx, q, key)
	if err != nil && !errors.Is(err, ErrRefused) && ctx.Err() == nil {
		rows, err = b.engine.Rows(ctx, q, key)
	}
	if err == nil || errors.Is(err, ErrRefused) {
		b.gate.passed()
	} else {
		b.gate.failed()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q.Name, err)
	}
	return rows, nil
}

// Lookup implements table.Backend.
func (b *backend) Lookup(ctx context.Context, s table.Service, key string) (string, error) {
	q, err := b.find(s, false)
	if err != nil {
		return "", err
	}
	rows, err := b.rows(ctx, q, key)
	if err != nil {
		return "", err
	}
	return value(s, rows)
}

// value makes the value of a service from rows.
func value(s table.Service, rows [][]string) (string, error) {
	if len(rows) == 0 {
		return "", table.ErrNotFound
	}
	if s != table.Alias && s != table.Mailaddrmap {
		return strings.Join(rows[0], ":"), nil
	}
	list := make([]string, 0, len(rows))
	for _, r := range rows {
		if item := strings.TrimSpace(r[0]); item != "" {
			list = append(list, item)
		}
	}
	if len(list) == 0 {
		return "", table.ErrNotFound
	}
	return strings.Join(list, ", "), nil
}

// Check implements table.Backend: a row, whatever it holds, is a yes.
func (b *backend) Check(ctx context.Context, s table.Service, key string) (bool, error) {
	q, err := b.find(s, false)
	if err != nil {
		return false, err
	}
	rows, err := b.rows(ctx, q, key)
	return len(rows) > 0, err
}

// Fetch implements table.Backend.
func (b *backend) Fetch(ctx context.Context, s table.Service) (string, error) {
	q, err := b.find(s, true)
	if err != nil {
		return "", err
	}
	return b.sources.next(func() ([][]string, error) { return b.rows(ctx, q, "") })
}

// Services implements table.Backend.
func (b *backend) Services() table.Service { return b.offers }

// Update implements table.Backend; Main reads the configuration again.
func (b *backend) Update(context.Context) error { return nil }

// Close implements table.Backend.
func (b *backend) Close() error { return b.engine.Close() }

// sources is the list of fetch_source, taken in turn and asked for again after
// a time or a number of turns.
type sources struct {
	refresh int
	expire  time.Duration
	now     func() time.Time

	mu     sync.Mutex
	list   []string
	asked  time.Time
	called int
	at     int
}

// next is the next source. When the list cannot be asked for, the old one is
// used further.
func (s *sources) next(ask func() ([][]string, error)) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.IsZero() || s.called >= s.refresh || s.now().Sub(s.asked) >= s.expire {
		rows, err := ask()
		if err != nil && s.list == nil {
			return "", err
		}
		if err == nil {
			s.list = s.list[:0]
			for _, r := range rows {
				s.list = append(s.list, r[0])
			}
			s.asked, s.called = s.now(), 0
		}
	}
	if len(s.list) == 0 {
		return "", table.ErrNotFound
	}
	s.called++
	s.at = (s.at + 1) % len(s.list)
	return s.list[s.at], nil
}

// gate holds questions back for a moment after a server could not be asked. The
// pause grows from firstPause to lastPause.
type gate struct {
	now func() time.Time

	mu    sync.Mutex
	until time.Time
	pause time.Duration
}

func (g *gate) open() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.now().Before(g.until)
}

func (g *gate) passed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until, g.pause = time.Time{}, 0
}

func (g *gate) failed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := g.now(); !now.Before(g.until) {
		g.pause = min(max(2*g.pause, firstPause), lastPause)
		g.until = now.Add(g.pause)
	}
}
