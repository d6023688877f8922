package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/resolver/dnstest"
)

// deadNets makes 10.2.0.0/16 a net that is refused at once and 10.3.0.0/16 one
// that swallows what is sent there.
const deadNets = `ip link add v0 type veth peer name v1
ip link set v0 arp off up
ip link set v1 up
ip addr add 10.9.0.1/32 dev v0
ip route add 10.3.0.0/16 dev v0
ip route add unreachable 10.2.0.0/16`

// TestRootMany has mail for many domains, half of them dead: a quarter refuses,
// a quarter is silent. The living are done as if there were no others, memory is
// bounded, every mail for the dead is kept, and one that comes back is noticed
// within its penalty.
func TestRootMany(t *testing.T) {
	if !asRoot(t) {
		return
	}
	domains, mails, patience := 200, 5, 3*waitLimit
	if os.Getenv(tortureVar) != "" {
		domains, patience = 10000, 8*time.Minute
	}
	if out, err := exec.Command("sh", "-ec", deadNets).CombinedOutput(); err != nil {
		t.Logf("no silent net here: %s", out)
		return
	}
	zone, err := dnstest.Start(manyZone(domains))
	if err != nil {
		t.Fatal(err)
	}
	defer zone.Close()
	newZoo(t) // every other address is a server that takes all
	d := startRoot(t, fmt.Sprintf("listen on 127.0.0.1 port 2525 hostname mx.test\nresolver %s\n"+
		"smtp limit max-mails 100000\naction out relay\nmatch from any for any action out\n", zone.Addr()), "-P", "mta")
	alive := func(i int) bool { return i%4 > 1 }
	ok := regexp.MustCompile(`mta delivery .* result="Ok"`)
	temp := regexp.MustCompile(`mta delivery .* result="TempFail"`)

	n := fillMany(t, domains, mails, alive)
	begin := time.Now()
	smtpctl(t, d, "resume", "mta")
	if err := waitLines(d, ok, n, patience); err != nil {
		t.Fatal(err)
	}
	alone := time.Since(begin)
	smtpctl(t, d, "pause", "mta")

	dead := fillMany(t, domains, mails, func(i int) bool { return !alive(i) })
	n += fillMany(t, domains, mails, alive)
	begin = time.Now()
	smtpctl(t, d, "resume", "mta")
	if err := waitLines(d, ok, n, patience); err != nil {
		t.Fatal(err)
	}
	among := time.Since(begin)
	used := memory(t, d)
	tried := dead
	if os.Getenv(tortureVar) == "" {
		tried /= 2 // the silent ones take as long as a connection may
	}
	if err := waitLines(d, temp, tried, patience); err != nil {
		t.Error(err)
	}
	t.Logf("%d domains, half dead: %d mails to the living in %v alone and in %v among %d to the dead, which took %v; %d MB",
		domains, n/2, alone.Round(time.Millisecond), among.Round(time.Millisecond), dead, time.Since(begin).Round(time.Millisecond), used>>20)
	if n := strings.Count(d.log(), "MX lookup"); n > 0 {
		t.Errorf("%d times no answer from the name server", n)
	}
	if among > 2*alone+5*time.Second {
		t.Errorf("%v among the dead, %v alone", among, alone)
	}
	if used > 400<<20 {
		t.Errorf("%d MB", used>>20)
	}
	if got := strings.Count(smtpctl(t, d, "show", "queue"), "|mta|"); got != dead {
		t.Errorf("%d in the queue, want %d", got, dead)
	}

	// The first of the dead comes back.
	if out, err := exec.Command("ip", "route", "add", "local", "10.2.0.1/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := waitLines(d, regexp.MustCompile(`smtp-out: Enabling route \[\] <-> 10\.2\.0\.1 `), 1, patience); err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(smtpctl(t, d, "show", "queue"), "\n") {
		if id, _, _ := strings.Cut(line, "|"); strings.Contains(line, "@d0.test|") {
			smtpctl(t, d, "schedule", id)
		}
	}
	if err := waitLines(d, regexp.MustCompile(`mta delivery .* to=<u\d+@d0\.test> .* result="Ok"`), mails, patience); err != nil {
		t.Error(err)
	}
}

// manyZone has the addresses of the domains, two of four dead.
func manyZone(domains int) string {
	var text strings.Builder
	for i := range domains {
		host := fmt.Sprintf("%d.%d", i/250, i%250+1)
		back := fmt.Sprintf("%d.%d", i%250+1, i/250)
		switch i % 4 {
		case 0:
			fmt.Fprintf(&text, "d%d.test A 10.2.%s\n%s.2.10.in-addr.arpa PTR d%d.test\n", i, host, back, i)
		case 1:
			fmt.Fprintf(&text, "d%d.test A 10.3.%s\n%s.3.10.in-addr.arpa PTR d%d.test\n", i, host, back, i)
		default:
			fmt.Fprintf(&text, "d%d.test A 127.1.%s\n%s.1.127.in-addr.arpa PTR d%d.test\n", i, host, back, i)
		}
	}
	return text.String()
}

// fillMany hands over mails for each domain that is wanted.
func fillMany(t *testing.T, domains, mails int, want func(i int) bool) int {
	var sent, next atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			conn, err := net.Dial("tcp4", "127.0.0.1:2525")
			if err != nil {
				t.Error(err)
				return
			}
			c := gosmtp.NewClient(conn)
			defer c.Close()
			for k := next.Add(1) - 1; k < int64(domains*mails); k = next.Add(1) - 1 {
				if i := int(k) % domains; want(i) {
					to := fmt.Sprintf("u%d@d%d.test", int(k)/domains, i)
					if err := c.SendMail("", []string{to}, strings.NewReader("Subject: x\r\n\r\nhello\r\n")); err != nil {
						t.Error(err)
						return
					}
					sent.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return int(sent.Load())
}

// waitLines waits until so many lines of the log match. It looks at each line
// once, and holds nobody up.
func waitLines(d *daemon, re *regexp.Regexp, count int, limit time.Duration) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	seen, found := 0, 0
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		d.mu.Lock()
		lines := d.lines[seen:len(d.lines):len(d.lines)]
		d.mu.Unlock()
		seen += len(lines)
		for _, l := range lines {
			if re.MatchString(l) {
				found++
			}
		}
		if found >= count {
			return nil
		}
	}
	return fmt.Errorf("%d of %d lines matched %q in %v", found, count, re, limit)
}
