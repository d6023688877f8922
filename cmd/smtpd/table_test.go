package main

import (
	"bufio"
	"crypto/tls"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
	"github.com/redis/go-redis/v9"
	_ "modernc.org/sqlite" // the driver that makes databases

	"smtpd/internal/auth"
	"smtpd/table/tabletest"
)

// debianTables is where Debian's opensmtpd-extras puts its programs.
const debianTables = "/usr/libexec/opensmtpd"

// debianTable makes Debian's program for a backend known as debian-BACKEND.
func debianTable(t *testing.T, backend string) bool {
	t.Helper()
	path := filepath.Join(debianTables, "table-"+backend)
	if _, err := os.Stat(path); err != nil {
		t.Logf("%s is not installed: not tested", path)
		return false
	}
	link := filepath.Join(bins, "table-debian-"+backend)
	if err := os.Symlink(path, link); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	return true
}

// database makes an SQLite database that everybody may read.
func database(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, st := range statements {
		if _, err := db.Exec(st); err != nil {
			t.Fatalf("%s: %v", st, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func hashOf(t *testing.T, password string) string {
	t.Helper()
	h, err := auth.Hash(password, auth.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestRootSQLite is the how-to of 2014 as a whole: schema, queries, submission
// with a login that is a mail address, virtual users that the system does not
// know, delivery as the user of the row, a user who is switched off. Our own
// program and Debian's give the same.
func TestRootSQLite(t *testing.T) {
	if !asRoot(t) {
		return
	}
	for _, backend := range []string{"sqlite", "debian-sqlite"} {
		t.Run(backend, func(t *testing.T) {
			if name, ok := strings.CutPrefix(backend, "debian-"); ok && !debianTable(t, name) {
				return
			}
			howto(t, backend)
		})
	}
}

const howtoConf = `table domains BACKEND:/etc/smtpd-sqlite.conf
table users BACKEND:/etc/smtpd-sqlite.conf
table sqalias BACKEND:/etc/smtpd-sqlite.conf
pki mail.test certificate "DIR/mail.test.crt"
pki mail.test key "DIR/mail.test.key"

listen on 127.0.0.1 port 25
listen on all port submission tls auth <users> pki mail.test mask-source

accept from any for domain <domains> alias <sqalias> userbase <users> deliver to mbox
`

func howto(t *testing.T, backend string) {
	for _, script := range []string{
		"mkdir -p /etc/smtpd-test && mount -t tmpfs tmpfs /etc/smtpd-test",
		"mkdir -p /var/mail && mount -t tmpfs tmpfs /var/mail && chown root:mail /var/mail && chmod 2775 /var/mail",
	} {
		if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	a := newAuthority(t)
	a.issue(t, "mail.test", true, false)
	db, sqlite := "/etc/smtpd-test/mail.sqlite", "/etc/smtpd-test/sqlite.conf"
	h := hashOf(t, "PassWord")
	database(t, db,
		"CREATE TABLE domains (name TEXT PRIMARY KEY, active TEXT)",
		"CREATE TABLE users (email TEXT PRIMARY KEY, user TEXT, password TEXT, uid INT, gid INT, home TEXT, active TEXT)",
		"CREATE TABLE aliases (source TEXT, destination TEXT, active TEXT)",
		"INSERT INTO domains VALUES ('sq.test', 'Y'), ('off.test', 'N')",
		"INSERT INTO users VALUES ('dora@sq.test', 'dora', '"+h+"', 5002, 5002, '/home/dora', 'Y')",
		"INSERT INTO users VALUES ('emil@sq.test', 'emil', '"+h+"', 5003, 5003, '/home/emil', 'N')",
		"INSERT INTO aliases VALUES ('foo', 'dora', 'Y'), ('gone', 'emil', 'Y'), ('off', 'dora', 'N')")
	writeFile(t, sqlite, "dbpath "+db+`
query_domain SELECT name FROM domains WHERE name=? AND active="Y";
query_credentials SELECT email, password FROM users WHERE email=? AND active="Y";
query_userinfo SELECT uid, gid, home FROM users WHERE user=? AND active="Y";
query_alias SELECT destination FROM aliases WHERE source=? AND active="Y";
`)
	conf := strings.NewReplacer("BACKEND", backend, "DIR", a.dir, "/etc/smtpd-sqlite.conf", sqlite).Replace(howtoConf)
	d := startRoot(t, conf)
	defer func() {
		if t.Failed() {
			t.Logf("log:\n%s", d.log())
		}
	}()
	for login, want := range map[string]string{
		"dora@sq.test PassWord": "235", "Dora@SQ.test PassWord": "235", "dora@sq.test password": "535",
		"dora PassWord": "535", "emil@sq.test PassWord": "535", "nobody@sq.test PassWord": "535",
	} {
		user, password, _ := strings.Cut(login, " ")
		c := submission(t, a, "mail.test")
		err := c.Auth(sasl.NewPlainClient("", user, password))
		if got := codeOf(err, "235"); got != want {
			t.Errorf("login %s: got %s (%v), want %s", login, got, err, want)
		}
		c.Close()
	}
	for rcpt, want := range map[string]string{
		"foo@sq.test": "250", "foo+tag@sq.test": "250", "dora@sq.test": "250", "emil@sq.test": "550", "gone@sq.test": "550",
		"off@sq.test": "550", "foo@off.test": "550", "x@sq.test": "550", "foo'--@sq.test": "550",
	} {
		if got := rcptCode(t, "127.0.0.1:25", rcpt); got != want {
			t.Errorf("RCPT %s: got %s, want %s", rcpt, got, want)
		}
	}
	c := submission(t, a, "mail.test")
	defer c.Close()
	if err := c.Auth(sasl.NewPlainClient("", "dora@sq.test", "PassWord")); err != nil {
		t.Fatal(err)
	}
	if err := c.SendMail("dora@sq.test", []string{"foo@sq.test"}, strings.NewReader("Subject: howto\r\n\r\nhello\r\n")); err != nil {
		t.Fatal(err)
	}
	waitEmpty(t, d, waitLimit)
	box, err := os.ReadFile("/var/mail/dora")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(box), "\nSubject: howto\n") || strings.Contains(string(box), "127.0.0.1") {
		t.Errorf("the mailbox holds:\n%s", box)
	}
	if out, err := exec.Command("stat", "-c", "%u %a", "/var/mail/dora").Output(); err != nil || string(out) != "5002 600\n" {
		t.Errorf("the mailbox is %q, %v", out, err)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// submission is a session on port 587 with TLS.
func submission(t *testing.T, a *authority, name string) *gosmtp.Client {
	t.Helper()
	conn, err := net.DialTimeout("tcp", "127.0.0.1:587", waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	c, err := gosmtp.NewClientStartTLS(conn, &tls.Config{ServerName: name, RootCAs: a.pool})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// codeOf is the reply code of an error, or ok without one.
func codeOf(err error, ok string) string {
	if err == nil {
		return ok
	}
	if e, is := err.(*gosmtp.SMTPError); is {
		return fmt.Sprint(e.Code)
	}
	return err.Error()
}

// rcptCode is the reply to a recipient.
func rcptCode(t *testing.T, addr, rcpt string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, waitLimit)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(waitLimit + waitLimit))
	in := bufio.NewReader(conn)
	reply := ""
	for _, cmd := range []string{"", "HELO c.test", "MAIL FROM:<a@b.test>", "RCPT TO:<" + rcpt + ">"} {
		if cmd != "" {
			fmt.Fprintf(conn, "%s\r\n", cmd)
		}
		if reply, err = in.ReadString('\n'); err != nil || len(reply) < 3 {
			t.Fatalf("%s: %q, %v", cmd, reply, err)
		}
	}
	return reply[:3]
}

// killTable kills the program of a table, a child of lookup.
func killTable(t *testing.T, d *daemon, name string) {
	t.Helper()
	pid := strconv.Itoa(d.child(t, "lookup"))
	out, err := exec.Command("pgrep", "-P", pid, "-x", name).Output()
	if err != nil {
		t.Fatalf("no %s below lookup (%s): %v", name, pid, err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err) // kill(2) takes 0 for our whole group
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// buildTable makes one of our table programs.
func buildTable(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(bins, name), "../"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
}

// TestRootDebianTables has Debian's table programs, unmodified, answer for our
// daemon, asked with smtpctl. Debian's table-redis does not read its file and
// asks 127.0.0.1.
func TestRootDebianTables(t *testing.T) {
	if !asRoot(t) {
		return
	}
	for _, name := range []string{"passwd", "socketmap", "redis"} {
		if !debianTable(t, name) {
			return
		}
	}
	dir := "/run/tables"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/passwd", "dora@x.test:$6$hash:5002:5003::/home/dora:/bin/sh\n")
	lineMap(t, dir+"/map")
	conf := "table pw debian-passwd:" + dir + "/passwd\ntable sm debian-socketmap:" + dir + "/map\n"
	redisToo := exec.Command("redis-server", "--version").Run() == nil
	if redisToo {
		s := tabletest.Redis(t, "--port", "6379", "--bind", "127.0.0.1")
		c := redis.NewClient(&redis.Options{Network: "unix", Addr: s.Socket, Protocol: 2, DisableIdentity: true})
		if err := c.Set(t.Context(), "alias:team", "alice, bob", 0).Err(); err != nil {
			t.Fatal(err)
		}
		c.Close()
		writeFile(t, dir+"/redis", "master 127.0.0.1\n")
		conf += "table re debian-redis:" + dir + "/redis\n"
	} else {
		t.Log("redis-server is not installed: table-redis is not tested")
	}
	d := startRoot(t, conf+"listen on 127.0.0.1 port 25\naction \"a\" mbox\nmatch from any for any action \"a\"\n")
	defer func() {
		if t.Failed() {
			t.Logf("log:\n%s", d.log())
		}
	}()
	tests := []struct{ table, service, key, want string }{
		{"pw", "credentials", "dora@x.test", "dora@x.test:$6$hash"},
		{"pw", "userinfo", "dora@x.test", "5002:5003:/home/dora"},
		{"pw", "userinfo", "emil", "not found"},
		{"sm", "alias", "root", "alice"},
		{"sm", "alias", "other", "not found"},
		{"sm", "alias", "broken", "temporary"},
		{"re", "alias", "team", "alice, bob"},
		{"re", "alias", "none", "not found"},
	}
	for _, tt := range tests {
		if tt.table == "re" && (!redisToo || tt.want == "not found") { // to what is missing it answers with an error
			continue
		}
		out, _ := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "lookup", tt.table, tt.service, tt.key).CombinedOutput()
		if !strings.Contains(string(out), tt.want) {
			t.Errorf("%s %s %s: got %q, want %q", tt.table, tt.service, tt.key, out, tt.want)
		}
	}
	out, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "show", "tables").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "pw|debian-passwd|") {
		t.Errorf("show tables: %v\n%s", err, out)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// lineMap serves what Debian's table-socketmap asks: lines, not netstrings.
func lineMap(t *testing.T, path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				in := bufio.NewScanner(c)
				for in.Scan() {
					switch _, key, _ := strings.Cut(in.Text(), " "); key {
					case "root":
						fmt.Fprintln(c, "OK alice")
					case "broken":
						fmt.Fprintln(c, "TEMP broken")
					default:
						fmt.Fprintln(c, "NOTFOUND no")
					}
				}
			})
		}
	})
}
