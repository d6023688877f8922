package mta

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestResolve(t *testing.T) {
	self := netip.MustParseAddr("192.0.2.99")
	many := newWorld(t)
	for i := range 10000 {
		a := many.dns["MX many.test"]
		a.records = append(a.records, Record{uint16(10 + i), fmt.Sprintf("mx%d.many.test", i)})
		many.dns["MX many.test"] = a
	}
	many.addr("mx3.many.test", "192.0.2.3")
	tests := map[string]struct {
		zone func(w *world)
		d    destination
		want string // candidates as "pref name addr", joined by ", ", or the failure
	}{
		"MX in order": {func(w *world) { w.mx("d.test", "20 b.test 192.0.2.2", "10 a.test 192.0.2.1") },
			destination{name: "d.test"}, "10 a.test 192.0.2.1, 20 b.test 192.0.2.2"},
		"case and final dot": {func(w *world) { w.mx("d.test", "10 A.Test. "); w.addr("a.test", "192.0.2.1") },
			destination{name: "D.Test"}, "10 a.test 192.0.2.1"},
		"both families in turn": {func(w *world) { w.mx("d.test", "10 a.test 192.0.2.1 192.0.2.2 2001:db8::1") },
			destination{name: "d.test"}, "10 a.test 2001:db8::1, 10 a.test 192.0.2.1, 10 a.test 192.0.2.2"},
		"no MX, an address": {func(w *world) { w.addr("d.test", "192.0.2.1") },
			destination{name: "d.test"}, "0 d.test 192.0.2.1"},
		"null MX":          {func(w *world) { w.mx("d.test", "0 .") }, destination{name: "d.test"}, "Domain does not accept mail"},
		"null MX as empty": {func(w *world) { w.dns["MX d.test"] = fakeAnswer{[]Record{{0, ""}}, DNSOK} }, destination{name: "d.test"}, "Domain does not accept mail"},
		"MX localhost":     {func(w *world) { w.mx("d.test", "10 localhost") }, destination{name: "d.test"}, "Domain does not accept mail"},
		"localhost among others": {func(w *world) { w.mx("d.test", "10 localhost 127.0.0.1", "20 a.test 192.0.2.1") },
			destination{name: "d.test"}, "20 a.test 192.0.2.1"},
		"NXDOMAIN":         {func(w *world) {}, destination{name: "d.test"}, "Domain does not exist"},
		"nothing at all":   {func(w *world) { w.dns["TXT d.test"] = fakeAnswer{} }, destination{name: "d.test"}, "No MX found for domain"},
		"MX, no address":   {func(w *world) { w.mx("d.test", "10 a.test") }, destination{name: "d.test"}, "No MX found for domain"},
		"SERVFAIL for MX":  {func(w *world) { w.dns["MX d.test"] = fakeAnswer{result: DNSFailure} }, destination{name: "d.test"}, "Temporary failure in MX lookup"},
		"SERVFAIL for all": {func(w *world) { w.mx("d.test", "10 a.test"); w.dns["A a.test"] = fakeAnswer{result: DNSFailure} }, destination{name: "d.test"}, "Temporary failure in MX lookup"},
		"SERVFAIL for some": {func(w *world) {
			w.mx("d.test", "10 a.test", "20 b.test 192.0.2.2")
			w.dns["A a.test"] = fakeAnswer{result: DNSFailure}
		}, destination{name: "d.test"}, "20 b.test 192.0.2.2"},
		"bad name":       {func(w *world) {}, destination{name: "a..b"}, "Invalid domain name"},
		"label too long": {func(w *world) {}, destination{name: strings.Repeat("a", 64) + ".test"}, "Invalid domain name"},
		"blank in name":  {func(w *world) {}, destination{name: "a b.test"}, "Invalid domain name"},
		"empty name":     {func(w *world) {}, destination{name: ""}, "Invalid domain name"},
		"bad MX name":    {func(w *world) { w.mx("d.test", "10 a;b.test", "20 b.test 192.0.2.2") }, destination{name: "d.test"}, "20 b.test 192.0.2.2"},
		"international":  {func(w *world) { w.mx("xn--bcher-kva.test", "10 a.test 192.0.2.1") }, destination{name: "bücher.test"}, "10 a.test 192.0.2.1"},
		"literal":        {func(w *world) {}, destination{name: "[192.0.2.7]"}, "0 192.0.2.7 192.0.2.7"},
		"literal 6":      {func(w *world) {}, destination{name: "[IPv6:2001:db8::7]"}, "0 2001:db8::7 2001:db8::7"},
		"literal, bad":   {func(w *world) {}, destination{name: "[192.0.2]"}, "Invalid domain name"},
		"host":           {func(w *world) { w.addr("h.test", "192.0.2.1") }, destination{name: "h.test", isHost: true}, "0 h.test 192.0.2.1"},
		"host has MX": {func(w *world) { w.mx("h.test", "10 a.test 192.0.2.2"); w.addr("h.test", "192.0.2.1") },
			destination{name: "h.test", isHost: true}, "0 h.test 192.0.2.1"},
		"host, none":     {func(w *world) {}, destination{name: "h.test", isHost: true}, "Host not found"},
		"host, SERVFAIL": {func(w *world) { w.dns["A h.test"] = fakeAnswer{result: DNSFailure} }, destination{name: "h.test", isHost: true}, "Host not found: temporary failure of the name system"},
		"backup": {func(w *world) {
			w.mx("d.test", "10 a.test 192.0.2.1", "20 me.test 192.0.2.99", "20 c.test 192.0.2.3", "30 b.test 192.0.2.2")
		}, destination{name: "d.test", backup: "ME.test"}, "10 a.test 192.0.2.1"},
		"backup, first":    {func(w *world) { w.mx("d.test", "10 me.test 192.0.2.99", "20 a.test 192.0.2.1") }, destination{name: "d.test", backup: "me.test"}, "No MX found for destination"},
		"backup, not in":   {func(w *world) { w.mx("d.test", "10 a.test 192.0.2.1") }, destination{name: "d.test", backup: "me.test"}, "10 a.test 192.0.2.1"},
		"ourselves":        {func(w *world) { w.mx("d.test", "10 x.test 192.0.2.99") }, destination{name: "d.test"}, "mail for d.test loops back to myself"},
		"ourselves second": {func(w *world) { w.mx("d.test", "10 a.test 192.0.2.1", "20 x.test 192.0.2.99", "30 b.test 192.0.2.2") }, destination{name: "d.test"}, "10 a.test 192.0.2.1"},
		"10,000 MX":        {func(w *world) { w.dns = many.dns }, destination{name: "many.test"}, "13 mx3.many.test 192.0.2.3"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.zone(w)
			tt.d.isSelf = func(a netip.Addr) bool { return a == self }
			found, fail := resolve(context.Background(), w, tt.d)
			var parts []string
			for _, c := range found {
				parts = append(parts, fmt.Sprintf("%d %s %s", c.pref, c.name, c.addr))
			}
			got := strings.Join(parts, ", ")
			if fail != nil {
				got = fail.line()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestResolveSpreads(t *testing.T) {
	w := newWorld(t)
	w.mx("d.test", "10 a.test 192.0.2.1", "10 b.test 192.0.2.2", "10 c.test 192.0.2.3")
	first := map[string]bool{}
	for range 200 {
		found, _ := resolve(context.Background(), w, destination{name: "d.test"})
		first[found[0].name] = true
	}
	if len(first) != 3 {
		t.Errorf("of three equal exchangers only %v came first", first)
	}
}

func TestReverseName(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1":          "1.2.0.192.in-addr.arpa",
		"2001:db8::567:89ab": "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := reverseName(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %s, want %s", addr, got, want)
		}
	}
}

func FuzzHostName(f *testing.F) {
	for _, s := range []string{"a.test", "bücher.test", "[1.2.3.4]", "a_b", "xn--", strings.Repeat("a.", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := hostName(s)
		if !ok {
			return
		}
		if len(name) > 253 || slices.ContainsFunc([]byte(name), func(c byte) bool { return c <= ' ' || c >= 0x7f }) {
			t.Errorf("%q became %q", s, name)
		}
		if again, ok := hostName(name); !ok || again != name {
			t.Errorf("%q became %q, and that %q", s, name, again)
		}
	})
}
