package parser

import (
	"os"
	"strings"
)

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
