package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostileParts are local parts and tags as a client can send them, some only in
// quotes. What they would run makes a file named hacked where it is run.
var hostileParts = []string{";touch hacked;", "$(touch hacked)", "`touch hacked`", "|touch${IFS}hacked", "&touch hacked&", "'; touch hacked; '",
	`\";touch hacked;\"`, `a\\b`, "a'b", "%{sender}", "%{user.directory}", "%", "../../../../tmp/hacked", "..", "/etc/hacked", "-oQ/tmp", "a b", "*", "?",
	"~", "#", "!", "{a,b}", "<x>", ">hacked", "$HOME", "=", "^x", "", strings.Repeat("x", 60), strings.Repeat("x", 4000), "\xc3\xa9", "\xff",
	"a\nb", "a\x00b", "a\x7fb", "a\tb", "|touch hacked", "/home/alice/hacked"}

// injectionConf prints what a command is given: its arguments, its environment
// and, by its standard input, the token of the mail.
const injectionConf = `listen on 127.0.0.1 port 25
table names { "cmd" = "|/run/show alias '%{sender}' '%{rcpt.user}'", "bare" = "|/run/show bare %{sender} %{rcpt.user}", "fwd" = "bob" }
mda wrapper wrap "/usr/bin/env WRAPPED=1 %{mda} wrapped"
mda wrapper nice "/usr/bin/nice %{mda}"
action names mbox alias <names>
action word mda "/run/show mda '%{sender}' '%{rcpt.user}'"
action bare mda "/run/show bare %{sender} %{rcpt.user}"
action wrap mda "/run/show wrap %{sender} %{rcpt.user}" wrapper wrap
action path maildir "~/rcpt/%{rcpt.user}"
action sender maildir "~/from/%{sender.user}/x"
action nice maildir "~/nice/%{rcpt.user}" wrapper nice
action tags maildir "~/tags"
match from any for domain names.test action names
match from any for domain mda.test action word
match from any for domain bare.test action bare
match from any for domain wrap.test action wrap
match from any for domain path.test action path
match from any for domain from.test action sender
match from any for domain nice.test action nice
match from any for domain tags.test action tags
`

// showScript is the program that injectionConf runs.
const showScript = `#!/bin/sh
token=$(sed -n 's/^X-Token: //p')
{ for a; do printf '%s\0' "$a"; done; printf '=\0'; env -0; } >/run/shown/$token.new
mv /run/shown/$token.new /run/shown/$token
`

// sent is a mail of TestRootInjection that was accepted.
type sent struct{ sender, rcpt, part string }

// TestRootInjection has a client send from and to hostile addresses, through
// aliases, a .forward file, commands, a wrapper and the paths of Maildirs. A
// command is given each address in one word, in its environment the address as it
// is; nothing that an address holds is run, and no folder is made outside its
// place.
func TestRootInjection(t *testing.T) {
	if !asRoot(t) {
		return
	}
	const bob = 64204
	for name, text := range map[string]string{"/run/show": showScript,
		"/home/bob/.forward": "\"|/run/show forward '%{sender}' '%{rcpt.user}'\"\n"} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown("/home/bob/.forward", bob, bob); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("/run/shown", 0o777); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod("/run", 0o755), os.Chmod("/run/shown", 0o777)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d := startRoot(t, injectionConf)
	accepted := map[string]sent{}
	for i, part := range hostileParts {
		for j, to := range []string{"cmd@names", "bare@names", "fwd@names", "alice@mda", "alice@bare", "alice@wrap", "alice@path", "alice@from", "alice@nice", "alice@tags"} {
			user, domain, _ := strings.Cut(to, "@")
			for k, s := range []sent{{part, user, part}, {`"` + part + `"`, user, part}, {"s", user + "+" + part, part}, {"s", `"` + user + "+" + part + `"`, part}} {
				token := fmt.Sprintf("t%d.%d.%d", i, j, k)
				s.sender, s.rcpt = s.sender+"@src.test", s.rcpt+"@"+domain+".test"
				if hostileMail(t, token, s) {
					accepted[token] = s
				}
			}
		}
	}
	waitEmpty(t, d, time.Minute)
	shown := 0
	for token, s := range accepted {
		domain := s.rcpt[strings.LastIndexByte(s.rcpt, '@')+1:]
		if !slices.Contains([]string{"path.test", "from.test", "nice.test", "tags.test"}, domain) {
			shown++
			checkShown(t, token, s)
		}
	}
	t.Logf("%d mails accepted, %d given to commands", len(accepted), shown)
	if shown < 200 {
		t.Errorf("only %d mails reached a command", shown)
	}
	checkPlaces(t)
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// hostileMail sends one mail and reports whether it was accepted; a refusal is
// for good.
func hostileMail(t *testing.T, token string, s sent) bool {
	t.Helper()
	conn, err := net.Dial("tcp4", "127.0.0.1:25")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	utf8 := ""
	if strings.ContainsFunc(s.part, func(r rune) bool { return r > 127 }) {
		utf8 = " SMTPUTF8"
	}
	for _, line := range []string{"", "EHLO client\r\n", "MAIL FROM:<" + s.sender + ">" + utf8 + "\r\n", "RCPT TO:<" + s.rcpt + ">\r\n", "DATA\r\n",
		"X-Token: " + token + "\r\n\r\ntext\r\n.\r\n"} {
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		reply := "   -"
		for len(reply) > 3 && reply[3] == '-' {
			if reply, err = in.ReadString('\n'); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		if reply[0] == '5' {
			return false
		}
		if reply[0] == '4' {
			t.Errorf("%.80q: %s", line, reply)
			return false
		}
	}
	return true
}

// inert is what a command line shows of a value: nothing that means something to a
// shell is left.
func inert(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c <= ' ' || c == 0x7f || strings.IndexByte("!#$%&'*?`{|}~\"\\;<>()", c) >= 0 {
			b[i] = ':'
		}
	}
	return string(b)
}

// checkShown compares what a command was given with what was sent. Whether an
// address needs its quotes is not asked here: with or without is as good.
func checkShown(t *testing.T, token string, s sent) {
	t.Helper()
	b, err := os.ReadFile("/run/shown/" + token)
	if err != nil {
		t.Errorf("%v: sent %.200q", err, s)
		return
	}
	all := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	n := 0
	for n < len(all) && all[n] != "=" {
		n++
	}
	args, vars := all[:n], map[string]string{}
	for _, v := range all[min(n+1, len(all)):] {
		name, value, _ := strings.Cut(v, "=")
		vars[name] = value
	}
	bare := func(addr string) string { return strings.ReplaceAll(strings.ReplaceAll(addr, `"`, ""), `\`, "") }
	for name, want := range map[string]string{"SENDER": s.sender, "RECIPIENT": s.rcpt, "ORIGINAL_RECIPIENT": s.rcpt} {
		if bare(vars[name]) != bare(want) {
			t.Errorf("%s = %.200q; sent %.200q", name, vars[name], want)
		}
	}
	for name := range vars {
		if !strings.Contains(" PATH DOMAIN HOME ORIGINAL_RECIPIENT RECIPIENT SHELL LOCAL LOGNAME USER SENDER EXTENSION PWD WRAPPED ", " "+name+" ") {
			t.Errorf("there is %.100q in the environment", name)
		}
	}
	user, _, _ := strings.Cut(vars["RECIPIENT"], "@src.test")
	user = user[:strings.LastIndexByte(user, '@')]
	want := []string{inert(vars["SENDER"]), inert(user)}
	if vars["WRAPPED"] != "" {
		want = append(want, "wrapped")
	}
	got := args[min(1, len(args)):]
	if strings.Join(got, "\x00") != strings.Join(want, "\x00") {
		t.Errorf("%s: got %.300q; want %.300q", args[0], got, want)
	}
}

// checkPlaces looks for files that an address made, and for Maildirs that are not
// where one stands in their path.
func checkPlaces(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/", "/tmp", "/etc", "/home", "/home/alice", "/home/bob", "/run", "/var/mail", "/var/empty"} {
		if _, err := os.Lstat(dir + "/hacked"); err == nil {
			t.Errorf("%s/hacked is there", dir)
		}
	}
	for pattern, depth := range map[string]int{"/home/alice/*/new": 1, "/home/alice/*/*/new": 2, "/home/alice/*/*/*/new": 3} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			top := strings.Split(strings.TrimPrefix(f, "/home/alice/"), "/")[0]
			if want := map[string]int{"tags": 1, "rcpt": 2, "nice": 2, "from": 3}[top]; want != depth {
				t.Errorf("a Maildir at %q", f)
			}
		}
	}
	for _, pattern := range []string{"from/*/x", "rcpt/*", "nice/*"} {
		if mails, _ := filepath.Glob("/home/alice/" + pattern + "/new/*"); len(mails) < 40 {
			t.Errorf("only %d mails in %s", len(mails), pattern)
		}
	}
	if other, _ := filepath.Glob("/home/alice/[^tfrn]*"); len(other) > 0 {
		t.Errorf("at home there are %q", other)
	}
}
