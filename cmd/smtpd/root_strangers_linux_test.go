package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// farWorld is a network beyond this one: $1 is a process in it. Whoever is to
// be a client or a host gets an address there, and a way back.
const farWorld = `set -e
ip link add far0 type veth peer name far1
ip link set far1 netns "$1"
ip addr add 192.0.2.1/32 dev far0
ip link set far0 up
nsenter -t "$1" -n ip link set lo up
nsenter -t "$1" -n ip link set far1 up
nsenter -t "$1" -n ip route add default dev far1
`

// farNet is that network, with the addresses it has so far.
type farNet struct {
	pid   string
	addrs map[string]bool
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
		t.Fatalf("no second network: %v\n%s", err, out)
	}
	return &farNet{pid: pid, addrs: map[string]bool{}}
}

// add gives that network an address, and this one a way there.
func (f *farNet) add(t *testing.T, addr string) {
	t.Helper()
	if f.addrs[addr] {
		return
	}
	f.addrs[addr] = true
	out, err := exec.Command("sh", "-c", `set -e; ip route add "$2/32" dev far0; nsenter -t "$1" -n ip addr add "$2/32" dev far1`,
		"sh", f.pid, addr).CombinedOutput()
	if err != nil {
		t.Fatalf("address %s: %v\n%s", addr, err, out)
	}
}

// there runs do with that network as its own.
func (f *farNet) there(t *testing.T, do func() error) {
	t.Helper()
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it, as it is elsewhere
		ns, err := os.Open("/proc/" + f.pid + "/ns/net")
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = do()
		}
		ended <- err
	}()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// dial connects from an address of that network.
func (f *farNet) dial(t *testing.T, client, server string) (conn net.Conn) {
	t.Helper()
	f.add(t, client)
	f.there(t, func() (err error) {
		d := net.Dialer{Timeout: waitLimit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
		conn, err = d.Dial("tcp4", server)
		return err
	})
	return conn
}

// listen opens a port of that network.
func (f *farNet) listen(t *testing.T, host, port string) (ln net.Listener) {
	t.Helper()
	f.add(t, host)
	f.there(t, func() (err error) {
		ln, err = net.Listen("tcp4", net.JoinHostPort(host, port))
		return err
	})
	return ln
}
