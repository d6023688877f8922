package mta

import (
	"net/netip"
	"testing"
)

func TestRemoteName(t *testing.T) {
	tests := map[string]struct{ name, reverse, addr, want string }{
		"a name":                {"mx.example.net", "host.isp.example", "192.0.2.1", "mx.example.net (192.0.2.1)"},
		"a name, IPv6":          {"mx.example.net", "[2001:db8::1]", "2001:db8::1", "mx.example.net (2001:db8::1)"},
		"an address":            {"192.0.2.1", "192.0.2.1", "192.0.2.1", "[192.0.2.1]"},
		"a literal":             {"[192.0.2.1]", "192.0.2.1", "192.0.2.1", "[192.0.2.1]"},
		"an address with name":  {"192.0.2.1", "host.isp.example", "192.0.2.1", "host.isp.example (192.0.2.1)"},
		"IPv6":                  {"2001:db8::1", "[2001:db8::1]", "2001:db8::1", "[IPv6:2001:db8::1]"},
		"an IPv6 literal":       {"[IPv6:2001:db8::1]", "[2001:db8::1]", "2001:db8::1", "[IPv6:2001:db8::1]"},
		"an IPv6 with its name": {"[2001:db8::1]", "host.isp.example", "2001:db8::1", "host.isp.example (2001:db8::1)"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := remoteName(tc.name, tc.reverse, netip.MustParseAddr(tc.addr)); got != tc.want {
				t.Errorf("got %q; want %q", got, tc.want)
			}
		})
	}
}
