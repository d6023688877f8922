package mta

import (
	"context"
	"net/netip"
	"strings"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// maxShown bounds the lines of one answer, in octets; More asks for the rest.
const maxShown = 128 << 10

// show answers a listing.
func (s *state) show(r *ipc.Request) {
	q := r.Msg.(*imsg.Show)
	var lines []string
	what, arg, _ := strings.Cut(q.What, " ")
	switch what {
	case "hosts":
		lines = s.engine.ShowHosts()
	case "hoststats":
		lines = s.engine.ShowHoststats()
	case "relays":
		lines = s.engine.ShowRelays()
	case "waits":
		lines = s.engine.ShowWaits()
	case "routes":
		lines = s.engine.ShowRoutes()
	case "mta":
		lines = s.engine.ShowBlocks()
	case "tls":
		ctx, cancel := context.WithTimeout(context.Background(), ipc.CallTimeout/2)
		lines = s.engine.ShowTLS(ctx, arg)
		cancel()
	}
	var a imsg.Lines
	for _, line := range lines[min(q.Skip, len(lines)):] {
		if len(a.Text)+len(line) > maxShown {
			a.More = true
			break
		}
		a.Text = append(append(a.Text, line...), '\n')
	}
	r.Reply(&a, nil)
}

// routeCommand resumes a route, or blocks and unblocks a source for a domain.
func (s *state) routeCommand(r *ipc.Request, m *imsg.RouteCommand) {
	if m.Resume != 0 {
		s.engine.Resume(m.Resume)
		r.Reply(&imsg.Done{OK: true}, nil)
		return
	}
	src, err := netip.ParseAddr(strings.Trim(m.Source, "[]"))
	if err != nil {
		r.Reply(&imsg.Done{Text: "not an address"}, nil)
		return
	}
	s.engine.Block(m.Block, src, m.Domain)
	r.Reply(&imsg.Done{OK: true}, nil)
}
