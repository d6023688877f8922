package query

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// idleTime is after how long an unused connection is closed. Ours.
const idleTime = 5 * time.Minute

// Dialect is how an SQL server differs from others.
type Dialect struct {
	Dollar    bool // the placeholder is $1, not ?
	Backslash bool // a backslash in a string escapes
	// Answer reports an error that the server itself returned: it is there.
	Answer func(error) bool
	// Absent reports an answer that says that the key cannot be in the table,
	// such as one that is not of the type it is compared with. It may be nil.
	Absent func(error) bool
}

// sqlEngine asks an SQL server through database/sql, which keeps the
// connections. Statements are prepared once for each, so that keys travel apart
// from them.
type sqlEngine struct {
	db      *sql.DB
	dialect Dialect
	queries []Query
	keys    map[string]int // by name: how often a query wants its key

	mu       sync.Mutex
	prepared map[string]*sql.Stmt // by name
}

// NewSQL makes the engine of an SQL server: the queries of s, their
// placeholders checked, over connections of c.
func NewSQL(s *Settings, c driver.Connector, d Dialect) (Engine, []Query, error) {
	queries, err := Queries(s)
	if err != nil {
		return nil, nil, err
	}
	e := &sqlEngine{dialect: d, keys: map[string]int{}, prepared: map[string]*sql.Stmt{}}
	var errs []error
	for i := range queries {
		q := &queries[i]
		var n int
		q.Text, n, err = d.statement(q.Text)
		switch {
		case err != nil:
		case q.Fetch && n > 0:
			err = errors.New("a placeholder, where there is no key")
		case !q.Fetch && n == 0:
			err = fmt.Errorf("no placeholder %s for the key", d.placeholder())
		}
		if err != nil {
			errs = append(errs, s.Mistake(q.Name, err))
			err = nil
		}
		e.keys[q.Name] = n
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	e.queries = queries
	e.db = sql.OpenDB(c)
	e.db.SetMaxOpenConns(maxConns)
	e.db.SetMaxIdleConns(idleConns)
	e.db.SetConnMaxIdleTime(idleTime)
	return e, queries, nil
}

// Verify implements Engine: it runs each query with an empty key.
func (e *sqlEngine) Verify(ctx context.Context) error {
	for i := range e.queries {
		q := &e.queries[i]
		if _, err := e.Rows(ctx, q, ""); err != nil {
			return fmt.Errorf("%s: %w", q.Name, err)
		}
	}
	return nil
}

// statement is the prepared form of a query; old: it has been used before. The
// server may have to be there.
func (e *sqlEngine) statement(ctx context.Context, q *Query) (st *sql.Stmt, old bool, err error) {
	e.mu.Lock()
	st = e.prepared[q.Name]
	e.mu.Unlock()
	if st != nil {
		return st, true, nil
	}
	st, err = e.db.PrepareContext(ctx, q.Text)
	if err != nil {
		return nil, false, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if other := e.prepared[q.Name]; other != nil { // somebody was quicker
		st.Close()
		return other, true, nil
	}
	e.prepared[q.Name] = st
	return st, false, nil
}

// forget drops a prepared statement.
func (e *sqlEngine) forget(q *Query, st *sql.Stmt) {
	e.mu.Lock()
	if e.prepared[q.Name] == st {
		delete(e.prepared, q.Name)
	}
	e.mu.Unlock()
	st.Close()
}

// Rows implements Engine. A statement that was prepared long ago may not fit
// the tables any more: when it is refused, it is prepared anew.
func (e *sqlEngine) Rows(ctx context.Context, q *Query, key string) ([][]string, error) {
	st, old, err := e.statement(ctx, q)
	var rows [][]string
	if err == nil {
		rows, err = e.rows(ctx, q, st, key)
	}
	if err != nil && old && e.dialect.Answer(err) {
		e.forget(q, st)
		if st, _, err = e.statement(ctx, q); err == nil {
			rows, err = e.rows(ctx, q, st, key)
		}
	}
	switch {
	case err == nil:
		return rows, nil
	case e.dialect.Absent != nil && e.dialect.Absent(err):
		return nil, nil
	case e.dialect.Answer(err):
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return nil, err
}

func (e *sqlEngine) rows(ctx context.Context, q *Query, st *sql.Stmt, key string) (list [][]string, err error) {
	args := make([]any, e.keys[q.Name])
	for i := range args {
		args[i] = key
	}
	rows, err := st.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	if len(names) != q.Columns {
		return nil, fmt.Errorf("%w: %s instead of %d", ErrRefused, columns(len(names)), q.Columns)
	}
	for rows.Next() {
		if len(list) == MaxRows {
			return nil, fmt.Errorf("%w: more than %d rows", ErrRefused, MaxRows)
		}
		r, err := scan(rows, q.Columns)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

func columns(n int) string {
	if n == 1 {
		return "1 column"
	}
	return fmt.Sprintf("%d columns", n)
}

// scan reads one row; NULL is an empty value.
func scan(rows *sql.Rows, columns int) ([]string, error) {
	cells := make([]sql.NullString, columns)
	into := make([]any, columns)
	for i := range cells {
		into[i] = &cells[i]
	}
	if err := rows.Scan(into...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	r := make([]string, columns)
	for i, c := range cells {
		r[i] = c.String
	}
	return r, nil
}

// Close implements Engine.
func (e *sqlEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, st := range e.prepared {
		st.Close()
	}
	return e.db.Close()
}

func (d *Dialect) placeholder() string {
	if d.Dollar {
		return "$1"
	}
	return "?"
}

// statement checks a query and takes off the semicolon at its end. It counts
// how often the key is to be bound: each ? in turn, or $1 once.
func (d *Dialect) statement(text string) (string, int, error) {
	n := 0
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\'' || c == '"' || c == '`':
			end := d.quoted(text, i)
			if end < 0 {
				return "", 0, fmt.Errorf("a %c without its end", c)
			}
			if in := text[i+1 : end-1]; in == d.placeholder() {
				return "", 0, fmt.Errorf("%s in quotes is not a placeholder", text[i:end])
			}
			i = end
			continue
		case strings.HasPrefix(text[i:], "--"):
			return "", 0, errors.New("a comment")
		case strings.HasPrefix(text[i:], "/*"):
			end := strings.Index(text[i:], "*/")
			if end < 0 {
				return "", 0, errors.New("a comment without its end")
			}
			i += end
		case c == ';':
			if strings.Trim(text[i:], "; \t") != "" {
				return "", 0, errors.New("more than one statement")
			}
			return text[:i], n, nil
		case !d.Dollar && c == '?':
			if i+1 < len(text) && digit(text[i+1]) {
				return "", 0, errors.New("a placeholder with a number")
			}
			n++
		case d.Dollar && c == '$' && i+1 < len(text) && digit(text[i+1]):
			digits := len(text[i+1:]) - len(strings.TrimLeft(text[i+1:], "0123456789"))
			if text[i+1:i+1+digits] != "1" {
				return "", 0, fmt.Errorf("%s: there is only $1", text[i:i+1+digits])
			}
			n = 1
		}
		i++
	}
	return text, n, nil
}

// quoted is the place behind the quoted text that begins at i; -1: it has no
// end.
func (d *Dialect) quoted(text string, i int) int {
	q := text[i]
	for i++; i < len(text); i++ {
		switch {
		case d.Backslash && text[i] == '\\' && q != '`':
			i++
		case text[i] == q && i+1 < len(text) && text[i+1] == q:
			i++
		case text[i] == q:
			return i + 1
		}
	}
	return -1
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
