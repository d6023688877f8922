package parser

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"smtpd/internal/accounts"
	"smtpd/mda"
)

// System is what a configuration is checked against: files, interfaces, users
// and names. The default is the host; tests bring their own.
type System interface {
	// ReadFile reads a regular file of at most max octets. The error is one
	// of package fs, or says that the file is too large or not regular.
	ReadFile(name string, max int64) ([]byte, error)
	// Stat is the mode and owner of a file, symbolic links followed.
	Stat(name string) (FileInfo, error)
	// Interfaces are the network interfaces with their addresses.
	Interfaces() ([]Interface, error)
	// LookupHost is the addresses of a host name. It blocks until ctx ends.
	LookupHost(ctx context.Context, name string) ([]netip.Addr, error)
	// Hostname is the name of the host, completed by the resolver when it
	// holds no dot. It blocks until ctx ends.
	Hostname(ctx context.Context) (string, error)
	// HasUser and HasGroup report whether the system knows a name.
	HasUser(name string) bool
	HasGroup(name string) bool
	// Users and Groups are names that a misspelt one may have meant.
	Users() []string
	Groups() []string
	// Home is the home folder of a user; empty: there is no such user.
	Home(name string) string
	// CurrentUser is the name of the user that asks, CurrentUID its number.
	CurrentUser() string
	CurrentUID() uint32
	// Mailbox reports why the current user cannot deliver to the system mailbox of
	// that name; nil: it can.
	Mailbox(name string) error
	// MayListen reports whether the current user may open a port.
	MayListen(port uint16) bool
}

// FileInfo is what the checks want to know of a file.
type FileInfo struct {
	Mode fs.FileMode
	UID  uint32
}

// Interface is one network interface.
type Interface struct {
	Name     string
	Groups   []string // OpenBSD and FreeBSD
	Loopback bool
	Egress   bool // holds a default route
	Addrs    []netip.Addr
}

// host is the System that smtpd runs on.
type host struct{}

func (host) ReadFile(name string, max int64) ([]byte, error) {
	// A FIFO must not hang the check, so the kind is looked at first.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("larger than %d octets", max)
	}
	return data, nil
}

func (host) Stat(name string) (FileInfo, error) {
	st, err := os.Stat(name)
	if err != nil {
		return FileInfo{}, err
	}
	fi := FileInfo{Mode: st.Mode()}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		fi.UID = s.Uid
	}
	return fi, nil
}

func (host) Interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	egress := defaultRoutes()
	var out []Interface
	for _, in := range list {
		i := Interface{
			Name:     in.Name,
			Groups:   interfaceGroups(in.Name),
			Loopback: in.Flags&net.FlagLoopback != 0,
			Egress:   egress[in.Name] || egress[strconv.Itoa(in.Index)],
		}
		addrs, err := in.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", in.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			addr := p.Addr()
			if addr.IsLinkLocalUnicast() && addr.Is6() {
				addr = addr.WithZone(in.Name)
			}
			i.Addrs = append(i.Addrs, addr)
		}
		out = append(out, i)
	}
	return out, nil
}

// maxResolve bounds one question to the resolver: a check must end where the
// network is down. Ours: two tries of a common resolver.
const maxResolve = 5 * time.Second

func (host) LookupHost(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, maxResolve)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

func (host) Hostname(ctx context.Context) (string, error) {
	name, err := os.Hostname()
	if err != nil || strings.Contains(name, ".") {
		return name, err
	}
	if full := hostsName(name); full != name {
		return full, nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxResolve)
	defer cancel()
	if full, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil {
		if full = strings.TrimSuffix(full, "."); strings.HasPrefix(full, name+".") {
			return full, nil
		}
	}
	return name, nil
}

// hostsName completes a host name from /etc/hosts, where "127.0.1.1
// mx.example.org mx" gives the short name its long one.
func hostsName(short string) string {
	data, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return short
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		for i, f := range strings.Fields(line) {
			if i > 0 && strings.HasPrefix(f, short+".") {
				return f
			}
		}
	}
	return short
}

// HasUser is true where others than passwd(5) may know the user: to ask them is
// not for a check.
func (host) HasUser(name string) bool {
	u, err := accounts.Local(name)
	return err == nil && u.Found || accounts.New(time.Now).Elsewhere()
}

func (host) HasGroup(name string) bool {
	_, err := user.LookupGroup(name)
	return err == nil || accounts.New(time.Now).Elsewhere()
}

func (host) Users() []string { return firstFields("/etc/passwd") }

func (host) Groups() []string { return firstFields("/etc/group") }

// firstFields are the names of passwd(5) and group(5).
func firstFields(file string) (names []string) {
	data, _ := (host{}).ReadFile(file, 1<<20) // unreadable or too large: there is nothing to suggest
	for line := range strings.Lines(string(data)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, name)
		}
	}
	return names
}

func (host) Home(name string) string {
	u, _ := accounts.Local(name) // an error: there is no home that is known
	return u.Home
}

func (host) CurrentUID() uint32 { return uint32(os.Geteuid()) }

func (host) Mailbox(name string) error {
	return mda.CheckMailbox(mda.DefaultSpoolDir, name, os.Geteuid())
}

func (host) MayListen(port uint16) bool { return mayListen(port) }

func (host) CurrentUser() string {
	u, err := user.Current()
	if err != nil {
		return strconv.Itoa(os.Getuid())
	}
	return u.Username
}
