package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
	"golang.org/x/tools/txtar"
)

// seedsWorld gives the private world the interfaces, users, programs and files
// that the seeds name; $1 is the folder that is /etc/mail, $2 the only authority.
const seedsWorld = `set -e
mkdir -p /etc/mail /usr/local/etc/mail /var/mail
mount --bind "$1" /etc/mail
mount --bind "$1" /usr/local/etc/mail
chmod 755 "$1" "$1/certs"
mount -t tmpfs tmpfs /var/mail && chown root:mail /var/mail && chmod 2775 /var/mail
mount -t tmpfs tmpfs /usr/local/bin && ln -s /usr/bin/procmail /usr/local/bin/procmail
mount -t tmpfs tmpfs /etc/ssl/certs && cp "$2" /etc/ssl/certs/ca-certificates.crt
n=64300
for u in robert becky; do
	n=$((n + 1))
	echo "$u:x:$n:$n::/home/$u:/bin/sh" >>/etc/passwd
	echo "$u:x:$n:" >>/etc/group
	install -d -m 0700 -o $n -g $n "/home/$u"
done
for u in alice bob robert; do
	echo "DEFAULT=/home/$u/procmail/" >"/home/$u/.procmailrc"
	chown "$u" "/home/$u/.procmailrc"
done
openssl genrsa -out "$1/dkim.key" 2048 2>/dev/null
echo "alice:$(openssl passwd -6 secret):20000:0:99999:7:::" >"$1/shadow"
chmod 600 "$1/shadow"
mount --bind "$1/shadow" /etc/shadow
find "$1" -maxdepth 1 -type f ! -name shadow -exec chgrp _smtpd {} + -exec chmod g+r {} +
add() {
	ip link add "$1" type dummy 2>/dev/null || ip link add "$1" type veth peer name "$1p"
	ip link set "$1" up
	name=$1
	shift
	for a; do ip addr add "$a" dev "$name"; done
}
add rl0 172.20.0.12/24 172.16.81.241/24
add rl1 10.0.3.1/24
add vlan1 10.0.1.1/24
add em0 192.168.5.55/24
ip route add default via 192.168.5.1 dev em0
`

// seedSecret is alice's password, here and with table programs.
const seedSecret = "secret"

// seedsAlso are mails of seeds that only a running daemon decides as stated:
// filters and logins are no part of the rules, and where nobody listens all mail
// comes by the socket.
const seedsAlso = `-- 001-blocklist-fixed --
from=spammer@example.com rcpt=alice@localhost -> refused 550 sender blocked
rcpt=alice@localhost -> mbox /var/mail/alice for alice@localhost as alice
-- 001-virtual-as-is --
rcpt=info@example.org -> mbox /var/mail/alice for info@example.org as alice
rcpt=admin@example.org -> mbox /var/mail/bob for admin@example.org as bob
rcpt=alice@example.org -> refused 5
-- 001-virtual-complete --
rcpt=info@example.org -> mbox /var/mail/alice for info@example.org as alice
rcpt=admin@example.org -> mbox /var/mail/bob for admin@example.org as bob
rcpt=alice@example.org -> refused 5
-- 003-ex2-central-relay --
rcpt=root@somehost.com -> mda /usr/local/bin/procmail -f - for root@somehost.com as alice
-- 003-ex3-gmail --
rcpt=root@somehost.com -> mda /usr/local/bin/procmail -f - for root@somehost.com as alice
-- 003-sqlite-complete --
client=192.0.2.7 auth=alice tls rcpt=info@serversave.us -> mbox /var/mail/alice for info@serversave.us as alice
client=192.0.2.7 auth=alice tls rcpt=bob@serversave.us -> mbox /var/mail/bob for bob@serversave.us as bob
client=192.0.2.7 auth=alice tls rcpt=x@serversave.us -> refused 5
`

// TestRootSeeds starts the daemon with each accepted seed, and with what --modern
// makes of it, sends the mails of decisions.txtar by the listener that its
// clients reach, and looks where each arrives: mailbox, Maildir, command, or
// another host with the login, TLS and port asked for.
func TestRootSeeds(t *testing.T) {
	if !asRoot(t) {
		return
	}
	w, a := newConfWorld(t), newAuthority(t)
	seedDatabase(t, w)
	if out, err := exec.Command("sh", "-c", seedsWorld, "sh", w.dir, a.path("ca.crt")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ar, err := txtar.ParseFile(filepath.Join(confDir, "decisions.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	also := map[string]string{}
	for _, f := range txtar.Parse([]byte(seedsAlso)).Files {
		also[f.Name] = string(f.Data)
	}
	secrets, err := os.ReadFile(filepath.Join(w.dir, "secrets"))
	if err != nil {
		t.Fatal(err)
	}
	far := newFarNet(t)
	s := &seedRun{hosts: startSeedHosts(t, far, a), far: far, secrets: secretsOf(string(secrets))}
	for _, f := range ar.Files {
		if f.Name == "001-dkim-complete" && debianFilter(t, "filter-dkimsign") == "" {
			continue
		}
		path := filepath.Join(confDir, "seeds", f.Name+".conf")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		modern, err := exec.Command(filepath.Join(bins, "smtpd"), "-n", "--modern", "-f", path).Output()
		if err != nil {
			t.Fatalf("%s --modern: %v", f.Name, err)
		}
		lines := string(f.Data) + also[f.Name]
		t.Run(f.Name, func(t *testing.T) { s.play(t, string(text), lines) })
		if strings.Contains(string(text), "# dialect: D3") {
			continue
		}
		t.Run(f.Name+"-modern", func(t *testing.T) { s.play(t, string(modern), lines) })
	}
	t.Logf("%d mails arrived, %d were refused; %d have clients that no listener serves", s.came, s.refused, s.beyond)
	if s.came < 100 || s.refused < 60 || s.beyond > 60 {
		t.Error("too few were tried")
	}
}

// seedDatabase is what the how-to of table-sqlite has its readers make.
func seedDatabase(t *testing.T, w *confWorld) {
	t.Helper()
	database(t, filepath.Join(w.dir, "auth.sqlite"),
		"CREATE TABLE domains (domain TEXT)", "CREATE TABLE users (name TEXT, password TEXT, uid INT, gid INT, home TEXT)",
		"CREATE TABLE aliases (source TEXT, destination TEXT)", "INSERT INTO domains VALUES ('serversave.us')",
		"INSERT INTO users VALUES ('alice', '"+hashOf(t, seedSecret)+"', 64203, 64203, '/home/alice')",
		"INSERT INTO users VALUES ('bob', '*', 64204, 64204, '/home/bob')",
		"INSERT INTO aliases VALUES ('info', 'alice')")
	w.write(t, "sqlite.conf", `dbpath /etc/mail/auth.sqlite
query_domain SELECT domain FROM domains WHERE domain=?;
query_credentials SELECT name, password FROM users WHERE name=?;
query_userinfo SELECT uid, gid, home FROM users WHERE name=?;
query_alias SELECT destination FROM aliases WHERE source=?;
`)
}

// seedRun is the world that the seeds share, and what came of their mails.
type seedRun struct {
	hosts   *seedHosts
	far     *farNet
	secrets map[string]string
	signs   bool // the mails of this configuration are to be signed

	came, refused, beyond int
}

// play runs one configuration and its mails.
func (s *seedRun) play(t *testing.T, conf, lines string) {
	d := startRoot(t, conf)
	defer func() {
		if t.Failed() {
			t.Logf("configuration:\n%s\nlog:\n%s", conf, d.log())
		}
	}()
	listeners := listenersOf(lines)
	s.signs = strings.Contains(conf, "filter-dkimsign")
	want := map[string]string{}
	for line := range strings.Lines(lines) {
		facts, outcome, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		if !ok {
			continue
		}
		m := seedMailOf(facts)
		if !m.findListener(listeners) {
			s.beyond++
			continue
		}
		if strings.Contains(outcome, " procmail ") && !hasProcmail() {
			t.Log("procmail is not installed: not tested")
			continue
		}
		letter := newLetter(m.rcpt, 100)
		err := s.send(t, d, m, letter)
		refusal, isRefused := strings.CutPrefix(outcome, "refused ")
		if m.listener["auth"] && m.auth == "" {
			refusal, isRefused = "530", true
		}
		switch {
		case isRefused:
			s.refused++
			if err == nil || !strings.Contains(strings.Replace(err.Error(), ": ", " ", 1), " "+refusal) {
				t.Errorf("%s: got %v", line, err)
			}
		case err != nil:
			t.Errorf("%s: %v", line, err)
		default:
			want[letter.token] = s.place(outcome)
		}
	}
	s.arrive(t, d, want)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// arrive waits until the mails have been delivered, and compares the places.
func (s *seedRun) arrive(t *testing.T, d *daemon, want map[string]string) {
	t.Helper()
	if err := d.waitLog(regexp.MustCompile(` (mda|mta) delivery .*result="?Ok`), len(want)); err != nil {
		t.Error(err)
	}
	got := s.hosts.places()
	for _, glob := range []string{"/var/mail/*", "/home/*/Maildir/new/*", "/home/*/procmail/new/*"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range tokenRE.FindAllStringSubmatch(string(b), -1) {
				got[m[1]] += mailbox(f) + " of " + owner(t, f)
			}
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	for token, place := range want {
		if got[token] != place {
			t.Errorf("arrived %q, want %q", got[token], place)
		}
		delete(got, token)
		s.came++
	}
	for _, place := range got {
		t.Errorf("nobody sent what arrived at %s", place)
	}
}

// mailbox is the mailbox or Maildir that a file belongs to.
func mailbox(file string) string {
	if dir, ok := strings.CutSuffix(filepath.Dir(file), "/new"); ok {
		return dir
	}
	return file
}

func owner(t *testing.T, file string) string {
	t.Helper()
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	u, err := osuser.LookupId(fmt.Sprint(fi.Sys().(*syscall.Stat_t).Uid))
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

func hasProcmail() bool {
	_, err := os.Stat("/usr/bin/procmail")
	return err == nil
}

var (
	localRE = regexp.MustCompile(`^(mbox|maildir|mda) (.*) for \S+ as (\w+)$`)
	relayRE = regexp.MustCompile(`^relay (\S+) (?:by the MX of (\S+)|via (\S+?)://(?:([^/ ]+)@)?([\w.]+)(?::(\d+))?)( tls)?( no-verify)?(?: auth \w+)?(?: helo (\S+))?$`)
)

// place is where a mail has to arrive, by the words of decisions.txtar.
func (s *seedRun) place(outcome string) string {
	if m := localRE.FindStringSubmatch(outcome); m != nil {
		if m[1] == "mda" {
			return fmt.Sprintf("/home/%s/procmail of %[1]s", m[3])
		}
		return m[2] + " of " + m[3]
	}
	m := relayRE.FindStringSubmatch(outcome)
	if m == nil {
		return "no place is known for " + outcome
	}
	host, port, how, helo, login := m[5], "25", "tls", "mail.example.org", ""
	switch {
	case m[2] != "":
		host = "mx." + m[2]
	case m[6] != "":
		port = m[6]
	case m[3] == "smtps":
		port = "465"
	}
	if host == seedHostNoTLS {
		how = "clear"
	}
	if m[9] != "" {
		helo = m[9]
	}
	if m[4] != "" {
		if login = s.secrets[m[4]]; login == "" {
			login = s.secrets[m[4]+"@"+host]
		}
	}
	signed := ""
	if s.signs {
		signed = " signed"
	}
	return fmt.Sprintf("%s:%s %s login %q helo %s for %s%s", host, port, how, login, helo, m[1], signed)
}

// seedMail is one mail: who sends it, and to whom.
type seedMail struct {
	client, from, rcpt, auth string
	tls                      bool
	addr                     string          // of the listener; empty: by the socket
	listener                 map[string]bool // its words
}

func seedMailOf(facts string) *seedMail {
	m := &seedMail{from: "sender@seed.test"}
	for _, f := range strings.Fields(facts) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "client":
			m.client = strings.TrimSuffix(value, "local")
		case "from":
			m.from = value
		case "rcpt":
			m.rcpt = value
		case "auth":
			m.auth = value
		case "tls":
			m.tls = true
		}
		if f == "client=local" {
			m.addr = "socket"
		}
	}
	return m
}

// listenersOf are the listeners with IPv4 addresses, each with its words.
func listenersOf(lines string) (list []map[string]bool) {
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "listen" || strings.HasPrefix(f[1], "[") {
			continue
		}
		words := map[string]bool{"addr " + strings.Replace(f[1], "0.0.0.0", "192.0.2.1", 1): true}
		for _, w := range f[2:] {
			words[w] = true
		}
		list = append(list, words)
	}
	return list
}

// findListener chooses by which the mail comes: one with a login where it needs
// one, else rather one without; a stranger does not reach the loopback.
func (m *seedMail) findListener(list []map[string]bool) bool {
	if m.addr == "socket" {
		m.addr = ""
		return true
	}
	best := -1
	for _, l := range list {
		addr := ""
		for w := range l {
			if a, ok := strings.CutPrefix(w, "addr "); ok {
				addr = a
			}
		}
		login := l["auth"] || l["auth-optional"]
		loopback := strings.HasPrefix(addr, "127.")
		if m.client != "" && loopback || m.auth != "" && !login || m.tls && !l["tls"] && !l["smtps"] {
			continue
		}
		score := 0
		if m.client == "" && loopback {
			score += 2
		}
		if m.auth != "" || !login {
			score++
		}
		if score > best {
			best, m.addr, m.listener = score, addr, l
		}
	}
	return m.addr != "" || m.client == ""
}

// send hands the mail in as its sender would.
func (s *seedRun) send(t *testing.T, d *daemon, m *seedMail, l letter) error {
	t.Helper()
	if m.addr == "" {
		cmd := exec.Command(filepath.Join(bins, "sendmail"), "-f", m.from, m.rcpt)
		cmd.Env = append(os.Environ(), "SMTPD_SOCKET="+d.socket)
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(l.text, "\r\n", "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	var conn net.Conn
	if m.client != "" {
		conn = s.far.dial(t, m.client, m.addr)
	} else {
		var err error
		if conn, err = net.DialTimeout("tcp4", m.addr, waitLimit); err != nil {
			return err
		}
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		return err
	}
	conf := &tls.Config{InsecureSkipVerify: true} // names are not what this is about
	if m.listener["smtps"] {
		conn = tls.Client(conn, conf)
	}
	c := gosmtp.NewClient(conn)
	if m.tls && m.listener["tls"] {
		var err error
		if c, err = gosmtp.NewClientStartTLS(conn, conf); err != nil {
			return err
		}
	}
	if m.auth != "" {
		if err := c.Auth(sasl.NewPlainClient("", m.auth, seedSecret)); err != nil {
			return err
		}
	}
	if err := c.SendMail(m.from, []string{m.rcpt}, strings.NewReader(l.text)); err != nil {
		return err
	}
	return c.Quit()
}
