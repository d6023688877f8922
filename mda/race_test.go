package mda

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The users of TestRootRaces: nobody has these accounts.
const (
	victimID   = 54320
	attackerID = 54321
	raceGroup  = 54322 // owns the spool, as group mail does
)

// raceTime is how long each race lasts; RACE_TIME, a duration, says otherwise.
func raceTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("RACE_TIME")); err == nil {
		return d
	}
	return time.Second
}

// attack puts everything in the place of path that its user can make, over and
// over, until standard input ends.
func attack(path, target string) int {
	done := make(chan struct{})
	go func() {
		var b [1]byte
		_, _ = os.Stdin.Read(b[:])
		close(done)
	}()
	var aside string
	moves := []func(){
		func() { _ = os.Symlink(target, path) },
		func() { _ = os.Link(target, path) },
		func() { _ = syscall.Mkfifo(path, 0o666) },
		func() { _ = os.MkdirAll(path+"/new", 0o777); _ = os.MkdirAll(path+"/tmp", 0o777) },
		func() { _ = os.Symlink(target, aside); _ = os.Rename(aside, path) },
		func() { _ = os.WriteFile(path, nil, 0o666); _ = os.Chmod(path, 0o666) },
		func() { _ = os.WriteFile(path+".lock", []byte("1"), 0o644); _ = os.Remove(path + ".lock") },
		func() { _ = os.Symlink(target, path+".lock"); _ = os.Remove(path + ".lock") },
	}
	for i := 0; ; i++ {
		select {
		case <-done:
			return 0
		default:
		}
		aside = fmt.Sprintf("%s.%d", path, i) // what is the other's can be moved, not removed
		moves[i%len(moves)]()
		_ = os.Rename(path, aside)
		_ = os.RemoveAll(aside)
	}
}

// deliverMany delivers to path by one method until its time is over, and says
// how often it succeeded.
func deliverMany(m Method, path string, d time.Duration) int {
	v := &Delivery{Method: m, Path: path, Hostname: "h", Values: Values{User: filepath.Base(path), Home: "/"}, Text: Text{Data: []byte(exampleText)}}
	o := Options{UID: os.Geteuid(), SpoolDir: filepath.Dir(path)}
	n := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		worker := New(o)
		if r := worker.Deliver(ctx, v); r.Status.OK() {
			n++
		}
		worker.Close()
		cancel()
	}
	fmt.Println("delivered", n)
	return 0
}

// TestRootRaces delivers as one user while another swaps links, pipes and
// folders in the way: nothing may be written but what is the user's own mailbox.
func TestRootRaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes two other users")
	}
	for _, m := range []Method{Mbox, Maildir} {
		t.Run(string(m), func(t *testing.T) { race(t, m) })
	}
}

func race(t *testing.T, m Method) {
	top, err := os.MkdirTemp("/tmp", "mda-race")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	base, private := top+"/base", top+"/private"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Chmod(top, 0o755))
	must(os.Mkdir(base, 0o775))
	must(os.Chown(base, 0, raceGroup))
	must(os.Chmod(base, 0o775))
	must(os.Mkdir(private, 0o700))
	must(os.Mkdir(private+"/new", 0o700))
	must(os.Mkdir(private+"/tmp", 0o700))
	must(os.WriteFile(private+"/secret", []byte("secret"), 0o600))
	for _, p := range []string{"", "/new", "/tmp", "/secret"} {
		must(os.Chown(private+p, victimID, victimID))
	}
	target := private
	if m == Mbox {
		target += "/secret"
	}
	attacker := as(attackerID, "attack", base+"/victim", target)
	stop, err := attacker.StdinPipe()
	must(err)
	must(attacker.Start())
	out, err := as(victimID, "deliver", base+"/victim", string(m)).Output()
	stop.Close()
	_ = attacker.Wait()
	must(err)
	t.Logf("%s: %s", m, strings.TrimSpace(string(out)))

	if got := content(t, private, "secret"); got != "secret" {
		t.Errorf("written through a link: %q", got)
	}
	for _, sub := range []string{"", "new", "tmp"} {
		for _, name := range list(t, private, sub) {
			if name != "secret" && name != "new" && name != "tmp" {
				t.Errorf("made in a folder that is not a mailbox: %s/%s", sub, name)
			}
		}
	}
}

// as is the test binary as another user.
func as(uid int, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = []string{"MDA_TEST_RACE=" + raceTime().String()}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid), Groups: []uint32{raceGroup}}}
	return cmd
}

// raceMain is what the test binary does as one of the users.
func raceMain(d string) int {
	limit, err := time.ParseDuration(d)
	if err != nil {
		return 1
	}
	if os.Args[1] == "attack" {
		return attack(os.Args[2], os.Args[3])
	}
	return deliverMany(Method(os.Args[3]), os.Args[2], limit)
}
