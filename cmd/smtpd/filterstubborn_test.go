package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// stubborn are programs that do not work, by what the log says of them.
var stubborn = map[string]struct{ script, log string }{
	"exits":      {"exit 3", "exited abnormally"},
	"mute":       {"cat >/dev/null", "gives no answer"},
	"babbler":    {"while echo noise; do :; done", "not a registration"},
	"late":       {"head -c 100 >/dev/null; sleep 0.2; echo 'register|filter|smtp-in|nosuch'; cat >/dev/null", "not a registration"},
	"hasty":      {register("mail-from") + "\nwhile echo noise; do :; done", "Invalid filter message type: noise"},
	"not-there":  {"", "exited abnormally"},
	"deaf":       {register("mail-from") + "\nwhile :; do sleep 1; done", "gives no answer"},
	"screamer":   {"while echo scream >&2; do :; done", "gives no answer"},
	"half-eared": {register("mail-from") + "\nread -r x; read -r x; exec cat >/dev/null", "gives no answer"},
}

// register is a shell's part of the handshake.
func register(phases ...string) string {
	var b strings.Builder
	b.WriteString("while IFS= read -r l && [ \"$l\" != 'config|ready' ]; do :; done\n")
	for _, p := range phases {
		fmt.Fprintf(&b, "echo 'register|filter|smtp-in|%s'\n", p)
	}
	return b.String() + "echo 'register|ready'"
}

// Programs that do not work cost the sessions of their own listener a 4xx, or
// nothing with on-failure pass, and nobody else anything; they are started anew
// with growing pauses, and what they say stays bounded.
func TestFilterStubborn(t *testing.T) {
	dir := t.TempDir()
	ports, err := freePorts(2*len(stubborn), t.Cleanup)
	if err != nil {
		t.Fatal(err)
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "listen on 127.0.0.1 port $port1 hostname mx.test\n")
	at := map[string][2]int{}
	for name, s := range stubborn {
		path := filepath.Join(dir, name+".sh")
		if s.script != "" {
			if err := os.WriteFile(path, []byte(s.script+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		p := [2]int{ports[2*len(at)], ports[2*len(at)+1]}
		at[name] = p
		fmt.Fprintf(&conf, "proc %q \"/bin/sh %s\" timeout 1s\nfilter %q proc %q\nfilter \"%s-pass\" proc %q on-failure pass\n",
			name, path, name, name, name, name)
		fmt.Fprintf(&conf, "listen on 127.0.0.1 port %d hostname mx.test filter %q\n", p[0], name)
		fmt.Fprintf(&conf, "listen on 127.0.0.1 port %d hostname mx.test filter \"%s-pass\"\n", p[1], name)
	}
	conf.WriteString("action \"local\" maildir $box virtual { \"@mx.test\" = $me }\nmatch from any for domain \"mx.test\" action \"local\"\n")
	began := time.Now()
	d, addr := filterDaemon(t, dir, conf.String())
	const body = "Subject: x\r\n\r\nx"
	var wg sync.WaitGroup
	for name, s := range stubborn {
		wg.Go(func() {
			reply, err := mailer(fmt.Sprintf("127.0.0.1:%d", at[name][0]), "a@b.org", body)
			if err != nil || reply[0] != '4' {
				t.Errorf("%s: %q, %v", name, reply, err)
			}
			reply, err = mailer(fmt.Sprintf("127.0.0.1:%d", at[name][1]), "a@b.org", body)
			if err != nil || !strings.HasPrefix(reply, "250") {
				t.Errorf("%s, on-failure pass: %q, %v", name, reply, err)
			}
			if err := d.waitLog(regexp.MustCompile("lost processor: "+name+" .*"+regexp.QuoteMeta(s.log)), 1); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	for range 20 {
		if reply, err := mailer(addr, "a@b.org", body); err != nil || !strings.HasPrefix(reply, "250") {
			t.Errorf("without a filter: %q, %v", reply, err)
		}
	}
	wg.Wait()
	// After 50 ms, 100, 200, ... and then every second, if it registers at all.
	most := 6 + int(time.Since(began)/time.Second)
	for name := range stubborn {
		if n := strings.Count(d.log(), "lost processor: "+name+" "); n > most {
			t.Errorf("%s was started %d times; want %d at most", name, n, most)
		}
	}
	if n := strings.Count(d.log(), "screamer: scream"); n > 2000 {
		t.Errorf("%d lines of one program are in the log", n)
	}
	b, err := exec.Command(filepath.Join(bins, "smtpctl"), "-s", d.socket, "show", "filters").CombinedOutput()
	out := string(b)
	if err != nil || len(strings.Split(strings.TrimSpace(out), "\n")) != len(stubborn) || !strings.Contains(out, "gives no answer") {
		t.Errorf("show filters: %v\n%s", err, out)
	}
}
