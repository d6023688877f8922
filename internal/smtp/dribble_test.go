package smtp

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/config"
)

// TestDribble: a crowd that sends an octet in 10 s is gone when the default
// time is up, and not before, in every state.
func TestDribble(t *testing.T) {
	const crowd = 5000
	begin := "EHLO c\r\nMAIL FROM:<a@b.org>\r\nRCPT TO:<alice@md.test>\r\n"
	def := config.Defaults().SMTP
	tests := map[string]struct {
		say   string
		limit time.Duration
	}{
		"before EHLO":      {"", def.CommandTimeout},
		"in a transaction": {begin, def.CommandTimeout},
		// At an octet in 10 s the slowest rate is missed as soon as it counts.
		"in DATA": {begin + "DATA\r\n", def.DataTimeout},
		"in BDAT": {begin + "BDAT 100000 LAST\r\n", def.DataTimeout},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newSetup()
				u.c.SMTP = def
				var wg sync.WaitGroup // time stands still when this function ends
				defer wg.Wait()
				start := time.Now()
				ended := make(chan time.Duration, crowd)
				for range crowd / len(tests) {
					ours, theirs := buffered()
					go func() {
						New(u.c, theirs, u.client, u.l.Addr).Run(t.Context())
						ended <- time.Since(start)
					}()
					wg.Go(func() { dribble(ours, tt.say, 2*tt.limit) })
				}
				for range crowd / len(tests) {
					if took := <-ended; took < tt.limit || took > tt.limit+11*time.Second {
						t.Fatalf("a session ended after %s; the limit is %s", took, tt.limit)
					}
				}
			})
		})
	}
}

// dribble sends a start, and then an octet in 10 s for some time.
func dribble(c net.Conn, start string, limit time.Duration) {
	defer c.Close()
	if _, err := io.Copy(c, strings.NewReader(start)); err != nil {
		return
	}
	go io.Copy(io.Discard, c) // ends with c
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < limit; <-tick.C {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
	}
}
