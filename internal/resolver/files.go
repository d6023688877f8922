package resolver

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Bounds of the files that are read.
const (
	maxServers  = 8       // ours; the C library takes 3
	maxHostFile = 4 << 20 // ours: octets of /etc/hosts
)

// files is what resolv.conf and hosts say, read again when they change.
type files struct {
	resolvConf, hosts string

	mu       sync.RWMutex
	declared []string // Options.Servers; then resolv.conf is not read
	servers  []*server
	checked  time.Time
	read     bool
	conf     stamp
	host     stamp
	names    map[string][]netip.Addr
	addrs    map[netip.Addr]string // the first name of each
}

// stamp tells one state of a file from another.
type stamp struct {
	mtime time.Time
	size  int64
}

func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{fi.ModTime(), fi.Size()}
}

func newFiles(o Options) *files {
	f := &files{resolvConf: o.ResolvConf, hosts: o.Hosts, declared: o.Servers}
	if f.resolvConf == "" {
		f.resolvConf = "/etc/resolv.conf"
	}
	if f.hosts == "" {
		f.hosts = "/etc/hosts"
	}
	return f
}

// setServers replaces the declared servers and reports whether they differ.
func (f *files) setServers(servers []string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Equal(servers, f.declared) {
		return false
	}
	f.declared, f.read = slices.Clone(servers), false
	return true
}

// refresh looks at the files from time to time and reports whether what the
// servers said before no longer counts.
func (f *files) refresh(now time.Time) (changed bool) {
	f.mu.RLock()
	fresh := f.read && now.Sub(f.checked) < checkFiles && !now.Before(f.checked)
	f.mu.RUnlock()
	if fresh {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !f.read
	f.checked, f.read = now, true
	if s := stampOf(f.hosts); first || s != f.host {
		f.host = s
		f.names, f.addrs = readHosts(f.hosts)
	}
	if s := stampOf(f.resolvConf); first || s != f.conf {
		f.conf = s
		if f.servers = readResolvConf(f.resolvConf); len(f.declared) > 0 {
			f.servers = nil
			for _, addr := range f.declared {
				f.servers = append(f.servers, &server{addr: withPort(addr), trust: true})
			}
		}
		return !first
	}
	return false
}

// current is a copy of the list of servers.
func (f *files) current() []*server {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.Clone(f.servers)
}

// withPort adds the port of DNS to an address that has none.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), "53")
}

// readResolvConf reads the servers of resolv.conf(5). Without any it is the
// server of this host, as in the C library. AD is believed from a server on
// this host, and from all when the file says "options trust-ad".
func readResolvConf(path string) []*server {
	var servers []*server
	trust := false
	for f := range fieldsOf(path) {
		switch {
		case f[0] == "nameserver" && len(f) > 1 && len(servers) < maxServers:
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, &server{addr: net.JoinHostPort(f[1], "53"), trust: a.IsLoopback()})
			}
		case f[0] == "options":
			trust = trust || slices.Contains(f[1:], "trust-ad")
		}
	}
	if len(servers) == 0 {
		servers = []*server{{addr: "127.0.0.1:53", trust: true}}
	}
	for _, s := range servers {
		s.trust = s.trust || trust
	}
	return servers
}

// readHosts reads hosts(5).
func readHosts(path string) (names map[string][]netip.Addr, addrs map[netip.Addr]string) {
	names, addrs = map[string][]netip.Addr{}, map[netip.Addr]string{}
	for f := range fieldsOf(path) {
		a, err := netip.ParseAddr(f[0])
		if err != nil || a.Zone() != "" {
			continue
		}
		a = a.Unmap()
		for _, name := range f[1:] {
			name, ok := canonical(name)
			if !ok {
				continue
			}
			if !slices.Contains(names[name], a) && len(names[name]) < MaxRecords {
				names[name] = append(names[name], a)
			}
			if _, known := addrs[a]; !known {
				addrs[a] = name
			}
		}
	}
	return names, addrs
}

// fieldsOf yields the fields of each line of a file that has any, without
// comments. A file that cannot be read has none.
func fieldsOf(path string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		f, err := os.Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		in := bufio.NewScanner(io.LimitReader(f, maxHostFile))
		for in.Scan() {
			line := in.Text()
			if i := strings.IndexAny(line, "#;"); i >= 0 {
				line = line[:i]
			}
			if w := strings.Fields(line); len(w) > 0 && !yield(w) {
				return
			}
		}
	}
}

// hostsTTL is given to what comes from hosts, in seconds.
const hostsTTL = 60

// lookup answers from hosts, and for localhost even when hosts does not have
// it (RFC 6761 section 6.3); false: the servers must be asked.
func (f *files) lookup(name string, qtype uint16) (Answer, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch qtype {
	case TypeA, TypeAAAA:
		addrs, ok := f.names[name]
		if !ok && (name == "localhost" || strings.HasSuffix(name, ".localhost")) {
			addrs, ok = []netip.Addr{netip.IPv6Loopback(), netip.AddrFrom4([4]byte{127, 0, 0, 1})}, true
		}
		if !ok {
			return Answer{}, false
		}
		a := Answer{Result: NoData}
		for _, addr := range addrs {
			if addr.Is4() == (qtype == TypeA) {
				a.Result = OK
				a.Records = append(a.Records, Record{TTL: hostsTTL, Data: addr.String()})
			}
		}
		return a, true
	case TypePTR:
		addr, ok := reverseAddr(name)
		if !ok {
			return Answer{}, false
		}
		host := f.addrs[addr]
		if host == "" && (addr == netip.IPv6Loopback() || addr == netip.AddrFrom4([4]byte{127, 0, 0, 1})) {
			host = "localhost"
		}
		if host != "" {
			return Answer{Records: []Record{{TTL: hostsTTL, Data: host}}}, true
		}
	}
	return Answer{}, false
}

// reverseAddr is the address that a name below in-addr.arpa or ip6.arpa stands
// for.
func reverseAddr(name string) (netip.Addr, bool) {
	labels := dns.SplitDomainName(name)
	slices.Reverse(labels)
	if len(labels) == 6 && labels[1] == "in-addr" {
		a, err := netip.ParseAddr(strings.Join(labels[2:], "."))
		return a, err == nil
	}
	if len(labels) != 34 || labels[1] != "ip6" {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i, l := range labels[2:] {
		v, err := strconv.ParseUint(l, 16, 4)
		if err != nil {
			return netip.Addr{}, false
		}
		b[i/2] |= byte(v) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(b), true
}
