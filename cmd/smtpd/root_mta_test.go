package main

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/resolver/dnstest"
)

// mxZone has mail hosts in every state. 127.0.0.1 is the daemon, 127.0.0.4
// nobody.
const mxZone = `a.mx.test A 127.0.0.2
b.mx.test A 127.0.0.3
dead.mx.test A 127.0.0.4
me.mx.test A 127.0.0.1
2.0.0.127.in-addr.arpa PTR a.mx.test
3.0.0.127.in-addr.arpa PTR b.mx.test
order.test MX 20 b.mx.test
order.test MX 10 a.mx.test
dead.test MX 10 dead.mx.test
dead.test MX 20 b.mx.test
backup.test MX 10 b.mx.test
backup.test MX 20 me.mx.test
backup.test MX 30 a.mx.test
plain.test A 127.0.0.2
null.test MX 0 .
loop.test MX 10 me.mx.test
`

const mxConf = `listen on 127.0.0.1 port 25 hostname mx.test
resolver %s
action "out" relay
action "backup" relay backup mx "me.mx.test"
match from any for domain "backup.test" action "backup"
match from any for any action "out"
`

// TestRootRelaysByMX relays on port 25 to the hosts that a zone names.
func TestRootRelaysByMX(t *testing.T) {
	if !asRoot(t) {
		return
	}
	zone, err := dnstest.Start(mxZone)
	if err != nil {
		t.Fatal(err)
	}
	defer zone.Close()
	dirs := map[string]string{"127.0.0.2": t.TempDir(), "127.0.0.3": t.TempDir()}
	for addr, dir := range dirs {
		s, err := startSink(addr+":25", dir)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
	}
	d := startRoot(t, fmt.Sprintf(mxConf, zone.Addr()))
	tests := []struct {
		rcpts []string
		want  string // of the log, a line for each recipient
		at    string // the sink that has it, or none
	}{
		{[]string{"u@order.test"}, `to=<u@order.test> .* relay="127.0.0.2 (a.mx.test)" .* result="Ok" stat="250 2.0.0 `, "127.0.0.2"},
		{[]string{"u@dead.test"}, `to=<u@dead.test> .* relay="127.0.0.3 (b.mx.test)" .* result="Ok"`, "127.0.0.3"},
		{[]string{"u@backup.test"}, `to=<u@backup.test> .* relay="127.0.0.3 (b.mx.test)" .* result="Ok"`, "127.0.0.3"},
		{[]string{"u@plain.test"}, `to=<u@plain.test> .* relay="127.0.0.2 (a.mx.test)" .* result="Ok"`, "127.0.0.2"},
		{[]string{"u@null.test"}, `to=<u@null.test> .* source="-" relay="null.test" .* result="PermFail" stat="Domain does not accept mail"`, ""},
		{[]string{"u@loop.test"}, `to=<u@loop.test> .* source="-" relay="loop.test" .* result="PermFail" stat="mail for loop.test loops back to myself"`, ""},
		{[]string{"ok@order.test", "5no@order.test", "4late@order.test"},
			`to=<ok@order.test> .* result="Ok" stat="250 ` + "\n" +
				`to=<5no@order.test> .* result="PermFail" stat="550 5.1.1 no such person here"` + "\n" +
				`to=<4late@order.test> .* result="TempFail" stat="450 4.2.1 come back later"`, "127.0.0.2"},
	}
	for _, tt := range tests {
		m := newLetter(tt.rcpts[0], 100)
		submitMX(t, m, tt.rcpts...)
		for line := range strings.Lines(tt.want) {
			re := strings.NewReplacer("(", `\(`, ")", `\)`).Replace(strings.TrimSuffix(line, "\n"))
			if err := d.waitLog(regexp.MustCompile(`mta delivery .*`+re), 1); err != nil {
				t.Errorf("%s: %v\n%s", tt.rcpts, err, tail([]byte(d.log()), 20))
			}
		}
		for addr, dir := range dirs {
			n := len(collect(t, dir)[m.token])
			if want := strings.Count(tt.at, addr); n != want {
				t.Errorf("%s: %s has it %d times, want %d", tt.rcpts, addr, n, want)
			}
		}
	}
	// What was deferred is tried again at once when the domain takes another.
	submitMX(t, newLetter("again@order.test", 100), "again@order.test")
	if err := d.waitLog(regexp.MustCompile(`to=<4late@order.test> .* result="TempFail"`), 2); err != nil {
		t.Errorf("retry: %v", err)
	}
}

// submitMX hands a letter from the null reverse-path to the daemon.
func submitMX(t *testing.T, m letter, rcpts ...string) {
	t.Helper()
	submitAt(t, "127.0.0.1:25", "", m, rcpts...)
}

// submitAt hands a letter to the daemon at addr.
func submitAt(t *testing.T, addr, from string, m letter, rcpts ...string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp4", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c := gosmtp.NewClient(conn)
	defer c.Close()
	if err := c.SendMail(from, rcpts, strings.NewReader(m.text)); err != nil {
		t.Fatal(err)
	}
	_ = c.Quit()
}
