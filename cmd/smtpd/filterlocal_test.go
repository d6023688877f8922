package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/ctl"
)

// localConf delivers nothing to bad.test, whose senders get a notice.
const localConf = `filter "f" proc-exec "%[1]s %[2]s"
listen on socket filter "f"
listen on 127.0.0.1 port $port1 hostname mx.test
action "bad" mda "exit 67"
action "local" maildir $box
match from any for domain "bad.test" action "bad"
match from any for local action "local"
`

// consent lets everything pass and gives each session to ended, once it has.
func consent(c *talk, ended chan<- []string) {
	c.register("report|smtp-in|*", "filter|smtp-in|connect", "filter|smtp-in|ehlo", "filter|smtp-in|mail-from",
		"filter|smtp-in|rcpt-to", "filter|smtp-in|data", "filter|smtp-in|data-line", "filter|smtp-in|commit", "filter|smtp-in|quit")
	seen := map[string][]string{}
	for {
		line, ok := c.line()
		if !ok {
			return
		}
		what, name, id, rest := fieldsOf(line)
		seen[id] = append(seen[id], line)
		token, text, _ := strings.Cut(rest, "|")
		switch {
		case name == "link-disconnect":
			ended <- seen[id]
		case name == "data-line":
			c.say("filter-dataline|%s|%s|%s", id, token, text)
		case what == "filter":
			c.say("filter-result|%s|%s|proceed", id, token)
		}
	}
}

// localTold is what a program is told of a session by the socket; FROM, TO and
// HELO are the client's.
const localTold = `report link-connect ME|pass|unix:SOCKET|unix:SOCKET
filter connect ME|local
report filter-response connected|proceed
report protocol-server 2xx
report link-greeting ME
report protocol-client EHLO HELO
filter ehlo HELO
report filter-response ehlo|proceed
report link-identify EHLO|HELO
report protocol-server 2xx
report protocol-client MAIL FROM:<FROM>
filter mail-from FROM
report filter-response mail-from|proceed
report protocol-server 2xx
report tx-begin id
report tx-mail ok|FROM
report protocol-client RCPT TO:<TO>
filter rcpt-to TO
report filter-response rcpt-to|proceed
report tx-envelope id
report protocol-server 2xx
report tx-rcpt ok|TO
report protocol-client DATA
filter data 
report filter-response data|proceed
report protocol-server 3xx
report tx-data ok
end of the lines
report protocol-client .
filter commit 
report filter-response commit|proceed
report protocol-server 2xx
report tx-commit id
report tx-reset id
report protocol-client QUIT
filter quit 
report filter-response quit|proceed
report protocol-server 2xx
report link-disconnect `

// A program that hears the local socket is told of sendmail's session and of that
// of our own notice what it is told of any other client's, in the same order.
func TestFilterLocal(t *testing.T) {
	dir := t.TempDir()
	ended := make(chan []string, 10)
	f := newFake(t, dir, "f", func(c *talk) { consent(c, ended) })
	d, _ := filterDaemon(t, dir, strings.NewReplacer("%[1]s", pipeProgram(t), "%[2]s", f.socket).Replace(localConf))
	cmd := exec.Command(filepath.Join(bins, "sendmail"), "-f", daemonUser()+"@localhost", daemonUser()+"@bad.test")
	cmd.Env = append(os.Environ(), "SMTPD_SOCKET="+d.socket)
	cmd.Stdin = strings.NewReader("Subject: hello\n\ntext\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	me := daemonUser()
	for _, who := range [][3]string{{"localhost", me + "@localhost", me + "@bad.test"}, {"ME", "", me + "@localhost"}} {
		select {
		case l := <-ended:
			told, message := plain(l)
			_, host, _ := strings.Cut(strings.Join(told, "\n"), "link-greeting ")
			host, _, _ = strings.Cut(host, "\n")
			want := strings.NewReplacer("HELO", who[0], "FROM:", "FROM:", "FROM", who[1], "TO:", "TO:", "TO", who[2],
				"SOCKET", ctl.Socket).Replace(localTold)
			want = strings.ReplaceAll(want, "ME", host)
			if got := strings.Join(told, "\n"); got != want {
				t.Errorf("told\n%s\nwant\n%s", got, want)
			}
			if n := len(message); n < 8 || !strings.HasPrefix(message[0], "Received: from ") || message[n-1] != "." {
				t.Errorf("lines\n%s", strings.Join(message, "\n"))
			}
		case <-time.After(waitLimit):
			t.Fatal("a session is missing")
		}
	}
}
