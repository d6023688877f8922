package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"smtpd/internal/resolver"
)

// zone is a name system: "TYPE name" to data, addresses among them.
type zone map[string][]string

func (z zone) Lookup(_ context.Context, name string, qtype uint16) resolver.Answer {
	a := resolver.Answer{Result: resolver.NoData}
	for _, d := range z[map[uint16]string{resolver.TypeTXT: "TXT", resolver.TypeMX: "MX"}[qtype]+" "+name] {
		a.Result = resolver.OK
		a.Records = append(a.Records, resolver.Record{Data: d})
	}
	return a
}

func (z zone) Addrs(_ context.Context, name string) ([]netip.Addr, resolver.Result) {
	var addrs []netip.Addr
	for _, d := range z["A "+name] {
		addrs = append(addrs, netip.MustParseAddr(d))
	}
	return addrs, resolver.OK
}

func TestSPFWalk(t *testing.T) {
	dns := zone{
		"TXT spf.test":   {"other text", "v=spf1 ip4:192.0.2.0/24 +ip4:198.51.100.7 ip6:2001:db8::/32 a:host.test mx include:inc.test ~all", "v=spf1 ip4:9.9.9.9"},
		"A host.test":    {"2001:db8::3", "127.0.0.3"},
		"MX spf.test":    {"mx1.test", "."},
		"A mx1.test":     {"127.0.0.4"},
		"TXT inc.test":   {"V=SPF1 ?A:mask.test/24//64 -ip4:10.0.0.1 exists:%{i}.x ptr a:%{d} ip4:evil\x1b include:inc.test redirect=spf.test"},
		"A mask.test":    {"127.0.1.9", "2001:db8::9"},
		"TXT redir.test": {"v=spf1 redirect=inc2.test"},
		"TXT inc2.test":  {"v=spf1 a -all"},
		"A inc2.test":    {"127.0.0.9"},
	}
	for i := range 300 { // a chain without end
		dns[fmt.Sprintf("TXT c%d.test", i)] = []string{fmt.Sprintf("v=spf1 ip4:10.0.0.%d include:c%d.test", i%250, i+1)}
	}
	tests := map[string]struct{ in, want string }{
		"recorded": {"spf.test\n", "192.0.2.0/24\n198.51.100.7\n2001:db8::/32\n127.0.0.3\n2001:db8::3\n127.0.0.4\n127.0.1.0/24\n2001:db8::/64\n"},
		"none":     {"nothing.test\n\n", ""},
		"redirect": {"redir.test\nRedir.Test.\n", "127.0.0.9\n127.0.0.9\n"},
		"depth":    {"c0.test\n", "10.0.0.0\n10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4\n10.0.0.5\n10.0.0.6\n10.0.0.7\n10.0.0.8\n10.0.0.9\n10.0.0.10\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			p := &program{stdin: strings.NewReader(tt.in), stdout: bufio.NewWriter(&out), stderr: &errs}
			if err := p.spfWalk(context.Background(), dns); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.want || errs.String() != "" {
				t.Errorf("got\n%s%s\nwant\n%s", out.String(), errs.String(), tt.want)
			}
		})
	}
}
