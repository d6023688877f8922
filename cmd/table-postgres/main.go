// Command table-postgres answers the tables of smtpd.conf from a PostgreSQL
// server.
package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"smtpd/table/query"
)

func main() {
	os.Exit(query.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, open))
}

// open is query.Open.
func open(s *query.Settings) (query.Engine, []query.Query, error) {
	conf, err := pgx.ParseConfig(s.Text("conninfo", ""))
	if err != nil {
		return nil, nil, s.Mistake("conninfo", err)
	}
	return query.NewSQL(s, stdlib.GetConnector(*conf), query.Dialect{Dollar: true, Answer: answer, Absent: absent})
}

// The classes of SQLSTATE that say nothing about a query: the server has no
// place, is stopped or being started, or is at odds with itself.
var outages = []string{"08", "53", "55", "57", "58", "XX", "28", "3D"}

// answer reports an error that is about a query.
func answer(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	for _, class := range outages {
		if strings.HasPrefix(e.Code, class) {
			return false
		}
	}
	return true
}

// absent: a key that does not have the type of its column, such as "local" for
// an inet, or is not of the server's encoding, is not there.
func absent(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (e.Code == "22P02" || e.Code == "22021" || e.Code == "22003" || e.Code == "22007" || e.Code == "22008")
}
