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

	gosmtp "github.com/emersion/go-smtp"
)

// startDovecot runs Dovecot's lmtpd on a socket, and with TLS on a port, with a log;
// "" says that it is not installed.
func startDovecot(t *testing.T) (socket, port, log string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/usr/lib/dovecot/lmtp"); err != nil {
		t.Log("dovecot-lmtpd is not installed: nothing is delivered to it")
		return "", "", ""
	}
	ports, err := freePorts(1, t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	socket, port, log = "/run/dovecot/store", fmt.Sprint(ports[0]), dir+"/dovecot.log"
	cert := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=localhost", "-keyout", dir+"/key", "-out", dir+"/crt")
	if out, err := cert.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	conf := `protocols = lmtp
log_path = ` + log + `
ssl = yes
ssl_cert = <` + dir + `/crt
ssl_key = <` + dir + `/key
mail_location = maildir:~/Store
first_valid_uid = 1
auth_username_format = %Ln
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = passwd
}
mail_plugins = quota
plugin {
  quota = maildir:User quota
  quota_rule = *:messages=70
}
lmtp_rcpt_check_quota = yes
recipient_delimiter = +
service lmtp {
  unix_listener ` + socket + ` {
    mode = 0666
  }
  inet_listener lmtp {
    address = 127.0.0.1
    port = ` + port + `
  }
}
service stats {
  unix_listener stats-writer {
    mode = 0666
  }
}
`
	if err := os.WriteFile(dir+"/dovecot.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dovecot", "-F", "-c", dir+"/dovecot.conf")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if b, _ := os.ReadFile(log); t.Failed() {
			t.Logf("dovecot: %s", tail(b, 20))
		}
	})
	waitListen(t, "unix", socket)
	return socket, port, log
}

// rcpt asks the daemon about one recipient and gives its answer.
func rcpt(t *testing.T, to string) string {
	t.Helper()
	conn, err := net.Dial("tcp4", "127.0.0.1:25")
	if err != nil {
		t.Fatal(err)
	}
	c := gosmtp.NewClient(conn)
	defer c.Close()
	if err := c.Mail("sender@example.org", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Rcpt(to, nil); err != nil {
		return strings.TrimPrefix(err.Error(), "SMTP error ")
	}
	_ = c.Quit()
	return "ok"
}

// TestRootStore delivers to Dovecot's lmtpd by its socket and, with STARTTLS, by
// TCP, asks it about recipients, and fills a mailbox until it refuses more.
func TestRootStore(t *testing.T) {
	if !asRoot(t) {
		return
	}
	socket, port, log := startDovecot(t)
	if socket == "" {
		return
	}
	d := startRoot(t, `listen on 127.0.0.1 port 25
queue ttl 1h
table aliases { team = "alice, bob", gone = "alice" }
table base { ghost = 64203:64203:/home/alice }
action unix lmtp "`+socket+`"
action tcp lmtp "127.0.0.1:`+port+`" rcpt-to alias <aliases>
action ask lmtp "`+socket+`" rcpt-to verify-rcpt alias <aliases> x-original-to
action ghost lmtp "`+socket+`" verify-rcpt userbase <base>
action away lmtp "/run/nothing" verify-rcpt
match from any for domain unix.test action unix
match from any for domain tcp.test action tcp
match from any for domain ask.test action ask
match from any for domain ghost.test action ghost
match from any for domain away.test action away
`)
	l := &ledger{acked: map[string]string{}}
	l.send(40, 4, []string{"alice@unix.test", "bob+tag@tcp.test"}, nil)
	waitEmpty(t, d, waitLimit)
	if b, _ := os.ReadFile(log); !regexp.MustCompile(`lmtp\(bob\).*saved mail`).Match(b) {
		t.Errorf("nothing came to bob: %s", tail(b, 5))
	}
	if got := rcpt(t, "ghost@ghost.test"); !strings.HasPrefix(got, "550") || !strings.Contains(got, "User doesn't exist") {
		t.Errorf("unknown to the store: %s", got)
	}
	if got := rcpt(t, "alice@away.test"); got != "ok" || !strings.Contains(d.log(), "the store cannot be asked") {
		t.Errorf("no store: %s\n%s", got, d.log())
	}
	if got := rcpt(t, "alice@ask.test"); got != "ok" {
		t.Errorf("known to the store: %s", got)
	}
	l.send(20, 2, []string{"bob@ask.test"}, nil)
	l.send(20, 2, []string{"bob@tcp.test"}, nil)
	waitEmpty(t, d, waitLimit)
	storeWorker(t, ids(t, "_smtpd"))
	arrived := collect(t, "/home/alice/Store/new", "/home/bob/Store/new")
	l.check(t, arrived, false)
	seen := false
	files, _ := filepath.Glob("/home/bob/Store/new/*")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		seen = seen || strings.Contains(string(b), "\nX-Original-To: bob@ask.test\n")
	}
	if !seen {
		t.Error("no X-Original-To")
	}
	fillStore(t, d, l)
	if got := rcpt(t, "team@ask.test"); got != "ok" {
		t.Errorf("a list with one full mailbox: %s", got)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// storeWorker finds the delivery process for the store that is reached over TCP
// among those that wait for more: the daemon's user, in no other group, with a
// filter.
func storeWorker(t *testing.T, uid string) {
	t.Helper()
	found := 0
	for _, pid := range processes("smtpd: deliver") {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || statusField(string(b), "Seccomp") == "0" {
			continue
		}
		found++
		for name, want := range map[string]string{"Uid": strings.TrimSpace(strings.Repeat(uid+" ", 4)), "Groups": uid, "Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0"} {
			if got := statusField(string(b), name); got != want {
				t.Errorf("the worker for a store: %s is %s, want %s", name, got, want)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d workers for the store; want 1", found)
	}
}

// fillStore gives bob mail, one after the other, until his store refuses more at
// RCPT: deliveries at the same time make Dovecot miscount. He is remembered as
// one who takes mail, so each question has a spelling of its own.
func fillStore(t *testing.T, d *daemon, l *ledger) {
	t.Helper()
	got := ""
	for i := range 40 {
		to := fmt.Sprintf("bob+full%d@ask.test", i)
		if got = rcpt(t, to); got == "552: Quota exceeded (mailbox for user is full): <"+to+">" {
			return
		}
		l.one("bob@tcp.test", 100)
		waitEmpty(t, d, waitLimit)
	}
	t.Errorf("over quota: %s", got)
}

// waitListen waits until somebody listens on a socket.
func waitListen(t *testing.T, network, addr string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); <-tick.C {
		if c, err := net.Dial(network, addr); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("nobody listens on %s", addr)
}
