package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// visit is one session of a reader with a mailbox: it reads all or some of what
// lies there, deletes half or, when told so, all of it, and says what it saw.
type visit func(all bool) ([]part, error)

// otherReaders has readers other than Dovecot's IMAP server come again and
// again while n mails for each pour into the mailbox.
func otherReaders(t *testing.T, conf string, n int) {
	t.Helper()
	type one struct {
		who, addr string
		visit     visit
	}
	var mbox, maildir []one
	if p := reader(t, "/usr/lib/dovecot/pop3"); p != "" {
		maildir = append(maildir, one{"dovecot pop3, Maildir", "alice@md.test", func(all bool) ([]part, error) {
			return pop3(asUser(t, "alice", p, "-c", conf+".alice"), false, all)
		}})
		mbox = append(mbox, one{"dovecot pop3, mbox", "bob@mb.test", func(all bool) ([]part, error) {
			cmd := asUser(t, "bob", p, "-c", conf+".bob")
			cmd.SysProcAttr.Credential.Groups = []uint32{8} // mail: for dot-locks
			return pop3(cmd, false, all)
		}})
	}
	if p := reader(t, "/usr/sbin/popa3d"); p != "" {
		mbox = append(mbox, one{"popa3d, mbox", "bob@mb.test", func(all bool) ([]part, error) {
			return pop3(exec.Command(p), true, all)
		}})
	}
	if p := reader(t, "/usr/bin/imapd"); p != "" { // courier's
		maildir = append(maildir, one{"courier, Maildir", "alice@md.test", func(all bool) ([]part, error) {
			c, err := startIMAP(asUser(t, "alice", p, "Maildir"))
			if err != nil {
				return nil, err
			}
			defer c.end()
			return c.take(all)
		}})
	}
	if p := reader(t, "/usr/bin/mutt"); p != "" {
		maildir = append(maildir, one{"mutt, Maildir", "alice@md.test", mutt(t, "alice", "/home/alice/Maildir")})
		mbox = append(mbox, one{"mutt, mbox", "bob@mb.test", mutt(t, "bob", "/var/mail/bob")})
	}
	var both sync.WaitGroup
	for _, chain := range [][]one{mbox, maildir} {
		both.Go(func() {
			for _, r := range chain {
				pour(t, r.who, r.addr, n, r.visit)
			}
		})
	}
	both.Wait()
}

// pourVisits is how many gusts of mail come, each while a reader is at work.
const pourVisits = 10

// pour sends n mails to addr in gusts, each as soon as the reader has come back
// from a visit during the one before, lets it read the rest, and checks that it
// saw all, whole and once, that nothing is left and no lock is held.
func pour(t *testing.T, who, addr string, n int, visit visit) {
	l := &ledger{acked: map[string]string{}}
	end := time.Now().Add(waitLimit)
	stop := make(chan struct{})
	gust := func() chan struct{} {
		c := make(chan struct{})
		go func() {
			l.send(n/pourVisits, 2, []string{addr}, stop)
			close(c)
		}()
		return c
	}
	sent, gusts, visits := gust(), 1, 0
	defer func() { close(stop); <-sent }()
	user, _, _ := strings.Cut(addr, "@")
	b := &basket{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(end) {
		over := false
		select {
		case <-sent:
			over = gusts == pourVisits
			if !over && visits >= gusts { // never ahead of the reader
				sent = gust()
				gusts++
			}
		default:
		}
		parts, err := visit(over)
		if err == nil {
			err = b.see(parts)
		}
		if err != nil {
			t.Errorf("%s: %v", who, err)
			return
		}
		if !over && len(parts) > 0 {
			visits++
		}
		if over && len(b.texts) >= l.len() && left(user) == 0 {
			break
		}
		if len(parts) == 0 {
			<-tick.C
		}
	}
	if visits < pourVisits-1 || left(user) > 0 {
		t.Errorf("%s: %d visits while mail came, %d mails left", who, visits, left(user))
	}
	b.compare(t, fmt.Sprintf("%s, %d visits", who, visits), l, addr)
	for _, pattern := range []string{"/var/mail/" + user + ".*", "/home/" + user + "/Maildir/*.lock", "/home/" + user + "/Maildir/tmp/*"} {
		if locks, _ := filepath.Glob(pattern); len(locks) > 0 {
			t.Errorf("%s: left behind: %v", who, locks)
		}
	}
}

// boxes is what lies in the mailboxes of alice and bob, by token.
func boxes(t *testing.T) map[string][]string {
	t.Helper()
	all := collect(t, "/home/alice/Maildir/new", "/home/alice/Maildir/cur")
	b, err := os.ReadFile("/var/mail/bob")
	if err != nil {
		t.Error(err)
	}
	for _, text := range strings.Split(string(b), "\nX-Token: ")[1:] {
		token, _, _ := strings.Cut(text, "\n")
		text, _, _ = strings.Cut(text, "\n\nFrom ")
		all[token] = append(all[token], bare("X-Token: "+text))
	}
	return all
}

// left is how many mails of ours lie in the mailboxes of a user.
func left(user string) int {
	b, _ := os.ReadFile("/var/mail/" + user)
	n := strings.Count(string(b), "\nX-Token: ")
	for _, dir := range []string{"new", "cur"} {
		files, _ := os.ReadDir("/home/" + user + "/Maildir/" + dir)
		n += len(files)
	}
	return n
}

// pop3 reads all there is and deletes each second mail, or all.
func pop3(cmd *exec.Cmd, login, all bool) (parts []part, err error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	hung := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer func() {
		in.Close()
		defer hung.Stop()
		err = errors.Join(err, cmd.Wait())
	}()
	out := bufio.NewReaderSize(pipe, 1<<16)
	if login {
		if line, err := out.ReadString('\n'); err != nil || !strings.HasPrefix(line, "+OK") {
			return nil, fmt.Errorf("greeting %q: %v", line, err)
		}
		for _, cmd := range []string{"USER bob", "PASS secret"} {
			if _, err := popDo(in, out, cmd, false); err != nil {
				return nil, err
			}
		}
	}
	list, err := popDo(in, out, "UIDL", true)
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(strings.TrimSuffix(list, "\r\n"), "\r\n") {
		number, uid, ok := strings.Cut(line, " ")
		if !ok {
			break // none
		}
		text, err := popDo(in, out, "RETR "+number, true)
		if err != nil {
			return nil, err
		}
		p := part{uid: uid, text: text}
		if all || i%2 == 0 {
			if _, err := popDo(in, out, "DELE "+number, false); err != nil {
				return nil, err
			}
			p.gone = login // popa3d's UIDL is a hash; Dovecot's never comes again
		}
		if strings.Contains(text, "X-Token: ") { // otherwise a note of Dovecot
			parts = append(parts, p)
		}
	}
	_, err = popDo(in, out, "QUIT", false)
	return parts, err
}

// popDo gives a command and returns the lines of a long answer.
func popDo(in io.Writer, out *bufio.Reader, cmd string, long bool) (string, error) {
	if _, err := io.WriteString(in, cmd+"\r\n"); err != nil {
		return "", err
	}
	line, err := out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "+OK") {
		return "", fmt.Errorf("%s: %q: %v", cmd, line, err)
	}
	var text strings.Builder
	for long {
		line, err := out.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("%s: %w", cmd, err)
		}
		if line == ".\r\n" {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "."))
	}
	return text.String(), nil
}

// mutt gives visits of mutt, each on a terminal of its own: mails by a part of
// their tokens, or all, move to a Maildir beside the mailbox. When mail comes
// while mutt saves, it shows that instead of leaving: so it is told to often.
func mutt(t *testing.T, user, box string) visit {
	t.Helper()
	tmp, dir := t.TempDir(), "/home/"+user+"/moved"
	rc := "set quit=yes delete=yes move=no confirmcreate=no confirmappend=no mbox_type=Maildir sort=mailbox-order sleep_time=0\n"
	if err := os.WriteFile(tmp+"/rc", []byte(rc), 0o644); err != nil {
		t.Fatal(err)
	}
	return func(all bool) ([]part, error) {
		if left(user) == 0 {
			return nil, nil // mutt takes no keys for an empty mailbox
		}
		which := "~i [A-P]@"
		if all {
			which = "~i @example"
		}
		keys := "<tag-pattern>" + which + "<enter><tag-prefix-cond><save-message>" + dir + "<enter><end-cond>" + strings.Repeat("<quit>", 300)
		line := "mutt -n -F " + tmp + "/rc -f " + box + " -e 'push \"" + keys + "\"'"
		cmd := asUser(t, user, "timeout", "20", "script", "-qec", line, "/dev/null")
		if _, err := cmd.StdinPipe(); err != nil { // stays open: its end would be a key to mutt
			return nil, err
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("mutt: %w: %q", err, tail(out, 5))
		}
		var parts []part
		files, _ := filepath.Glob(dir + "/[cn]*/*")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil {
				err = os.Remove(f)
			}
			if err != nil {
				return nil, err
			}
			if strings.Contains(string(b), "X-Token: ") { // otherwise a note of Dovecot
				parts = append(parts, part{uid: f, text: string(b)})
			}
		}
		return parts, nil
	}
}
