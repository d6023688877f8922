package main

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/auth"
)

// parallelLogins is how many clients guess at a time.
const parallelLogins = 500

// TestRootAuthLoad has 500 clients log in at the same moment, half of them as
// users that there are not: mail on port 25 must not wait for their passwords to
// be hashed.
func TestRootAuthLoad(t *testing.T) {
	if !asRoot(t) {
		return
	}
	hash, err := auth.Hash(secretOf["sha512"], auth.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	a := newAuthority(t)
	a.issue(t, "mx.test", true, false)
	d := startRoot(t, a.pki("mx.test")+fmt.Sprintf(`table logins { alice = %q }
listen on 127.0.0.1 port 25 hostname mx.test
listen on 127.0.0.1 port 465 smtps pki mx.test auth <logins> hostname mx.test
smtp limit auth-delay 0
action "local" maildir
match from any for local action "local"
`, hash))
	idle, _ := timesOfMail(t, 30, nil, func() int { return 0 })
	conns := make([]*tls.Conn, parallelLogins)
	for i := range conns {
		conns[i] = loginSession(t, a)
	}
	var all sync.WaitGroup
	over := make(chan struct{})
	var mu sync.Mutex
	replies := map[string]int{}
	began := time.Now()
	for i, c := range conns {
		all.Go(func() {
			user := []string{"alice", "nobody-here"}[i%2]
			fmt.Fprintf(c, "AUTH PLAIN %s\r\n", base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+secretOf["sha512"])))
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				line = err.Error()
			}
			mu.Lock()
			replies[strings.TrimSpace(line)[:min(9, len(strings.TrimSpace(line)))]]++
			mu.Unlock()
		})
	}
	go func() { all.Wait(); close(over) }()
	busy, overtaken := timesOfMail(t, 1000, over, func() int {
		mu.Lock()
		defer mu.Unlock()
		n := 0
		for _, count := range replies {
			n += count
		}
		return n
	})
	all.Wait()
	took := time.Since(began)
	t.Logf("idle: %d mails, median %s, worst %s; during %d logins, which took %s: %d mails, median %s, worst %s, overtaken by %d; replies %v",
		len(idle), idle[len(idle)/2], idle[len(idle)-1], parallelLogins, took.Round(time.Millisecond),
		len(busy), busy[len(busy)/2], busy[len(busy)-1], overtaken, replies)
	if replies["235 2.7.0"] != parallelLogins/2 || replies["535 5.7.8"] != parallelLogins/2 {
		t.Errorf("replies %v", replies)
	}
	// Were they in one line with the logins, the first mail would have to wait for
	// most of them. How long that takes is the machine's affair.
	if overtaken > parallelLogins/2 {
		t.Errorf("%d of %d logins were answered during one mail", overtaken, parallelLogins)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

func loginSession(t *testing.T, a *authority) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp4", "127.0.0.1:465", &tls.Config{RootCAs: a.pool, ServerName: "mx.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(3 * time.Minute))
	if out, err := dialogue(c, "S: 220\nC: EHLO client.test\nR: 250"); err != nil {
		t.Fatal(out, err)
	}
	return c
}

// timesOfMail sends mails on port 25, one after the other, each on a connection of
// its own, until there are n or over is closed; the times are in order. overtaken is
// by how much the count of others grew during one of them at most.
func timesOfMail(t *testing.T, n int, over <-chan struct{}, others func() int) (times []time.Duration, overtaken int) {
	t.Helper()
	for len(times) < n && (over == nil || !closed(over) || len(times) == 0) {
		began, before := time.Now(), others()
		conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
		if err != nil {
			t.Fatal(err)
		}
		c := gosmtp.NewClient(conn)
		if err := c.SendMail("a@b.test", []string{"alice@localhost"}, strings.NewReader("Subject: x\r\n\r\nx\r\n")); err != nil {
			t.Fatal(err)
		}
		times, overtaken = append(times, time.Since(began)), max(overtaken, others()-before)
		c.Close()
	}
	slices.Sort(times)
	return times, overtaken
}
