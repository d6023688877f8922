package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/bounce"
	"smtpd/internal/config"
	"smtpd/internal/enqueue"
	"smtpd/internal/mail"
	"smtpd/internal/rfc5322"
	"smtpd/mda"
	"smtpd/mta"
)

// listener is a host that notes what it is told, octet by octet.
type listener struct {
	cert    *tls.Certificate // offers STARTTLS and AUTH
	auth    string           // mechanisms
	ext     string           // further extensions
	noEHLO  bool
	noRcpt  bool // refuses all recipients, so that RSET comes
	mu      sync.Mutex
	lines   []string // commands, without their CRLF
	texts   []string // of DATA, with the final dot
	logins  []string // decoded
	crammed int
}

// line reads to the next CRLF, whatever else may be in between.
func crlfLine(r *bufio.Reader) (string, error) {
	var b []byte
	for !bytes.HasSuffix(b, []byte("\r\n")) {
		c, err := r.ReadByte()
		if err != nil {
			return string(b), err
		}
		b = append(b, c)
	}
	return string(b[:len(b)-2]), nil
}

func (l *listener) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	say := func(s string) { _, _ = io.WriteString(c, s+"\r\n") }
	say("220 host")
	inTLS := false
	for {
		line, err := crlfLine(r)
		l.mu.Lock()
		if line != "" || err == nil {
			l.lines = append(l.lines, line)
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch {
		case verb == "EHLO" && l.noEHLO:
			say("502 no")
		case verb == "EHLO", verb == "LHLO":
			say("250-host")
			for _, x := range strings.Fields(l.ext) {
				say("250-" + x)
			}
			if l.cert != nil && !inTLS {
				say("250-STARTTLS")
			}
			say("250 AUTH " + strings.ReplaceAll(l.auth, ",", " "))
		case verb == "STARTTLS":
			say("220 go")
			t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*l.cert}})
			c, r, inTLS = t, bufio.NewReader(t), true
		case verb == "AUTH":
			l.login(r, say, rest)
		case verb == "RCPT" && l.noRcpt:
			say("550 5.1.1 no")
		case verb == "DATA":
			say("354 go")
			l.text(r)
			say("250 taken")
		case verb == "BDAT":
			var n int64
			_, _ = fmt.Sscan(rest, &n)
			_, _ = io.CopyN(io.Discard, r, n)
			say("250 taken")
		case verb == "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

// text reads to the end of data as RFC 5321 has it.
func (l *listener) text(r *bufio.Reader) {
	var text strings.Builder
	for {
		line, err := crlfLine(r)
		text.WriteString(line + "\r\n")
		if line == "." || err != nil {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.texts = append(l.texts, text.String())
}

// login takes any login, or breaks SCRAM off, and notes what it was given.
func (l *listener) login(r *bufio.Reader, say func(string), args string) {
	mech, first, has := strings.Cut(args, " ")
	note := func(s string) {
		b, _ := base64.StdEncoding.DecodeString(s)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.logins = append(l.logins, string(b))
	}
	if has {
		note(first)
	}
	prompts := map[string][]string{"LOGIN": {"VXNlcm5hbWU6", "UGFzc3dvcmQ6"}, "SCRAM-SHA-256": {"bm90IHNjcmFt"}}[mech]
	for _, p := range prompts {
		say("334 " + p)
		line, err := crlfLine(r)
		if err != nil {
			return
		}
		if line == "*" {
			l.mu.Lock()
			l.crammed++
			l.mu.Unlock()
			say("501 off")
			return
		}
		note(line)
	}
	say("235 in")
}

// outside is what an mta engine needs, with one host for everything.
type outside struct {
	lists, maps map[string]string
	addr        string
	done        chan *mta.Report
}

func (o *outside) Query(_ context.Context, _ string, qtype uint16) ([]mta.Record, mta.Result) {
	if qtype == mta.TypeA {
		return []mta.Record{{Data: "127.0.0.1"}}, mta.DNSOK
	}
	return nil, mta.DNSNoData
}
func (o *outside) Secured(context.Context, string, uint16) (bool, mta.Result) {
	return false, mta.DNSOK
}
func (o *outside) Lookup(_ context.Context, table, _, _ string) (string, bool, error) {
	v, ok := o.maps[table]
	return v, ok, nil
}
func (o *outside) Fetch(_ context.Context, table, _ string) (string, bool, error) {
	v, ok := o.lists[table]
	return v, ok, nil
}
func (o *outside) Dial(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", o.addr)
}
func (o *outside) Certificate(string) (*tls.Certificate, error) { return nil, nil }
func (o *outside) Roots(string) (*x509.CertPool, error)         { return x509.NewCertPool(), nil }
func (o *outside) Done(r *mta.Report)                           { o.done <- r }
func (o *outside) Event(mail.SessionID, string, ...slog.Attr)   {}
func (o *outside) Note(string)                                  {}
func (o *outside) Trace(mail.SessionID, string)                 {}
func (o *outside) Tracing() bool                                { return false }
func (o *outside) Hold(uint64, []mail.EnvelopeID)               {}
func (o *outside) Release(uint64, int)                          {}
func (o *outside) Retry([]mail.EnvelopeID)                      {}
func (o *outside) Gauge(string, int64)                          {}
func (o *outside) use(l *listener, t *testing.T) (stop func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { l.serve(c) })
		}
	})
	return func() {
		ln.Close()
		wg.Wait()
	}
}

// job is one mail as all writers get it, and the places that a value from outside
// can stand in.
type job struct {
	env                     mail.Envelope
	helo, heloTable, server string
	mailFrom, srsDomain     string
	user, password          string
	text                    []byte
}

func newJob() *job {
	to := mail.Address{User: "rcpt", Domain: "d.test"}
	return &job{user: "login", password: "secret", server: "me.test", text: []byte("Subject: x\r\n\r\nhello\r\n"),
		env: mail.Envelope{Sender: mail.Address{User: "from", Domain: "s.test"}, Rcpt: to, Dest: to,
			DSN: mail.DSN{Ret: mail.RetFull, Notify: mail.NotifyFailure}}}
}

// places are where values from outside go, by the name of what holds them.
var places = map[string]func(j *job, v string){
	"sender's user":          func(j *job, v string) { j.env.Sender.User = v },
	"sender's domain":        func(j *job, v string) { j.env.Sender.Domain = v },
	"recipient's user":       func(j *job, v string) { j.env.Dest.User, j.env.Rcpt.User = v, v },
	"recipient's domain":     func(j *job, v string) { j.env.Dest.Domain, j.env.Rcpt.Domain = v, v },
	"ENVID":                  func(j *job, v string) { j.env.DSN.EnvID = v },
	"ORCPT":                  func(j *job, v string) { j.env.DSN.ORcpt = "rfc822;" + v },
	"helo of the action":     func(j *job, v string) { j.helo = v },
	"helo of a table":        func(j *job, v string) { j.heloTable = v },
	"name of the server":     func(j *job, v string) { j.server = v },
	"mail-from":              func(j *job, v string) { j.mailFrom = v + "@m.test" },
	"mail-from's domain":     func(j *job, v string) { j.mailFrom = "m@" + v },
	"SRS: forwarding domain": func(j *job, v string) { j.srsDomain = v },
	"login":                  func(j *job, v string) { j.user = v },
	"password":               func(j *job, v string) { j.password = v },
}

// relay has an engine carry the job out to a host, and gives the result.
func (j *job) relay(t *testing.T, l *listener, url string) *mta.Report {
	o := &outside{lists: map[string]string{"<h>": url}, maps: map[string]string{"<c>": j.user + ":" + j.password},
		done: make(chan *mta.Report, 1)}
	defer o.use(l, t)()
	r := &config.Relay{Host: "<h>", Auth: "<c>", NoVerify: true, Helo: j.helo, MailFrom: j.mailFrom}
	if j.heloTable != "" {
		r.HeloSrc, o.maps["<n>"] = "<n>", j.heloTable
	}
	env := j.env
	if j.srsDomain != "" {
		r.SRS, env.Rcpt.Domain = true, j.srsDomain
	}
	cfg := config.Defaults()
	cfg.ServerName, cfg.SRS.Key = j.server, "key"
	e := mta.New(cfg, mta.Options{DNS: o, Tables: o, Dialer: o, Trust: o, Observer: o})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	e.Submit(ctx, &mta.Message{ID: 1, Envelopes: []mail.Envelope{env}, Size: int64(len(j.text)),
		Action: &config.Action{Name: "out", Method: config.MethodRelay, Relay: r},
		Open:   func(context.Context) (mta.Text, error) { return mta.Text{Data: j.text}, nil }})
	select {
	case rep := <-o.done:
		return rep
	case <-time.After(waitLimit):
		t.Fatal("no result")
	}
	return nil
}

// writers are all that write commands for others to read; each reports whether
// the mail was taken.
func writers(cert *tls.Certificate) map[string]func(t *testing.T, j *job) (*listener, bool) {
	relay := func(l *listener, url string) func(t *testing.T, j *job) (*listener, bool) {
		return func(t *testing.T, j *job) (*listener, bool) {
			host := &listener{cert: l.cert, auth: l.auth, ext: l.ext, noEHLO: l.noEHLO, noRcpt: l.noRcpt}
			rep := j.relay(t, host, url)
			return host, rep.Status.OK()
		}
	}
	const ext = "PIPELINING 8BITMIME SIZE DSN SMTPUTF8 "
	return map[string]func(t *testing.T, j *job) (*listener, bool){
		"mta, DATA":     relay(&listener{ext: "DSN"}, "smtp+notls://h.test"),
		"mta, BDAT":     relay(&listener{ext: ext + "CHUNKING"}, "smtp+notls://h.test"),
		"mta, HELO":     relay(&listener{noEHLO: true}, "smtp+notls://h.test"),
		"mta, RSET":     relay(&listener{ext: ext, noRcpt: true}, "smtp+notls://h.test"),
		"mta, LMTP":     relay(&listener{ext: ext}, "lmtp://h.test:24"),
		"mta, PLAIN":    relay(&listener{ext: ext, cert: cert, auth: "PLAIN"}, "smtp+tls://lbl@h.test"),
		"mta, LOGIN":    relay(&listener{ext: ext, cert: cert, auth: "LOGIN"}, "smtp+tls://lbl@h.test"),
		"mta, SCRAM":    relay(&listener{ext: ext, cert: cert, auth: "SCRAM-SHA-256"}, "smtp+tls://lbl@h.test"),
		"mda, LMTP":     deliverLMTP,
		"mda, RCPT":     verifyLMTP,
		"the enqueuer":  enqueueJob,
		"smtp(1)":       clientJob("smtp", nil),
		"smtp(1), TLS":  clientJob("smtp+tls", cert),
		"smtp(1), LMTP": clientJob("lmtp", nil),
	}
}

func (j *job) delivery(addr string) *mda.Delivery {
	return &mda.Delivery{Method: mda.LMTP, Path: addr, RcptTo: true, Hello: j.server, Text: mda.Text{Data: j.text},
		Values: mda.Values{Sender: j.env.Sender, Rcpt: j.env.Rcpt, Dest: j.env.Dest, User: "alice", Home: "/"}}
}

func deliverLMTP(t *testing.T, j *job) (*listener, bool) {
	l, o := &listener{ext: "PIPELINING SMTPUTF8"}, &outside{}
	defer o.use(l, t)()
	d := mda.New(mda.Options{})
	defer d.Close()
	res := d.Deliver(context.Background(), j.delivery(o.addr))
	return l, res.Status.OK()
}

func verifyLMTP(t *testing.T, j *job) (*listener, bool) {
	l, o := &listener{}, &outside{}
	defer o.use(l, t)()
	d := mda.New(mda.Options{})
	defer d.Close()
	st, err := d.VerifyRcpt(context.Background(), j.delivery(o.addr))
	return l, err == nil && st.OK()
}

func enqueueJob(t *testing.T, j *job) (*listener, bool) {
	opts, err := enqueue.ParseArgs([]string{"-V", j.env.DSN.EnvID, "x@y.test"})
	if err != nil {
		return &listener{}, false
	}
	m, err := enqueue.Read(bytes.NewReader(j.text), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Complete(enqueue.User{Login: "u"}, "me.test", time.Now()); err != nil {
		return &listener{}, false
	}
	m.Sender, m.Recipients = j.env.Sender, []mail.Address{j.env.Dest}
	l, o := &listener{ext: "SMTPUTF8"}, &outside{}
	stop := o.use(l, t)
	c, err := net.Dial("tcp", o.addr)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Submit(c, io.Discard)
	c.Close()
	stop()
	return l, err == nil
}

// clientJob has the small client carry the job out, with a login in TLS.
func clientJob(scheme string, cert *tls.Certificate) func(t *testing.T, j *job) (*listener, bool) {
	return func(t *testing.T, j *job) (*listener, bool) {
		l, o := &listener{ext: "8BITMIME SMTPUTF8", cert: cert, auth: "PLAIN"}, &outside{}
		stop := o.use(l, t)
		args := []string{"-C", "-H", j.server, "-F", j.env.Sender.String(), "-s", scheme + "://" + o.addr}
		if cert != nil {
			file := filepath.Join(t.TempDir(), "login")
			if err := os.WriteFile(file, []byte(j.user+":"+j.password+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "-a", file)
		}
		cmd := exec.Command(filepath.Join(bins, "smtp"), append(args, j.env.Dest.String())...)
		cmd.Stdin = bytes.NewReader(j.text)
		err := cmd.Run()
		stop()
		return l, err == nil && len(l.texts) == 1
	}
}

// heard is what a host was told, logins decoded.
func (l *listener) heard() string {
	return strings.Join(slices.Concat(l.lines, l.logins), "\r\n")
}

// TestWriters walks through every command that a client session of ours can emit,
// to hosts, stores and our own listener. A value in any place that comes from
// outside appears there as it is; with an octet that would end a line, or NUL, in
// it, it is refused by the writer, and nothing of it leaves.
func TestWriters(t *testing.T) {
	a := newAuthority(t)
	a.issue(t, "h.test", true, false)
	cert, err := tls.LoadX509KeyPair(a.path("h.test.crt"), a.path("h.test.key"))
	if err != nil {
		t.Fatal(err)
	}
	all := writers(&cert)
	verbs, used := map[string]bool{}, map[string]int{}
	for place, set := range places {
		for name, write := range all {
			good := newJob()
			set(good, "mark")
			l, ok := write(t, good)
			for _, line := range l.lines {
				verb, _, _ := strings.Cut(line, " ")
				verbs[verb] = true
			}
			if l.crammed > 0 {
				verbs["*"] = true
			}
			if !ok && name != "mta, RSET" && name != "mta, SCRAM" {
				t.Errorf("%s, %s: not taken: %q", name, place, l.heard())
			}
			if !strings.Contains(l.heard(), "mark") {
				continue // the writer has no use for it
			}
			used[place]++
			for _, octet := range []string{"\r\n", "\r", "\n", "\x00", "\r\n.\r\n"} {
				bad := newJob()
				set(bad, "mark"+octet+"EVIL")
				l, ok := write(t, bad)
				if told := l.heard(); ok || strings.Contains(told, "EVIL") || strings.Contains(told, "mark") {
					t.Errorf("%s, %s with %q: taken %v, host heard %q", name, place, octet, ok, told)
				}
				for _, line := range l.lines {
					if strings.ContainsAny(line, "\r\n\x00") {
						t.Errorf("%s, %s with %q: %q", name, place, octet, line)
					}
				}
			}
		}
	}
	for place := range places {
		if used[place] == 0 {
			t.Errorf("%s: no writer has shown it", place)
		}
	}
	got := slices.Sorted(maps.Keys(verbs))
	want := []string{"*", "AUTH", "BDAT", "DATA", "EHLO", "HELO", "LHLO", "MAIL", "QUIT", "RCPT", "RSET", "STARTTLS"}
	if !slices.Equal(got, want) {
		t.Errorf("commands %q, want %q", got, want)
	}
}

// readers of a text: one that keeps to RFC 5321, one for which LF ends a line, and
// one for which CR does too. What they give is the text with LF, and what they take
// for further commands.
var textReaders = map[string]func(string) (text, rest string){
	"strict": func(s string) (string, string) { return readText(s, "\r\n") },
	"LF":     func(s string) (string, string) { return readText(strings.ReplaceAll(s, "\r\n", "\n"), "\n") },
	"CR": func(s string) (string, string) {
		return readText(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(s), "\n")
	},
}

func readText(s, end string) (text, rest string) {
	for s != "" {
		var line string
		line, s, _ = strings.Cut(s, end)
		if line == "." {
			return text, s
		}
		text += strings.TrimPrefix(line, ".") + "\n"
	}
	return text, "no end"
}

// TestWritersText sends texts with every mixture of line ends and dots through
// every writer: each reader gets one mail, the same, and no command out of it.
func TestWritersText(t *testing.T) {
	const evil = "MAIL FROM:<evil@x.test>\r\nRCPT TO:<evil@y.test>\r\nDATA\r\nevil\r\n.\r\n"
	all := writers(nil)
	for _, name := range []string{"mta, DATA", "mta, LMTP", "mda, LMTP", "the enqueuer", "smtp(1)"} {
		for _, before := range []string{"", "\r", "\n", "\r\n", "x\r", "x\n"} {
			for _, after := range []string{"\r", "\n", "\r\n", "\r\r\n", "\n\r", "\x00\n", "x"} {
				j := newJob()
				j.text = []byte("Subject: a\r\n\r\nb" + before + "." + after + evil + "." + after + "c" + before)
				l, ok := all[name](t, j)
				if !ok || len(l.texts) != 1 || strings.Contains(l.heard(), "evil") {
					t.Fatalf("%s, %q: taken %v, %d texts, host heard %q", name, j.text, ok, len(l.texts), l.heard())
				}
				first, _ := textReaders["strict"](l.texts[0])
				for reader, read := range textReaders {
					if text, rest := read(l.texts[0]); rest != "" || text != first {
						t.Errorf("%s, %q: %s has %q and is told %q, strict has %q", name, j.text, reader, text, rest, first)
					}
				}
			}
		}
	}
}

// TestHeaderWriters does the same for what writes header lines: nothing from
// outside begins a line of its own.
func TestHeaderWriters(t *testing.T) {
	for _, octet := range []string{"\r\n", "\r", "\n", "\x00"} {
		v := "mark" + octet + "EVIL: x"
		addr := mail.Address{User: v, Domain: v}
		trace := rfc5322.Received{Helo: v, Host: v, Addr: "192.0.2.1", By: "me.test", Proto: "ESMTP", TLS: "x",
			ShowAuth: true, User: v, For: addr, Date: time.Now()}
		var rw rfc5322.Rewriter
		rw.Reset(rfc5322.Options{Domain: "d.test", Masquerade: &addr})
		from, err := rw.Line(nil, []byte("From: a@b.test"))
		if err != nil {
			t.Fatal(err)
		}
		n := &bounce.Notice{Kind: mail.NoticeFailed, Server: "me.test", To: addr, Date: time.Now(), Max: bounce.MinSize,
			Original: strings.NewReader("Subject: x\n\n"), Size: 12,
			Recipients: []mail.Envelope{{Sender: addr, Rcpt: addr, Dest: addr, LastError: v, RemoteMTA: v,
				DSN: mail.DSN{EnvID: v, ORcpt: v}}}}
		notice, _, _ := n.Compose()
		boxes := map[string][]byte{"Received": trace.Append(nil), "masquerade": rw.End(from), "notice": notice}
		j := newJob()
		dir := t.TempDir()
		d := mda.New(mda.Options{})
		v2 := j.delivery("")
		v2.Method, v2.Path, v2.Sender, v2.Rcpt, v2.OrigTo = mda.File, dir+"/box", addr, addr, true
		d.Deliver(context.Background(), v2)
		d.Close()
		box, err := os.ReadFile(dir + "/box")
		if err == nil { // else it was refused
			boxes["Return-Path and Delivered-To"] = box
		}
		for name, text := range boxes {
			lines := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\r' || r == '\n' || r == 0 })
			if len(lines) == 0 || slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "EVIL") }) {
				t.Errorf("%s with %q: %q", name, octet, text)
			}
		}
	}
}
