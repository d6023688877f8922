package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
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

// oneReader is a reader with a mailbox of its own.
type oneReader struct {
	who, addr string
	visits    int // while mail pours in
	visit     visit
}

// slow has a reader wait, with what it has locked, before it cuts a system mailbox
// to its new length: what is delivered in that time, without a lock that the
// reader knows, is lost.
func slow(t *testing.T, cmd ...string) []string {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Logf("%s does not wait: %v", cmd[0], err)
		return cmd
	}
	return append([]string{strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=ftruncate", "-e", "inject=ftruncate:delay_enter=100000"}, cmd...)
}

// otherReaders has readers other than Dovecot's IMAP server come again and again
// while mail pours into their mailboxes. Each kind of lock is looked at by one that
// knows no other: a delivery without dot-locks is noticed by Dovecot with these
// alone, one without kernel locks by Dovecot with these alone, and at times by
// popa3d. Dovecot as Debian has it, mutt and procmail take both: one is enough for
// them, and they notice when both are missing.
func otherReaders(t *testing.T, d *daemon, conf string) {
	t.Helper()
	var all []oneReader
	if p := reader(t, "/usr/lib/dovecot/pop3"); p != "" {
		all = append(all, oneReader{"dovecot pop3, Maildir", "two@md.test", 4, func(all bool) ([]part, error) {
			return pop3(asUser(t, "two", p, "-c", conf+".maildir"), "", all)
		}})
		for _, locks := range []string{"both", "dot", "kernel"} {
			all = append(all, oneReader{"dovecot pop3, mbox, locks: " + locks, locks + "@mb.test", 4, func(all bool) ([]part, error) {
				cmd := asUser(t, locks, slow(t, p, "-c", conf+"."+locks)...)
				cmd.SysProcAttr.Credential.Groups = []uint32{8} // mail: for dot-locks
				return pop3(cmd, "", all)
			}})
		}
	}
	if p := reader(t, "/usr/sbin/popa3d"); p != "" {
		all = append(all, oneReader{"popa3d, mbox", "popa@mb.test", 3, func(all bool) ([]part, error) {
			cmd := slow(t, p)
			return pop3(exec.Command(cmd[0], cmd[1:]...), "popa", all)
		}})
	}
	if p := reader(t, "/usr/bin/imapd"); p != "" { // courier's
		all = append(all, oneReader{"courier, Maildir", "cour@md.test", 4, func(all bool) ([]part, error) {
			c, err := startIMAP(asUser(t, "cour", p, "Maildir"))
			if err != nil {
				return nil, err
			}
			defer c.end()
			return c.take(all)
		}})
	}
	if p := reader(t, "/usr/bin/mutt"); p != "" {
		all = append(all, oneReader{"mutt, Maildir", "muttd@md.test", 4, mutt(t, "muttd", "/home/muttd/Maildir")},
			oneReader{"mutt, mbox", "muttb@mb.test", 4, mutt(t, "muttb", "/var/mail/muttb")})
	}
	var both sync.WaitGroup
	for _, r := range all {
		both.Go(func() { pour(t, r) })
	}
	if p := reader(t, "/usr/bin/procmail"); p != "" {
		both.Go(func() { pourBeside(t, d) })
	}
	both.Wait()
}

// maxFlood bounds the mail for one reader: popa3d sleeps for a second with the
// mailbox locked when it has just changed.
const maxFlood = 400

// flood sends mail to addr until stop is called or there is much.
func flood(l *ledger, addr string) (stop func()) {
	end, sent := make(chan struct{}), make(chan struct{})
	go func() {
		l.send(maxFlood, 2, []string{addr}, end)
		close(sent)
	}()
	return sync.OnceFunc(func() { close(end); <-sent })
}

// pour floods a mailbox while its reader comes and deletes half of what it sees,
// lets it read the rest, and checks that it saw all, whole and once, that nothing is
// left and no lock is held.
func pour(t *testing.T, r oneReader) {
	user, _, _ := strings.Cut(r.addr, "@")
	l := &ledger{acked: map[string]string{}}
	end := time.Now().Add(3 * waitLimit)
	b := &basket{}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	stop := flood(l, r.addr)
	defer stop()
	visits, last := 0, false
	for time.Now().Before(end) {
		if !last && visits >= r.visits {
			stop()
			last = true
		}
		if !last && left(user) == 0 {
			<-tick.C
			continue
		}
		parts, err := r.visit(last)
		if err == nil {
			err = b.see(parts)
		}
		if err != nil {
			t.Errorf("%s: %v", r.who, err)
			return
		}
		if !last && len(parts) > 0 {
			visits++
		}
		if last && len(b.texts) >= l.len() && left(user) == 0 {
			break
		}
		if len(parts) == 0 {
			<-tick.C
		}
	}
	if !last || left(user) > 0 {
		t.Errorf("%s: %d visits while mail came, %d mails left", r.who, visits, left(user))
	}
	b.compare(t, fmt.Sprintf("%s, %d visits", r.who, visits), l, r.addr)
	noLocks(t, r.who, user)
}

// noLocks checks that nobody has left locks or temporary files.
func noLocks(t *testing.T, who, user string) {
	for _, pattern := range []string{"/var/mail/" + user + ".*", "/home/" + user + "/Maildir/*.lock", "/home/" + user + "/Maildir/tmp/*"} {
		if locks, _ := filepath.Glob(pattern); len(locks) > 0 {
			t.Errorf("%s: left behind: %v", who, locks)
		}
	}
}

// pourBeside floods a mailbox while procmail delivers large mails to it, in many
// pieces each: none may be mixed with another.
func pourBeside(t *testing.T, d *daemon) {
	small := &ledger{acked: map[string]string{}}
	stop := flood(small, "proc@mb.test")
	defer stop()
	large := &ledger{acked: map[string]string{}}
	for range 12 {
		if code := large.one("proc@pm.test", 1<<20); code != 0 {
			t.Errorf("procmail: refused with %d", code)
		}
	}
	stop()
	waitEmpty(t, d, 3*waitLimit)
	text, err := os.ReadFile("/var/mail/proc")
	if err != nil {
		t.Error(err)
		return
	}
	b := &basket{texts: strings.Split(string(text), "\n\nFrom ")}
	maps.Copy(small.acked, large.acked)
	b.compare(t, "procmail beside us", small, "proc@mb.test", "proc@pm.test")
	noLocks(t, "procmail", "proc")
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

// pop3 reads all there is and deletes each second mail, or all. Without a login
// the server knows whose mail it is.
func pop3(cmd *exec.Cmd, login string, all bool) (parts []part, err error) {
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
	if login != "" {
		if line, err := out.ReadString('\n'); err != nil || !strings.HasPrefix(line, "+OK") {
			return nil, fmt.Errorf("greeting %q: %v", line, err)
		}
		for _, cmd := range []string{"USER " + login, "PASS secret"} {
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
			p.gone = login != "" // popa3d's UIDL is a hash; Dovecot's never comes again
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
	// Its helper makes the dot-lock by the group of the spool, which it has not while
	// it is traced.
	program := strings.Replace(strings.Join(slow(t, "mutt"), " "), " -f ", " ", 1)
	return func(all bool) ([]part, error) {
		if left(user) == 0 {
			return nil, nil // mutt takes no keys for an empty mailbox
		}
		which := "~i [A-P]@"
		if all {
			which = "~i @example"
		}
		keys := "<tag-pattern>" + which + "<enter><tag-prefix-cond><save-message>" + dir + "<enter><end-cond>" + strings.Repeat("<quit>", 300)
		line := program + " -n -F " + tmp + "/rc -f " + box + " -e 'push \"" + keys + "\"'"
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
