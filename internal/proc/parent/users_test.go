package parent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/accounts"
	"smtpd/internal/auth"
	"smtpd/internal/imsg"
	"smtpd/internal/log"
)

// write writes a file of a test.
func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// loginProgram speaks the protocol of BSD authentication: it reads challenge and
// answer from descriptor 3 and says there what NAME.says holds.
const loginProgram = `#!/bin/bash
[ "$1 $2" = "-s response" ] || exit 9
IFS= read -r -d '' challenge <&3 || exit 8
IFS= read -r -d '' answer <&3 || exit 7
echo "$3 $4 [$challenge] [$answer] $(env | sort | tr '\n' ' ')" >>DIR/asked
case $3 in
alice) [ "$answer" = secret ] && echo authorize >&3 || echo reject >&3;;
both) printf 'authorize\nreject\n' >&3;;
secure) printf 'value x y\nauthorize secure\n' >&3;;
dies) echo authorize >&3; exit 1;;
odd) echo authorize maybe >&3;;
endless) while :; do echo authorize; done >&3;;
silent) ;;
esac
exit 0
`

func TestBSDAuth(t *testing.T) {
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Log("bash is not installed: not tested")
		return
	}
	dir := t.TempDir()
	write(t, dir+"/login_passwd", strings.ReplaceAll(loginProgram, "DIR", dir), 0o700)
	b := newBSDAuth()
	b.programs, b.classes, b.classDir = dir+"/login_", dir+"/login.conf", dir
	write(t, b.classes, "auth-defaults:auth=passwd,skey:\ndefault:\\\n\t:tc=auth-defaults:\nother:auth=nosuch:\nwild:auth=../x:\n", 0o600)
	tests := map[string]struct {
		user, class, password string
		want                  bool
		fails                 bool
	}{
		"right":         {"alice", "", "secret", true, false},
		"wrong":         {"alice", "", "Secret", false, false},
		"cut":           {"alice", "", "secret\x00x", false, false},
		"blanks":        {"alice", "", " secret", false, false},
		"option":        {"-s", "", "secret", false, false},
		"reject counts": {"both", "", "x", false, false},
		"secure":        {"secure", "staff", "x", true, false},
		"status":        {"dies", "", "x", false, false},
		"unknown word":  {"odd", "", "x", false, false},
		"endless":       {"endless", "", "x", false, false},
		"silent":        {"silent", "", "x", false, false},
		"no program":    {"alice", "other", "secret", false, true},
		"path":          {"alice", "wild", "secret", false, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := b.check(t.Context(), tt.user, tt.class, tt.password)
			if got != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
	asked, err := os.ReadFile(dir + "/asked")
	if err != nil || !strings.Contains(string(asked), "secure staff [] [x] PATH=") || strings.Contains(string(asked), "HOME=") {
		t.Errorf("asked %q, %v", asked, err)
	}
}

func TestStyle(t *testing.T) {
	b := newBSDAuth()
	b.classDir, b.classes = t.TempDir(), filepath.Join(t.TempDir(), "login.conf")
	if got, err := b.style("default"); got != "passwd" || err != nil {
		t.Errorf("without a file: got %q, %v", got, err)
	}
	write(t, b.classes, `# classes
auth-defaults:auth=passwd,skey:

default:\
	:path=/usr/bin /bin:\
	:umask=022:\
	:tc=auth-defaults:

daemon|bin:\
	:auth@:\
	:tc=default:
staff:\
	:auth-smtp=yubikey,passwd:\
	:tc=default:
loop:tc=loop2:
loop2:tc=loop:auth=late:
missing:tc=nosuch:
`, 0o600)
	write(t, b.classDir+"/radius", "radius:\\\n\t:auth=radius:\\\n\t:tc=default:\n", 0o600)
	write(t, b.classDir+"/empty", "", 0o600)
	for class, want := range map[string]string{"default": "passwd", "bin": "passwd", "staff": "yubikey", "radius": "radius", "loop": "late",
		"missing": "passwd", "nosuch": "passwd", "empty": "passwd", "../x": "passwd"} {
		if got, err := b.style(class); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %s", class, got, err, want)
		}
	}
}

// TestAuthenticate: an expired account is nobody's, whatever the password; a
// login class decides when there are any.
func TestAuthenticate(t *testing.T) {
	pool, err := auth.NewPool(1)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := auth.Hash("secret", auth.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir+"/nsswitch.conf", "passwd: files ldap\n", 0o600)
	write(t, dir+"/getent", "#!/bin/sh\n[ -e "+dir+"/broken ] && exit 3\nexit 2\n", 0o700)
	var said strings.Builder
	p := &parent{ctx: t.Context(), o: Options{Passwords: pool}, log: log.New(&said, log.FormPlain)}
	p.accounts = accounts.At(dir, time.Now)
	write(t, dir+"/shadow", "alice:"+hash+":1:0:99999:7:::\nold:"+hash+":1:0:99999:7::1:\nlocked:!"+hash+":1::::::\nodd:$9$x$y:1::::::\n", 0o600)
	for login, want := range map[string]bool{"alice secret": true, "alice Secret": false, "old secret": false, "locked secret": false,
		"odd secret": false, "nobody secret": false} {
		user, password, _ := strings.Cut(login, " ")
		if got := p.authenticate(&imsg.SystemAuth{User: user, Password: password}); got.OK != want || got.Temporary {
			t.Errorf("%s: got %+v", login, got)
		}
	}
	write(t, dir+"/broken", "", 0o600)
	if got := p.authenticate(&imsg.SystemAuth{User: "nobody", Password: "x"}); got.OK || !got.Temporary {
		t.Errorf("directory away: got %+v", got)
	}
	if strings.Contains(said.String(), "secret") {
		t.Errorf("said %q", said.String())
	}
}
