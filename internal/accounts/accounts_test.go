package accounts

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// write writes a file of a test.
func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// directory is a name service behind a getent of ours: the lines of the file
// db, unless the file away is there.
func directory(t *testing.T, passwd, shadow string) (n *nameService, dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, dir+"/passwd", passwd, 0o600)
	write(t, dir+"/shadow", shadow, 0o600)
	n = newNameService(time.Now)
	n.conf = write(t, dir+"/nsswitch.conf", "# x\npasswd: files [NOTFOUND=continue] ldap\n", 0o600)
	n.homed = dir + "/homed"
	n.getent = []string{dir + "/none", write(t, dir+"/getent", `#!/bin/sh
echo "$@" >>`+dir+`/asked
[ -e `+dir+`/broken ] && exit 3
[ -e `+dir+`/away ] && exit 2
case $2 in liar) echo root:x:0:0:root:/root:/bin/sh; exit 0; esac
grep -i "^$2:" `+dir+`/$1 || exit 2
`, 0o700)}
	return n, dir
}

func TestNameService(t *testing.T) {
	n, dir := directory(t, "dora:*:5002:5003:Dora,x:/home/dora:/bin/sh\nEX\\emil:*:5004:5004::/home/emil:/bin/sh\nodd:x\n", "")
	a := New(time.Now)
	a.other = n
	tests := []struct{ name, want string }{
		{"dora", "dora 5002 5003 /home/dora Dora"},
		{"root", "root 0 0"},
		{"nobody-at-all", "no"},
		{"odd", "temporary"},
		{"liar", "no"},
		{"5002", "no"},
		{"-h", "no"},
		{"+", "no"},
		{"", "no"},
		{"dora\n", "no"},
		{"a:b", "no"},
		{"../x", "no"},
		{strings.Repeat("a", 1000), "no"},
	}
	for _, tt := range tests {
		if got := say(a.User(t.Context(), tt.name)); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%.20q: got %s, want %s", tt.name, got, tt.want)
		}
	}
	for file, want := range map[string]string{"broken": "temporary", "away": "temporary"} {
		write(t, dir+"/"+file, "", 0o600)
		if got := say(a.User(t.Context(), "else")); got != want {
			t.Errorf("%s: got %s, want %s", file, got, want)
		}
		if err := os.Remove(dir + "/" + file); err != nil {
			t.Fatal(err)
		}
	}
	if got := say(a.User(t.Context(), "else")); got != "no" {
		t.Errorf("back again: got %s", got)
	}
	// A day after the last that was found nothing vouches for the directory.
	write(t, dir+"/away", "", 0o600)
	n.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	if got := say(a.User(t.Context(), "else")); got != "no" {
		t.Errorf("a day later: got %s", got)
	}
	asked, err := os.ReadFile(dir + "/asked")
	if err != nil || strings.Contains(string(asked), " root\n") || strings.Contains(string(asked), "-h") {
		t.Errorf("asked %q, %v", asked, err)
	}
}

// say is an account in one line.
func say(u User, err error) string {
	switch {
	case err != nil:
		return "temporary"
	case !u.Found:
		return "no"
	}
	return fmt.Sprint(u.Name, " ", u.UID, " ", u.GID, " ", u.Home, " ", u.Gecos)
}

func TestNameServiceIsAsked(t *testing.T) {
	n := newNameService(time.Now)
	dir := t.TempDir()
	n.conf, n.passwd, n.homed = dir+"/conf", dir+"/passwd", dir+"/homed"
	tests := map[string]struct {
		conf, passwd string
		want         bool
	}{
		"files":    {conf: "passwd: files\ngroup: files ldap\n"},
		"systemd":  {conf: "passwd:\tfiles systemd\n"},
		"sss":      {conf: "passwd: files sss # x\n", want: true},
		"compat":   {conf: "passwd: compat\n", want: true},
		"comment":  {conf: "passwd: files # ldap\n#passwd: ldap\n"},
		"no conf":  {passwd: "root:x:0\n"},
		"YP":       {passwd: "root:x:0\n+:*:0:0:::\n", want: true},
		"first +":  {passwd: "+\n", want: true},
		"no files": {},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			os.Remove(n.conf)
			if tt.conf != "" {
				write(t, n.conf, tt.conf, 0o600)
			}
			write(t, n.passwd, tt.passwd, 0o600)
			if got := n.asked(); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
	write(t, n.conf, "passwd: files systemd\n", 0o600)
	if write(t, n.homed, "", 0o600); !n.asked() {
		t.Error("with homed: not asked")
	}
}

// TestSlowDirectory: one that does not answer is away.
func TestSlowDirectory(t *testing.T) {
	n, dir := directory(t, "", "")
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	n.getent = []string{write(t, dir+"/slow", "#!/bin/sh\nread x <"+dir+"/fifo\n", 0o700)}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := n.entry(ctx, "passwd", "dora"); err == nil {
		t.Error("got no error")
	}
}

func TestSecret(t *testing.T) {
	n, dir := directory(t, "", "dora:$6$dora:::::::\n")
	now := time.Unix(20000*86400, 0)
	a := &Accounts{shadow: dir + "/own", other: n, now: func() time.Time { return now }}
	write(t, a.shadow, "alice:$6$a:19000:0:99999:7:::\nold:$6$o:19000:0:99999:7::20000:\nnew:$6$n:19000:0:99999:7::20001:\n"+
		"never:$6$v:19000:0:99999:7::0:\nshort:$6$s\n", 0o600)
	b := &Accounts{shadow: dir + "/master", bsd: true, other: n, now: a.now}
	write(t, b.shadow, "alice:$2b$a:1000:1000::0:0:A:/home/alice:/bin/ksh\nstaff:$2b$s:1000:1000:staff:0:0:A:/home/x:/bin/ksh\n"+
		"old:$2b$o:1:1:staff:0:1727999999:A:/home/x:/bin/ksh\n", 0o600)
	tests := []struct {
		a          *Accounts
		name, want string
	}{
		{a, "alice", "$6$a"}, {a, "old", "$6$o expired"}, {a, "new", "$6$n"}, {a, "never", "$6$v expired"}, {a, "short", "$6$s"},
		{a, "dora", "$6$dora"}, {a, "nobody", "none"}, {a, "", "none"}, {a, "alice:x", "none"},
		{b, "alice", "$2b$a"}, {b, "staff", "$2b$s staff"}, {b, "old", "$2b$o staff expired"}, {b, "dora", "none"},
	}
	for _, tt := range tests {
		e, err := tt.a.Secret(t.Context(), tt.name)
		got := "none"
		if e != nil {
			got = strings.Join(strings.Fields(e.Hash+" "+e.Class+map[bool]string{true: " expired"}[e.Expired]), " ")
		}
		if got != tt.want || err != nil {
			t.Errorf("%q: got %s, %v, want %s", tt.name, got, err, tt.want)
		}
	}
	a.shadow = dir + "/gone"
	if _, err := a.Secret(t.Context(), "alice"); err == nil {
		t.Error("without the file: got no error")
	}
}
