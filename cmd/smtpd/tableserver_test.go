package main

import (
	"database/sql"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the drivers that fill servers
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/redis/go-redis/v9"

	"smtpd/table/tabletest"
)

// tableServer is a real server that a table program asks.
type tableServer struct {
	backend string // of smtpd.conf
	start   func(t *testing.T, entries map[string]string) *tabletest.Server
	conf    func(s *tabletest.Server) string
}

// tableServers are all servers that tables can be kept on.
func tableServers() []tableServer {
	return []tableServer{
		{"redis", redisServer, func(s *tabletest.Server) string { return "master unix:" + s.Socket + "\n" }},
		{"postgres", func(t *testing.T, entries map[string]string) *tabletest.Server {
			s := tabletest.Postgres(t)
			fillSQL(t, "pgx", postgresInfo(s), "TEXT", entries)
			return s
		}, func(s *tabletest.Server) string {
			return "conninfo " + postgresInfo(s) + "\nquery_alias SELECT target FROM aliases WHERE name=$1;\n"
		}},
		{"mysql", func(t *testing.T, entries map[string]string) *tabletest.Server {
			s := tabletest.MariaDB(t)
			fillSQL(t, "mysql", "root@unix("+s.Socket+")/test?charset=utf8mb4", "VARBINARY(700)", entries)
			return s
		}, func(s *tabletest.Server) string {
			return "host " + s.Socket + "\nusername root\ndatabase test\nquery_alias SELECT target FROM aliases WHERE name=?\n"
		}},
		{"ldap", ldapServer, func(s *tabletest.Server) string {
			return "url " + s.LDAPURL() + "\nusername cn=admin,dc=test\npassword secret\nbasedn dc=test\n" +
				"alias_filter (&(objectClass=person)(userPassword=%s))\nalias_attributes sn\n"
		}},
	}
}

func redisServer(t *testing.T, entries map[string]string) *tabletest.Server {
	s := tabletest.Redis(t)
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, Protocol: 2, DisableIdentity: true})
	defer c.Close()
	for k, v := range entries {
		if err := c.Set(t.Context(), "alias:"+k, v, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func postgresInfo(s *tabletest.Server) string {
	return "host=" + filepath.Dir(s.Socket) + " user=smtpd dbname=postgres"
}

// fillSQL makes the table aliases on an SQL server; key is the type of a key.
func fillSQL(t *testing.T, driver, source, key string, entries map[string]string) {
	t.Helper()
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	insert := "INSERT INTO aliases VALUES (?, ?)"
	if driver == "pgx" {
		insert = "INSERT INTO aliases VALUES ($1, $2)"
	}
	if _, err := db.Exec("CREATE TABLE aliases (name " + key + " PRIMARY KEY, target TEXT)"); err != nil {
		t.Fatal(err)
	}
	for k, v := range entries {
		if _, err := db.Exec(insert, k, v); err != nil {
			t.Fatalf("%q: %v", k, err)
		}
	}
}

// ldapServer keeps names in userPassword, the attribute of a person that is
// compared octet by octet.
func ldapServer(t *testing.T, entries map[string]string) *tabletest.Server {
	var b strings.Builder
	b.WriteString("dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: test\no: test\n\n")
	for i, k := range tabletest.Sorted(entries) {
		fmt.Fprintf(&b, "dn: cn=%d,dc=test\nobjectClass: person\ncn: %d\nuserPassword:: %s\nsn:: %s\n\n", i, i,
			base64.StdEncoding.EncodeToString([]byte(k)), base64.StdEncoding.EncodeToString([]byte(entries[k])))
	}
	return tabletest.LDAP(t, b.String())
}

// TestTableServerRestarts: the program of a table is started again when it dies.
// While the server behind it is down, mail waits and nothing is refused for
// good; it is taken within 10 s of the server's return.
func TestTableServerRestarts(t *testing.T) {
	for _, ts := range tableServers() {
		t.Run(ts.backend, func(t *testing.T) { restarts(t, ts) })
	}
}

func restarts(t *testing.T, ts tableServer) {
	s := ts.start(t, map[string]string{"team": daemonUser()})
	buildTable(t, "table-"+ts.backend)
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "table.conf"), ts.conf(s))
	d, addr := filterDaemon(t, dir, "table team "+ts.backend+":"+dir+"/table.conf\nlisten on 127.0.0.1 port $port1\n"+
		"action \"local\" maildir $box alias <team>\nmatch from any for any action \"local\"\n")
	for rcpt, want := range map[string]string{"team@x.test": "250", "other@x.test": "550"} {
		if got := rcptCode(t, addr, rcpt); got != want {
			t.Errorf("before: %s: got %s, want %s", rcpt, got, want)
		}
	}
	killTable(t, d, "table-"+ts.backend)
	if got := rcptCode(t, addr, "team@x.test"); got != "250" && got != "451" {
		t.Errorf("after the end of the program: got %s", got)
	}
	awaitRcpt(t, addr, "team@x.test")
	s.Stop(t)
	for _, rcpt := range []string{"team", "other", daemonUser()} {
		if got := rcptCode(t, addr, rcpt+"@x.test"); got != "451" {
			t.Errorf("%s, without the server: got %s", rcpt, got)
		}
	}
	s.Start(t)
	awaitRcpt(t, addr, "team@x.test")
	if got := rcptCode(t, addr, "other@x.test"); got != "550" {
		t.Errorf("afterwards: got %s for an unknown user", got)
	}
}

// awaitRcpt asks until a recipient is taken: within 10 s, and refused for the
// moment before.
func awaitRcpt(t *testing.T, addr, rcpt string) {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for got := ""; got != "250"; <-tick.C {
		if got = rcptCode(t, addr, rcpt); got != "250" && (got != "451" || time.Since(start) > 10*time.Second) {
			t.Fatalf("after %v: got %s", time.Since(start), got)
		}
	}
	t.Logf("works again after %v", time.Since(start))
}
