package parent

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"smtpd/internal/config"
)

// TestFilesLook: a change is told once it has rested for one look, also that of
// a link; what is written while it is read counts as changed.
func TestFilesLook(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "one"), filepath.Join(dir, "live")
	old := time.Now().Add(-time.Hour)
	put := func(path, text string, age time.Duration) {
		check(t, os.WriteFile(path, []byte(text), 0o600))
		check(t, os.Chtimes(path, old.Add(age), old.Add(age)))
	}
	put(path, "a", 0)
	check(t, os.Symlink("one", link))
	conf := config.Defaults()
	conf.PKI["x"] = &config.PKI{CertFile: link}
	var f files
	f.next(conf, time.Now())
	f.adopt()
	look := func() int { return len(f.look(map[string]fileState{link: stateOf(link)})) }
	expect := func(step string, want ...int) {
		t.Helper()
		for i, n := range want {
			if got := look(); got != n {
				t.Errorf("%s, look %d: %d changed, want %d", step, i, got, n)
			}
		}
	}
	expect("at first", 0, 0)
	for n := range 3 {
		put(path, "bb"[:n%2+1], time.Duration(n+1)*time.Second)
		expect("while it is written", 0)
	}
	expect("at rest", 1, 0)
	put(filepath.Join(dir, "two"), "c", 0)
	check(t, os.Symlink("two", link+".new"))
	check(t, os.Rename(link+".new", link))
	expect("another file", 0, 1, 0)
	check(t, os.Remove(link))
	expect("gone", 0, 1, 0)
	check(t, os.Symlink("one", link))
	expect("back", 0, 1, 0)
	f.next(conf, old) // reading began before it was written last
	f.adopt()
	expect("written while it was read", 0, 1, 0)
}

// TestInherited: sockets of a service manager serve the listener with their
// address, or with their name as its tag.
func TestInherited(t *testing.T) {
	given := func(name string) (GivenSocket, netip.AddrPort) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		check(t, err)
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		check(t, err)
		return GivenSocket{name, f}, netip.MustParseAddrPort(ln.Addr().String())
	}
	one, addr := given("unknown")
	two, _ := given("submission")
	three, _ := given("nobody")
	path := filepath.Join(t.TempDir(), "sock")
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	check(t, err)
	control, err := u.File()
	check(t, err)
	u.SetUnlinkOnClose(false)
	check(t, u.Close())
	conf := config.Defaults()
	conf.Listeners = []*config.Listener{{Addr: addr}, {Addr: netip.MustParseAddrPort("192.0.2.1:587"), Tag: "submission"},
		{Addr: netip.MustParseAddrPort("192.0.2.1:26")}}
	s, err := openSockets(Options{Config: conf, Sockets: []GivenSocket{one, two, three, {"control", control}}})
	check(t, err)
	if len(s.smtp) != 2 || len(s.missing) != 1 || s.control.Addr().String() != path {
		t.Errorf("%d open, %d missing, control at %s", len(s.smtp), len(s.missing), s.control.Addr())
	}
	if lines := s.given.unused(); len(lines) != 1 {
		t.Errorf("unused: %q", lines)
	}
	// A listener that goes and comes finds its socket again.
	none := config.Defaults()
	s.retire(none)
	if st, err := s.stage(conf); err != nil || len(st.opened) != 2 {
		t.Errorf("the second time: %v", err)
	} else {
		st.close()
	}
	s.close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the control socket of the service manager: %v", err)
	}
}
