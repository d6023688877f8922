package smtp

import (
	"net/netip"
	"strings"

	engine "smtpd/internal/smtp"
)

// traceFrom begins a topic of `smtpctl trace` that names clients: what follows
// is an address or a network. The topic "smtp" alone is every client.
const traceFrom = "smtp from "

// trace takes the topics that the operator traces.
func (s *server) trace(topics []string) {
	var nets []netip.Prefix
	for _, topic := range topics {
		text, ok := strings.CutPrefix(topic, traceFrom)
		if !ok {
			continue
		}
		if p, err := netip.ParsePrefix(text); err == nil {
			nets = append(nets, p.Masked())
		} else if a, err := netip.ParseAddr(text); err == nil {
			nets = append(nets, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
		}
	}
	s.tracing.Store(&nets)
}

// traced reports whether the dialogue with a client goes to the log.
func (s *server) traced(c *engine.Client) bool {
	nets := s.tracing.Load()
	if nets == nil {
		return false
	}
	for _, p := range *nets {
		if p.Contains(c.Addr.Addr()) {
			return true
		}
	}
	return false
}
