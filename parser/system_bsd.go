//go:build openbsd || freebsd

package parser

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/net/route"
)

// mayListen reports whether this process may open a port.
func mayListen(port uint16) bool { return port >= 1024 || os.Geteuid() == 0 }

// defaultRoutes gives the index numbers of the interfaces that hold a default
// route of either family.
func defaultRoutes() map[string]bool {
	out := map[string]bool{}
	rib, err := route.FetchRIB(syscall.AF_UNSPEC, syscall.NET_RT_DUMP, 0)
	if err != nil {
		return out
	}
	msgs, err := route.ParseRIB(syscall.NET_RT_DUMP, rib)
	if err != nil {
		return out
	}
	for _, m := range msgs {
		rm, ok := m.(*route.RouteMessage)
		if ok && len(rm.Addrs) > syscall.RTAX_NETMASK && isZero(rm.Addrs[syscall.RTAX_DST]) &&
			isZero(rm.Addrs[syscall.RTAX_NETMASK]) {
			out[strconv.Itoa(rm.Index)] = true
		}
	}
	return out
}

func isZero(a route.Addr) bool {
	switch a := a.(type) {
	case nil:
		return true
	case *route.Inet4Addr:
		return netip.AddrFrom4(a.IP).IsUnspecified()
	case *route.Inet6Addr:
		return netip.AddrFrom16(a.IP).IsUnspecified()
	}
	return false
}

// interfaceGroups is the group that every cloned interface is a member of: its
// name without the number.
func interfaceGroups(name string) []string {
	return []string{strings.TrimRight(name, "0123456789")}
}
