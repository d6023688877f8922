package smtp

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gosasl "github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

const accepted = "250 2.0.0 IDID Message accepted for delivery"

// submit brings one message in over DATA and gives its reply.
func (c *client) submit(raw string) string {
	c.t.Helper()
	c.must("MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>", "DATA")
	c.send(raw)
	return normal(c.reply())
}

// body is the text of the only stored message without our trace field.
func (u *setup) body(t *testing.T) string {
	t.Helper()
	m := u.b.stored()
	if len(m) != 1 {
		t.Fatalf("got %d messages; want 1", len(m))
	}
	if m[0].size != int64(len(m[0].body)) {
		t.Errorf("size %d of %d octets", m[0].size, len(m[0].body))
	}
	_, rest, ok := strings.Cut(m[0].body, "+0000 (UTC)\n")
	if !ok {
		t.Fatalf("no trace field in %q", m[0].body)
	}
	return rest
}

func TestContent(t *testing.T) {
	const ids = "Date: Fri, 20 Nov 2026 23:17:50 +0000 (UTC)\nMessage-ID: <6212680100d3b742@mx.example.org>\n"
	tests := map[string]struct {
		conf  string
		in    string
		reply string // empty: accepted
		want  string
	}{
		"plain":                {"", "Subject: x\r\n\r\nbody\r\n.\r\n", "", "Subject: x\n" + ids + "\nbody\n"},
		"not submission":       {"client=192.0.2.1:99 port=25", "Subject: x\r\n\r\nbody\r\n.\r\n", "", "Subject: x\n\nbody\n"},
		"empty":                {"", ".\r\n", "", ids},
		"dots":                 {"", "A: b\r\n\r\n.a\r\n..b\r\n...\r\n..\r\n.\r\n", "", "A: b\n" + ids + "\na\n.b\n..\n.\n"},
		"dot in header":        {"", "..A: b\r\n.\r\n", "", ".A: b\n" + ids},
		"nul and 8 bit":        {"", "A: b\r\n\r\na\x00b\xff\r\n.\r\n", "", "A: b\n" + ids + "\na\x00b\xff\n"},
		"no final line":        {"", "A: b\r\n\r\nx\r\n.\r\n", "", "A: b\n" + ids + "\nx\n"},
		"bare LF":              {"", "A: b\r\n\r\nx\ny\r\n.\r\n", replyBare, ""},
		"bare LF in header":    {"", "A: b\nC: d\r\n\r\nx\r\n.\r\n", replyBare, ""},
		"bare CR":              {"", "A: b\r\n\r\nx\ry\r\n.\r\n", replyBare, ""},
		"CR CR LF":             {"", "A: b\r\n\r\nx\r\r\n.\r\n", replyBare, ""},
		"repaired LF":          {"repair", "A: b\nC: d\n\nx\n.\n..\ny\r\n.\r\n", "", "A: b\nC: d\n" + ids + "\nx\n.\n..\ny\n"},
		"repaired CR":          {"repair", "A: b\rC: d\r\n\r\nx\ry\r\r\n\r.\rz\r\n.\r\n", "", "A: b\nC: d\n" + ids + "\nx\ny\n\n.\nz\n"},
		"local":                {"local", "To: bob\r\n\r\nx\ny\r\n.\r\n", "", "To: bob@mx.example.org\n" + ids + "\nx\ny\n"},
		"too big":              {"max-size=50", "A: b\r\n\r\n" + strings.Repeat("x\r\n", 40) + ".\r\n", replyTooBig, ""},
		"just fits":            {"max-size=10", "A: b\r\n\r\nxxx\r\n.\r\n", "", "A: b\n" + ids + "\nxxx\n"},
		"one over":             {"max-size=10", "A: b\r\n\r\nxxxx\r\n.\r\n", replyTooBig, ""},
		"loop":                 {"", strings.Repeat("Received: x\r\n", 100) + ".\r\n", replyLoop, ""},
		"no loop":              {"", strings.Repeat("Received: x\r\n", 99) + ".\r\n", "", strings.Repeat("Received: x\n", 99) + ids},
		"no header":            {"", "text\r\n.\r\n", replyShape, ""},
		"continuation first":   {"", " x\r\nA: b\r\n.\r\n", replyShape, ""},
		"fields":               {"", strings.Repeat("A: b\r\n", 100000) + ".\r\n", replyBigHeader, ""},
		"header":               {"", "A: b\r\n" + strings.Repeat(" "+strings.Repeat("x", 997)+"\r\n", 2000) + ".\r\n", replyBigHeader, ""},
		"forged":               {"", "Return-Path: <x>\r\nAuthentication-Results: mx.example.org; spf=pass\r\nA: b\r\n.\r\n", "", "A: b\n" + ids},
		"long line":            {"", "A: b\r\n\r\n" + strings.Repeat("y", 65533) + "\r\n.\r\n", "", "A: b\n" + ids + "\n" + strings.Repeat("y", 65533) + "\n"},
		"line too long":        {"", "A: b\r\n\r\n" + strings.Repeat("y", 65534) + "\r\n.\r\n", replyLineTooLong, ""},
		"line without end":     {"", strings.Repeat("y", 66000), replyLineTooLong, ""},
		"longer line, allowed": {"max-line=300000", "A: b\r\n\r\nx\r\n" + strings.Repeat("y", 200000) + "\r\n.\r\n", "", "A: b\n" + ids + "\nx\n" + strings.Repeat("y", 200000) + "\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, chunk := range []int{1 << 20, 4096, 1000, 1} {
				if chunk == 1 && len(tt.in) > 10000 {
					continue
				}
				u := newSetup()
				for w := range strings.FieldsSeq(tt.conf) {
					u.configure(t, w)
				}
				c := u.dial(t)
				c.reply()
				c.must("EHLO client.test")
				c.must("MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>", "DATA")
				go func() {
					for in := tt.in; in != ""; {
						n := min(chunk, len(in))
						io.WriteString(c.conn, in[:n])
						in = in[n:]
					}
				}()
				want := tt.reply
				if want == "" {
					want = accepted
				}
				if got := normal(c.reply()); got != want {
					t.Fatalf("chunks of %d: got %q; want %q", chunk, got, want)
				}
				if tt.reply != "" {
					if n := len(u.b.stored()); n != 0 {
						t.Fatalf("%d messages stored", n)
					}
					continue
				}
				if got := u.body(t); got != tt.want {
					t.Fatalf("chunks of %d: got %.300q\nwant %.300q", chunk, got, tt.want)
				}
			}
		})
	}
}

// The sequences of which some server takes one for the end of a message, in one
// write and octet by octet, over DATA, DATA inside TLS and BDAT: never more than
// one message, and none of the commands behind it is obeyed.
func TestSmuggling(t *testing.T) {
	sequences := []string{"\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r.\n", "\n.\r", "\r\n.\r", "\r\n.\r\r\n", "\r\n.\x00zz\r\n"}
	for _, repair := range []bool{false, true} {
		for _, way := range []string{"plain", "tls", "bdat"} {
			for _, seq := range sequences {
				for _, size := range []int{1, 1 << 20} {
					name := fmt.Sprintf("repair=%v %s %q %d", repair, way, seq, size)
					t.Run(name, func(t *testing.T) {
						u := newSetup()
						u.l.Repair = repair
						if way == "tls" {
							u.withTLS(t, config.TLSImplicit)
						}
						smuggle(t, u, way, seq, size)
					})
				}
			}
		}
	}
}

func smuggle(t *testing.T, u *setup, way, seq string, size int) {
	const evil = "MAIL FROM:<evil@x.org>\r\nRCPT TO:<alice@md.test>\r\nDATA\r\nSubject: evil\r\n\r\nx\r\n"
	c := u.dial(t)
	if way == "tls" {
		c.startTLS()
	}
	c.reply()
	c.must("EHLO c", "MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>")
	text := "Subject: good\r\n\r\nx" + seq + evil
	if way == "bdat" {
		text = "BDAT " + strconv.Itoa(len(text)) + " LAST\r\n" + text + "QUIT\r\n"
	} else {
		c.must("DATA")
		text += ".\r\nQUIT\r\n"
	}
	for text != "" {
		n := min(size, len(text))
		c.send(text[:n])
		text = text[n:]
	}
	var replies []string
	for r := c.reply(); r != ""; r = c.reply() {
		replies = append(replies, r)
	}
	if len(replies) != 2 || replies[1] != replyBye || (replies[0] != replyBare && normal(replies[0]) != accepted) {
		t.Errorf("got %q", replies)
	}
	m := u.b.stored()
	if len(m) > 1 || (u.l.Repair && len(m) != 1) {
		t.Fatalf("%d messages", len(m))
	}
	for _, m := range m {
		if m.envelopes[0].Sender.String() != "a@b.org" || strings.Contains(m.body, "\r") {
			t.Errorf("stored %q from %s", m.body, m.envelopes[0].Sender)
		}
	}
}

func TestTraceField(t *testing.T) {
	plain := "MAIL FROM:<a@b.org>\nRCPT TO:<alice@md.test>"
	tests := map[string]struct {
		conf, cmds, want string
	}{
		"ESMTP":     {"", "EHLO client.test\n" + plain, "from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0\n\tfor <alice@md.test>;"},
		"SMTP":      {"", "HELO client.test\n" + plain, "from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with SMTP id 102118e0\n\tfor <alice@md.test>;"},
		"two":       {"", "EHLO c\n" + plain + "\nRCPT TO:<bob@x>", "from c (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0;"},
		"ipv6":      {"client=[2001:db8::1]:99", "EHLO c\n" + plain, "from c (localhost [2001:db8::1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0\n\tfor <alice@md.test>;"},
		"local":     {"local", "EHLO localhost\n" + plain, "from localhost (mx.example.org [local])\n\tby mx.example.org (smtpd) with ESMTPA id 102118e0\n\tfor <alice@md.test>;"},
		"masked":    {"mask-src hostname=h.test", "EHLO c\n" + plain, "\n\tby h.test (smtpd) with ESMTP id 102118e0\n\tfor <alice@md.test>;"},
		"utf8":      {"", "EHLO c\nMAIL FROM:<é@b.org> SMTPUTF8\nRCPT TO:<ü@md.test>", "from c (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with UTF8SMTP id 102118e0\n\tfor <ü@md.test>;"},
		"tls":       {"smtps", "EHLO c\n" + plain, "from c (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTPS id 102118e0 (TLSv1.3:TLS_AES_128_GCM_SHA256:128:NO)\n\tfor <alice@md.test>;"},
		"no login":  {"smtps auth received-auth", "EHLO c\n" + plain, "from c (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTPS id 102118e0 (TLSv1.3:TLS_AES_128_GCM_SHA256:128:NO) auth=no\n\tfor <alice@md.test>;"},
		"login":     {"smtps auth received-auth", "EHLO c\nAUTH PLAIN AGFsaWNlAHNlY3JldA==\n" + plain, "from c (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTPSA id 102118e0 (TLSv1.3:TLS_AES_128_GCM_SHA256:128:NO) auth=yes user=alice\n\tfor <alice@md.test>;"},
		"hostnames": {"hostnames=other.test", "EHLO c\n" + plain, "from c (localhost [127.0.0.1])\n\tby other.test (smtpd) with ESMTP id 102118e0\n\tfor <alice@md.test>;"},
	}
	cipher := regexp.MustCompile(`TLS_[A-Z0-9_]+:(128|256)`)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := newSetup()
			for w := range strings.FieldsSeq(tt.conf) {
				u.configure(t, w)
			}
			c := u.dial(t)
			if u.l.TLS != "" {
				c.startTLS()
			}
			c.reply()
			c.must(strings.Split(tt.cmds, "\n")...)
			c.must("DATA", "A: b\r\n.")
			want := "Received: " + tt.want + "\n\tFri, 20 Nov 2026 23:17:50 +0000 (UTC)\n"
			got := cipher.ReplaceAllString(u.b.stored()[0].body, "TLS_AES_128_GCM_SHA256:128")
			if !strings.HasPrefix(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestMasquerade(t *testing.T) {
	u := newSetup().withTLS(t, config.TLSImplicit)
	u.l.Auth, u.l.Masquerade, u.l.Senders, u.b.sender = true, true, "t", "alice@example.org"
	c := u.dial(t)
	c.startTLS()
	c.reply()
	c.must("EHLO c", "AUTH PLAIN AGFsaWNlAHNlY3JldA==", "MAIL FROM:<alice@example.org>", "RCPT TO:<bob@x>", "DATA", "From: \"Alice\" <faked@else.org>\r\n.")
	if got := u.body(t); !strings.HasPrefix(got, "From: \"Alice\" <alice@example.org>\n") {
		t.Errorf("got %q", got)
	}
}

func TestEnvelopes(t *testing.T) {
	u := newSetup().withTLS(t, config.TLSImplicit)
	u.l.Auth, u.l.Tag = true, "tagged"
	c := u.dial(t)
	c.startTLS()
	c.reply()
	c.must("EHLO c", "AUTH PLAIN AGFsaWNlAHNlY3JldA==", "MAIL FROM:<é@b.org> SMTPUTF8 BODY=8BITMIME REQUIRETLS RET=HDRS ENVID=QQ+3D",
		"RCPT TO:<alice@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+40b", "RCPT TO:<postmaster@x>", "RCPT TO:<team@x> ORCPT=utf-8;tü€@x", "RCPT TO:<bob@x> NOTIFY=NEVER", "DATA", "A: b\r\n.", "QUIT")
	c.wait()
	m := u.b.stored()[0]
	var got []string
	for _, e := range m.envelopes {
		got = append(got, fmt.Sprintf("%s>%s %v %s", e.Rcpt, e.User, e.DSN.Notify, e.DSN.ORcpt))
	}
	// postmaster is alice, the team is alice and bob, and bob asks again.
	want := []string{"alice@x>alice 5 rfc822;a+40b", `team@x>bob 0 utf-8;t\x{FC}\x{20AC}@x`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q; want %q", got, want)
	}
	e := m.envelopes[0]
	flags := mail.FlagAuthenticated | mail.FlagUTF8 | mail.FlagRequireTLS | mail.Flag8BitMIME
	if e.Flags != flags || e.Tag != "tagged" || e.Username != "alice" || e.Helo != "c" || e.DSN.Ret != mail.RetHeaders || e.DSN.EnvID != "QQ+3D" || e.Sender.String() != "é@b.org" {
		t.Errorf("got %+v", e)
	}
	for _, want := range []string{"evpid=102118e000000001 from=<é@b.org> to=<alice@x>", "evpid=102118e000000001 from=<é@b.org> to=<postmaster@x>",
		"evpid=102118e000000002 from=<é@b.org> to=<team@x>", "evpid=102118e000000002 from=<é@b.org> to=<bob@x>", "nrcpt=4"} {
		if !strings.Contains(u.log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, u.log)
		}
	}
}

// Whatever ends a session, nothing of its message stays.
func TestLeftovers(t *testing.T) {
	big := strings.Repeat(strings.Repeat("x", 98)+"\r\n", 2000)
	ends := map[string]func(*client){
		"disconnect in DATA": func(c *client) { c.send("DATA\r\nA: b\r\n\r\n" + big); c.conn.Close() },
		"refused":            func(c *client) { c.send("DATA\r\nA: b\r\n\r\n" + big + "x\ny\r\n.\r\nQUIT\r\n") },
		"line too long":      func(c *client) { c.send("DATA\r\nA: b\r\n\r\n" + big + strings.Repeat("x", 70000)) },
		"RSET in BDAT": func(c *client) {
			text := "A: b\r\n\r\n" + big
			c.send("BDAT " + strconv.Itoa(len(text)) + "\r\n" + text + "RSET\r\nQUIT\r\n")
		},
		"QUIT in BDAT": func(c *client) {
			text := "A: b\r\n\r\n" + big
			c.send("BDAT " + strconv.Itoa(len(text)) + "\r\n" + text + "QUIT\r\n")
		},
		"before DATA": func(c *client) { c.send("QUIT\r\n") },
		"shutdown":    func(c *client) { c.s.Shutdown(time.Now()) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			u := newSetup()
			c := u.dial(t)
			c.reply()
			c.must("EHLO c", "MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>")
			go io.Copy(io.Discard, c.r)
			end(c)
			if name == "line too long" {
				c.conn.Close() // it would be read on for a while
			}
			c.wait()
			u.b.mu.Lock()
			defer u.b.mu.Unlock()
			if len(u.b.messages) != 0 || len(u.b.files) != 0 || u.b.open != 0 {
				t.Errorf("%d messages, %d files, %d open", len(u.b.messages), len(u.b.files), u.b.open)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	dribble := func(c *client) { // one octet at a time never makes a command
		for c.conn != nil {
			if _, err := io.WriteString(c.conn, "x"); err != nil {
				return
			}
			select {
			case <-c.done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	tests := map[string]struct {
		change func(*config.SMTP)
		do     func(*client)
		want   string
	}{
		"silence":       {func(s *config.SMTP) { s.CommandTimeout = 30 * time.Millisecond }, func(*client) {}, "421 4.4.2 mx.example.org Timeout: no command came in time"},
		"dribble":       {func(s *config.SMTP) { s.CommandTimeout = 60 * time.Millisecond }, dribble, "421 4.4.2 mx.example.org Timeout: no command came in time"},
		"DATA, silence": {func(s *config.SMTP) { s.DataTimeout, s.MinRate = 30*time.Millisecond, 0 }, func(c *client) { c.must("DATA"); c.send("A: b\r\n") }, "421 4.4.2 mx.example.org Timeout: the message stopped coming"},
		"DATA, slow":    {func(s *config.SMTP) { s.DataTimeout, s.MinRate = 60*time.Millisecond, 1e9 }, func(c *client) { c.must("DATA"); dribble(c) }, "421 4.4.2 mx.example.org Timeout: the message comes too slowly"},
		"DATA, long":    {func(s *config.SMTP) { s.DataTime = 60 * time.Millisecond }, func(c *client) { c.must("DATA"); dribble(c) }, "421 4.4.2 mx.example.org Timeout: the message takes too long"},
		"BDAT":          {func(s *config.SMTP) { s.DataTimeout, s.MinRate = 30*time.Millisecond, 0 }, func(c *client) { c.send("BDAT 10\r\nMAIL") }, "421 4.4.2 mx.example.org Timeout: the message stopped coming"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newSetup()
				tt.change(&u.c.SMTP)
				c := u.dial(t)
				c.reply()
				c.must("EHLO c", "MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>")
				tt.do(c)
				if got := strings.TrimSpace(c.reply()); got != tt.want {
					t.Errorf("got %q; want %q", got, tt.want)
				}
				if got := c.reply(); got != "" {
					t.Errorf("got %q; want the end", got)
				}
				c.wait()
				if !strings.HasSuffix(u.log.String(), "smtp disconnected reason=timeout\n") {
					t.Errorf("log: %s", u.log)
				}
			})
		})
	}
}

func TestShutdownInData(t *testing.T) {
	u := newSetup()
	c := u.dial(t)
	c.reply()
	c.must("EHLO c", "MAIL FROM:<a@b.org>", "RCPT TO:<alice@md.test>", "DATA")
	c.send("A: b\r\n")
	c.s.Shutdown(time.Now().Add(20 * time.Second))
	c.send("\r\nx\r\n.\r\n")
	if got := normal(c.reply()); got != accepted {
		t.Errorf("got %q", got)
	}
	if got := c.reply(); got != "421 4.3.2 mx.example.org shutting down" {
		t.Errorf("got %q", got)
	}
	c.wait()
}

// What clients say to log in is in no log, trace included.
func TestSecrets(t *testing.T) {
	u := newSetup().withTLS(t, config.TLSImplicit)
	u.l.Auth = true
	u.c.Log.SetTrace(map[string]bool{"smtp": true})
	c := u.dial(t)
	c.startTLS()
	c.reply()
	c.must("EHLO c")
	for _, cmd := range []string{"AUTH PLAIN AGFsaWNlAHdyb25n", "auth  plain AGFsaWNlAHdyb25n", "AUTH PLAIN AGFsaWNlAHdyb25n x", "AUTH LOGIN YWxpY2U=", "c2VjcmV0", "AUTH PLAIN AGFsaWNlAHNlY3JldA=="} {
		c.cmd(cmd)
	}
	log := u.log.String()
	for _, secret := range []string{"AGFsaWNl", "c2VjcmV0", "secret", "wrong"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log:\n%s", secret, log)
		}
	}
	for _, want := range []string{`smtp failed-command command="AUTH PLAIN ********" result="535 5.7.8 Authentication failed"`,
		"smtp authentication user=alice result=permfail address=127.0.0.1", "smtp authentication user=alice result=ok", `6212680100d3b741 smtp dialogue client="AUTH PLAIN ********"`, `smtp dialogue client="********"`} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
}

// An independent client, with pipelining, BDAT and all that it can.
func TestGoSMTP(t *testing.T) {
	u := newSetup().withTLS(t, config.TLSImplicit)
	u.l.Auth, u.l.AuthRequired = true, true
	c := u.dial(t)
	c.startTLS()
	conn := gosmtp.NewClient(c.conn)
	body := "Subject: x\r\n\r\n" + strings.Repeat(".line\r\n", 50000)
	if err := conn.Hello("client.test"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Auth(gosasl.NewPlainClient("", "alice", "wrong")); err == nil {
		t.Error("a wrong password is accepted")
	}
	if err := conn.Auth(gosasl.NewLoginClient("alice", "secret")); err != nil {
		t.Fatal(err)
	}
	if err := conn.Mail("a@b.org", &gosmtp.MailOptions{Size: int64(len(body)), Body: gosmtp.Body8BitMIME, UTF8: true, Return: gosmtp.DSNReturnFull, EnvelopeID: "a=b"}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Rcpt("bob@x", &gosmtp.RcptOptions{Notify: []gosmtp.DSNNotify{gosmtp.DSNNotifyFailure}}); err != nil {
		t.Fatal(err)
	}
	err := conn.Rcpt("nosuch@example.org", nil)
	if e, ok := err.(*gosmtp.SMTPError); !ok || e.Code != 550 || e.EnhancedCode != (gosmtp.EnhancedCode{5, 1, 1}) {
		t.Errorf("got %v", err)
	}
	w, err := conn.Data()
	if err == nil {
		_, err = io.Copy(w, strings.NewReader(body))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	conn.Quit() // the server may be gone before the client closes
	if got, want := u.body(t), strings.ReplaceAll(body, "\r", ""); !strings.HasSuffix(got, want[len("Subject: x\n"):]) {
		t.Errorf("the body of %d octets became %d", len(want), len(got))
	}
	if m := u.b.stored()[0]; !m.inFile || m.envelopes[0].DSN.EnvID != "a+3Db" {
		t.Errorf("got %+v", m.envelopes)
	}
}

// The results of the recordings: what was stored then is stored now.
func TestRecordedResults(t *testing.T) {
	stored := map[string]string{} // by its first field after ours
	b, err := os.ReadFile("testdata/captures/maildir-results.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range strings.Split(string(b), "== ")[1:] {
		_, m, _ = strings.Cut(m, "\n")
		m = strings.NewReplacer("$\n  ", "\n", "$\n", "\n", "^I", "\t").Replace(strings.TrimPrefix(m, "  "))
		if _, m, ok := strings.Cut(m, "+0000 (UTC)\n"); ok {
			stored[normalText(strings.TrimSuffix(m, "  "))] = m
		}
	}
	inputs := []string{
		"Subject: only headers\r\n.\r\n", ".\r\n", "\r\nbody after blank\r\n.\r\n", "Sub ject: space in name\r\n\r\nb\r\n.\r\n",
		"Subject : space before colon\r\n\r\nb\r\n.\r\n", ": empty name\r\n\r\nb\r\n.\r\n", "Subject: plain\r\n\r\nx\r\n.\r\n",
	}
	for _, in := range inputs {
		u := newSetup()
		u.l.Hostname = "plain.example.org"
		c := u.dial(t)
		c.reply()
		c.must("EHLO client.test")
		if got := c.submit(in); got != accepted {
			t.Fatalf("%q: got %q", in, got)
		}
		if got := normalText(u.body(t)); stored[got] == "" {
			t.Errorf("%q was never stored as %q", in, got)
		}
	}
}

var varying = regexp.MustCompile(`(?m)^Date: .*$|<[0-9a-f]{16}@`)

func normalText(s string) string { return varying.ReplaceAllString(s, "...") }

// BenchmarkTransaction is a 4 KB mail from MAIL to 250, pipelined, with a
// backend that does nothing.
func BenchmarkTransaction(b *testing.B) {
	u := newSetup()
	u.c.SMTP.MaxMails = b.N + 1e9
	u.c.Backend = null{u.b}
	ours, theirs := buffered()
	s := New(u.c, theirs, u.client, u.l.Addr)
	go s.Run(b.Context())
	c := &client{t: b, conn: ours, done: make(chan struct{})}
	c.r = newReader(ours)
	c.reply()
	c.must("EHLO c")
	head := "MAIL FROM:<a@b.org>\r\nRCPT TO:<alice@md.test>\r\nDATA\r\n"
	body := "From: a@b.org\r\nTo: alice@md.test\r\nSubject: x\r\nDate: x\r\nMessage-ID: <x>\r\n\r\n" + strings.Repeat(strings.Repeat("x", 62)+"\r\n", 64) + ".\r\n"
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		c.send(head)
		for range 3 {
			c.reply()
		}
		c.send(body)
		if got := c.reply(); got == "" || got[0] != '2' {
			b.Fatal(got)
		}
	}
	ours.Close()
}

// BenchmarkBody is how fast the text of a long message comes in.
func BenchmarkBody(b *testing.B) {
	line := []byte(strings.Repeat("x", 76) + "\r\n")
	data := bytes.Repeat(line, 60000/len(line))
	u := newSetup()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		m := newMessage(b.Context(), null{u.b}, 1, headerless)
		m.max, m.maxLine, m.dots = 1<<40, 65535, true
		m.eat([]byte("A: b\r\n\r\n"))
		if _, _, err := m.eat(data); err != nil {
			b.Fatal(err)
		}
		m.free()
	}
}
