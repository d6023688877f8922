// Command table-sqlite answers the tables of smtpd.conf from an SQLite database.
// The database is opened for reading and not made when it is missing.
package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"net/url"
	"os"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"smtpd/table/query"
)

func main() {
	os.Exit(query.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, open))
}

// open is query.Open.
func open(s *query.Settings) (query.Engine, []query.Query, error) {
	path := s.Text("dbpath", "")
	if path == "" {
		return nil, nil, s.Mistake("dbpath", errors.New("is missing"))
	}
	return query.NewSQL(s, &connector{path: path}, query.Dialect{Answer: answer})
}

// connector opens the database for database/sql.
type connector struct {
	driver sqlite.Driver
	path   string
}

// parameters: who writes to the database is waited for. mode=rw makes no file,
// and falls back to reading when the file may not be written; a log beside the
// database can be read in either case.
const parameters = "?mode=rw&_pragma=query_only(1)&_pragma=busy_timeout(5000)"

// Connect implements driver.Connector.
func (c *connector) Connect(context.Context) (driver.Conn, error) {
	u := url.URL{Scheme: "file", Path: c.path}
	return c.driver.Open(u.String() + parameters)
}

// Driver implements driver.Connector.
func (c *connector) Driver() driver.Driver { return &c.driver }

// answer reports an error that is about a query rather than about the file.
func answer(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return false
	}
	switch e.Code() & 0xff { // without the extension
	case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_MISMATCH,
		sqlite3.SQLITE_RANGE, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISUSE:
		return true
	}
	return false
}
