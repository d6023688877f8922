package tabletest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startLimit is how long a server may take to come up or to end.
const startLimit = 60 * time.Second

// nobody runs the servers when the tests run as root: some refuse to be root.
const nobody = 65534

// Server is a real server on a socket of its own, from the system's packages.
type Server struct {
	Dir    string // its files; short, as the names of sockets must be
	Socket string // the path of its socket
	args   []string
	probe  []string // succeeds once the server works; empty: it does when it listens
	cmd    *exec.Cmd
	ended  chan struct{}
}

// find finds a program where Debian puts it.
func find(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, pattern := range []string{"/usr/sbin/", "/usr/local/sbin/", "/usr/lib/postgresql/*/bin/"} {
		if m, _ := filepath.Glob(pattern + name); len(m) > 0 {
			return m[len(m)-1]
		}
	}
	return ""
}

// programs are those of the server behind a backend.
func programs(backend string) []string {
	return map[string][]string{
		"redis":    {"redis-server"},
		"postgres": {"initdb", "postgres", "pg_isready"},
		"mysql":    {"mariadb-install-db", "mariadbd"},
		"ldap":     {"slapd", "slapadd"},
	}[backend]
}

// Missing names what is not installed of the server behind a backend: "" if
// nothing is missing.
func Missing(backend string) string {
	for _, n := range programs(backend) {
		if find(n) == "" {
			return n
		}
	}
	return ""
}

// needs finds the programs of the server behind a backend, or skips the test.
func needs(t testing.TB, backend string) []string {
	t.Helper()
	if n := Missing(backend); n != "" {
		t.Skipf("%s is not installed", n)
	}
	var paths []string
	for _, n := range programs(backend) {
		paths = append(paths, find(n))
	}
	return paths
}

// newServer makes the folder of a server.
func newServer(t testing.TB, socket string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "srv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{Dir: dir, Socket: filepath.Join(dir, socket)}
	s.own(t, dir)
	return s
}

// own gives a path to the user of the server.
func (s *Server) own(t testing.TB, path string) {
	t.Helper()
	if os.Getuid() == 0 {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

// command is a program run as the user of the server.
func (s *Server) command(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "HOME="+s.Dir, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// run runs a program to its end.
func (s *Server) run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := s.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Start starts the server and waits until it works.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	log, err := os.Create(filepath.Join(s.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.cmd = s.command(s.args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), s.cmd
	s.ended = ended
	go func() {
		cmd.Wait()
		close(ended)
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(startLimit); ; {
		if c, err := net.Dial("unix", s.Socket); err == nil {
			c.Close()
			if len(s.probe) == 0 || s.command(s.probe...).Run() == nil {
				return
			}
		}
		select {
		case <-tick.C:
			continue
		case <-ended:
		case <-limit:
		}
		text, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
		t.Fatalf("%s does not come up:\n%s", s.args[0], text)
	}
}

// Stop ends the server and waits for its end.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGINT) // postgres: at once, whoever is connected
	if !strings.HasSuffix(s.args[0], "postgres") {
		s.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-s.ended:
	case <-time.After(startLimit):
		s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
	os.Remove(s.Socket)
}

// launch starts a server and ends it with the test.
func (s *Server) launch(t testing.TB, args ...string) *Server {
	s.args = args
	s.Start(t)
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// Redis starts an empty Redis server that keeps what it is told; more are
// further options.
func Redis(t testing.TB, more ...string) *Server {
	p := needs(t, "redis")
	s := newServer(t, "s")
	return s.launch(t, append([]string{p[0], "--port", "0", "--unixsocket", s.Socket, "--unixsocketperm", "777",
		"--dir", s.Dir, "--appendonly", "yes", "--appendfsync", "no"}, more...)...)
}

// Postgres starts a PostgreSQL server: user smtpd without a password, database
// postgres, its socket in Dir.
func Postgres(t testing.TB) *Server {
	p := needs(t, "postgres")
	s := newServer(t, ".s.PGSQL.5432")
	data := filepath.Join(s.Dir, "data")
	s.run(t, p[0], "-D", data, "-U", "smtpd", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	s.probe = []string{p[2], "-q", "-h", s.Dir, "-U", "smtpd"}
	return s.launch(t, p[1], "-D", data, "-k", s.Dir, "-c", "listen_addresses=", "-c", "fsync=off")
}

// MariaDB starts a MariaDB server that lets everybody in, with an empty
// database test.
func MariaDB(t testing.TB) *Server {
	p := needs(t, "mysql")
	s := newServer(t, "s")
	data := filepath.Join(s.Dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	s.own(t, data)
	s.run(t, p[0], "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-name-resolve")
	return s.launch(t, p[1], "--no-defaults", "--datadir="+data, "--socket="+s.Socket, "--skip-networking", "--skip-grant-tables",
		"--pid-file="+filepath.Join(s.Dir, "pid"), "--character-set-server=utf8mb4", "--innodb-flush-method=nosync")
}

// LDAP starts an OpenLDAP server with the entries of ldif below dc=test. Its
// administrator is cn=admin,dc=test with the password secret.
func LDAP(t testing.TB, ldif string) *Server {
	p := needs(t, "ldap")
	s := newServer(t, "s")
	data := filepath.Join(s.Dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	s.own(t, data)
	conf := "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\ninclude /etc/ldap/schema/nis.schema\n" +
		"include /etc/ldap/schema/inetorgperson.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile " + s.Dir + "/pid\n" +
		"database mdb\nsuffix dc=test\nrootdn cn=admin,dc=test\nrootpw secret\ndirectory " + data + "\nmaxsize 16777216\n"
	files := map[string]string{"slapd.conf": conf, "data.ldif": ldif}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, p[1], "-q", "-f", filepath.Join(s.Dir, "slapd.conf"), "-l", filepath.Join(s.Dir, "data.ldif"))
	return s.launch(t, p[0], "-d", "0", "-f", filepath.Join(s.Dir, "slapd.conf"), "-h", s.LDAPURL())
}

// LDAPURL is the URL of an LDAP server's socket.
func (s *Server) LDAPURL() string {
	return fmt.Sprintf("ldapi://%s", strings.ReplaceAll(s.Socket, "/", "%2F"))
}

// Sorted are the keys of entries in their order, for those who write them down.
func Sorted(entries map[string]string) []string {
	var keys []string
	for k := range entries {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
