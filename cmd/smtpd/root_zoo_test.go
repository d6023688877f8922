package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/resolver/dnstest"
)

// zoo is mail servers of every kind on port 25 of 127.1.0.0/16: the address
// says which.
type zoo struct {
	t    *testing.T
	ln   net.Listener
	done sync.WaitGroup

	beast map[netip.Addr]beast
	next  netip.Addr
	zone  strings.Builder
}

// beast is one server. Of play see zoo.play; cut ends the connection after so
// many octets were said, 0: never.
type beast struct {
	domain, play string
	cut          int
}

func newZoo(t *testing.T) *zoo {
	ln, err := net.Listen("tcp4", "0.0.0.0:25")
	if err != nil {
		t.Fatal(err)
	}
	z := &zoo{t: t, ln: ln, beast: map[netip.Addr]beast{}, next: netip.MustParseAddr("127.1.0.1")}
	z.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			z.done.Go(func() { z.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		z.done.Wait()
	})
	return z
}

// add gives a beast its domain.
func (z *zoo) add(domain, play string, cut int) {
	z.beast[z.next] = beast{domain, play, cut}
	fmt.Fprintf(&z.zone, "%s MX 10 mx.%s\nmx.%s A %s\n", domain, domain, domain, z.next)
	z.next = z.next.Next()
}

// cutConn ends after so many octets.
type cutConn struct {
	net.Conn
	left int
	cut  bool
}

func (c *cutConn) Write(p []byte) (int, error) {
	if !c.cut {
		return c.Conn.Write(p)
	}
	n := min(c.left, len(p))
	if c.left -= n; n > 0 {
		c.Conn.Write(p[:n])
	}
	if c.left == 0 {
		c.Close()
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (z *zoo) serve(conn net.Conn) {
	defer conn.Close()
	b := z.beast[conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()]
	patience := waitLimit
	if strings.HasSuffix(b.play, "-") {
		patience = time.Second // it has left a reply unfinished
	}
	conn.SetDeadline(time.Now().Add(patience))
	z.play(&cutConn{conn, b.cut, b.cut > 0}, b.play)
}

// play acts what the words of a script say. Each is VERB=REPLY: what is said to
// that verb the first time (or VERB*=REPLY: always) instead of yes; "banner" and
// "." are verbs too. In replies \r, \n and \0 are octets, "~" is a blank, and
// "drop" ends the connection. "ext" is lines of the EHLO reply.
func (z *zoo) play(c net.Conn, script string) {
	say := map[string][]string{}
	always := map[string]string{}
	for _, w := range strings.Fields(script) {
		verb, reply, _ := strings.Cut(w, "=")
		reply = strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\0`, "\x00", "~", " ").Replace(reply)
		if v, ok := strings.CutSuffix(verb, "*"); ok {
			always[v] = reply
		} else {
			say[verb] = append(say[verb], reply)
		}
	}
	yes := map[string]string{"banner": "220 zoo", "EHLO": "250 zoo", "DATA": "354 go", ".": "250 2.0.0 taken", "QUIT": "221 bye"}
	if ext := always["ext"]; ext != "" {
		yes["EHLO"] = "250-zoo\r\n250-" + strings.ReplaceAll(ext, ",", "\r\n250-") + "\r\n250 HELP"
	}
	answer := func(verb string) bool {
		reply := yes[verb]
		if reply == "" {
			reply = "250 ok"
		}
		if list := say[verb]; len(list) > 0 {
			reply, say[verb] = list[0], list[1:]
		} else if r, ok := always[verb]; ok {
			reply = r
		}
		if strings.HasSuffix(reply, "drop") {
			io.WriteString(c, strings.TrimSuffix(reply, "drop"))
			return false
		}
		if n, ok := strings.CutPrefix(reply, "big"); ok {
			reply = strings.Repeat(n+"-all work and no play\r\n", 1<<20/25) + n + " end"
		}
		if !strings.HasSuffix(reply, "\n") && !strings.HasSuffix(reply, "-") {
			reply += "\r\n"
		}
		_, err := io.WriteString(c, reply)
		return err == nil
	}
	in := bufio.NewReader(c)
	for ok := answer("banner"); ok; {
		line, err := in.ReadString('\n')
		if err != nil || len(line) < 4 {
			return
		}
		verb := strings.ToUpper(line[:4])
		if ok = answer(verb); ok && verb == "DATA" && say["DATA"] == nil && always["DATA"] == "" {
			for err == nil && line != ".\r\n" {
				line, err = in.ReadString('\n')
			}
			ok = err == nil && answer(".")
		}
		if verb == "QUIT" {
			return
		}
	}
}

// TestRootZoo sends a mail to each of many odd servers, on the real thing: every
// recipient has one result, the right one, and the log has the server's words.
func TestRootZoo(t *testing.T) {
	if !asRoot(t) {
		return
	}
	z := newZoo(t)
	const network = `result="TempFail" stat="Network error on destination MXs"`
	temp := func(s string) string { return `result="TempFail" stat="` + s }
	perm := func(s string) string { return `result="PermFail" stat="` + s }
	good := `result="Ok" stat="250 2.0.0 taken"`
	closed := temp("Connection closed unexpectedly")
	tests := []struct{ play, want, log string }{
		{"", good, ""},
		{"ext*=PIPELINING,8BITMIME,SIZE,DSN", good, ""},
		{"banner=554~5.7.1~not~you", network, `reason=BANNER rejected: 554 5.7.1 not you`},
		{"banner=421~busy", network, `reason=BANNER rejected: 421 busy`},
		{"banner=big554", network, `reason=Remote host sent too much data`},
		{"banner=553-", network, ""}, // waits for the rest until the server gives up
		{`banner=220~a\0b\r\n`, good, ""},
		{`banner=220-one\n220~two\n`, good, ""},
		{"banner=drop", network, `reason=Connection closed unexpectedly`},
		{"banner=SSH-2.0-OpenSSH", network, `reason=Bad response: SSH-2.0-OpenSSH`},
		{"EHLO=502~what", good, ""},
		{"EHLO=502~what HELO=550~no", network, "reason=HELO rejected: 550 no"},
		{"EHLO=421~no", network, "reason=EHLO rejected: 421 no"},
		{"EHLO=big250", network, "reason=Remote host sent too much data"},
		{"MAIL=550~5.7.1~bad~sender", perm("550 5.7.1 bad sender"), ""},
		{"MAIL=451~4.7.1~later", temp("451 4.7.1 later"), ""},
		{"MAIL=421~4.3.2~closing\\r\\ndrop", temp("421 4.3.2 closing"), ""},
		{"MAIL=drop", closed, ""},
		{"MAIL=hello", temp("Bad response: hello"), ""},
		{`RCPT=550-5.1.1~no\r\n550~5.1.1~such~user\r\n`, perm("550 5.1.1 no such user"), ""},
		{"RCPT=551~not~local", perm("551 not local"), ""},
		{"RCPT=552~full", perm("552 full"), ""}, {"RCPT=553~bad~name", perm("553 bad name"), ""},
		{"RCPT=450~4.2.0~greylisted,~wait~300", temp("450 4.2.0 greylisted, wait 300"), ""},
		{"RCPT=452~4.3.1~no~room", temp("452 4.3.1 no room"), ""},
		{"RCPT=421~bye\\r\\ndrop", temp("421 bye"), ""},
		{"RCPT=251~will~forward", good, ""},
		{`RCPT=550~a\0b\x1b[2J\r\n`, perm(`550 a?b`), ""},
		{"RCPT=big550", temp("Remote host sent too much data"), ""},
		{"DATA=554~no~valid~recipients", perm("554 no valid recipients"), ""},
		{"DATA=451~later", temp("451 later"), ""}, {"DATA=250~odd", temp("Bad response: 250 odd"), ""},
		{".=550~5.7.1~spam", perm("550 5.7.1 spam"), ""}, {".=452~4.3.1~disk~full", temp("452 4.3.1 disk full"), ""},
		{".=554~5.6.0~no", perm("554 5.6.0 no"), ""}, {".=421~gone\\r\\ndrop", temp("421 gone"), ""},
		{".=drop", closed, ""}, {".=250", `result="Ok" stat="250`, ""},
		{".=553-drop", closed, ""},
		{"ext*=PIPELINING MAIL=550~no RCPT=503~a DATA=503~b", perm("550 no"), ""},
		{"ext*=STARTTLS STAR=454~not~now", good, ""},
		{`ext*=STARTTLS STAR=220~go\r\n250~injected\r\n`, good, "opportunistic TLS failed, downgrading to plain"},
		{"ext*=STARTTLS STAR=220~godrop", good, "opportunistic TLS failed, downgrading to plain"},
	}
	for i, tt := range tests {
		z.add(fmt.Sprintf("z%d.test", i), tt.play, 0)
	}
	// Each octet of a whole dialogue is once the last.
	const dialogue = "220 zoo\r\n250-zoo\r\n250-PIPELINING\r\n250 HELP\r\n250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken\r\n"
	for n := 1; n <= len(dialogue); n++ {
		z.add(fmt.Sprintf("c%d.test", n), "ext*=PIPELINING", n)
	}
	zone, err := dnstest.Start(z.zone.String())
	if err != nil {
		t.Fatal(err)
	}
	defer zone.Close()
	d := startRoot(t, fmt.Sprintf("listen on 127.0.0.1 port 2525 hostname mx.test\nresolver %s\naction out relay\nmatch from any for any action out\n", zone.Addr()))
	begin := time.Now()
	var rcpts []string
	for i := range tests {
		rcpts = append(rcpts, fmt.Sprintf("u@z%d.test", i))
	}
	for n := 1; n <= len(dialogue); n++ {
		rcpts = append(rcpts, fmt.Sprintf("u@c%d.test", n))
	}
	submitAt(t, "127.0.0.1:2525", "", newLetter("u@zoo.test", 100), rcpts...)
	for i, tt := range tests {
		if err := d.waitLog(regexp.MustCompile(fmt.Sprintf(`to=<u@z%d\.test> .* `, i)+regexp.QuoteMeta(tt.want)), 1); err != nil {
			t.Errorf("%q: want %s: %s", tt.play, tt.want, grepLog(d, fmt.Sprintf("z%d.test", i)))
		}
		if tt.log != "" && !strings.Contains(d.log(), tt.log) {
			t.Errorf("%q: the log has no %q", tt.play, tt.log)
		}
	}
	for n := 1; n <= len(dialogue); n++ {
		re := fmt.Sprintf(`to=<u@c%d\.test> .* result="TempFail"`, n)
		if n == len(dialogue) {
			re = fmt.Sprintf(`to=<u@c%d\.test> .* result="Ok"`, n)
		}
		if err := d.waitLog(regexp.MustCompile(re), 1); err != nil {
			t.Errorf("dialogue cut after %d octets: %s", n, grepLog(d, fmt.Sprintf("c%d.test", n)))
		}
	}
	if got := strings.Count(d.log(), "mta delivery "); got != len(rcpts) {
		t.Errorf("%d results for %d recipients", got, len(rcpts))
	}
	t.Logf("%d servers in %v", len(rcpts), time.Since(begin))
}

// grepLog is the lines of the log that name s.
func grepLog(d *daemon, s string) string {
	var b strings.Builder
	for line := range strings.Lines(d.log()) {
		if strings.Contains(line, s+">") {
			b.WriteString(line)
		}
	}
	return b.String()
}
