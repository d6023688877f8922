package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	osuser "os/user"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// farWorld is a network beyond this one: $1 is a process in it. Whoever is to
// be a client gets an address there, and a way back.
const farWorld = `set -e
ip link add far0 type veth peer name far1
ip link set far1 netns "$1"
ip addr add 192.0.2.1/32 dev far0
ip link set far0 up
nsenter -t "$1" -n ip link set lo up
nsenter -t "$1" -n ip link set far1 up
nsenter -t "$1" -n ip route add default dev far1
`

// farNet is that network, with the clients it has so far.
type farNet struct {
	pid     string
	clients map[string]bool
}

func newFarNet(t *testing.T) *farNet {
	t.Helper()
	keeper := exec.Command("unshare", "--net", "sleep", "600")
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = keeper.Process.Kill() // it has ended when the network cannot be made
		_ = keeper.Wait()
	})
	pid := fmt.Sprint(keeper.Process.Pid)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(waitLimit); ; runtime.Gosched() { // until unshare has done it
		if there, err := os.Readlink("/proc/" + pid + "/ns/net"); err == nil && there != here {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no second network")
		}
	}
	if out, err := exec.Command("sh", "-c", farWorld, "sh", pid).CombinedOutput(); err != nil {
		t.Skipf("no second network here: %v\n%s", err, out)
	}
	return &farNet{pid: pid, clients: map[string]bool{}}
}

// dial connects from an address of that network.
func (f *farNet) dial(t *testing.T, client, server string) net.Conn {
	t.Helper()
	if !f.clients[client] {
		f.clients[client] = true
		out, err := exec.Command("sh", "-c", `set -e; ip route add "$2/32" dev far0; nsenter -t "$1" -n ip addr add "$2/32" dev far1`,
			"sh", f.pid, client).CombinedOutput()
		if err != nil {
			t.Fatalf("client %s: %v\n%s", client, err, out)
		}
	}
	type answer struct {
		conn net.Conn
		err  error
	}
	got := make(chan answer)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it, as it is elsewhere
		ns, err := os.Open("/proc/" + f.pid + "/ns/net")
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err != nil {
			got <- answer{err: err}
			return
		}
		d := net.Dialer{Timeout: waitLimit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
		conn, err := d.Dial("tcp4", server)
		got <- answer{conn, err}
	}()
	a := <-got
	if a.err != nil {
		t.Fatal(a.err)
	}
	return a.conn
}

// plainListener is a line of decisions.txtar about a listener that strangers
// reach and may use without a login.
var plainListener = regexp.MustCompile(`(?m)^listen (\d+\.\d+\.\d+\.\d+:\d+)(?: hostname \S+| tls pki \S+| filter \S+)*$`)

// askFromAfar plays the lines of decisions.txtar about clients of other hosts.
func askFromAfar(t *testing.T, f *farNet, decisions string) (asked int) {
	t.Helper()
	server := ""
	for _, m := range plainListener.FindAllStringSubmatch(decisions, -1) {
		if !strings.HasPrefix(m[1], "127.") {
			server = strings.Replace(m[1], "0.0.0.0", "192.0.2.1", 1)
		}
	}
	if server == "" {
		return 0
	}
	for line := range strings.Lines(decisions) {
		facts, outcome, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		words := strings.Fields(facts)
		if !ok || len(words) != 2 || !strings.HasPrefix(words[0], "client=") || words[0] == "client=local" {
			continue
		}
		rcpt, plain := strings.CutPrefix(words[1], "rcpt=")
		if i := strings.LastIndex(outcome, " as "); plain && i >= 0 {
			if _, err := osuser.Lookup(outcome[i+4:]); err != nil {
				t.Logf("%s is no user here: %s", outcome[i+4:], line)
				continue
			}
		}
		if !plain {
			continue
		}
		want := "250 "
		if strings.HasPrefix(outcome, "refused") {
			want = "550 "
		}
		conn := f.dial(t, strings.TrimPrefix(words[0], "client="), server)
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
			t.Fatal(err)
		}
		out, err := dialogue(conn, "S: 220 \nC: HELO client.test\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<"+rcpt+">\nS: "+want+"\nC: QUIT\nS: 221")
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		asked++
	}
	return asked
}
