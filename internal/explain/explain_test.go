package explain

import (
	"context"
	"encoding/json"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/expand"
	"smtpd/table"
)

// nobody is a system with one account.
type nobody struct{}

func (nobody) User(_ context.Context, name string) (expand.User, error) {
	if name != "root" {
		return expand.User{}, table.ErrNotFound
	}
	return expand.User{Name: "root", Home: "/root"}, nil
}

func (nobody) Forward(context.Context, expand.User) (expand.Forward, error) {
	return expand.Forward{}, nil
}

func (nobody) Include(context.Context, string) (string, error) { return "", fs.ErrNotExist }

func expander(t *testing.T) *expand.Expander {
	t.Helper()
	c := config.Defaults()
	c.ServerName, c.LocalNames = "mx.test", []string{"localhost", "mx.test"}
	c.Tables = map[string]*config.Table{
		"<dynamic:0>": {Name: "<dynamic:0>", Backend: "static", Type: config.TableList, List: []string{"far.test"}},
		"hosts":       {Name: "hosts", Backend: "static", Type: config.TableList, List: []string{"smtp://a", "smtp://b"}},
		"who":         {Name: "who", Backend: "static", Type: config.TableMapping, Pairs: [][2]string{{"ann", "ann@mx.test, @x.test"}}},
	}
	c.Actions = map[string]*config.Action{
		"box": {Name: "box", Method: config.MethodMaildir, Path: "~/M/%{sender.domain}"},
		"out": {Name: "out", Method: config.MethodRelay, Relay: &config.Relay{Host: "hosts"}},
	}
	pos := func(line int) config.Pos { return config.Pos{File: "f", Line: line} }
	c.Rules = []*config.Rule{
		{Pos: pos(1), Number: 1, From: config.From{Kind: config.FromLocal}, For: config.For{Kind: config.ForLocal}, Action: "box"},
		{Pos: pos(2), Number: 2, From: config.From{Kind: config.FromAny}, For: config.For{Kind: config.ForDomain, Match: config.Match{Table: "<dynamic:0>"}}, Action: "out"},
	}
	listen := func(line int, addr string, l config.Listener) {
		l.Pos, l.Name, l.Addr = pos(line), "lo", netip.MustParseAddrPort(addr)
		c.Listeners = append(c.Listeners, &l)
	}
	listen(11, "127.0.0.1:25", config.Listener{})
	listen(12, "127.0.0.1:587", config.Listener{TLS: config.TLSRequired, Auth: true, AuthRequired: true, Senders: "who"})
	listen(13, "127.0.0.1:465", config.Listener{TLS: config.TLSImplicit, Auth: true, Tag: "S"})
	set, err := table.OpenSet(c.Tables, table.Options{Delim: "+"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { set.Close() })
	return &expand.Expander{Config: c, Tables: set, System: nobody{}, Now: time.Now}
}

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		facts, want string // a piece of the text
		exit        int
	}{
		"local":         {"rcpt=root@localhost from=a@b.test", `action "box": maildir /root/M/b.test for root@localhost as root`, 0},
		"no domain":     {"rcpt=root", "root@mx.test", 0},
		"stranger":      {"rcpt=eve@localhost", "no user eve", 1},
		"declared":      {"rcpt=eve@localhost users=ann,eve from=a@b", "maildir /home/eve/M/b", 0},
		"any name":      {"rcpt=eve@localhost users=* from=a@b", "maildir /home/eve/M/b", 0},
		"not declared":  {"rcpt=eve@localhost users=ann", "no user eve", 1},
		"relay":         {"client=192.0.2.7 rcpt=x@far.test", `action "out": relay x@far.test via one of smtp://a, smtp://b`, 0},
		"values":        {"client=192.0.2.7 rcpt=x@near.test", "f:2: match from any for domain { far.test } action \"out\": no: for domain { far.test } (domain is near.test)", 1},
		"client":        {"client=[2001:db8::7] rcpt=root@localhost", "f:1: match from local for local action \"box\": no: from local (client is [2001:db8::7])", 1},
		"socket":        {"listener=socket rcpt=root@localhost", "decided by f:1", 0},
		"plain":         {"listener=lo:25 rcpt=root@localhost", "decided by f:1", 0},
		"no auth there": {"listener=lo:25 auth=ann rcpt=root@localhost", "f:11: listen on lo: it does not offer auth", 1},
		"needs tls":     {"listener=127.0.0.1:587 auth=ann rcpt=root@localhost", "530 5.7.0 Must issue a STARTTLS", 1},
		"needs auth":    {"listener=127.0.0.1:587 tls rcpt=root@localhost", "530 5.7.0 Must issue an AUTH", 1},
		"not allowed":   {"listener=127.0.0.1:587 tls auth=ann from=eve@mx.test rcpt=root", `senders <who>: user "ann" may not send as <eve@mx.test>`, 1},
		"no entry":      {"listener=127.0.0.1:587 tls auth=eve from=eve@mx.test rcpt=root", "550 5.7.1 Sender rejected", 1},
		"allowed":       {"listener=127.0.0.1:587 tls auth=ann from=any@x.test rcpt=root", "decided by f:1", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := expander(t)
			q, err := ParseFacts(x.Config, strings.Fields(tt.facts))
			if err != nil {
				t.Fatal(err)
			}
			v := Decide(t.Context(), x, q)
			if !strings.Contains(v.Text(), tt.want) || v.Exit() != tt.exit {
				t.Errorf("got exit %d\n%s\nwant %d, %s", v.Exit(), v.Text(), tt.exit, tt.want)
			}
			var back Verdict
			if err := json.Unmarshal([]byte(v.JSON()), &back); err != nil || back.Status != v.Status || back.Exit() != v.Exit() {
				t.Errorf("JSON %v: %s", err, v.JSON())
			}
		})
	}
}

func TestParseFactsErrors(t *testing.T) {
	tests := map[string]string{
		"":                            "rcpt=user@domain is missing",
		"rcpt=a@b colour=red":         `unknown fact "colour"`,
		"rcpt=a@b client=nowhere":     "client=nowhere: not an address",
		"rcpt=a@b listener=eth9":      "listener=eth9: there is no such listener",
		"rcpt=a@b listener=lo":        "there are several, name one by its address and port, such as 127.0.0.1:25 or 127.0.0.1:587",
		"rcpt=a@b listener=127.0.0.1": "there are several",
	}
	for facts, want := range tests {
		if _, err := ParseFacts(expander(t).Config, strings.Fields(facts)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", facts, err, want)
		}
	}
}
