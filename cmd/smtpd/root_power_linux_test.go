package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gosmtp "github.com/emersion/go-smtp"
)

// powerConf delivers to folders and files that are not there yet, and relays.
const powerConf = `listen on 127.0.0.1 port 25 hostname mx.test
queue ttl 1h
action dir maildir
action deep maildir "~/mail/lists/in"
action box mbox
action out relay host "smtp://127.0.0.1:2525"
match from any for domain dir.test action dir
match from any for domain deep.test action deep
match from any for domain box.test action box
match from any for domain file.test action dir
match from any for any action out
`

// powerRcpts are a Maildir, another whose parents are to be made, a mailbox, a
// file, and a mail that stays in the queue.
var powerRcpts = []string{"alice@dir.test", "alice@deep.test", "alice@box.test", "bob@file.test", "someone@far.test"}

// TestRootPowerCut stops the disk at moments of its choice while mail pours in,
// is delivered, kept offline, and while the queue is written anew; checks the
// file system as a machine does that starts, and starts the daemon on it: what
// was acknowledged before that moment arrives, or has arrived, whole.
func TestRootPowerCut(t *testing.T) {
	if !asRoot(t) {
		return
	}
	cuts := 6
	if os.Getenv(tortureVar) != "" {
		cuts = 60
	}
	sinkDir := relaySink(t)
	for _, fs := range []struct{ name, kind, mkfs string }{
		{"ext4 without journal", "ext4", "mkfs.ext4 -q -O ^has_journal"},
		{"ext4", "ext4", "mkfs.ext4 -q"},
		{"xfs", "xfs", "mkfs.xfs -q"},
		{"btrfs", "btrfs", "mkfs.btrfs -q"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			if _, err := exec.LookPath(strings.Fields(fs.mkfs)[0]); err != nil {
				t.Logf("%v: not tried", err)
				return
			}
			dir := filepath.Join("/run", strings.ReplaceAll(fs.name, " ", "-")) // in memory
			disk, at := filepath.Join(dir, "cut"), filepath.Join(dir, "fs")
			l, d, end := pourOnDisk(t, fs.mkfs, dir, at)
			if d == nil {
				return
			}
			acks := slices.Sorted(maps.Values(l.when))
			seed := rand.Uint64()
			chance := rand.New(rand.NewPCG(seed, 0))
			t.Logf("seed %d: %d acknowledged from moment %d to %d", seed, len(acks), acks[0], end)
			for n := range cuts {
				moment := end
				if n > 0 {
					moment = acks[0] + chance.IntN(end-acks[0])
				}
				memory := chance
				if n%2 == 0 {
					memory = nil
				}
				if err := d.cut(disk, moment, memory); err != nil {
					t.Fatal(err)
				}
				torn, err := checkPower(fs.kind, disk)
				if err != nil {
					t.Fatal(err)
				}
				if torn {
					t.Logf("moment %d: mailboxes that grow are not judged", moment)
				}
				afterPower(t, l, disk, at, sinkDir, moment, torn)
			}
		})
	}
}

// pourOnDisk makes a file system, starts the daemon with all its folders there,
// and sends; end is when that was over. No disk: this machine has not got what
// it takes.
func pourOnDisk(t *testing.T, mkfs, dir, at string) (l *ledger, d *powerDisk, end int) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := makePower(dir, mkfs); err != nil {
		t.Fatal(err)
	}
	if err := mountPower(filepath.Join(dir, "before"), at); err != nil {
		t.Logf("no such file system can be mounted here: %v", err)
		return nil, nil, 0
	}
	shell(t, `chown root:mail /var/mail; chmod 2775 /var/mail
for u in alice bob; do install -d -m 0700 -o $u -g $u /home/$u; done
echo /home/bob/box >/home/bob/.forward; chown bob /home/bob/.forward`)
	umountPower(t, at)
	d, err := newPowerDisk(dir)
	if err != nil {
		t.Logf("no disk of our own can be made here: %v", err)
		return nil, nil, 0
	}
	if err := mountPower(filepath.Join(dir, "disk"), at); err != nil {
		t.Fatal(err)
	}
	l = &ledger{acked: map[string]string{}, when: map[string]int{}, moment: d.moment}
	pourPower(t, l)
	end = d.moment()
	umountPower(t, at)
	if err := d.close(); err != nil {
		t.Error(err)
	}
	return l, d, end
}

// pourPower sends, has the queue written anew, sends again, and leaves mail offline.
func pourPower(t *testing.T, l *ledger) {
	t.Helper()
	s := startRoot(t, powerConf, "-P", "mta")
	sendPower(t, l, 40)
	waitFor(t, "the mail to be delivered", func() bool { // but for what is held
		queue := smtpctl(t, s, "show", "queue")
		return strings.Count(queue, "\n") == strings.Count(queue, "|mta|")
	})
	smtpctl(t, s, "queue", "compact")
	sendPower(t, l, 20)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	for range 2 {
		m := newLetter("alice@deep.test", 4096)
		cmd := exec.Command(filepath.Join(bins, "sendmail"), "-f", "sender@example.org", m.to)
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(m.text, "\r\n", "\n"))
		const kept = 75 // for later
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != kept {
			t.Fatalf("sendmail: %v", err)
		}
		l.add(m)
	}
	waitFor(t, "all processes to end", func() bool { return len(workersAlive()) == 0 })
}

// sendPower sends n mails, a fourth of them large, with four sessions.
func sendPower(t *testing.T, l *ledger, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
			if err != nil {
				t.Error(err)
				return
			}
			c := gosmtp.NewClient(conn)
			defer c.Close()
			for i := part; i < n; i += 4 {
				size := 4 << 10
				if i/len(powerRcpts)%4 == 1 {
					size = 100 << 10 // a file of its own
				}
				to := powerRcpts[i%len(powerRcpts)]
				if err := l.transaction(c, newLetter(to, size), to); err != nil {
					t.Errorf("to %s: %v", to, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// afterPower starts the daemon on a disk as the power cut left it, lets it
// deliver, and looks for all that had been acknowledged at a moment.
func afterPower(t *testing.T, l *ledger, disk, at, sinkDir string, moment int, torn bool) {
	t.Helper()
	if err := mountPower(disk, at); err != nil {
		t.Fatalf("moment %d: %v", moment, err)
	}
	// What a lock holds was never brought to disk: an hour later nobody waits for it.
	shell(t, "touch -c -d '1 hour ago' /var/mail/alice.lock")
	s := startRoot(t, powerConf)
	shell(t, "rm -f /var/spool/smtpd/offline/.[!.]*") // was being written
	waitFor(t, "offline mail to be taken", func() bool {
		left, _ := filepath.Glob("/var/spool/smtpd/offline/*")
		return len(left) == strings.Count(s.log(), "couldn't enqueue offline message")
	})
	waitEmpty(t, s, waitLimit)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	waitFor(t, "all processes to end", func() bool { return len(workersAlive()) == 0 })
	arrived := collect(t, "/home/alice/Maildir/new", "/home/alice/mail/lists/in/new")
	for token, texts := range arrived {
		if want, ok := l.acked[token]; len(texts) > 1 || ok && texts[0] != want {
			t.Errorf("moment %d: in a Maildir twice, or not whole: %d times %q", moment, len(texts), texts[0])
		}
	}
	// Without a journal an offline mail may get a second name, that of a file that
	// was removed: then it stays, and the operator is told.
	for token, texts := range collect(t, sinkDir, "/var/spool/smtpd/offline") {
		arrived[token] = append(arrived[token], texts...)
	}
	boxes := map[string][]string{}
	for _, box := range []string{"/var/mail/alice", "/home/bob/box"} {
		if _, err := os.Stat(box); err == nil {
			addBox(t, boxes, box)
		}
	}
	for token, texts := range boxes {
		for _, text := range texts { // zeros, or a part of a mail that was being added, may lie behind
			if want := l.acked[token]; want != "" && strings.HasPrefix(text, want) {
				text = want
			}
			arrived[token] = append(arrived[token], text)
		}
	}
	missing, all := map[string]int{}, 0
	for token, text := range l.acked {
		_, to, _ := strings.Cut(text, "\nTo: ")
		to, _, _ = strings.Cut(to, "\n")
		if l.when[token] > moment || torn && (to == "<alice@box.test>" || to == "<bob@file.test>") {
			continue
		}
		all++
		if !slices.Contains(arrived[token], text) {
			missing[fmt.Sprintf("%s, %d copies not whole", to, len(arrived[token]))]++
		}
	}
	if len(missing) > 0 {
		t.Errorf("moment %d: lost of %d: %v\nlog:\n%s", moment, all, missing, tail([]byte(s.log()), 10))
	}
	umountPower(t, at)
	shell(t, "rm -f "+disk+" "+sinkDir+"/*")
}
