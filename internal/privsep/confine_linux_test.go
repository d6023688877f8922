package privsep

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"smtpd/internal/imsg"
)

// confinedVar makes the test binary confine itself as a role and report.
const confinedVar = "SMTPD_TEST_CONFINED"

func TestMain(m *testing.M) {
	if name := os.Getenv(confinedVar); name != "" {
		os.Exit(confined(name))
	}
	os.Exit(m.Run())
}

// confined is the copy of the test binary that gives its rights away. It prints
// what is still possible.
func confined(name string) int {
	role, ok := imsg.ParseRole(name)
	if !ok {
		role = imsg.Deliver // for a store
	}
	if err := Confine(role, Boot{Unprivileged: true, Store: !ok}); err != nil {
		os.Stdout.WriteString("error: " + err.Error() + "\n")
		return 1
	}
	try := func(what string, err error) {
		if !errors.Is(err, unix.EPERM) {
			os.Stdout.WriteString(what + "\n")
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	try("socket", err)
	try("connect", unix.Connect(fd, &unix.SockaddrInet4{Port: 9}))
	try("listen", unix.Listen(-1, 1))
	_, _, err = unix.Accept(-1)
	try("accept", err)
	try("bind", unix.Bind(-1, &unix.SockaddrInet4{}))
	try("exec", unix.Exec("/nonexistent", nil, nil))
	_, err = unix.PtraceGetEventMsg(1)
	try("ptrace", err)
	try("chroot", func() error { // as root only the filter stands in the way
		if os.Getuid() != 0 {
			return unix.EPERM
		}
		return unix.Chroot("/")
	}())
	// The runtime must go on working on every thread.
	done := make(chan int)
	for range 8 {
		go func() { b := make([]byte, 1<<20); done <- len(b) }()
	}
	for range 8 {
		<-done
	}
	return 0
}

// TestConfine: what each role can still do, seen from within.
func TestConfine(t *testing.T) {
	tests := map[string]string{
		"keys": "", "queue": "", "scheduler": "", "mda": "",
		"smtp": "accept", "control": "accept",
		"mta":     "socket connect bind",
		"lookup":  "socket connect bind exec",
		"deliver": "socket connect listen accept bind exec",
		"store":   "socket connect bind",
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for role, want := range tests {
		t.Run(role, func(t *testing.T) {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), confinedVar+"="+role)
			out, err := cmd.CombinedOutput()
			got := strings.Join(strings.Fields(string(out)), " ")
			if role == "deliver" { // has no filter: ptrace and chroot follow the user's rights
				got = strings.TrimSuffix(strings.TrimSuffix(got, " chroot"), " ptrace")
			}
			if err != nil || got != want {
				t.Errorf("may %q (%v), want %q", got, err, want)
			}
		})
	}
}

func TestConfineRefusesRoot(t *testing.T) {
	if err := Confine(imsg.SMTP, Boot{}); err == nil {
		t.Fatal("uid 0 was accepted")
	}
}

func TestRoleOf(t *testing.T) {
	tests := map[string]bool{"smtpd: queue": true, "smtpd": false, "/usr/sbin/smtpd": false, "smtpd: nosuch": false, "": false}
	for argv0, want := range tests {
		if _, got := RoleOf(argv0); got != want {
			t.Errorf("RoleOf(%q) = %v, want %v", argv0, got, want)
		}
	}
}
