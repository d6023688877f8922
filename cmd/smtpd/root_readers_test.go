package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readersVar says how many mails TestRootReaders sends; make torture says 10000.
const readersVar = "SMTPD_TEST_READERS"

// reader finds a program of a mail reader: installed, or unpacked by setup.sh
// because its package does not go together with that of another reader.
func reader(t *testing.T, path string) string {
	t.Helper()
	for _, root := range []string{"", "/opt/readers"} {
		if _, err := os.Stat(root + path); err == nil {
			return root + path
		}
	}
	t.Logf("%s is not installed: it reads nothing", path)
	return ""
}

// asUser prepares a command that a user of the private world runs.
func asUser(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	id := uint32(uid)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/home/" + name
	cmd.Env = []string{"HOME=/home/" + name, "USER=" + name, "LOGNAME=" + name, "PATH=/usr/bin:/bin", "TERM=xterm", "MAIL=/var/mail/" + name,
		"AUTHENTICATED=" + name, "PROTOCOL=IMAP", "IMAP_CAPABILITY=IMAP4rev1", "TCPREMOTEIP=127.0.0.1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	return cmd
}

// imap is a conversation with an IMAP server on its standard input.
type imap struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	n   int // messages there are, as the server says
}

// part is a text that a reader gives, and of which mail, when it was asked.
type part struct {
	uid, text string
	gone      bool // deleted for certain: another of this UID is another mail
}

func startIMAP(cmd *exec.Cmd) (*imap, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c := &imap{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 1<<16)}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if line, err := c.out.ReadString('\n'); err != nil || !strings.HasPrefix(line, "* PREAUTH") {
		return nil, fmt.Errorf("greeting %q: %v", line, err)
	}
	_, err = c.do("SELECT INBOX")
	return c, err
}

var (
	existsLine  = regexp.MustCompile(`^\* (\d+) EXISTS`)
	expungeLine = regexp.MustCompile(`^\* \d+ EXPUNGE`)
	literal     = regexp.MustCompile(`(?:UID (\d+) )?[A-Z\[\]]* \{(\d+)\}\r\n$`)
)

// do gives a command and returns the literals of the answer.
func (c *imap) do(cmd string) (parts []part, err error) {
	if _, err := io.WriteString(c.in, "x "+cmd+"\r\n"); err != nil {
		return nil, err
	}
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cmd, err)
		}
		if m := existsLine.FindStringSubmatch(line); m != nil {
			c.n, _ = strconv.Atoi(m[1])
		}
		if expungeLine.MatchString(line) {
			c.n--
		}
		if m := literal.FindStringSubmatch(line); m != nil {
			n, _ := strconv.Atoi(m[2])
			b := make([]byte, n)
			if _, err := io.ReadFull(c.out, b); err != nil {
				return nil, err
			}
			parts = append(parts, part{uid: m[1], text: string(b)})
		}
		if strings.HasPrefix(line, "x ") {
			if !strings.HasPrefix(line, "x OK") {
				return parts, fmt.Errorf("%s: %s", cmd, strings.TrimSpace(line))
			}
			return parts, nil
		}
	}
}

func (c *imap) end() {
	_, _ = io.WriteString(c.in, "x LOGOUT\r\n")
	c.in.Close()
	_ = c.cmd.Wait()
}

// take reads all that is there, and deletes the first half, or all.
func (c *imap) take(all bool) ([]part, error) {
	if _, err := c.do("NOOP"); err != nil || c.n == 0 {
		return nil, err
	}
	parts, err := c.do("FETCH 1:" + strconv.Itoa(c.n) + " (UID BODY.PEEK[])")
	if err != nil || len(parts) == 0 {
		return nil, err
	}
	last := len(parts) - 1
	if !all {
		last /= 2
	}
	if _, err := c.do("UID STORE " + parts[0].uid + ":" + parts[last].uid + ` +FLAGS.SILENT (\Deleted)`); err != nil {
		return nil, err
	}
	_, err = c.do("EXPUNGE")
	return parts, err
}

// basket is the mail that readers have read.
type basket struct {
	texts []string
	was   map[string]string // UID -> mail
}

// see adds what a reader saw. A mail is known by its UID, as RFC 3501 section
// 2.3.1.1 has it: what was left is seen again, and when mbox files grow while
// Dovecot stores a flag, it may read the file again, tell that the flag is not
// set after all (`* 1 FETCH (FLAGS (\Recent))`), and expunge the mail only when
// it is stored once more.
func (b *basket) see(parts []part) error {
	if b.was == nil {
		b.was = map[string]string{}
	}
	for _, p := range parts {
		text, again := b.was[p.uid]
		switch b.was[p.uid] = p.text; {
		case p.uid == "":
			return fmt.Errorf("a mail without UID: %q", p.text)
		case !again:
			b.texts = append(b.texts, p.text)
		case bare(text) != bare(p.text):
			return fmt.Errorf("UID %s was %q, is %q", p.uid, text, p.text)
		}
	}
	for _, p := range parts {
		if p.gone {
			delete(b.was, p.uid)
		}
	}
	return nil
}

var mboxFields = regexp.MustCompile(`(?m)^(Status|X-Status|X-UID|X-Keywords|Content-Length|Lines): .*\n`)

// bare is what a mail must be like whoever delivered and read it: from its
// token on, without what mbox files add: fields, quotes, blank lines at its end.
func bare(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if i := strings.Index(text, "X-Token: "); i > 0 {
		text = text[i:]
	}
	head, body, _ := strings.Cut(text, "\n\n")
	text = mboxFields.ReplaceAllString(head+"\n", "") + "\n" + body
	return strings.TrimRight(strings.ReplaceAll(text, "\n>From ", "\nFrom "), "\n") + "\n"
}

// compare checks that the basket holds each of the ledger's mails to one of the
// recipients once and whole.
func (b *basket) compare(t *testing.T, who string, l *ledger, to ...string) {
	t.Helper()
	want := map[string]string{}
	for token, text := range l.acked {
		for _, addr := range to {
			if strings.Contains(text, "\nTo: <"+addr+">\n") {
				want[token] = bare(text)
			}
		}
	}
	got, broken, strange := map[string]int{}, 0, 0
	for _, text := range b.texts {
		text = bare(text)
		token, _, _ := strings.Cut(strings.TrimPrefix(text, "X-Token: "), "\n")
		got[token]++
		if want[token] == "" {
			strange++
		} else if text != want[token] {
			if broken++; broken == 1 {
				t.Errorf("%s: not whole:\ngot  %q\nwant %q", who, text, want[token])
			}
		}
	}
	missing, twice := 0, 0
	for token := range want {
		if got[token] == 0 {
			missing++
		} else if got[token] > 1 {
			twice++
		}
	}
	t.Logf("%s: %d mails, %d missing, %d twice, %d not whole, %d strange", who, len(want), missing, twice, broken, strange)
	if missing+twice+broken+strange > 0 {
		t.Errorf("%s: not what was delivered", who)
	}
}

const readersConf = `listen on 127.0.0.1 port 25
queue ttl 1h
action md maildir
action mb mbox
action pm mda "/usr/bin/procmail -f %%{mbox.from} LOCKSLEEP=1"
action lda mda "/usr/lib/dovecot/dovecot-lda -c %s -f %%{sender}"
match from any for domain md.test action md
match from any for domain mb.test action mb
match from any for domain pm.test action pm
match from any for domain lda.test action lda
`

// readersWorld makes a spool like Debian's, a user for each reader, passwords, and
// Dovecot's files: CONF.maildir, and CONF.LOCKS for mbox files with locks of that
// kind.
func readersWorld(t *testing.T) (conf string) {
	t.Helper()
	conf = t.TempDir() + "/dovecot"
	script := `set -e
mkdir -p /var/mail; mount -t tmpfs tmpfs /var/mail; chown root:mail /var/mail; chmod 2775 /var/mail
n=64300
for u in ` + strings.Join(readerUsers, " ") + `; do
	n=$((n + 1)); echo "$u:x:$n:$n::/home/$u:/bin/sh" >>/etc/passwd; echo "$u:x:$n:" >>/etc/group
	install -d -m 0700 -o $n -g $n "/home/$u"
done
cat /etc/shadow >` + conf + `.shadow; echo "popa:$(openssl passwd -6 secret):20000::::::" >>` + conf + `.shadow
chmod 600 ` + conf + `.shadow; mount --bind ` + conf + `.shadow /etc/shadow
chmod 755 $(dirname ` + conf + `) $(dirname $(dirname ` + conf + `))`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const inbox = "mbox:~/mail:INBOX=/var/mail/%u\n"
	for name, box := range map[string]string{
		"maildir": "maildir:~/Maildir\n",
		"both":    inbox + "mbox_write_locks = dotlock fcntl\n",
		"dot":     inbox + "mbox_write_locks = dotlock\nmbox_read_locks = dotlock\n",
		"kernel":  inbox + "mbox_write_locks = fcntl\n",
	} {
		text := "log_path = /dev/stderr\nfirst_valid_uid = 1\nstats_writer_socket_path =\nmail_location = " + box +
			"mail_privileged_group = mail\nlda_mailbox_autocreate = yes\nhostname = mx.test\npostmaster_address = root@mx.test\n"
		if err := os.WriteFile(conf+"."+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return conf
}

// readerUsers are those whose mailboxes the readers of otherReaders read.
var readerUsers = []string{"both", "dot", "kernel", "popa", "muttb", "proc", "two", "cour", "muttd"}

// TestRootReaders delivers to a Maildir and a system mailbox, by ourselves and by
// Dovecot's lda, while Dovecot's IMAP server reads and deletes what comes; then
// other readers do so, each with a mailbox of its own, while mail pours in.
func TestRootReaders(t *testing.T) {
	if !asRoot(t) {
		return
	}
	n := 400
	if v, err := strconv.Atoi(os.Getenv(readersVar)); err == nil {
		n = v
	}
	conf := readersWorld(t)
	d := startRoot(t, fmt.Sprintf(readersConf, conf+".maildir"))
	staleLock(t, d)
	to := map[string][]string{"alice": {"alice@md.test"}, "bob": {"bob@mb.test"}}
	const lda = "/usr/lib/dovecot/dovecot-lda"
	if _, err := os.Stat(lda); err == nil {
		to["alice"] = append(to["alice"], "alice@lda.test")
	} else {
		t.Logf("%s is not installed: it delivers nothing", lda)
	}
	all := append(append([]string{}, to["alice"]...), to["bob"]...)
	baskets := map[string]*basket{"alice": {}, "bob": {}}
	stop := make(chan struct{})
	var deleting sync.WaitGroup
	if server := reader(t, "/usr/lib/dovecot/imap"); server != "" {
		for user, b := range baskets {
			cmd := asUser(t, user, server, "-c", conf+map[string]string{"alice": ".maildir", "bob": ".both"}[user])
			cmd.Stderr = os.Stderr
			if user == "bob" {
				cmd.SysProcAttr.Credential.Groups = []uint32{8} // mail: for dot-locks
			}
			deleting.Go(func() { deleteAll(t, user, cmd, b, stop) })
		}
	}
	l := &ledger{acked: map[string]string{}}
	l.send(n, 8, all, nil)
	waitEmpty(t, d, 10*time.Minute)
	close(stop)
	deleting.Wait()
	if len(baskets["alice"].texts) > 0 {
		baskets["alice"].compare(t, "dovecot imap, Maildir", l, to["alice"]...)
		baskets["bob"].compare(t, "dovecot imap, mbox", l, to["bob"]...)
	}
	if t.Failed() {
		t.Logf("log:\n%s", tail([]byte(d.log()), 20))
	}
	otherReaders(t, d, conf)
	waitEmpty(t, d, waitLimit)
	rest := &ledger{acked: map[string]string{}}
	rest.send(2, 1, []string{"alice@md.test"}, nil)
	rest.send(2, 1, []string{"bob@mb.test"}, nil)
	waitEmpty(t, d, waitLimit)
	rest.check(t, boxes(t), false) // and nothing else came later
	if left, _ := filepath.Glob("/var/mail/*.lock"); len(left) > 0 {
		t.Errorf("locks are left: %v", left)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// staleLock leaves a lock as a machine that went down would, and waits until mail
// for bob has broken it.
func staleLock(t *testing.T, d *daemon) {
	t.Helper()
	const lock = "/var/mail/bob.lock"
	if err := os.WriteFile(lock, []byte("4194304\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	l := &ledger{acked: map[string]string{}}
	l.send(1, 1, []string{"bob@mb.test"}, nil)
	if err := d.waitLog(regexp.MustCompile(`lock bob\.lock broken: |lock .*bob\.lock broken: `), 1); err != nil {
		t.Errorf("%v\n%s", err, d.log())
		os.Remove(lock)
	}
	waitEmpty(t, d, time.Minute)
	if err := os.Remove("/var/mail/bob"); err != nil {
		t.Error(err)
	}
}

// deleteAll reads and deletes what comes until stop is closed and nothing is
// left.
func deleteAll(t *testing.T, user string, cmd *exec.Cmd, b *basket, stop <-chan struct{}) {
	c, err := startIMAP(cmd)
	if err != nil {
		t.Errorf("%s: %v", user, err)
		return
	}
	defer c.end()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for last := false; ; <-tick.C {
		parts, err := c.take(true)
		if err == nil {
			err = b.see(parts)
		}
		if err != nil {
			t.Errorf("%s: %v", user, err)
			return
		}
		n := len(parts)
		if last && n == 0 {
			return
		}
		select {
		case <-stop:
			last = n == 0 || last
		default:
		}
	}
}
