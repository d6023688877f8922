package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	c := Defaults()
	if c.Socket == nil || !c.Socket.IsSocket || !c.Socket.DSN {
		t.Errorf("socket: %+v", c.Socket)
	}
	for name, got := range map[string]any{
		"queue ttl": c.Queue.TTL, "max-rcpt": c.SMTP.MaxRcpt, "max-inflight": c.Scheduler.MaxInflight,
		"max-session": c.MDA.MaxSession, "per host": c.MTA.Default.MaxConnPerHost, "warn": c.Warn, "size": c.SMTP.MaxMessageSize,
	} {
		want := map[string]any{"queue ttl": 96 * time.Hour, "max-rcpt": 1000, "max-inflight": 5000,
			"max-session": 50, "per host": 20, "warn": []time.Duration{4 * time.Hour}, "size": int64(35 << 20)}[name]
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v; want %v", name, got, want)
		}
	}
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Map && f.IsNil() {
			t.Errorf("%s is not made", v.Type().Field(i).Name)
		}
	}
	if Defaults().Tables["x"] = (&Table{}); c.Tables["x"] != nil {
		t.Error("two configurations share a map")
	}
}

// What the parent sends is what a child gets.
func TestJSON(t *testing.T) {
	c := Defaults()
	c.Generation, c.LocalAddrs = 7, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	c.Listeners = []*Listener{{Name: "lo", Addr: netip.MustParseAddrPort("[::1]:25"), TLS: TLSRequired, PKI: []string{"mx"}}}
	c.Tables["t"] = &Table{Name: "t", Type: TableMapping, Pairs: [][2]string{{"a", "b"}}}
	c.Actions["out"] = &Action{Name: "out", Method: MethodRelay, Relay: &Relay{Host: "h", SRS: true}, TTL: time.Hour}
	c.Rules = []*Rule{{Number: 1, From: From{Kind: FromSrc, Match: Match{Table: "t"}}, Tag: &Match{Not: true}, Action: "out"}}
	c.PKI["mx"] = &PKI{Name: "mx", Key: "KEY", Cert: []byte{0, 255}}
	c.MTA.Domain["d"] = &MTALimits{Family: "inet6"}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	got := &Config{}
	if err := json.Unmarshal(b, got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, c) {
		t.Errorf("got  %+v\nwant %+v", got, c)
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	c := Defaults()
	c.PKI["mx"] = &PKI{Key: "hidden-1"}
	c.Queue.EncryptionKey, c.SRS.Key = "hidden-2", "hidden-3"
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		for _, v := range []any{*c, c, c.Queue, c.SRS, *c.PKI["mx"], c.PKI["mx"], c.PKI["mx"].Key} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, "hidden") {
				t.Errorf("%s of %T: %s", verb, v, s)
			}
		}
	}
	if s := fmt.Sprintf("%s %q %x", c.SRS.Key, c.SRS.Key, c.SRS.Key); strings.Contains(s, "hidden") || strings.Contains(s, "68696464") {
		t.Error(s)
	}
}

func TestLimitsOfADomain(t *testing.T) {
	m := &Defaults().MTA
	m.Domain["slow.test"] = &MTALimits{MaxConnPerHost: 1}
	if m.For("slow.test", "").MaxConnPerHost != 1 || m.For("other.test", "").MaxConnPerHost != 20 {
		t.Error("the wrong limits")
	}
	if (&Action{Method: MethodRelay}).IsLocal() || !(&Action{Method: MethodMaildir}).IsLocal() {
		t.Error("IsLocal")
	}
}
