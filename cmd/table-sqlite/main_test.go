package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpd/table"
	"smtpd/table/tabletest"
)

func TestMain(m *testing.M) { tabletest.Main(m, main) }

// database makes one with the statements in it.
func database(t testing.TB, statements ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mail ?#%.sqlite") // a name that needs quoting in a URL
	db := edit(t, path)
	for _, st := range statements {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
	return path
}

// edit opens a database for writing.
func edit(t testing.TB, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23", " ", "%20").Replace(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// aliases are the statements for a table of aliases.
func aliases(entries map[string]string) []string {
	list := []string{"CREATE TABLE aliases (name TEXT PRIMARY KEY, target TEXT)"}
	for _, k := range tabletest.Sorted(entries) {
		list = append(list, fmt.Sprintf("INSERT INTO aliases VALUES (%s, %s)", quote(k), quote(entries[k])))
	}
	return list
}

func TestTable(t *testing.T) {
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
		return tabletest.Program(t, tabletest.Config(t, "dbpath "+database(t, aliases(want)...)+
			"\nquery_alias SELECT target FROM aliases WHERE name=?;\n"))
	})
}

// howto is the schema of the 2014 how-to: the rows of one user may be switched
// off.
func howto() []string {
	return []string{
		`CREATE TABLE virtual_domains (id INTEGER PRIMARY KEY, name TEXT, active TEXT DEFAULT 'Y')`,
		`CREATE TABLE users (email TEXT, password TEXT, uid INTEGER, gid INTEGER, home TEXT, active TEXT)`,
		`CREATE TABLE aliases (source TEXT, destination TEXT, active TEXT)`,
		`CREATE TABLE addresses (a TEXT, name TEXT)`,
		`INSERT INTO virtual_domains (name) VALUES ('sq.test')`,
		`INSERT INTO virtual_domains (name, active) VALUES ('off.test', 'N')`,
		`INSERT INTO users VALUES ('dora@sq.test', '$6$hash', 5002, 5003, '/home/dora', 'Y')`,
		`INSERT INTO users VALUES ('emil@sq.test', '$6$hash', 5002, 5003, '/home/emil', 'N')`,
		`INSERT INTO users VALUES ('null@sq.test', NULL, 5002, 5003, '/home/emil', 'Y')`,
		`INSERT INTO aliases VALUES ('foo@sq.test', 'dora@sq.test', 'Y'), ('foo@sq.test', 'bob', 'Y'), ('foo@sq.test', NULL, 'Y')`,
		`INSERT INTO addresses VALUES ('127.0.0.1', 'one.test'), ('127.0.0.2', 'two.test')`,
	}
}

const howtoConf = `# queries as in the how-to: a semicolon at the end, strings in double quotes
query_domain: SELECT name FROM virtual_domains WHERE name=? AND active="Y";
query_credentials	SELECT email, password FROM users WHERE email=? AND active="Y";
query_userinfo SELECT uid, gid, home FROM users WHERE email=? AND active="Y"
query_alias SELECT destination FROM aliases WHERE source=? AND active="Y" ORDER BY rowid
query_netaddr SELECT a FROM addresses WHERE a=?
query_addrname SELECT name FROM addresses WHERE a=?
query_mailaddr SELECT email FROM users WHERE email=? OR substr(email, 1, 4)=?
query_mailaddrmap SELECT email FROM users WHERE email LIKE substr(?, 1, 1) || '%' ORDER BY rowid
fetch_source SELECT a FROM addresses ORDER BY a
fetch_source_refresh 4
`

// TestServices asks for every service by the queries of a configuration.
func TestServices(t *testing.T) {
	b := tabletest.Program(t, tabletest.Config(t, "dbpath "+database(t, howto()...)+"\n"+howtoConf))
	tab := table.New("t", "sqlite", b)
	defer tab.Close()
	tests := []struct {
		service   table.Service
		key, want string
	}{
		{table.Credentials, "dora@sq.test", "dora@sq.test:$6$hash"},
		{table.Credentials, "emil@sq.test", "not found"},
		{table.Credentials, "null@sq.test", "error"},
		{table.Userinfo, "Dora@sq.test", "5002:5003:/home/dora"},
		{table.Userinfo, "nobody@sq.test", "not found"},
		{table.Alias, "foo@sq.test", "dora@sq.test, bob"},
		{table.Addrname, "127.0.0.2", "two.test"},
		{table.Mailaddrmap, "n", "null@sq.test"},
		{table.Domain, "SQ.test", "yes"},
		{table.Domain, "off.test", "no"},
		{table.Netaddr, "127.0.0.1", "yes"},
		{table.Netaddr, "local", "no"},
		{table.Mailaddr, "dora@sq.test", "yes"},
		{table.Mailaddr, "dora", "yes"},
		{table.Mailaddr, "x@sq.test", "no"},
		{table.Regex, "x", "error"},
	}
	for _, tt := range tests {
		if got := tabletest.Answer(t, tab, tt.service, tt.key); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.service, tt.key, got, tt.want)
		}
	}
	for i, want := range []string{"127.0.0.2", "127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"} {
		if got, err := tab.Fetch(t.Context(), table.Source); got != want || err != nil {
			t.Errorf("source %d: got %q, %v, want %q", i, got, err, want)
		}
	}
}

// TestMistakes: what is wrong with a query is said at the start, and names it.
func TestMistakes(t *testing.T) {
	path := database(t, howto()...)
	tests := map[string]struct{ conf, want string }{
		"SQL":      {"query_alias select username, password, from users where name=?", "query_alias"},
		"columns":  {"query_credentials SELECT email FROM users WHERE email=?", "query_credentials: refused: 1 column instead of 2"},
		"no table": {"query_alias SELECT x FROM missing WHERE x=?", "no such table"},
		"writes":   {"query_alias DELETE FROM users WHERE email=?", "query_alias"},
		"in quotes": {"query_alias SELECT email FROM users WHERE email='?'",
			"'?' in quotes is not a placeholder"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, said := tabletest.Run(t, "dbpath "+path+"\n"+tt.conf+"\n")
			if status == 0 || !strings.Contains(said, tt.want) {
				t.Errorf("got status %d, %q, want %q", status, said, tt.want)
			}
		})
	}
	var n int
	if err := edit(t, path).QueryRow("SELECT count(*) FROM users").Scan(&n); n != 3 || err != nil {
		t.Errorf("got %d users, %v", n, err)
	}
}

// TestFileComes: without its database a table cannot answer; once that is
// there, it can. The program makes no database by itself.
func TestFileComes(t *testing.T) {
	path := database(t, aliases(map[string]string{"root": "alice"})...)
	away := path + ".away"
	if err := os.Rename(path, away); err != nil {
		t.Fatal(err)
	}
	b := tabletest.Program(t, tabletest.Config(t, "dbpath "+path+"\nquery_alias SELECT target FROM aliases WHERE name=?\n"))
	tab := table.New("t", "sqlite", b)
	defer tab.Close()
	if got := tabletest.Answer(t, tab, table.Alias, "root"); got != "error" {
		t.Errorf("got %q without a database", got)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a database now")
	}
	if err := os.Rename(away, path); err != nil {
		t.Fatal(err)
	}
	tabletest.Await(t, tab, table.Alias, "root", "alice")
}

// TestUpdate: update reads the configuration again; with a mistake in it the
// old one stays.
func TestUpdate(t *testing.T) {
	one := database(t, aliases(map[string]string{"root": "alice"})...)
	two := database(t, aliases(map[string]string{"root": "bob"})...)
	conf := tabletest.Config(t, "")
	write := func(path, query string) {
		if err := os.WriteFile(conf, []byte("dbpath "+path+"\nquery_alias "+query+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const good = "SELECT target FROM aliases WHERE name=?"
	write(one, good)
	tab := table.New("t", "sqlite", tabletest.Program(t, conf))
	defer tab.Close()
	steps := []struct {
		path, query, want string
		fails             bool
	}{{one, good, "alice", false}, {two, good, "bob", false}, {one, "nonsense ?", "bob", true}, {one, good, "alice", false}}
	for i, s := range steps {
		write(s.path, s.query)
		if err := tab.Update(context.Background()); (err != nil) != s.fails {
			t.Errorf("step %d: update: %v", i, err)
		}
		if got := tabletest.Answer(t, tab, table.Alias, "root"); got != s.want {
			t.Errorf("step %d: got %q, want %q", i, got, s.want)
		}
	}
}

// TestWhileWritten: who writes to the database does not keep us from reading.
func TestWhileWritten(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			path := database(t, append(aliases(map[string]string{"root": "alice"}), "PRAGMA journal_mode="+mode)...)
			b := tabletest.Program(t, tabletest.Config(t, "dbpath "+path+"\nquery_alias SELECT target FROM aliases WHERE name=?\n"))
			tab := table.New("t", "sqlite", b)
			defer tab.Close()
			tx, err := edit(t, path).Begin()
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE aliases SET target='bob'"); err != nil {
				t.Fatal(err)
			}
			if got := tabletest.Answer(t, tab, table.Alias, "root"); got != "alice" {
				t.Errorf("before the commit: got %q", got)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			tabletest.Await(t, tab, table.Alias, "root", "bob")
		})
	}
}
