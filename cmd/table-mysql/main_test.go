package main

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"smtpd/table"
	"smtpd/table/tabletest"
)

func TestMain(m *testing.M) { tabletest.Main(m, main) }

// tell runs statements.
func tell(t *testing.T, s *tabletest.Server, statements ...string) {
	t.Helper()
	db, err := sql.Open("mysql", "root@unix("+s.Socket+")/test?charset=utf8mb4")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, st := range statements {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
}

func quote(s string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`).Replace(s) + "'"
}

func fill(t *testing.T, s *tabletest.Server, entries map[string]string) {
	t.Helper()
	list := []string{"DROP TABLE IF EXISTS aliases",
		"CREATE TABLE aliases (name VARBINARY(700) PRIMARY KEY, target TEXT)"} // in binary: "ü" is not "u", and blanks count
	for _, k := range tabletest.Sorted(entries) {
		list = append(list, fmt.Sprintf("INSERT INTO aliases VALUES (%s, %s)", quote(k), quote(entries[k])))
	}
	tell(t, s, list...)
}

func head(s *tabletest.Server) string {
	return "host " + s.Socket + "\nusername root\ndatabase test\n"
}

func aliasConf(s *tabletest.Server) string {
	return head(s) + "query_alias SELECT target FROM aliases WHERE name=?;\n"
}

// TestServer has one server for all that is asked of it.
func TestServer(t *testing.T) {
	s := tabletest.MariaDB(t)
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
}

func services(t *testing.T, s *tabletest.Server) {
	tell(t, s, "CREATE TABLE users (email TEXT, password TEXT, uid INT, gid INT, home TEXT)",
		"INSERT INTO users VALUES ('dora@my.test', '$6$hash', 5002, 5003, '/home/dora')")
	conf := head(s) + `
query_domain SELECT 1 FROM users WHERE substring_index(email, "@", -1)=?
query_userinfo SELECT uid, gid, home FROM users WHERE email=?
query_credentials SELECT email, password FROM users WHERE email=? OR concat('x\'?', email)=?
query_mailaddrmap SELECT concat('@', substring_index(email, '@', -1)) FROM users WHERE email=?
fetch_source SELECT '127.0.0.1' UNION SELECT '127.0.0.2'
`
	tab := table.New("t", "mysql", tabletest.Program(t, tabletest.Config(t, conf)))
	defer tab.Close()
	tests := []struct {
		service   table.Service
		key, want string
	}{
		{table.Domain, "my.test", "yes"},
		{table.Domain, "x.test", "no"},
		{table.Userinfo, "dora@my.test", "5002:5003:/home/dora"},
		{table.Userinfo, "' OR 1=1 -- ", "not found"},
		{table.Credentials, "x'?dora@my.test", "dora@my.test:$6$hash"},
		{table.Mailaddrmap, "dora@my.test", "@my.test"},
		{table.Alias, "x", "error"},
	}
	for _, tt := range tests {
		if got := tabletest.Answer(t, tab, tt.service, tt.key); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.service, tt.key, got, tt.want)
		}
	}
	if got, err := tab.Fetch(t.Context(), table.Source); got != "127.0.0.2" || err != nil {
		t.Errorf("source: got %q, %v", got, err)
	}
}

// mistakes are said at the start, and name the query.
func mistakes(t *testing.T, s *tabletest.Server) {
	tests := map[string]struct{ conf, want string }{
		"SQL":         {"query_alias SELECT username, password, from WHERE x=?", "query_alias: refused"},
		"columns":     {"query_credentials SELECT email FROM users WHERE email=?", "1 column instead of 2"},
		"placeholder": {"query_alias SELECT email FROM users WHERE email=$1", "no placeholder ?"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, said := tabletest.Run(t, head(s)+tt.conf+"\n"); status == 0 || !strings.Contains(said, tt.want) {
				t.Errorf("got status %d, %q, want %q", status, said, tt.want)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	for host, want := range map[string]string{"/x/s": "unix /x/s", "db.test": "tcp db.test:3306", "db.test:33": "tcp db.test:33",
		"::1": "tcp [::1]:3306", "[::1]:33": "tcp [::1]:33", "127.0.0.1": "tcp 127.0.0.1:3306"} {
		if network, addr := address(host); network+" "+addr != want {
			t.Errorf("%s: got %s %s, want %s", host, network, addr, want)
		}
	}
}
