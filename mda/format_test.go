package mda

import (
	"errors"
	"strings"
	"testing"

	"smtpd/internal/mail"
)

func exampleValues() *Values {
	return &Values{
		Sender: mail.Address{User: "John+x", Domain: "Example.org"},
		Rcpt:   mail.Address{User: "team", Domain: "example.org"},
		Dest:   mail.Address{User: "alice+tag", Domain: "example.org"},
		User:   "alice", Home: "/home/alice", Delim: "+",
	}
}

func TestExpand(t *testing.T) {
	quoted := exampleValues()
	quoted.Sender = mail.Address{User: `"a;id (x)\"b<c>"`, Domain: "x.org"}
	null := exampleValues()
	null.Sender = mail.Address{}
	up := exampleValues()
	up.Dest = mail.Address{User: "..", Domain: "a/../../b"}
	long := exampleValues()
	long.Sender.User = strings.Repeat("s", 1020)

	tests := map[string]struct {
		v    *Values
		in   string
		use  use
		want string
		err  error
	}{
		"plain":              {in: "procmail -f -", want: "procmail -f -"},
		"percent":            {in: "100%% of %d 5%", want: "100% of %d 5%"},
		"home":               {in: "~/x ~/y", want: "/home/alice/x ~/y"},
		"home only":          {in: "~/%{user.username}", want: "/home/alice/alice"},
		"sender":             {in: "%{sender}", want: "John+x@Example.org"},
		"no case":            {in: "%{SENDER.User}", want: "John+x"},
		"domain":             {in: "%{sender.domain}", want: "Example.org"},
		"rcpt dest":          {in: "%{rcpt}|%{dest}", want: "team@example.org|alice+tag@example.org"},
		"parts":              {in: "%{rcpt.user}%{rcpt.domain}%{dest.user}%{dest.domain}", want: "teamexample.orgalice+tagexample.org"},
		"directory":          {in: "%{user.directory}/m", want: "/home/alice/m"},
		"mbox from":          {in: "%{mbox.from}", want: "John+x@Example.org"},
		"mbox from of null":  {v: null, in: "%{mbox.from}|%{sender}|%{sender.user}", want: "MAILER-DAEMON||"},
		"range":              {in: "%{rcpt.domain[0:6]}", want: "example"},
		"range from end":     {in: "%{rcpt.domain[-3:]}", want: "org"},
		"range to end":       {in: "%{rcpt.domain[0:-4]}", want: "example"},
		"range open begin":   {in: "%{rcpt.domain[:2]}", want: "exa"},
		"one":                {in: "%{user.username[0]}", want: "a"},
		"last":               {in: "%{user.username[-1]}", want: "e"},
		"end is cut":         {in: "%{user.username[2:99]}", want: "ice"},
		"begin beyond":       {in: "%{user.username[5]}", err: errRange},
		"begin far before":   {in: "%{user.username[-6]}", err: errRange},
		"end before":         {in: "%{user.username[3:-4]}", err: errRange},
		"range of nothing":   {v: null, in: "%{sender[0:3]}", err: errRange},
		"lower":              {in: "%{sender:lowercase}", want: "john+x@example.org"},
		"lower, shouted":     {in: "%{SENDER:LowerCase}", want: "john+x@example.org"},
		"upper":              {in: "%{sender:uppercase}", want: "JOHN+X@EXAMPLE.ORG"},
		"strip":              {in: "%{dest:strip}", want: "alice@example.org"},
		"strip user":         {in: "%{dest.user:strip}", want: "alice"},
		"in order":           {in: "%{sender:strip|lowercase}", want: "john@example.org"},
		"after a range":      {in: "%{sender[0:1]:lowercase}", want: "jo"},
		"quoted local-part":  {v: quoted, in: "%{sender}", want: ":a:id::x:::b:c::@x.org"},
		"quoted in a path":   {v: quoted, in: "%{sender}", use: usePath, want: `:a;id (x)\:b<c>:@x.org`},
		"raw":                {v: quoted, in: "%{sender.user:raw}", want: `"a;id (x)\"b<c>"`},
		"mda":                {v: &Values{MDA: "procmail -f '$x'"}, in: "wrap %{mda}", want: "wrap procmail -f '$x'"},
		"slash in a path":    {v: up, in: "/v/%{dest.domain}", use: usePath, want: "/v/a:..:..:b"},
		"raw slash":          {v: up, in: "/v/%{dest.domain:raw}", use: usePath, want: "/v/a:..:..:b"},
		"slash in a command": {v: up, in: "%{dest.domain}", want: "a/../../b"},
		"up":                 {v: up, in: "/v/%{dest.user}/m", use: usePath, err: errEscapes},
		"up in pieces":       {v: up, in: "/v/.%{dest.user[0]}", use: usePath, err: errEscapes},
		"up around nothing":  {v: null, in: "/v/.%{sender}./m", use: usePath, err: errEscapes},
		"operator's own":     {in: "/v/../%{user.username}", use: usePath, want: "/v/../alice"},
		"too long":           {v: long, in: "%{sender}", err: errTooLong},
		"too long together":  {v: long, in: "%{sender.user}xxxx", err: errTooLong},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := tt.v
			if v == nil {
				v = exampleValues()
			}
			got, err := v.expand(tt.in, tt.use)
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("expand(%q) = %q, %v; want %q, %v", tt.in, got, err, tt.want, tt.err)
			}
		})
	}
}

func TestCheckFormat(t *testing.T) {
	for _, s := range []string{"", "%", "%%{x}", "~/Maildir", "%{Sender[0:-1]:raw}", "%{dest:lowercase|strip|raw}"} {
		if err := CheckFormat(s, false); err != nil {
			t.Errorf("CheckFormat(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"%{", "%{sender", "%{nobody}", "%{}", "%{sender:big}", "%{sender:}", "%{sender[]}",
		"%{sender[:]}", "%{sender[a]}", "%{sender[1:0]}", "%{sender[1}", "%{sender[1]x}", "%{mda}",
		"%{sender[99999999999999999999]}", "%{" + strings.Repeat("a", 128) + "}"} {
		if err := CheckFormat(s, false); err == nil {
			t.Errorf("CheckFormat(%q) accepts it", s)
		}
	}
	if err := CheckFormat("%{mda}", true); err != nil {
		t.Errorf("in a wrapper: %v", err)
	}
}

// FuzzExpand checks that what was accepted at configuration time fails later
// only for its values, and that no value gets past the rules.
func FuzzExpand(f *testing.F) {
	f.Add("%{sender}", "a;b'", "..")
	f.Add("~/%{dest.user[0:-1]:lowercase}/%%x%{rcpt:raw}", "x/y", "u+t")
	f.Fuzz(func(t *testing.T, format, sender, dest string) {
		if CheckFormat(format, false) != nil {
			return
		}
		v := &Values{Sender: mail.SplitAddress(sender), Dest: mail.SplitAddress(dest), User: "u", Home: "/h", Delim: "+"}
		for _, u := range []use{useCommand, usePath} {
			out, err := v.expand(format, u)
			if err != nil {
				if !errors.Is(err, errTooLong) && !errors.Is(err, errRange) && !errors.Is(err, errEscapes) {
					t.Fatalf("checked %q, then: %v", format, err)
				}
				continue
			}
			if len(out) > maxExpanded {
				t.Fatalf("%d octets", len(out))
			}
			if !strings.Contains(format, ":") && !strings.ContainsAny(format, escapedShell+escapedAlways[:4]+escapedAlways[5:9]) &&
				strings.Trim(format, "%{}.~ abcdefghijklmnopqrstuvwxyz[]-0123456789/") == "" &&
				u == useCommand && strings.ContainsAny(out, ";<>()\\\n`$\"'") {
				t.Fatalf("expand(%q) = %q", format, out)
			}
			if u == usePath && !strings.Contains(format, "..") && strings.Contains("/"+out+"/", "/../") {
				t.Fatalf("expand(%q) = %q", format, out)
			}
		}
	})
}
