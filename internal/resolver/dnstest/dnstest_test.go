package dnstest

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

const zoneText = `
; a comment
example.org		MX	10 mx.example.org
example.org		TXT	"v=spf1 -all"
mx.example.org		A	127.0.0.3
alias.example.org	CNAME	mx.example.org
*.wild.example.org	A	127.0.0.4
a.b.example.org		A	127.0.0.5
!servfail broken.example.org
!truncate big.example.org
big.example.org		A	127.0.0.6
!drop silent.example.org
`

func TestServer(t *testing.T) {
	s, err := Start(zoneText)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tests := map[string]struct {
		name    string
		qtype   uint16
		net     string
		rcode   int
		answers int
		cut     bool
	}{
		"mx":                 {"example.org.", dns.TypeMX, "udp", dns.RcodeSuccess, 1, false},
		"upper case":         {"EXAMPLE.org.", dns.TypeMX, "tcp", dns.RcodeSuccess, 1, false},
		"txt":                {"example.org.", dns.TypeTXT, "udp", dns.RcodeSuccess, 1, false},
		"no data":            {"example.org.", dns.TypeA, "udp", dns.RcodeSuccess, 0, false},
		"cname":              {"alias.example.org.", dns.TypeA, "udp", dns.RcodeSuccess, 2, false},
		"wildcard":           {"x.y.wild.example.org.", dns.TypeA, "udp", dns.RcodeSuccess, 1, false},
		"empty non-terminal": {"b.example.org.", dns.TypeA, "udp", dns.RcodeSuccess, 0, false},
		"no such name":       {"nosuch.example.org.", dns.TypeA, "udp", dns.RcodeNameError, 0, false},
		"servfail":           {"broken.example.org.", dns.TypeA, "udp", dns.RcodeServerFailure, 0, false},
		"truncated":          {"big.example.org.", dns.TypeA, "udp", dns.RcodeSuccess, 0, true},
		"not over tcp":       {"big.example.org.", dns.TypeA, "tcp", dns.RcodeSuccess, 1, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := dns.Client{Net: tt.net, Timeout: 5 * time.Second}
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion(tt.name, tt.qtype), s.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if m.Rcode != tt.rcode || len(m.Answer) != tt.answers || m.Truncated != tt.cut {
				t.Errorf("got rcode %d, %d answers, truncated %v; want %d, %d, %v",
					m.Rcode, len(m.Answer), m.Truncated, tt.rcode, tt.answers, tt.cut)
			}
		})
	}
	if n := s.Queries("example.org", dns.TypeMX); n != 2 {
		t.Errorf("got %d queries, want 2", n)
	}
}

func TestBadZone(t *testing.T) {
	for _, text := range []string{"!frobnicate x", "!ad x", "example.org MX ten mx"} {
		if s, err := Start(text); err == nil {
			s.Close()
			t.Errorf("%q: got no error", text)
		}
	}
}
