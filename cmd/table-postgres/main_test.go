package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"smtpd/table"
	"smtpd/table/tabletest"
)

func TestMain(m *testing.M) { tabletest.Main(m, main) }

func conninfo(s *tabletest.Server) string {
	return "host=" + filepath.Dir(s.Socket) + " user=smtpd dbname=postgres"
}

// tell runs statements.
func tell(t *testing.T, s *tabletest.Server, statements ...string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), conninfo(s))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	for _, st := range statements {
		if _, err := c.Exec(t.Context(), st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func fill(t *testing.T, s *tabletest.Server, entries map[string]string) {
	t.Helper()
	list := []string{"DROP TABLE IF EXISTS aliases", "CREATE TABLE aliases (name TEXT PRIMARY KEY, target TEXT)"}
	for _, k := range tabletest.Sorted(entries) {
		list = append(list, fmt.Sprintf("INSERT INTO aliases VALUES (%s, %s)", quote(k), quote(entries[k])))
	}
	tell(t, s, list...)
}

func aliasConf(s *tabletest.Server) string {
	return "conninfo " + conninfo(s) + "\nquery_alias SELECT target FROM aliases WHERE name=$1;\n"
}

// TestServer has one server for all that is asked of it.
func TestServer(t *testing.T) {
	s := tabletest.Postgres(t)
	t.Run("table", func(t *testing.T) {
		tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
			fill(t, s, want)
			return tabletest.Program(t, tabletest.Config(t, aliasConf(s)))
		})
	})
	t.Run("services", func(t *testing.T) { services(t, s) })
	t.Run("mistakes", func(t *testing.T) { mistakes(t, s) })
	t.Run("restart", func(t *testing.T) {
		tabletest.TestRestart(t, tabletest.Program(t, tabletest.Config(t, aliasConf(s))), s)
	})
	t.Run("changed", func(t *testing.T) { changed(t, s) })
}

func services(t *testing.T, s *tabletest.Server) {
	tell(t, s, "CREATE TABLE users (email TEXT, password TEXT, uid INT, gid INT, home TEXT, number INT)",
		"INSERT INTO users VALUES ('dora@pg.test', '$6$hash', 5002, 5003, '/home/dora', 7), ('null@pg.test', NULL, 1, 1, '/', 8)",
		"CREATE TABLE clients (net INET, name TEXT)", "INSERT INTO clients VALUES ('127.0.0.0/8', 'lo.test'), ('192.0.2.1', NULL)")
	conf := "conninfo " + conninfo(s) + `
query_domain SELECT 1 FROM users WHERE split_part(email, '@', 2)=$1
query_userinfo SELECT uid, gid, home FROM users WHERE email=$1
query_credentials SELECT email, password FROM users WHERE email=$1 OR 'login ' || email = $1
query_netaddr SELECT net FROM clients WHERE $1 <<= net
query_addrname SELECT name FROM clients WHERE $1 <<= net
query_mailaddr SELECT email FROM users WHERE number=$1
query_mailaddrmap SELECT email FROM users WHERE $1 <> '' ORDER BY email
fetch_source SELECT host('127.0.0.1'::inet)
`
	tab := table.New("t", "postgres", tabletest.Program(t, tabletest.Config(t, conf)))
	defer tab.Close()
	tests := []struct {
		service   table.Service
		key, want string
	}{
		{table.Domain, "pg.test", "yes"},
		{table.Domain, "x.test", "no"},
		{table.Userinfo, "dora@pg.test", "5002:5003:/home/dora"},
		{table.Credentials, "dora@pg.test", "dora@pg.test:$6$hash"},
		{table.Credentials, "login dora@pg.test", "dora@pg.test:$6$hash"},
		{table.Credentials, "null@pg.test", "error"},
		{table.Netaddr, "127.0.0.1", "yes"},
		{table.Netaddr, "2001:db8::1", "no"},
		{table.Netaddr, "local", "no"}, // is not an inet
		{table.Addrname, "127.0.0.1", "lo.test"},
		{table.Addrname, "192.0.2.1", "error"},
		{table.Mailaddr, "7", "yes"},
		{table.Mailaddr, "7 or 1=1", "no"},
		{table.Mailaddr, "99999999999", "no"},
		{table.Mailaddrmap, "x", "dora@pg.test, null@pg.test"},
		{table.Credentials, "\xff", "not found"}, // is not UTF-8
	}
	for _, tt := range tests {
		if got := tabletest.Answer(t, tab, tt.service, tt.key); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.service, tt.key, got, tt.want)
		}
	}
	if got, err := tab.Fetch(t.Context(), table.Source); got != "127.0.0.1" || err != nil {
		t.Errorf("source: got %q, %v", got, err)
	}
}

// mistakes are said at the start, and name the query.
func mistakes(t *testing.T, s *tabletest.Server) {
	head := "conninfo " + conninfo(s) + "\n"
	tests := map[string]struct{ conf, want string }{
		"SQL":         {head + "query_alias SELECT username, password, from WHERE x=$1", "query_alias: refused"},
		"columns":     {head + "query_credentials SELECT email FROM users WHERE email=$1", "1 column instead of 2"},
		"placeholder": {head + "query_alias SELECT email FROM users WHERE email=?", "no placeholder $1"},
		"conninfo":    {"conninfo host='\nquery_alias SELECT $1", "conninfo"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, said := tabletest.Run(t, tt.conf+"\n"); status == 0 || !strings.Contains(said, tt.want) {
				t.Errorf("got status %d, %q, want %q", status, said, tt.want)
			}
		})
	}
}

// changed: a table that is made anew with another type does not need a restart.
func changed(t *testing.T, s *tabletest.Server) {
	fill(t, s, map[string]string{"root": "alice"})
	tab := table.New("t", "postgres", tabletest.Program(t, tabletest.Config(t, aliasConf(s))))
	defer tab.Close()
	tabletest.Await(t, tab, table.Alias, "root", "alice")
	tell(t, s, "ALTER TABLE aliases ALTER target TYPE VARCHAR(50)")
	tabletest.Await(t, tab, table.Alias, "root", "alice")
	tell(t, s, "DROP TABLE aliases")
	if got := tabletest.Answer(t, tab, table.Alias, "root"); got != "error" {
		t.Errorf("without the table: got %q", got)
	}
	fill(t, s, map[string]string{"root": "bob"})
	tabletest.Await(t, tab, table.Alias, "root", "bob")
}
