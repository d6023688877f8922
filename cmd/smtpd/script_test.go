package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"smtpd/internal/resolver/dnstest"
)

// world is what one script has running.
type world struct {
	d     *daemon
	dns   *dnstest.Server
	sinks []*sink
}

type worldKey struct{}

// TestScript runs the archives of testdata/script against the real programs,
// unprivileged: as nobody when the tests run as root. Each has its own ports
// ($PORT, $PORT2, ...), spool and socket.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   filepath.Join("..", "..", "testdata", "script"),
		Setup: setupWorld,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":     cmdStart,
			"end":       cmdEnd,
			"signal":    cmdSignal,
			"smtp":      cmdSMTP,
			"waitlog":   cmdWaitLog,
			"waitfile":  cmdWaitFile,
			"waitqueue": cmdWaitQueue,
			"dns":       cmdDNS,
			"sink":      cmdSink,
			"user":      cmdUser,
			"waitsmtp":  cmdWaitSMTP,
		},
	})
}

// scriptPorts is how many ports a script may use.
const scriptPorts = 4

func setupWorld(env *testscript.Env) error {
	ports, err := freePorts(scriptPorts, env.Defer)
	if err != nil {
		return err
	}
	for i, p := range ports {
		name := "PORT"
		if i > 0 {
			name += strconv.Itoa(i + 1)
		}
		env.Setenv(name, strconv.Itoa(p))
	}
	env.Setenv("PATH", bins+string(os.PathListSeparator)+os.Getenv("PATH"))
	env.Setenv("SPOOL", filepath.Join(env.WorkDir, "spool"))
	env.Setenv("SMTPD_SOCKET", filepath.Join(env.WorkDir, "smtpd.sock"))
	user, home := daemonUser(), filepath.Join(env.WorkDir, "home")
	env.Setenv("ME", user)
	env.Setenv("HOME", home)
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if err := openUp(env.WorkDir); err != nil {
		return err
	}
	w := &world{}
	env.Values[worldKey{}] = w
	env.Defer(func() {
		if w.d != nil {
			w.d.kill()
		}
		if w.dns != nil {
			w.dns.Close()
		}
		for _, s := range w.sinks {
			s.close()
		}
	})
	return nil
}

// openUp lets nobody work in dir when the tests run as root.
func openUp(dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(p, nobody, nobody)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a daemon that works there was done with it
		}
		return err
	})
}

func theWorld(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// daemonUser is the name of who the daemon of a script runs as.
func daemonUser() string {
	if os.Getuid() == 0 {
		return "nobody"
	}
	out, err := exec.Command("id", "-un").Output()
	if err != nil {
		return "nobody"
	}
	return strings.TrimSpace(string(out))
}

func daemonUID() int {
	if os.Getuid() == 0 {
		return nobody
	}
	return 0
}

// cmdStart is: start CONF [arguments]. The macros port1, port2, ..., box (a
// Maildir), work, dns_server and sink (the URL of $PORT2) are defined for the
// configuration. With ! it must fail to start.
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	w := theWorld(ts)
	if len(args) < 1 || w.d != nil {
		ts.Fatalf("usage: start CONF [arguments], once")
	}
	work := ts.Getenv("WORK")
	ts.Check(openUp(work))
	all := []string{"-q", ts.Getenv("SPOOL"), "-f", ts.MkAbs(args[0])}
	for i := range scriptPorts {
		name := "PORT"
		if i > 0 {
			name += strconv.Itoa(i + 1)
		}
		all = append(all, "-D", "port"+strconv.Itoa(i+1)+"="+ts.Getenv(name))
	}
	all = append(all, "-D", `box="`+filepath.Join(work, "home", "Maildir")+`"`, "-D", `work="`+work+`"`,
		"-D", `sink="smtp://127.0.0.1:`+ts.Getenv("PORT2")+`"`)
	if w.dns != nil {
		all = append(all, "-D", "dns_server="+w.dns.Addr())
	}
	d, err := startDaemon(context.Background(), work, ts.Getenv("SMTPD_SOCKET"), daemonUID(), append(all, args[1:]...)...)
	if neg {
		if err == nil {
			d.kill()
			ts.Fatalf("smtpd started")
		}
		ts.Logf("%v", err)
		ts.Check(os.WriteFile(ts.MkAbs("start.err"), []byte(err.Error()+"\n"), 0o644))
		return
	}
	ts.Check(err)
	w.d = d
}

// cmdEnd is: end. The daemon must end well. (stop is a command of testscript: it
// ends the script.)
func cmdEnd(ts *testscript.TestScript, _ bool, _ []string) {
	w := theWorld(ts)
	d := w.d
	if d == nil {
		ts.Fatalf("not started")
	}
	w.d = nil
	err := d.stop()
	ts.Logf("%s", d.log())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("log"), []byte(d.log()+"\n"), 0o644))
}

// cmdSignal is: signal NAME [ROLE].
func cmdSignal(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM}
	w := theWorld(ts)
	if len(args) == 0 || w.d == nil || signals[args[0]] == 0 {
		ts.Fatalf("usage: signal HUP|KILL|TERM [ROLE], after start")
	}
	pid := w.d.cmd.Process.Pid
	if len(args) > 1 {
		if pid = w.d.children()[args[1]]; pid == 0 {
			ts.Fatalf("there is no process %s", args[1])
		}
	}
	ts.Check(syscall.Kill(pid, signals[args[0]]))
}

// cmdSMTP is: smtp FILE [PORT]: plays a dialogue.
func cmdSMTP(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: smtp FILE [PORT]")
	}
	port := ts.Getenv("PORT")
	if len(args) > 1 {
		port = args[1]
	}
	script := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	conn, err := net.DialTimeout("tcp4", "127.0.0.1:"+port, waitLimit)
	ts.Check(err)
	defer conn.Close()
	ts.Check(conn.SetDeadline(time.Now().Add(waitLimit)))
	out, err := dialogue(conn, script)
	ts.Logf("%s", out)
	if neg != (err != nil) {
		if w := theWorld(ts); w.d != nil {
			ts.Logf("log:\n%s", w.d.log())
		}
		ts.Fatalf("%s: %v", args[0], err)
	}
}

// cmdWaitSMTP is: waitsmtp FILE: plays a dialogue until it goes as it should, as
// after a change of the configuration.
func cmdWaitSMTP(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: waitsmtp FILE")
	}
	script := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var out string
	var err error
	for end := time.Now().Add(waitLimit); time.Now().Before(end); <-tick.C {
		conn, dialErr := net.DialTimeout("tcp4", "127.0.0.1:"+ts.Getenv("PORT"), waitLimit)
		ts.Check(dialErr)
		ts.Check(conn.SetDeadline(time.Now().Add(waitLimit)))
		out, err = dialogue(conn, script)
		conn.Close()
		if err == nil {
			return
		}
	}
	ts.Fatalf("%s: %v\n%s", args[0], err, out)
}

// cmdWaitLog is: waitlog RE [COUNT]: waits until so many lines match.
func cmdWaitLog(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || theWorld(ts).d == nil {
		ts.Fatalf("usage: waitlog RE [COUNT], after start")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	d := theWorld(ts).d
	if neg {
		if re.MatchString(d.log()) {
			ts.Fatalf("the log has a line that matches %q", re)
		}
		return
	}
	count := 1
	if len(args) > 1 {
		count, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	if err := d.waitLog(re, count); err != nil {
		ts.Fatalf("%v\nlog:\n%s", err, d.log())
	}
}

// cmdWaitFile is: waitfile GLOB NAME: waits for one file and copies it to NAME.
func cmdWaitFile(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: waitfile GLOB NAME")
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); <-tick.C {
		files, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		if len(files) == 1 {
			b, err := os.ReadFile(files[0])
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o644))
			return
		}
	}
	if d := theWorld(ts).d; d != nil {
		ts.Logf("log:\n%s", d.log())
	}
	ts.Fatalf("no single file matches %s", args[0])
}

// cmdWaitQueue is: waitqueue RE: waits until a line of smtpctl show queue
// matches; waitqueue alone waits until the queue is empty. What it saw is in
// user.out.
func cmdWaitQueue(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) > 1 || theWorld(ts).d == nil {
		ts.Fatalf("usage: waitqueue [RE], after start")
	}
	re, err := regexp.Compile("(?m)" + strings.Join(args, ""))
	ts.Check(err)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(waitLimit); time.Now().Before(end); <-tick.C {
		cmdUser(ts, false, []string{"smtpctl", "show", "queue"})
		out := ts.ReadFile("user.out")
		if list := strings.TrimSuffix(out, "status 0\n"); (len(args) == 0 && list == "") || (len(args) == 1 && re.MatchString(list)) {
			return
		}
	}
	ts.Fatalf("the queue does not come to that\nlog:\n%s", theWorld(ts).d.log())
}

// cmdDNS is: dns FILE: serves a zone; before start.
func cmdDNS(ts *testscript.TestScript, _ bool, args []string) {
	w := theWorld(ts)
	if len(args) != 1 || w.d != nil || w.dns != nil {
		ts.Fatalf("usage: dns ZONEFILE, once, before start")
	}
	s, err := dnstest.Start(ts.ReadFile(args[0]))
	ts.Check(err)
	w.dns = s
}

// cmdSink is: sink ADDRESS DIR: an SMTP server that keeps what it gets in DIR.
func cmdSink(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: sink ADDRESS DIR")
	}
	s, err := startSink(args[0], ts.MkAbs(args[1]))
	ts.Check(err)
	theWorld(ts).sinks = append(theWorld(ts).sinks, s)
}

// cmdUser is: user PROGRAM ARGUMENTS: runs a program as the daemon's user, with
// the file named by the variable STDIN, its variables replaced, as its input.
func cmdUser(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: user PROGRAM [ARGUMENTS]")
	}
	ts.Check(openUp(ts.Getenv("WORK")))
	path := args[0]
	if !strings.Contains(path, "/") {
		path = filepath.Join(bins, path)
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("HOME"), "SMTPD_SOCKET=" + ts.Getenv("SMTPD_SOCKET")}
	if in := ts.Getenv("STDIN"); in != "" {
		cmd.Stdin = strings.NewReader(os.Expand(ts.ReadFile(in), ts.Getenv))
	}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	ts.Logf("%s", out)
	ts.Check(os.WriteFile(ts.MkAbs("user.out"), fmt.Appendf(out, "status %d\n", cmd.ProcessState.ExitCode()), 0o644))
	if neg != (err != nil) {
		ts.Fatalf("%s: %v", args[0], err)
	}
}
