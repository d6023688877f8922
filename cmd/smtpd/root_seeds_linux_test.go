package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"
)

// seedsWorld gives the private world the interfaces and files that the seeds
// name; $1 is the folder that is /etc/mail.
const seedsWorld = `set -e
mkdir -p /etc/mail /usr/local/etc/mail
mount --bind "$1" /etc/mail
mount --bind "$1" /usr/local/etc/mail
chmod 755 "$1" "$1/certs"
chgrp _smtpd "$1"/*
add() {
	ip link add "$1" type dummy 2>/dev/null || ip link add "$1" type veth peer name "$1p"
	ip link set "$1" up
	shift
	for a; do ip addr add "$a" dev "$name"; done
}
name=rl0; add rl0 172.20.0.12/24 172.16.81.241/24
name=rl1; add rl1 10.0.3.1/24
name=vlan1; add vlan1 10.0.1.1/24
name=em0; add em0 192.168.5.55/24
ip route add default via 192.168.5.1 dev em0
`

// TestRootSeeds starts the daemon with each accepted seed that needs no program
// of others, and asks it about the mails of this host in decisions.txtar.
func TestRootSeeds(t *testing.T) {
	if !asRoot(t) {
		return
	}
	w := newConfWorld(t)
	if out, err := exec.Command("sh", "-c", seedsWorld, "sh", w.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ar, err := txtar.ParseFile(filepath.Join(confDir, "decisions.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	far := newFarNet(t)
	ran, strangers := 0, 0
	for _, f := range ar.Files {
		text, err := os.ReadFile(filepath.Join(confDir, "seeds", f.Name+".conf"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\n# needs: if, proc") || strings.Contains(string(text), "\n# needs: proc") {
			t.Logf("%s: needs a program that is not here", f.Name)
			continue
		}
		ran++
		t.Run(f.Name, func(t *testing.T) {
			d := startRoot(t, string(text))
			if strings.Contains(string(f.Data), "listen 127.0.0.1:25") {
				askLocally(t, string(f.Data))
			}
			strangers += askFromAfar(t, far, string(f.Data))
			if err := d.stop(); err != nil {
				t.Error(err, d.log())
			}
		})
	}
	if ran < 20 || strangers < 10 {
		t.Errorf("only %d ran, with %d clients of other hosts", ran, strangers)
	}
}

// askLocally plays the lines of decisions.txtar that are about this host as
// the client.
func askLocally(t *testing.T, decisions string) {
	t.Helper()
	for line := range strings.Lines(decisions) {
		facts, outcome, ok := strings.Cut(strings.TrimSpace(line), " -> ")
		rcpt, plain := strings.CutPrefix(facts, "rcpt=")
		if !ok || !plain || strings.Contains(rcpt, " ") {
			continue
		}
		want := "250 "
		if strings.HasPrefix(outcome, "refused") {
			want = "550 "
		}
		conn, err := net.DialTimeout("tcp4", "127.0.0.1:25", waitLimit)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(waitLimit)); err != nil {
			t.Fatal(err)
		}
		out, err := dialogue(conn, "S: 220 \nC: HELO localhost\nS: 250\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<"+rcpt+">\nS: "+want+"\nC: QUIT\nS: 221")
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
}
