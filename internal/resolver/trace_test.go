package resolver

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each answer, and each server that gave none, is told in one line to who asks.
func TestTrace(t *testing.T) {
	s := start(t, zoneText)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("192.0.2.7 here.example.org\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var lines []string
	on := true
	r := New(Options{Servers: []string{s.Addr()}, Hosts: hosts, Trace: func() func(string) {
		if !on {
			return nil
		}
		return func(line string) { lines = append(lines, line) }
	}})
	defer r.Close()
	ctx := context.Background()
	for range 2 {
		r.Lookup(ctx, "example.org", TypeMX)
	}
	r.Lookup(ctx, "here.example.org", TypeA)
	r.Lookup(ctx, "nosuch.example.org", TypeA)
	r.Lookup(ctx, "broken.example.org", TypeA)
	r.Lookup(ctx, "a\nb", TypeA)
	on = false
	r.Lookup(ctx, "www.example.org", TypeA)
	want := []string{
		`dns MX example\.org: ok from 127\.0\.0\.1:\d+ in \S+: 10 mx1\.example\.org \(ttl 300\), 20 mx2\.example\.org \(ttl 60\)`,
		`dns MX example\.org: ok from the cache in \S+: 10 mx1\.example\.org \(ttl \d+\), 20 mx2\.example\.org \(ttl \d+\)`,
		`dns A here\.example\.org: ok from hosts in \S+: 192\.0\.2\.7 \(ttl \d+\)`,
		`dns A nosuch\.example\.org: no-such-name from 127\.0\.0\.1:\d+ in \S+`,
		`dns A broken\.example\.org: 127\.0\.0\.1:\d+: SERVFAIL`,
		`dns A broken\.example\.org: failure from no server in \S+`,
		`dns A a\?b: no-such-name from nobody: it cannot be a name in \S+`,
	}
	if len(lines) != len(want) {
		t.Fatalf("got\n%s", strings.Join(lines, "\n"))
	}
	for i := range want {
		if !regexp.MustCompile("^" + want[i] + "$").MatchString(lines[i]) {
			t.Errorf("got  %s\nwant %s", lines[i], want[i])
		}
	}
}
