package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// spoolSize is that of the small disk.
const spoolSize = "size=64m"

// TestRootDiskFull fills a spool of 64 MB under load: clients are told 452,
// nothing acknowledged is lost, delivery goes on, and mail is accepted again by
// itself once there is room.
func TestRootDiskFull(t *testing.T) {
	if !asRoot(t) {
		return
	}
	if err := os.MkdirAll("/var/spool/smtpd", 0o711); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", "/var/spool/smtpd", "tmpfs", 0, spoolSize+",mode=0711"); err != nil {
		t.Fatal(err)
	}
	sinkDir := relaySink(t)
	d := startRoot(t, rootConf)
	smtpctl(t, d, "pause", "mta")
	smtpctl(t, d, "pause", "mda")
	l := &ledger{acked: map[string]string{}}
	refusals := fillSpool(t, l)
	t.Logf("%d mails acknowledged before the disk was full, then %d of 20 told 452", l.len(), refusals)
	if refusals < 20 {
		t.Errorf("%d of 20 were told 452 when the disk was full", refusals)
	}

	for _, re := range []string{`(?m)warn: queue: (commit|body) of [0-9a-f]{8}: 452 4.3.1 Insufficient system storage`,
		`(?m)warn: smtp: the spool does not take a message: no space left on device$`} {
		if !regexp.MustCompile(re).MatchString(d.log()) {
			t.Errorf("the log does not say %s", re)
		}
	}

	// Delivery goes on, makes room, and nobody has to do anything.
	smtpctl(t, d, "resume", "mda")
	smtpctl(t, d, "resume", "mta")
	waitEmpty(t, d, 2*time.Minute)
	l.check(t, collect(t, "/home/alice/Maildir/new", sinkDir), true)
	before := l.len()
	stop := time.AfterFunc(waitLimit, func() { d.kill() })
	l.send(200, 4, []string{"alice@localhost", "someone@far.test"}, d.ended)
	stop.Stop()
	if n := l.len() - before; n != 200 {
		t.Fatalf("%d of 200 accepted once there was room\n%s", n, tail([]byte(d.log()), 20))
	}
	waitEmpty(t, d, time.Minute)
	l.check(t, collect(t, "/home/alice/Maildir/new", sinkDir), true)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// TestRootDiskFullDelays has forty mails become late while the disk is full: no
// notice is lost, each is told once when there is room, and the late mail is kept.
func TestRootDiskFullDelays(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const late = 40
	if err := os.MkdirAll("/var/spool/smtpd", 0o711); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", "/var/spool/smtpd", "tmpfs", 0, "size=24m,mode=0711"); err != nil {
		t.Fatal(err)
	}
	s, err := startSink("127.0.0.1:2525", filepath.Join(t.TempDir(), "sink"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	d := startRoot(t, "bounce warn-interval 1s\n"+rootConf)
	smtpctl(t, d, "pause", "mta")
	smtpctl(t, d, "pause", "mda")
	l := &ledger{from: "alice@localhost", acked: map[string]string{}}
	for i := range late {
		if code := l.one(fmt.Sprintf("4u%d@far.test", i), 1<<10); code != 0 {
			t.Fatalf("refused: %d", code)
		}
	}
	l.fillUp(t, "bob@localhost")
	smtpctl(t, d, "resume", "mta")
	if err := d.waitLog(regexp.MustCompile(`mta delivery .* result="TempFail"`), late); err != nil {
		t.Fatal(err)
	}
	if err := d.waitLog(regexp.MustCompile(`warn: queue: .*: 452 4.3.1 Insufficient system storage`), 2); err != nil {
		t.Fatal(err) // the first is of a mail
	}
	smtpctl(t, d, "remove", "where", "to=bob@localhost")
	smtpctl(t, d, "resume", "mda")
	told := regexp.MustCompile(`(?m)^Final-Recipient: rfc822; (4u[0-9]+@far.test)$`)
	tellers := map[string]int{}
	waitFor(t, "all notices", func() bool {
		clear(tellers)
		files, _ := filepath.Glob("/home/alice/Maildir/new/*")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if m := told.FindSubmatch(b); err == nil && m != nil {
				tellers[string(m[1])]++
			}
		}
		smtpctl(t, d, "schedule", "where", "kind=bounce") // what was refused room has a time to wait
		return len(tellers) == late
	})
	if n := strings.Count(smtpctl(t, d, "show", "queue", "where", "to=4u*"), "|pending|"); n != late {
		t.Errorf("%d of %d late mails are kept", n, late)
	}
	waitFor(t, "no other mail", func() bool { return smtpctl(t, d, "show", "queue", "where", "domain=localhost") == "" })
	for to, n := range tellers {
		if n != 1 {
			t.Errorf("%d notices about %s", n, to)
		}
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// fillUp sends ever smaller mails until the spool has no room for the smallest.
func (l *ledger) fillUp(t *testing.T, to string) {
	t.Helper()
	sent := 0
	for size := 256 << 10; size >= 1<<10; size /= 8 {
		for code := 0; code != 452; sent++ {
			if code = l.one(to, size); (code != 0 && code != 452) || sent > 20000 {
				t.Fatalf("mail %d, of %d octets: answered %d", sent, size, code)
			}
		}
	}
}

// fillSpool sends from eight connections until each was refused, then 20 more
// mails, and gives how many of those were told 452.
func fillSpool(t *testing.T, l *ledger) int {
	t.Helper()
	full := make(chan struct{}, 8)
	for c := range cap(full) {
		go func() {
			defer func() { full <- struct{}{} }()
			for n := 0; n < 20000; n++ {
				if code := l.one([]string{"alice@localhost", "someone@far.test"}[c%2], 16<<10<<(c%3*2)); code == 452 {
					return
				}
			}
		}()
	}
	limit := time.After(2 * time.Minute)
	for range cap(full) {
		select {
		case <-full:
		case <-limit:
			t.Fatal("the disk is not full after two minutes")
		}
	}
	refused := 0
	for range 20 {
		code := l.one("alice@localhost", 200<<10)
		if code == 452 {
			refused++
			continue
		}
		t.Logf("answered %d", code)
	}
	return refused
}

// oldEnvelope is how OpenSMTPD 7.8 keeps one.
const oldEnvelope = `version: 3
dispatcher: local
type: mda
smtpname: mx.test
helo: client.test
hostname: localhost
sockaddr: local
sender: sender@example.org
rcpt: alice@localhost
dest: alice@localhost
ctime: 1795216993
last-try: 0
last-bounce: 0
ttl: 345600
retry: 0
dsn-notify: 0
mda-user: alice
`

// TestRootImport starts on the spool that OpenSMTPD left, with its owners and
// modes: `smtpctl queue import` is all there is to do, in the locked up process
// that keeps the queue.
func TestRootImport(t *testing.T) {
	if !asRoot(t) {
		return
	}
	script := `set -e
mkdir -p -m 711 /var/spool/smtpd
cd /var/spool/smtpd
for d in queue corrupt incoming temporary purge; do install -d -m 0700 -o _smtpq "$d"; done
install -d -m 0770 -o root -g _smtpq offline
i=1
while [ $i -le 1200 ]; do
	id=$(printf %02x000%03x $((i % 200)) $i)
	mkdir -p queue/$(printf %02x $((i % 200)))/$id
	case $id in 0*) who=alice;; *) who=bob;; esac
	sed "s/alice@/$who@/" "$1" >queue/$(printf %02x $((i % 200)))/$id/${id}0000beef
	printf 'X-Token: %s\nSubject: old\n\nhello\n' $id >queue/$(printf %02x $((i % 200)))/$id/message
	i=$((i + 1))
done
chown -R _smtpq queue
chown -R bob queue/0* # of another user, as where packages differ
chmod -R go= queue`
	file := filepath.Join(t.TempDir(), "envelope")
	text := strings.Replace(oldEnvelope, "1795216993", "4000000000", 1) // no test lives so long
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-c", script, "sh", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := startRoot(t, rootConf, "-P", "mda")
	if err := d.waitLog(regexp.MustCompile("warn: queue: mail of OpenSMTPD in the queue folder.*`smtpctl queue import`"), 1); err != nil {
		t.Error(err)
	}
	out := smtpctl(t, d, "queue", "import")
	if !regexp.MustCompile(`(?m)^1000 of 1200 messages$`).MatchString(out) || !strings.HasSuffix(out, "\n1200 messages, 1200 envelopes imported, 0 left\n") {
		t.Errorf("import: %q", out)
	}
	if n := strings.Count(smtpctl(t, d, "show", "queue"), "\n"); n != 1200 {
		t.Errorf("%d of 1200 are in the queue", n)
	}
	// Some are delivered; all of them, with their syncs, would be a test of the
	// disk and of what else uses it.
	if out := smtpctl(t, d, "remove", "where", "to=bob@localhost"); out != "1104 envelopes removed\n" {
		t.Errorf("remove: %q", out)
	}
	smtpctl(t, d, "resume", "mda")
	smtpctl(t, d, "schedule", "all")
	waitEmpty(t, d, time.Minute)
	if n := len(collect(t, "/home/alice/Maildir/new")); n != 96 {
		t.Errorf("%d of 96 delivered", n)
	}
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}
