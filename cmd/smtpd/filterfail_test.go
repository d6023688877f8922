package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const oneFilterConf = `
filter "f" proc-exec "%s %s"
listen on 127.0.0.1 port $port1 hostname mx.test filter "f"
action "local" maildir $box virtual { "@mx.test" = $me }
match from any for domain "mx.test" action "local"
`

// passing answers everything as if it were not there; each line may be looked
// at first, and left alone by returning false.
func passing(c *talk, look func(what, name, id, rest string) bool) {
	for {
		line, ok := c.line()
		if !ok {
			return
		}
		what, name, id, rest := fieldsOf(line)
		if what != "filter" {
			continue
		}
		token, text, _ := strings.Cut(rest, "|")
		switch {
		case look != nil && !look(what, name, id, rest):
		case name == "data-line":
			c.say("filter-dataline|%s|%s|%s", id, token, text)
		default:
			c.say("filter-result|%s|%s|proceed", id, token)
		}
	}
}

// mailer is an SMTP client that sends one mail.
func mailer(addr, sender, body string) (reply string, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(waitLimit))
	in := bufio.NewReader(conn)
	for _, cmd := range []string{"", "HELO c", "MAIL FROM:<" + sender + ">", "RCPT TO:<x@mx.test>", "DATA", body + "\r\n."} {
		if cmd != "" {
			if _, err := io.WriteString(conn, cmd+"\r\n"); err != nil {
				return "", err
			}
		}
		if reply, err = in.ReadString('\n'); err != nil || reply[0] > '3' {
			return reply, err
		}
	}
	return reply, nil
}

// A program that misbehaves costs its sessions a 4xx, is logged and started
// again; the next session is served.
func TestFilterMisbehaviour(t *testing.T) {
	const id, token = "%[1]s", "%[2]s"
	tests := map[string]struct {
		says string // in answer to MAIL; empty: it dies
		log  string
	}{
		"dies":          {"", "exited abnormally"},
		"unknown":       {"filter-result|" + id + "|" + token + "|frobnicate", "Missing parameter"},
		"no parameter":  {"filter-result|" + id + "|" + token + "|reject", "Missing parameter"},
		"bad token":     {"filter-result|" + id + "|0000000000000001|proceed", "misbehaving filter"},
		"wrong session": {"filter-result|0000000000000001|" + token + "|proceed", "misbehaving filter"},
		"twice":         {"filter-result|" + id + "|" + token + "|proceed\nfilter-result|" + id + "|" + token + "|proceed", "misbehaving filter"},
		"a line":        {"filter-dataline|" + id + "|" + token + "|x", "misbehaving filter"},
		"garbage":       {"garbage line", "Invalid filter message type: garbage line"},
		"cut short":     {"filter-result|" + id, "Missing parameter"},
		"a long line":   {strings.Repeat("x", 2<<20), "a line is too long"},
		"silent":        {"-", "gives no answer"},
	}
	dir := t.TempDir()
	program := pipeProgram(t)
	var says atomic.Pointer[string]
	f := newFake(t, dir, "f", func(c *talk) {
		c.register("report|smtp-in|*", "filter|smtp-in|mail-from", "filter|smtp-in|data-line", "filter|smtp-in|commit")
		passing(c, func(_, name, id, rest string) bool {
			bad := says.Load()
			if name != "mail-from" || bad == nil {
				return true
			}
			token, _, _ := strings.Cut(rest, "|")
			switch {
			case *bad == "":
				c.conn.Close()
			case *bad != "-":
				c.say("%s", strings.NewReplacer("%[1]s", id, "%[2]s", token).Replace(*bad))
			}
			return false
		})
	})
	conf := strings.Replace(fmt.Sprintf(oneFilterConf, program, f.socket), f.socket+`"`, f.socket+`" timeout 1s`, 1)
	d, addr := filterDaemon(t, dir, conf)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			says.Store(&tt.says)
			before := strings.Count(d.log(), "lost processor: f ")
			reply, err := mailer(addr, "a@b.org", "Subject: x\r\n\r\nx")
			if err == nil && reply[0] != '4' && name != "twice" {
				t.Errorf("reply %q", reply)
			}
			if err != nil {
				t.Errorf("no reply: %v", err)
			}
			if err := d.waitLog(regexp.MustCompile("lost processor: f .*"), before+1); err != nil {
				t.Fatal(err)
			}
			lines := regexp.MustCompile("lost processor: f .*").FindAllString(d.log(), -1)
			if last := lines[len(lines)-1]; !strings.Contains(last, tt.log) {
				t.Errorf("log %q; want %q", last, tt.log)
			}
			if shown := smtpctl(t, d, "show", "filters"); !strings.Contains(shown, tt.log) {
				t.Errorf("shown %q; want %q", shown, tt.log)
			}
			says.Store(nil)
			if reply, err := mailer(addr, "a@b.org", "Subject: x\r\n\r\nx"); err != nil || !strings.HasPrefix(reply, "250") {
				t.Errorf("afterwards: %q, %v", reply, err)
			}
		})
	}
}

// A refusal in words that are no reply ends the session with 421, and the log
// and show filters say why; the program goes on.
func TestFilterWrongReply(t *testing.T) {
	dir := t.TempDir()
	program := pipeProgram(t)
	wrong := map[string]string{"ok@b.org": "reject|250 2.0.0 fine", "text@b.org": "disconnect|go away", "long@b.org": "reject|5500 x"}
	f := newFake(t, dir, "f", func(c *talk) {
		c.register("filter|smtp-in|mail-from")
		passing(c, func(_, _, id, rest string) bool {
			token, from, _ := strings.Cut(rest, "|")
			if wrong[from] == "" {
				return true
			}
			c.say("filter-result|%s|%s|%s", id, token, wrong[from])
			return false
		})
	})
	d, addr := filterDaemon(t, dir, fmt.Sprintf(oneFilterConf, program, f.socket))
	for from, said := range wrong {
		if reply, err := mailer(addr, from, "x"); err != nil || !strings.HasPrefix(reply, "421 ") {
			t.Errorf("%s: %q, %v", said, reply, err)
		}
		_, text, _ := strings.Cut(said, "|")
		why := "the reply does not begin with a 4xx or 5xx code and a blank: " + text
		if err := d.waitLog(regexp.MustCompile("warn: filter f: "+regexp.QuoteMeta(why)), 1); err != nil {
			t.Error(err)
		}
		if shown := smtpctl(t, d, "show", "filters"); !strings.HasPrefix(shown, "f|running|restarts=0|") || !strings.Contains(shown, why) {
			t.Errorf("shown %q; want %q", shown, why)
		}
	}
	if reply, err := mailer(addr, "a@b.org", "Subject: x\r\n\r\nx"); err != nil || !strings.HasPrefix(reply, "250") {
		t.Errorf("afterwards: %q, %v", reply, err)
	}
}

// A thousand sessions while the program is killed every 200 ms: each mail is
// refused for now, or delivered whole.
func TestFilterKilled(t *testing.T) {
	const sessions = 1000
	dir := t.TempDir()
	program := pipeProgram(t)
	var life atomic.Pointer[talk]
	f := newFake(t, dir, "f", func(c *talk) {
		c.register("filter|smtp-in|mail-from", "filter|smtp-in|data-line", "filter|smtp-in|commit")
		life.Store(c)
		passing(c, nil)
	})
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the test
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-stop:
				return
			}
			if c := life.Swap(nil); c != nil {
				c.conn.Close() // the program ends at that
			}
		}
	}()
	d, addr := filterDaemon(t, dir, fmt.Sprintf(oneFilterConf, program, f.socket))
	results := make(chan string, sessions)
	body := func(i int) string {
		return fmt.Sprintf("Subject: number %d\r\n\r\n%sthe end of %d", i, strings.Repeat("some text\r\n", 20), i)
	}
	limit := make(chan struct{}, 20)
	for i := range sessions {
		limit <- struct{}{}
		go func() {
			defer func() { <-limit }()
			reply, err := mailer(addr, "a@b.org", body(i))
			results <- fmt.Sprint(reply, err)
		}()
	}
	ok := 0
	for range sessions {
		switch r := <-results; {
		case strings.HasPrefix(r, "250"):
			ok++
		case !strings.HasPrefix(r, "4"):
			t.Errorf("a mail got %q", r)
		}
	}
	if err := d.waitLog(regexp.MustCompile("mda delivery .*result=Ok"), ok); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "Maildir", "new", "*"))
	if err != nil || len(files) != ok {
		t.Errorf("%d mails accepted, %d delivered, %v", ok, len(files), err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`Subject: number (\d+)`).FindSubmatch(b)
		if m == nil || !bytes.HasSuffix(b, fmt.Appendf(nil, "some text\nthe end of %s\n", m[1])) ||
			bytes.Count(b, []byte("some text\n")) != 20 {
			t.Errorf("not whole: %q", b)
		}
	}
	t.Logf("%d of %d accepted, %d lives", ok, sessions, strings.Count(d.log(), "lost processor")+1)
}

// A large message with a very long line passes three programs octet for octet,
// and the processes stay small.
func TestFilterLarge(t *testing.T) {
	dir := t.TempDir()
	program := pipeProgram(t)
	conf, names := "", []string{}
	for i := range 3 {
		f := newFake(t, dir, fmt.Sprint("f", i), func(c *talk) {
			c.register("filter|smtp-in|data-line")
			w := bufio.NewWriterSize(c.conn, 64<<10)
			for {
				line, ok := c.line()
				if !ok {
					return
				}
				_, _, id, rest := fieldsOf(line)
				fmt.Fprintf(w, "filter-dataline|%s|%s\n", id, rest)
				if strings.HasSuffix(rest, "|.") || w.Buffered() > 32<<10 {
					w.Flush()
				}
			}
		})
		conf += fmt.Sprintf("filter \"f%d\" proc-exec \"%s %s\"\n", i, program, f.socket)
		names = append(names, fmt.Sprintf("\"f%d\"", i))
	}
	conf += "filter \"f\" chain { " + strings.Join(names, ", ") + " }\nsmtp max-message-size \"40M\"\nsmtp limit max-line 2000000\n"
	conf += strings.SplitN(oneFilterConf, "\n", 3)[2]
	d, addr := filterDaemon(t, dir, conf)
	var body bytes.Buffer
	body.WriteString("Subject: large\n\n")
	body.WriteString(strings.Repeat("z", 1<<20) + "\n")
	for i := 0; body.Len() < 30<<20; i++ {
		fmt.Fprintf(&body, "%08d %s\n", i, strings.Repeat("x", i%70))
	}
	reply, err := mailer(addr, "a@b.org", strings.TrimSuffix(strings.ReplaceAll(body.String(), "\n", "\r\n"), "\r\n"))
	if err != nil || !strings.HasPrefix(reply, "250") {
		t.Fatalf("%q, %v", reply, err)
	}
	for role, pid := range d.children() {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b); m != nil && (role == "lookup" || role == "smtp") {
			t.Logf("%s: at most %s kB", role, m[1])
			if len(m[1]) > 5 && string(m[1]) > "150000" {
				t.Errorf("%s has taken %s kB", role, m[1])
			}
		}
	}
	if err := d.waitLog(regexp.MustCompile("mda delivery .*result=Ok"), 1); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "Maildir", "new", "*"))
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	b, err := os.ReadFile(files[0])
	_, text, _ := bytes.Cut(b, []byte("\n\n"))
	_, want, _ := bytes.Cut(body.Bytes(), []byte("\n\n"))
	if err != nil || !bytes.Equal(text, want) {
		t.Errorf("%d octets came of %d, not as they went; %v", len(text), len(want), err)
	}
}
