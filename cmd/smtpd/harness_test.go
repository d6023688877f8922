package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waitLimit bounds every wait for an event: long enough for a machine that
// does other things as well.
const waitLimit = 20 * time.Second

// nobody runs the daemon of the scripts when the tests run as root.
const nobody = 65534

// bins is the folder of the programs under test, built once: a test that runs
// itself again in name spaces hands it on in binsVar.
var bins = os.Getenv(binsVar)

const binsVar = "SMTPD_TEST_BINS"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if bins != "" {
		return max(m.Run(), theLeaks.report())
	}
	dir, err := os.MkdirTemp("", "smtpd-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := buildPrograms(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bins = dir
	return max(m.Run(), theLeaks.report())
}

// buildPrograms makes the real programs, as `make` does, and the other names
// of smtpctl.
func buildPrograms(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"smtpd", "smtpctl", "smtp", "table-sqlite", "mail.maildir", "mail.local"} {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, name), "../"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	for _, name := range []string{"sendmail", "send-mail", "mailq", "newaliases", "makemap"} {
		if err := os.Symlink("smtpctl", filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// freePorts finds n loopback ports that nobody uses now. On Linux they stay ours
// until cleanup: the kernel gives nobody a port that is bound, and whoever asks for
// it by number, with SO_REUSEADDR as servers do, has it as long as nobody listens.
func freePorts(n int, cleanup func(func())) ([]int, error) {
	var ports []int
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return nil, err
		}
		unix.CloseOnExec(fd)
		if runtime.GOOS == "linux" {
			cleanup(func() { unix.Close(fd) })
		} else {
			defer unix.Close(fd)
		}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})); err != nil {
			return nil, err
		}
		addr, err := unix.Getsockname(fd)
		if err != nil {
			return nil, err
		}
		ports = append(ports, addr.(*unix.SockaddrInet4).Port)
	}
	return ports, nil
}

// daemon is one smtpd under test.
type daemon struct {
	cmd    *exec.Cmd
	dir    string // holds its notify socket
	socket string
	ready  chan struct{}
	ended  chan struct{} // closed when the process has gone and its log is read
	err    error         // how; valid once ended

	mu    sync.Mutex
	cond  *sync.Cond
	lines []string // of its log
}

// startDaemon runs smtpd -d with args and waits until it says that it works.
// uid 0 keeps the identity of the tests.
func startDaemon(ctx context.Context, dir, socket string, uid int, args ...string) (*daemon, error) {
	d := &daemon{dir: dir, socket: socket, ready: make(chan struct{}), ended: make(chan struct{})}
	d.cond = sync.NewCond(&d.mu)
	notifyPath := filepath.Join(dir, "notify")
	os.Remove(notifyPath)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifyPath, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(notifyPath, 0o666); err != nil {
		return nil, err
	}
	go d.watchReady(conn)
	d.cmd = exec.CommandContext(ctx, filepath.Join(bins, "smtpd"), append([]string{"-d", "-s", socket}, args...)...)
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifyPath)
	d.cmd.Dir = dir
	if f, err := os.Open(filepath.Join(dir, "stdin")); err == nil {
		defer f.Close()
		d.cmd.Stdin = f
	}
	if uid != 0 {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	d.cmd.Stderr = w
	d.cmd.Stdout = w
	err = d.cmd.Start()
	w.Close()
	if err != nil {
		return nil, err
	}
	said := make(chan struct{})
	go func() {
		d.readLog(r)
		close(said)
	}()
	go func() {
		d.err = d.cmd.Wait()
		select { // its last words, and those of its children, which end with it
		case <-said:
		case <-time.After(waitLimit):
		}
		conn.Close()
		close(d.ended)
		d.cond.Broadcast()
	}()
	select {
	case <-d.ready:
		return d, nil
	case <-d.ended:
		return nil, fmt.Errorf("smtpd ended at start: %w\n%s", errors.Join(d.err), d.log())
	case <-time.After(waitLimit):
		d.kill()
		return nil, fmt.Errorf("smtpd does not come up\n%s", d.log())
	}
}

func (d *daemon) watchReady(conn *net.UnixConn) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if strings.HasPrefix(string(buf[:n]), "READY=1") {
			select {
			case <-d.ready:
			default:
				close(d.ready)
			}
		}
	}
}

func (d *daemon) readLog(r io.ReadCloser) {
	defer r.Close()
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		theLeaks.look(sc.Text())
		d.mu.Lock()
		d.lines = append(d.lines, sc.Text())
		d.mu.Unlock()
		d.cond.Broadcast()
	}
}

// log is everything logged so far.
func (d *daemon) log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, "\n")
}

// waitLog waits until count lines match re.
func (d *daemon) waitLog(re *regexp.Regexp, count int) error {
	timer := time.AfterFunc(waitLimit, d.cond.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(waitLimit)
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		n := 0
		for _, l := range d.lines {
			if re.MatchString(l) {
				n++
			}
		}
		if n >= count {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("smtpd ended (%v) before %d lines matched %q", d.err, count, re)
		default:
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%d of %d lines matched %q in %s", n, count, re, waitLimit)
		}
		d.cond.Wait()
	}
}

// children maps role -> pid of the living processes below the daemon. Delivery
// workers are left out.
func (d *daemon) children() map[string]int {
	roles := map[string]int{}
	for pid, role := range d.below() {
		if role != "deliver" {
			roles[role] = pid
		}
	}
	return roles
}

// child waits until a role has a process, and gives its pid: never 0, which
// kill(2) takes for the whole group, go test and what called it included.
func (d *daemon) child(t *testing.T, role string) int {
	t.Helper()
	pid := 0
	waitFor(t, role+" to run", func() bool { pid = d.children()[role]; return pid != 0 })
	return pid
}

// below maps pid -> role of the living processes that the daemon started.
func (d *daemon) below() map[int]string {
	found := map[int]string{}
	procs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		_, rest, ok := bytes.Cut(b, []byte(") "))
		fields := bytes.Fields(rest)
		if !ok || len(fields) < 2 || string(fields[0]) == "Z" || string(fields[1]) != strconv.Itoa(d.cmd.Process.Pid) {
			continue
		}
		dir := filepath.Dir(p)
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if role, ok := strings.CutPrefix(strings.TrimRight(string(cmdline), "\x00"), "smtpd: "); ok {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			found[pid] = role
		}
	}
	return found
}

// stop ends the daemon in order and says what went wrong with that.
func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(waitLimit):
		d.kill()
		return errors.New("smtpd does not end")
	}
	if d.err != nil {
		return fmt.Errorf("smtpd ended with %w", d.err)
	}
	return nil
}

// kill ends the daemon and every process of it at once, as a crash would.
func (d *daemon) kill() {
	for _, pid := range d.children() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	_ = d.cmd.Process.Kill()
	<-d.ended
}
