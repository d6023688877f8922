package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"smtpd/internal/resolver/dnstest"
)

// dnsTable is what is decided for each domain of dnsZone: a regular expression
// for the log line of the delivery.
var dnsTable = []struct{ domain, want string }{
	{"order.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"same.test", `relay="127.1.0.[12] \([ab].mx.test\)" .* result="Ok"`},
	{"second.test", `relay="127.1.0.2 \(b.mx.test\)" .* result="Ok"`},
	{"plain.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"[127.1.0.2]", `relay="127.1.0.2 \(b.mx.test\)" .* result="Ok"`},
	{"cname.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"chain.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"mxcname.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"circle.test", `result="TempFail" stat="(Temporary failure in MX lookup|No MX found for domain)"`},
	{"many.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"toomany.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"null.test", `result="PermFail" stat="Domain does not accept mail"`},
	{"localhost.test", `result="PermFail" stat="Domain does not accept mail"`},
	{"half.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"nothing.test", `result="TempFail" stat="No MX found for domain"`},
	{"noaddr.test", `result="TempFail" stat="No MX found for domain"`},
	{"gone.test", `result="PermFail" stat="Domain does not exist"`},
	{"fail.test", `result="TempFail" stat="Temporary failure in MX lookup"`},
	{"mxfail.test", `result="TempFail" stat="Temporary failure in MX lookup"`},
	{"silent.test", `result="TempFail" stat="Temporary failure in MX lookup"`},
	{"onefails.test", `relay="127.1.0.2 \(b.mx.test\)" .* result="Ok"`},
	{"me.test", `result="PermFail" stat="mail for me.test loops back to myself"`},
	{"mesecond.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
	{"worse.test", `result="TempFail" stat="Network error on destination MXs"`},
	{"tcp.test", `relay="127.1.0.1 \(a.mx.test\)" .* result="Ok"`},
}

const dnsZone = `a.mx.test A 127.1.0.1
b.mx.test A 127.1.0.2
dead.mx.test A 127.2.0.1
me.mx.test A 127.0.0.1
1.0.1.127.in-addr.arpa PTR a.mx.test
2.0.1.127.in-addr.arpa PTR b.mx.test
order.test MX 20 b.mx.test
order.test MX 10 a.mx.test
same.test MX 10 b.mx.test
same.test MX 10 a.mx.test
second.test MX 10 dead.mx.test
second.test MX 20 b.mx.test
plain.test A 127.1.0.1
cname.test CNAME order.test
chain.test CNAME c1.test
c1.test CNAME c2.test
c2.test CNAME c3.test
c3.test CNAME order.test
mxcname.test MX 10 alias.test
alias.test CNAME a.mx.test
circle.test CNAME circle2.test
circle2.test CNAME circle.test
null.test MX 0 .
localhost.test MX 0 localhost
half.test MX 0 .
half.test MX 10 a.mx.test
nothing.test TXT "x"
noaddr.test MX 10 mx.noaddr.test
mx.noaddr.test TXT "x"
!servfail fail.test
mxfail.test MX 10 mx.mxfail.test
!servfail mx.mxfail.test
onefails.test MX 10 mx.mxfail.test
onefails.test MX 20 b.mx.test
!drop silent.test
me.test MX 10 me.mx.test
mesecond.test MX 10 a.mx.test
mesecond.test MX 20 me.mx.test
mesecond.test MX 30 b.mx.test
worse.test MX 10 dead.mx.test
worse.test MX 20 me.mx.test
worse.test MX 30 b.mx.test
tcp.test MX 10 a.mx.test
!truncate tcp.test
`

// TestRootNames sends a mail to each domain of dnsTable, with the zone asked
// directly, through unbound and through dnsmasq.
func TestRootNames(t *testing.T) {
	if !asRoot(t) {
		return
	}
	text := dnsZone
	// What we leave out of an answer is not the best. More than about 3,000 have
	// no room in an answer: the server leaves them out.
	text += "toomany.test MX 5 a.mx.test\n"
	for i := range 10000 {
		if i < 2000 {
			text += fmt.Sprintf("many.test MX %d m%d.mx.test\n", 10000-i, i)
		}
		text += fmt.Sprintf("toomany.test MX %d m%d.mx.test\n", i+10, i)
	}
	text += "many.test MX 5 a.mx.test\n"
	zone, err := dnstest.Start(text)
	if err != nil {
		t.Fatal(err)
	}
	defer zone.Close()
	for _, addr := range []string{"127.1.0.1:25", "127.1.0.2:25"} {
		s, err := startSink(addr, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
	}
	for name, start := range map[string]func(*testing.T, string) string{
		"direct":  func(_ *testing.T, zone string) string { return zone },
		"unbound": startUnbound,
		"dnsmasq": startDnsmasq,
	} {
		t.Run(name, func(t *testing.T) {
			addr := start(t, zone.Addr())
			if addr == "" {
				return
			}
			d := startRoot(t, fmt.Sprintf("listen on 127.0.0.1 port 25 hostname mx.test\nresolver %s\n"+
				"action out relay\nmatch from any for any action out\n", addr))
			begin := time.Now()
			for _, tt := range dnsTable {
				submitMX(t, newLetter("u@"+tt.domain, 100), "u@"+tt.domain)
			}
			for _, tt := range dnsTable {
				re := `to=<u@` + regexp.QuoteMeta(tt.domain) + `> .*` + tt.want
				if tt.domain == "toomany.test" && name != "direct" {
					re = `to=<u@toomany\.test> .* result="(Ok|TempFail)"` // theirs to decide
				}
				if err := d.waitLog(regexp.MustCompile(re), 1); err != nil {
					t.Errorf("want %s: %s", tt.want, grepLog(d, tt.domain))
				}
			}
			t.Logf("%d decisions in %v", len(dnsTable), time.Since(begin))
			d.kill()
		})
	}
}

// startUnbound asks the zone by way of a recursive server that others wrote.
func startUnbound(t *testing.T, zone string) string {
	const addr = "127.0.0.1:5301"
	host, port, _ := net.SplitHostPort(zone)
	dir := t.TempDir()
	conf := fmt.Sprintf("server:\n interface: 127.0.0.1@5301\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n"+
		" directory: %q\n pidfile: \"\"\n module-config: iterator\n do-not-query-localhost: no\n val-permissive-mode: yes\n"+
		" local-zone: \"test.\" nodefault\n local-zone: \"127.in-addr.arpa.\" nodefault\n num-threads: 1\n outbound-msg-retry: 1\n"+
		"remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: %s@%s\n", dir, host, port)
	return startNames(t, addr, filepath.Join(dir, "conf"), conf, "unbound", "-d", "-c", filepath.Join(dir, "conf"))
}

// startDnsmasq is the same with a forwarder.
func startDnsmasq(t *testing.T, zone string) string {
	dir := t.TempDir()
	return startNames(t, "127.0.0.1:5302", filepath.Join(dir, "conf"), "", "dnsmasq", "--keep-in-foreground", "--no-resolv",
		"--no-hosts", "--port=5302", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--conf-file="+filepath.Join(dir, "conf"),
		"--server="+strings.ReplaceAll(zone, ":", "#"), "--pid-file")
}

// startNames runs a name server and waits until it answers; empty: it is not
// installed.
func startNames(t *testing.T, addr, file, conf, program string, args ...string) string {
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		t.Logf("%s is not installed: not asked", program)
		return ""
	}
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	log, err := os.Create(file + ".log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	for end := time.Now().Add(waitLimit); time.Now().Before(end); {
		if c, err := net.DialTimeout("tcp4", addr, time.Second); err == nil {
			c.Close()
			return addr
		}
		if err := exec.Command("sleep", "0.1").Run(); err != nil {
			t.Fatal(err)
		}
	}
	text, _ := os.ReadFile(file + ".log")
	t.Fatalf("%s does not come up: %s", program, text)
	return ""
}
