package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// spooled makes a spool with two messages, one with a body in a file.
func spooled(t *testing.T, key []byte) (spool string, large string) {
	t.Helper()
	spool = t.TempDir()
	dir := filepath.Join(spool, "queue")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := queue.Open(dir, queue.Options{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	first, err := s.Reserve(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	env := mail.Envelope{Kind: mail.KindMTA, Dispatcher: "out", Client: "local", Created: time.Unix(1795216994, 0), TTL: time.Hour,
		Rcpt: mail.Address{User: "x", Domain: "y.test"}, Dest: mail.Address{User: "x", Domain: "y.test"}, LastError: "later"}
	small := &queue.Message{ID: first, Arrival: env.Created, Body: []byte("Subject: small\n\n"), Size: 16, Envelopes: []mail.Envelope{env, env}}
	if err := s.Accept(ctx, small); err != nil {
		t.Fatal(err)
	}
	large = strings.Repeat("0123456789abcde\n", 2*queue.MaxInline/16)
	f, err := s.NewBody(first + 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(large); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	big := &queue.Message{ID: first + 1, Arrival: env.Created, InFile: true, Size: int64(len(large)), Envelopes: []mail.Envelope{env}}
	if err := s.Accept(ctx, big); err != nil {
		t.Fatal(err)
	}
	return spool, large
}

func TestOffline(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "encrypted": []byte("0123456789abcdef0123456789abcdef")} {
		t.Run(name, func(t *testing.T) { testOffline(t, key) })
	}
}

func testOffline(t *testing.T, key []byte) {
	spool, large := spooled(t, key)
	stdin, asked := "", ""
	if key != nil {
		stdin, asked = string(key)+"\n", "key> "
	}
	do := func(args ...string) outcome {
		return runWith(t, "smtpctl", filepath.Join(t.TempDir(), "none"), stdin, func(p *program) {
			p.who = standingNow() // the spool belongs to who runs the test
			getenv := p.getenv
			p.getenv = func(name string) string {
				if name == ctl.SpoolVar {
					return spool
				}
				return getenv(name)
			}
		}, args...)
	}
	list := do("show", "queue")
	lines := strings.Split(strings.TrimSuffix(list.out, "\n"), "\n")
	if list.status != 0 || list.err != asked || len(lines) != 3 {
		t.Fatalf("got %+v; want three lines", list)
	}
	id := lines[0][:16]
	want := id + "|local|mta||@|x@y.test|x@y.test|1795216994|1795220594|0|0|offline||later"
	if lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	check(t, do("show", "queue", lines[2][:8]), outcome{lines[2] + "\n", asked, 0})
	check(t, do("show", "queue", "deadbeef"), outcome{"", asked, 0})
	check(t, do("show", "queue", "where", "tries>3"), outcome{"", asked, 0})
	check(t, do("show", "message", lines[1][:16]), outcome{"Subject: small\n\n", asked, 0})
	check(t, do("show", "message", lines[2][:8]), outcome{large, asked, 0})
	missing := outcome{"", asked + "smtpctl: fopen: No such file or directory\n", 1}
	check(t, do("show", "message", "deadbeef"), missing)
	check(t, do("show", "envelope", "deadbeefdeadbeef"), missing)
	got := do("show", "envelope", id)
	if got.status != 0 || !strings.HasPrefix(got.out, "version: 3\ndispatcher: out\ntype: mta\n") {
		t.Errorf("got %+v", got)
	}
	check(t, do("show", "stats"), outcome{"", "smtpctl: smtpd doesn't seem to be running\n", 1})
	check(t, do("show", "envelope", "zz"), outcome{"", "possibilities are:\nshow envelope <evpid>\n", 255})
	if key != nil {
		stdin = "short\n"
		check(t, do("show", "queue"), outcome{"", "key> smtpctl: the key has 5 characters, not 32\n", 1})
		stdin = strings.Repeat("x", 32) + "\n"
		if got := do("show", "queue"); got.status != 1 || got.out != "" || !strings.Contains(got.err, "another key") {
			t.Errorf("wrong key: got %+v", got)
		}
	}
}
