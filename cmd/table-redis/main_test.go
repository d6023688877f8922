package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"smtpd/table"
	"smtpd/table/query"
	"smtpd/table/tabletest"
)

func TestMain(m *testing.M) { tabletest.Main(m, main) }

// tell gives commands to a server.
func tell(t *testing.T, s *tabletest.Server, commands ...[]any) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, Protocol: 2, DisableIdentity: true})
	defer c.Close()
	for _, words := range commands {
		if err := c.Do(t.Context(), words...).Err(); err != nil {
			t.Fatalf("%q: %v", words, err)
		}
	}
}

// fill writes down aliases, one value for each.
func fill(t *testing.T, s *tabletest.Server, entries map[string]string) {
	t.Helper()
	tell(t, s, []any{"FLUSHALL"})
	for _, k := range tabletest.Sorted(entries) {
		tell(t, s, []any{"SET", "alias:" + k, entries[k]})
	}
}

func TestTable(t *testing.T) {
	s := tabletest.Redis(t)
	tabletest.TestBackend(t, func(t *testing.T, want map[string]string) table.Backend {
		fill(t, s, want)
		return tabletest.Program(t, tabletest.Config(t, "master unix:"+s.Socket+"\n"))
	})
}

func TestRestart(t *testing.T) {
	s := tabletest.Redis(t)
	fill(t, s, tabletest.Entries())
	tabletest.TestRestart(t, tabletest.Program(t, tabletest.Config(t, "master unix:"+s.Socket+"\n")), s)
}

func TestServices(t *testing.T) {
	s := tabletest.Redis(t)
	tell(t, s, []any{"SADD", "domains", "example.net"}, []any{"HSET", "user:foo", "uid", "1001", "gid", "1002", "home", "/mail/foo",
		"login", "foo", "passwd", "$6$hash"}, []any{"RPUSH", "aliases:foo@example.net", "foo", "bar@example.org"},
		[]any{"SET", "userinfo:plain", "1:2:/home/plain"}, []any{"HSET", "user:half", "login", "half"}, []any{"RPUSH", "sources", "127.0.0.1", "127.0.0.2"},
		[]any{"SET", "wrong", "x"}, []any{"SET", "100%:foo", "percent"}, []any{"RPUSH", "netaddr:127.0.0.9", "x"})
	conf := `slave unix:` + s.Socket + `
master unix:` + s.Socket + `.nowhere
query_domain SISMEMBER domains %s
query_userinfo HMGET user:%s uid gid home
query_credentials HMGET user:%s login passwd
query_alias LRANGE aliases:%s 0 -1
query_mailaddr SISMEMBER wrong %s
query_addrname GET 100%%:%s
fetch_source LRANGE sources 0 -1
`
	tab := table.New("t", "redis", tabletest.Program(t, tabletest.Config(t, conf)))
	defer tab.Close()
	tests := []struct {
		service   table.Service
		key, want string
	}{
		{table.Domain, "example.net", "yes"},
		{table.Domain, "example.org", "no"},
		{table.Userinfo, "foo", "1001:1002:/mail/foo"},
		{table.Userinfo, "nobody", "not found"},
		{table.Credentials, "foo", "foo:$6$hash"},
		{table.Credentials, "half", "error"},
		{table.Credentials, "foo x", "not found"},
		{table.Alias, "foo@example.net", "foo, bar@example.org"},
		{table.Alias, "x 0 -1", "not found"},
		{table.Mailaddr, "x", "error"},
		{table.Netaddr, "127.0.0.1", "no"}, // by the default query
		{table.Netaddr, "127.0.0.9", "error"},
		{table.Addrname, "foo", "percent"},
		{table.Mailaddrmap, "foo", "error"}, // has no default
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

func TestMistakes(t *testing.T) {
	tests := map[string]struct{ conf, want string }{
		"no placeholder": {"query_alias GET alias", "query_alias: no placeholder"},
		"other letter":   {"query_alias GET alias:%d", "there is only %s"},
		"lone percent":   {"query_alias GET 10%:%s", "there is only %s"},
		"quotes":         {`query_alias GET "alias:%s"`, "no quotes"},
		"command":        {"query_alias %s", "placeholder"},
		"port":           {"master_port 0", "master_port"},
		"database":       {"database x", "database"},
		"source":         {"fetch_source GET %s", "fetch_source"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, said := tabletest.Run(t, tt.conf+"\n"); status == 0 || !strings.Contains(said, tt.want) {
				t.Errorf("got status %d, %q, want %q", status, said, tt.want)
			}
		})
	}
}

// FuzzCommand: whatever the key, a command has the words of its query, and the
// key stands in them whole.
func FuzzCommand(f *testing.F) {
	f.Add("GET alias:%s", "a b")
	f.Add("HGET %%%s x%s", "%s\r\nFLUSHALL")
	f.Fuzz(func(t *testing.T, text, key string) {
		if len(strings.Fields(text)) == 0 {
			return
		}
		q := &query.Query{Name: "query_alias", Service: table.Alias, Text: text, Columns: 1}
		list, err := words(q)
		if err != nil {
			return
		}
		e := &engine{commands: map[string][]string{q.Name: list}}
		args := e.command(q, key)
		if len(args) != len(list) || !slices.ContainsFunc(args, func(a any) bool { return strings.Contains(fmt.Sprint(a), key) }) {
			t.Errorf("%q with %q: got %q", text, key, args)
		}
	})
}
