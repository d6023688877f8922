package resolver

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"smtpd/internal/mail"
)

// maxTraced bounds the records and octets that a line of the trace shows. Ours.
const (
	maxTraced     = 16
	maxTracedText = 1000
)

// traceLine is what the trace says of one answer, such as
// "dns MX example.net: ok from 127.0.0.1:53 in 3ms: 10 mx.example.net (ttl 300)".
func traceLine(name string, qtype uint16, a Answer, from string, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dns %s %s: %s from %s in %s", dns.TypeToString[qtype], strings.TrimSuffix(name, "."), a.Result, from,
		took.Round(10*time.Microsecond))
	if a.AD {
		b.WriteString(", validated")
	}
	for i, r := range a.Records {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		if b.WriteString(sep); i == maxTraced {
			fmt.Fprintf(&b, "and %d more", len(a.Records)-i)
			break
		}
		switch qtype {
		case TypeMX:
			fmt.Fprintf(&b, "%d %s", r.Pref, r.Data)
		case TypeTLSA:
			fmt.Fprintf(&b, "%x", r.Data)
		default:
			b.WriteString(r.Data)
		}
		fmt.Fprintf(&b, " (ttl %d)", r.TTL)
	}
	return mail.Clean(b.String(), maxTracedText)
}

// tell traces one line, if anybody wants to know.
func (r *Resolver) tell(line func() string) {
	if r.trace == nil {
		return
	}
	if say := r.trace(); say != nil {
		say(line())
	}
}
