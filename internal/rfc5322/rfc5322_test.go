package rfc5322

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

var when = time.Date(2026, 11, 20, 23, 17, 50, 0, time.UTC)

func TestDate(t *testing.T) {
	tests := map[string]struct {
		t    time.Time
		want string
	}{
		"utc":     {when, "Fri, 20 Nov 2026 23:17:50 +0000 (UTC)"},
		"one day": {time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), "Tue, 3 Feb 2026 04:05:06 +0000 (UTC)"},
		"zone":    {when.In(time.FixedZone("CET", 3600)), "Sat, 21 Nov 2026 00:17:50 +0100 (CET)"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Date(tt.t); got != tt.want {
				t.Errorf("got %q; want %q", got, tt.want)
			}
		})
	}
}

func TestReceived(t *testing.T) {
	base := Received{Helo: "client.test", Host: "localhost", Addr: "127.0.0.1", By: "mx.example.org",
		Proto: "ESMTP", ID: 0x102118e0, Date: when}
	const end = ";\n\tFri, 20 Nov 2026 23:17:50 +0000 (UTC)\n"
	tests := map[string]struct {
		change func(*Received)
		want   string
	}{
		"one recipient": {func(r *Received) { r.For = mail.Address{User: "alice", Domain: "md.test"} },
			"Received: from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0\n\tfor <alice@md.test>" + end},
		"several": {func(*Received) {},
			"Received: from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0" + end},
		"ipv6": {func(r *Received) { r.Addr = "[::1]" },
			"Received: from client.test (localhost [::1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0" + end},
		"local": {func(r *Received) { r.Helo, r.Host, r.Addr, r.Proto = "localhost", "mx.example.org", "local", "ESMTPA" },
			"Received: from localhost (mx.example.org [local])\n\tby mx.example.org (smtpd) with ESMTPA id 102118e0" + end},
		"masked": {func(r *Received) { r.Mask = true },
			"Received: \n\tby mx.example.org (smtpd) with ESMTP id 102118e0" + end},
		"tls": {func(r *Received) { r.TLS = "TLSv1.3:TLS_AES_256_GCM_SHA384:256" },
			"Received: from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0 (TLSv1.3:TLS_AES_256_GCM_SHA384:256:NO)" + end},
		"verified, login": {func(r *Received) { r.TLS, r.Verified, r.ShowAuth, r.User = "T", true, true, "alice" },
			"Received: from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0 (T:YES) auth=yes user=alice" + end},
		"no login": {func(r *Received) { r.TLS, r.ShowAuth = "T", true },
			"Received: from client.test (localhost [127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0 (T:NO) auth=no" + end},
		"hostile names": {func(r *Received) {
			r.Helo, r.Host, r.TLS, r.ShowAuth, r.User = "a\r\nb", "(x;\"\\)", "T", true, "u\n v"
		},
			"Received: from a??b (?x????[127.0.0.1])\n\tby mx.example.org (smtpd) with ESMTP id 102118e0 (T:NO) auth=yes user=u??v" + end},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := base
			tt.change(&r)
			want := strings.Replace(tt.want, "????[", "???? [", 1)
			if got := string(r.Append(nil)); got != want {
				t.Errorf("got %q\nwant %q", got, want)
			}
		})
	}
}

// rewrite feeds a whole message, LF line ends.
func rewrite(o Options, in string) (string, error) {
	var r Rewriter
	r.Reset(o)
	var out []byte
	var err error
	for line := range strings.Lines(in) {
		out, err = r.Line(out, []byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			return string(out), err
		}
	}
	return string(r.End(out)), nil
}

func TestRewrite(t *testing.T) {
	plain := Options{Domain: "h.org"}
	submit := Options{Domain: "h.org", Date: when, MessageID: "<1@h.org>"}
	masq := Options{Domain: "h.org", Masquerade: &mail.Address{User: "s", Domain: "t.org"}}
	const added = "Date: Fri, 20 Nov 2026 23:17:50 +0000 (UTC)\nMessage-ID: <1@h.org>\n"
	tests := map[string]struct {
		o        Options
		in, want string
		err      error
	}{
		"as it is":            {plain, "Subject: a\n b\nX:\ty \n\nbody\n a\n", "Subject: a\n b\nX:\ty \n\nbody\n a\n", nil},
		"empty message":       {submit, "", added, nil},
		"header only":         {submit, "Subject: x\n", "Subject: x\n" + added, nil},
		"body only":           {submit, "\nbody\n", added + "\nbody\n", nil},
		"present, other case": {submit, "date: x\nMESSAGE-id: y\n\n", "date: x\nMESSAGE-id: y\n\n", nil},
		"one missing":         {submit, "Date : x\n\n", "Date : x\nMessage-ID: <1@h.org>\n\n", nil},
		"not in the body":     {submit, "A: b\n\nDate: x\n", "A: b\n" + added + "\nDate: x\n", nil},
		"bcc":                 {plain, "Bcc: a@b,\n c@d\nTo: x\nBCC : e\n\tf\nX: y\n\nBcc: z\n", "To: x@h.org\nX: y\n\nBcc: z\n", nil},
		"return-path":         {plain, "Return-Path: <a@b>\nX: y\n", "X: y\n", nil},
		"x-spam stays":        {plain, "X-Spam: Yes\n", "X-Spam: Yes\n", nil},
		"captured": {plain, "To: a,\n b (c, d),\n \"e, f\" <g>,h@i.org\nFrom: \n\nx\n",
			"To: a@h.org,\n b@h.org (c, d),\n \"e, f\" <g@h.org>,h@i.org\nFrom: \n\nx\n", nil},
		"captured list": {plain, "To: bob, carol (x), \"D E\" <dave>, undisclosed:;\nFrom: alice\nCc: bob@x.org,\n carol\nBcc: secret@x.org\n",
			"To: bob@h.org, carol@h.org (x), \"D E\" <dave@h.org>, undisclosed:;\nFrom: alice@h.org\nCc: bob@x.org,\n carol@h.org\n", nil},
		"malformed stays":    {plain, "To: \"a, b\nCc: (a, b\nFrom: <a, b\n", "To: \"a, b\nCc: (a, b\nFrom: <a, b\n", nil},
		"words, brackets":    {plain, "To: a b, <>, < >, <c >, <@r:d@e>, c(d)\n", "To: a b, <>, < >, <c@h.org >, <@r:d@e>, c@h.org(d)\n", nil},
		"quoted at":          {plain, "To: \"a@b\", <\"c@d\">, x@[1.2.3.4]\n", "To: \"a@b\"@h.org, <\"c@d\"@h.org>, x@[1.2.3.4]\n", nil},
		"empty continuation": {plain, "To: a\n \n\t\nX: y\n", "To: a@h.org\n \n\t\nX: y\n", nil},
		"no colon":           {plain, "just text\nmore\n", "", ErrShape},
		"from line":          {plain, "From alice Thu\nX: y\n", "", ErrShape},
		"leading blank":      {plain, " x\nSubject: y\n", "", ErrShape},
		"later no colon":     {plain, "X: y\nno colon\nZ: z\n", "X: y\n", ErrShape},
		"odd names":          {plain, ": x\nSub ject: y\nSubject : z\n", ": x\nSub ject: y\nSubject : z\n", nil},
		"99 hops":            {plain, strings.Repeat("Received: x\n", 99), strings.Repeat("Received: x\n", 99), nil},
		"100 hops":           {plain, strings.Repeat("received: x\n", 100), strings.Repeat("received: x\n", 99), ErrLoop},
		"fields":             {Options{MaxFields: 2}, "A: b\nA: c\nA: d\n", "A: b\nA: c\n", ErrTooBig},
		"bytes":              {Options{MaxBytes: 10}, "A: bbbb\n ccccc\n", "A: bbbb\n", ErrTooBig},
		"forged results": {Options{AuthServIDs: []string{"h.org", "mx.h.org"}}, "Authentication-Results: mx.h.org;\n\tspf=pass\nAuthentication-Results: other;\n\tspf=pass\nAuthentication-Results:\n MX.h.org; dkim=pass\nAuthentication-Results: (c) mx.h.org; x\n",
			"Authentication-Results: other;\n\tspf=pass\n", nil},
		"masquerade":          {masq, "From: \"Alice\" <faked@else.org>\nTo: a\n", "From: \"Alice\" <s@t.org>\nTo: a@h.org\n", nil},
		"masquerade bare":     {masq, "From: x@y (c)\n", "From: s@t.org (c)\n", nil},
		"masquerade two":      {masq, "From: x@y, z <q>\nFrom: w\n", "From: s@t.org, z <s@t.org>\nFrom: s@t.org\n", nil},
		"masquerade group":    {masq, "From: g: x@y;\n", "From: <s@t.org>\n", nil},
		"masquerade broken":   {masq, "From: \"x <y@z>\n", "From: <s@t.org>\n", nil},
		"masquerade brackets": {masq, "From: <a@b> <c@d>\n", "From: <s@t.org>\n", nil},
		"masquerade nothing":  {masq, "From:\n", "From: <s@t.org>\n", nil},
		"masquerade, null":    {masq, "From: <>\n", "From: <s@t.org>\n", nil},
		"long field":          {plain, "To: a\n" + strings.Repeat(" ,bbbbbbbb\n", 8000), "To: a\n" + strings.Repeat(" ,bbbbbbbb\n", 8000), nil},
		"masquerade long":     {masq, "From: a\n" + strings.Repeat(" ,bbbbbbbb\n", 8000) + "X: y\n", "From: <s@t.org>\nX: y\n", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := rewrite(tt.o, tt.in)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got  %q, %v\nwant %q, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestAddressList(t *testing.T) {
	a := func(s ...string) (l []mail.Address) {
		for _, s := range s {
			l = append(l, mail.SplitAddress(s))
		}
		return l
	}
	tests := map[string]struct {
		in   string
		want []mail.Address
	}{
		"mixed":   {"bob, \"Carol, C\" <carol@x>,\n dave@y (c, d)", a("bob", "carol@x", "dave@y")},
		"group":   {"team: a@x, \"B\" <b@y>; , undisclosed:;, c", a("a@x", "b@y", "c")},
		"nothing": {" , <>, (c), a b", nil},
		"broken":  {"\"a, b", nil},
		"quoted":  {"\"a b\"@x, <\"c@d\"@e>", a("\"a b\"@x", "\"c@d\"@e")},
		"colons":  {": : ;;a@b;", a("a@b")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := AddressList(tt.in, 10); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v; want %v", got, tt.want)
			}
		})
	}
	if got := AddressList(strings.Repeat("a,", 100), 7); len(got) != 7 {
		t.Errorf("got %d addresses; want 7", len(got))
	}
}

// FuzzRewrite: no panic; the body comes out as it went in; the header never
// gains a line that is neither added nor a line of the input's making; no Bcc.
func FuzzRewrite(f *testing.F) {
	f.Add("To: a, b\nBcc: x\n y\n\nbody\nx")
	f.Add("From: \"x\" <y>, (c) z:;\n\t<\n")
	f.Add("Authentication-Results: \n mx\nX:y\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		in = strings.ReplaceAll(in, "\r", "")
		for _, o := range []Options{
			{Domain: "h.org"},
			{Domain: "h.org", Date: when, MessageID: "<1@h>", Masquerade: &mail.Address{User: "s", Domain: "t"}, AuthServIDs: []string{"mx"}},
		} {
			out, err := rewrite(o, in)
			if err != nil {
				continue
			}
			head, body, has := strings.Cut("\n"+out, "\n\n")
			inHead, inBody, _ := strings.Cut("\n"+in, "\n\n")
			if has && !strings.HasSuffix(inBody, "\n") && inBody != "" {
				inBody += "\n"
			}
			if has && body != inBody {
				t.Fatalf("body %q became %q", inBody, body)
			}
			if n, m := strings.Count(head, "\n"), strings.Count(inHead, "\n")+3; n > m {
				t.Fatalf("%d lines became %d: %q", m-3, n, head)
			}
			if again, err := rewrite(o, out); err != nil || again != out {
				t.Fatalf("not stable: %q, then %q, %v", out, again, err)
			}
			for line := range strings.Lines(head) {
				if len(line) > 4 && strings.EqualFold(line[:4], "bcc:") {
					t.Fatalf("bcc in %q", out)
				}
			}
		}
	})
}

func FuzzAddressList(f *testing.F) {
	f.Add("team: a@x, \"B\" <b@y>; , undisclosed:;, c")
	f.Fuzz(func(t *testing.T, in string) {
		for _, a := range AddressList(in, 100) {
			if !strings.Contains(in, a.User) || !strings.Contains(in, a.Domain) {
				t.Fatalf("%q is not in %q", a, in)
			}
		}
	})
}

// TestLinear feeds headers that cost quadratic time to who looks back.
func TestLinear(t *testing.T) {
	for name, unit := range map[string]string{"comma": ",", "open": "(", "angle": "<", "quote": "\"\\", "colon": ":", "group": "a:b;"} {
		t.Run(name, func(t *testing.T) {
			v := strings.Repeat(unit, (1<<20)/len(unit))
			done := make(chan struct{})
			go func() {
				defer close(done)
				complete(nil, []byte(v), "h.org")
				masquerade(nil, []byte(v), "s")
				AddressList(v[:64<<10], 1<<20)
			}()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Error("takes more than linear time")
			}
		})
	}
}

func BenchmarkRewrite(b *testing.B) {
	msg := bytes.Split([]byte("Received: from a (b [1.2.3.4])\n\tby c with ESMTP id 1;\n\tFri, 20 Nov 2026 23:17:50 +0000\nFrom: \"A\" <a@b.org>\nTo: c@d.org, e@f.org\nSubject: hello\nDate: Fri, 20 Nov 2026 23:17:50 +0000\nMessage-ID: <1@b.org>\nMIME-Version: 1.0\nContent-Type: text/plain\n"), []byte("\n"))
	var r Rewriter
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		r.Reset(Options{Domain: "h.org"})
		out = out[:0]
		for _, l := range msg {
			out, _ = r.Line(out, l)
		}
	}
}
