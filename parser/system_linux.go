package parser

import (
	"os"
	"strconv"
	"strings"
)

// capNetBindService is the number of that capability (capabilities(7)).
const capNetBindService = 10

// mayListen reports whether this process may open a port.
func mayListen(port uint16) bool {
	first := 1024
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			first = n
		}
	}
	if int(port) >= first {
		return true
	}
	status, _ := os.ReadFile("/proc/self/status") // missing: no capability is known
	_, caps, _ := strings.Cut(string(status), "\nCapEff:")
	caps, _, _ = strings.Cut(caps, "\n")
	bits, _ := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	return bits>>capNetBindService&1 == 1
}

// defaultRoutes names the interfaces that hold a default route of either
// family.
func defaultRoutes() map[string]bool {
	out := map[string]bool{}
	v4, _ := os.ReadFile("/proc/net/route") // missing: no such routes are known
	for line := range strings.Lines(string(v4)) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" {
			out[f[0]] = true
		}
	}
	v6, _ := os.ReadFile("/proc/net/ipv6_route")
	zero := strings.Repeat("0", 32)
	for line := range strings.Lines(string(v6)) {
		f := strings.Fields(line)
		if len(f) > 9 && f[0] == zero && f[1] == "00" && f[9] != "lo" {
			out[f[9]] = true
		}
	}
	return out
}

// interfaceGroups is empty: Linux has none that an administrator names.
func interfaceGroups(string) []string { return nil }
