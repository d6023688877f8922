package parent

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/log"
)

func TestBackoff(t *testing.T) {
	var delay time.Duration
	var got []time.Duration
	for n := 1; n <= 25; n++ {
		delay = backoff(n, delay)
		got = append(got, delay)
	}
	for i, want := range []time.Duration{50, 50, 50, 50, 66, 88, 118} {
		if got[i].Milliseconds() != int64(want) {
			t.Errorf("after death %d: %s, want %d ms", i+1, got[i], want)
		}
	}
	if got[9] > time.Second/2 {
		t.Errorf("after ten deaths %s: clients wait too long", got[9])
	}
	if next := backoff(2, 4*time.Second); next < 5*time.Second {
		t.Errorf("two deaths in the window because of long waits: %s, want more than the last", next)
	}
	if last := got[len(got)-1]; last != maxDelay {
		t.Errorf("last delay %s, want %s", last, maxDelay)
	}
	if again := backoff(1, maxDelay); again != minDelay {
		t.Errorf("after a quiet time %s, want %s", again, minDelay)
	}
}

func TestRecent(t *testing.T) {
	now := time.Unix(1000, 0)
	times := []time.Time{now.Add(-time.Minute), now.Add(-11 * time.Second), now.Add(-9 * time.Second), now}
	if got := recent(times, now); len(got) != 2 {
		t.Errorf("%d of the last 10 s, want 2", len(got))
	}
}

// TestProject: no process gets a secret that is not its concern.
func TestProject(t *testing.T) {
	full := config.Defaults()
	full.PKI["mx"] = &config.PKI{Name: "mx", Cert: []byte("public"), Key: "KEY-SECRET"}
	full.Queue.EncryptionKey = "QUEUE-SECRET"
	full.SRS.Key, full.SRS.Backup = "SRS-SECRET", "SRS-SECRET"
	full.Tables["t"] = &config.Table{Name: "t", Pairs: [][2]string{{"label", "user:TABLE-SECRET"}}}
	may := map[string][]imsg.Role{
		"KEY-SECRET":   {imsg.Keys},
		"QUEUE-SECRET": {imsg.Queue},
		"SRS-SECRET":   {imsg.Lookup, imsg.MTA},
		"TABLE-SECRET": {imsg.Lookup, imsg.MTA, imsg.SMTP},
	}
	for _, role := range imsg.Children {
		data, err := json.Marshal(project(full, role))
		if err != nil {
			t.Fatal(err)
		}
		for secret, roles := range may {
			allowed := false
			for _, r := range roles {
				allowed = allowed || r == role
			}
			if got := strings.Contains(string(data), secret); got != allowed {
				t.Errorf("%s gets %s: %v, want %v", role, secret, got, allowed)
			}
		}
	}
	if full.PKI["mx"].Key != "KEY-SECRET" {
		t.Error("the parent's own configuration was changed")
	}
}

func TestFlip(t *testing.T) {
	p := &parent{log: discard(), children: map[imsg.Role]*child{}}
	steps := []struct {
		name string
		on   bool
		want bool
	}{
		{"mta", true, true}, {"mta", true, false}, {"mta", false, true}, {"mta", false, false},
		{"mda", true, true}, {"smtp", true, true}, {"verbose", true, true}, {"verbose", true, true},
		{"trace smtp", true, true}, {"trace smtp", false, true}, {"profile imsg", true, true},
		{"profile nosuch", true, false}, {"nosuch", true, false}, {"", true, false},
	}
	for _, s := range steps {
		if got := p.flip(s.name, s.on); got != s.want {
			t.Errorf("flip %q %v: %v, want %v", s.name, s.on, got, s.want)
		}
	}
	if s := p.switches; s.PauseMTA || !s.PauseMDA || !s.PauseSMTP || !s.Verbose || len(s.Trace) != 0 {
		t.Errorf("switches %+v", s)
	}
}

// TestTraceEnds: a topic traced for a time ends by itself, unless it was said
// again without one.
func TestTraceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &parent{log: discard(), children: map[imsg.Role]*child{}, actions: make(chan func()), quit: make(chan struct{})}
		defer close(p.quit)
		for _, bad := range []string{"smtp for ", "smtp for ever", "smtp for -1s", "smtp for 999999h"} {
			if p.trace(bad, true) {
				t.Errorf("%q was taken", bad)
			}
		}
		p.flip("trace smtp from 192.0.2.0/24 for 10m", true)
		p.flip("trace mta for 10m", true)
		p.flip("trace mta", true)
		if got := strings.Join(p.switches.Trace, ","); got != "smtp from 192.0.2.0/24,mta" {
			t.Errorf("at first %s", got)
		}
		start := time.Now()
		(<-p.actions)()
		if got := strings.Join(p.switches.Trace, ","); got != "mta" || time.Since(start) != 10*time.Minute {
			t.Errorf("after %s %s", time.Since(start), got)
		}
	})
}

func TestForward(t *testing.T) {
	uid := uint32(os.Getuid())
	tests := map[string]struct {
		make    func(t *testing.T, home string)
		present bool
		data    string
		code    int
	}{
		"absent":      {func(*testing.T, string) {}, false, "", 0},
		"plain":       {put("bob@example.org\n", 0o644), true, "bob@example.org\n", 0},
		"empty":       {put("", 0o600), true, "", 0},
		"largest":     {put(strings.Repeat("x", imsg.MaxForward), 0o600), true, strings.Repeat("x", imsg.MaxForward), 0},
		"too large":   {put(strings.Repeat("x", imsg.MaxForward+1), 0o600), false, "", 451},
		"group write": {put("x\n", 0o664), false, "", 550},
		"other write": {put("x\n", 0o606), false, "", 550},
		"link": {func(t *testing.T, home string) {
			check(t, os.WriteFile(filepath.Join(home, "real"), []byte("x\n"), 0o600))
			check(t, os.Symlink("real", filepath.Join(home, ".forward")))
		}, false, "", 550},
		"folder":      {func(t *testing.T, home string) { check(t, os.Mkdir(filepath.Join(home, ".forward"), 0o700)) }, false, "", 550},
		"fifo":        {func(t *testing.T, home string) { check(t, unix.Mkfifo(filepath.Join(home, ".forward"), 0o600)) }, false, "", 550},
		"home sticky": {func(t *testing.T, home string) { check(t, os.Chmod(home, 0o700|os.ModeSticky)) }, false, "", 451},
		"home open": {func(t *testing.T, home string) {
			put("x\n", 0o600)(t, home)
			check(t, os.Chmod(home, 0o777))
		}, false, "", 550},
		"no home": {func(t *testing.T, home string) { check(t, os.Remove(home)) }, false, "", 0},
		"sparse": {func(t *testing.T, home string) {
			put("", 0o600)(t, home)
			check(t, os.Truncate(filepath.Join(home, ".forward"), 10<<30))
		}, false, "", 451},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "home")
			check(t, os.Mkdir(home, 0o700))
			tt.make(t, home)
			got := forward(&imsg.ForwardOpen{User: "u", UID: uid, Home: home})
			if got.Present != tt.present || string(got.Data) != tt.data || got.Status.Code != tt.code {
				t.Errorf("got %v %d octets %d (%s), want %v %d octets %d", got.Present, len(got.Data), got.Status.Code,
					got.Reason, tt.present, len(tt.data), tt.code)
			}
			if tt.code != 0 && got.Reason == "" {
				t.Error("refused without a reason for the log")
			}
		})
	}
	t.Run("owner", func(t *testing.T) {
		home := t.TempDir()
		put("x\n", 0o600)(t, home)
		if got := forward(&imsg.ForwardOpen{User: "u", UID: uid + 1, Home: home}); got.Present || got.Status.Code != 550 {
			t.Errorf("another user's file: %+v", got)
		}
	})
}

func put(text string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, home string) {
		path := filepath.Join(home, ".forward")
		check(t, os.WriteFile(path, []byte(text), 0o600))
		check(t, os.Chmod(path, mode))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	o := Options{Spool: dir, Unprivileged: true}
	check(t, checkSpool(o))
	if _, err := os.Stat(dir); err == nil {
		t.Error("checking made the spool")
	}
	if err := CheckSpool("/dev/null/spool"); err == nil || !strings.Contains(err.Error(), "spool /dev/null/spool: an ordinary user cannot write there, -q names another: ") {
		t.Errorf("where nobody can write: %v", err)
	}
	check(t, createSpool(o))
	check(t, createSpool(o))
	check(t, checkSpool(o))
	check(t, os.Remove(offlineDir(dir)))
	check(t, os.WriteFile(offlineDir(dir), nil, 0o600))
	if err := checkSpool(o); err == nil || !strings.Contains(err.Error(), "not a folder") {
		t.Errorf("a file in place of a folder: %v", err)
	}
	st, err := os.Lstat(dir)
	check(t, err)
	pl := place{dir, 0o711, os.Getuid() + 1, 0}
	if err := pl.check(st, false); err == nil || !strings.Contains(err.Error(), "belongs to uid") {
		t.Errorf("wrong owner: %v", err)
	}
	check(t, os.Chmod(dir, 0o777))
	st, err = os.Lstat(dir)
	check(t, err)
	pl.uid = os.Getuid()
	if err := pl.check(st, false); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("open to all: %v", err)
	}
}

func TestSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer taken.Close()
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	addr := netip.MustParseAddrPort(free.Addr().String())
	check(t, free.Close())
	conf := config.Defaults()
	conf.Listeners = []*config.Listener{{Addr: addr}}
	o := Options{Config: conf, Socket: path, Unprivileged: true}
	s, err := openSockets(o)
	check(t, err)
	if _, err := openSockets(o); err == nil || !strings.Contains(err.Error(), "another smtpd") {
		t.Errorf("second instance: %v", err)
	}
	// A configuration that cannot be had leaves everything as it was.
	bad := config.Defaults()
	bad.Listeners = []*config.Listener{{Addr: netip.MustParseAddrPort(taken.Addr().String())}}
	if _, err := s.stage(bad); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("port in use: %v", err)
	}
	conn, err := net.Dial("tcp4", addr.String())
	check(t, err)
	conn.Close()
	// One without listeners closes them.
	none := config.Defaults()
	st, err := s.stage(none)
	check(t, err)
	s.adopt(st)
	s.retire(none)
	if conn, err := net.Dial("tcp4", addr.String()); err == nil {
		conn.Close()
		t.Error("a listener that is no longer wanted is still open")
	}
	s.close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the control socket was left behind")
	}
}

func TestMayDeliver(t *testing.T) {
	root := &Options{Daemon: Identity{100, 100}, QueueUser: Identity{101, 101}}
	self := &Options{Unprivileged: true}
	me := uint32(os.Getuid())
	tests := map[string]struct {
		o    *Options
		m    imsg.DeliverStart
		want bool
	}{
		"root":       {root, imsg.DeliverStart{User: "root", UID: 0}, false},
		"user":       {root, imsg.DeliverStart{User: "alice", UID: 1000}, true},
		"queue user": {root, imsg.DeliverStart{User: "x", UID: 101}, false},
		"daemon":     {root, imsg.DeliverStart{User: "_smtpd", UID: 100}, true},
		"other":      {self, imsg.DeliverStart{User: "alice", UID: me + 1}, false},
	}
	for name, tt := range tests {
		if err := mayDeliver(tt.o, &tt.m); (err == nil) != tt.want {
			t.Errorf("%s: %v, want allowed %v", name, err, tt.want)
		}
	}
}

func discard() *log.Logger { return log.Discard() }
