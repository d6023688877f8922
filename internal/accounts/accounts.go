// Package accounts knows the users of this host: those of passwd(5) and shadow(5)
// or master.passwd(5), those that other sources of the name service switch know,
// and their ~/.forward files. It asks with the rights of whoever calls it, writes
// nothing and never logs.
package accounts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Accounts are the accounts of the system. It is safe for concurrent use.
type Accounts struct {
	shadow string // shadow(5) or master.passwd(5)
	bsd    bool   // the form of shadow
	other  *nameService
	now    func() time.Time
}

// New gives the accounts of this host.
func New(now func() time.Time) *Accounts {
	a := &Accounts{shadow: "/etc/shadow", other: newNameService(now), now: now}
	if runtime.GOOS != "linux" {
		a.shadow, a.bsd = "/etc/master.passwd", true
	}
	return a
}

// At gives accounts with the files shadow, nsswitch.conf and getent of a folder,
// for tests.
func At(dir string, now func() time.Time) *Accounts {
	a := &Accounts{shadow: dir + "/shadow", other: newNameService(now), now: now}
	a.other.conf, a.other.homed, a.other.getent = dir+"/nsswitch.conf", dir+"/homed", []string{dir + "/getent"}
	return a
}

// User is an account of the system.
type User struct {
	Found    bool // it exists; the rest is valid
	Name     string
	UID, GID uint32
	Home     string
	Gecos    string // the full name alone
}

// User looks an account up. An error means that it cannot be told now whether
// there is one. It blocks for some seconds at most, where a directory is asked.
func (a *Accounts) User(ctx context.Context, name string) (User, error) {
	u, err := Local(name)
	if err == nil && !u.Found && a.other.asked() {
		return a.other.user(ctx, name)
	}
	return u, err
}

// Elsewhere reports whether there may be accounts that passwd(5) does not have.
func (a *Accounts) Elsewhere() bool { return a.other.asked() }

// Local finds an account in passwd(5). It does not wait for anybody.
func Local(name string) (User, error) {
	u, err := osuser.Lookup(name)
	if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown {
		return User{Name: name}, nil
	}
	if err != nil {
		return User{}, fmt.Errorf("user %s: %w", name, err)
	}
	return newUser(u.Username, u.Uid, u.Gid, u.Name, u.HomeDir)
}

// newUser makes an account of the texts of passwd(5).
func newUser(name, uid, gid, gecos, home string) (User, error) {
	u, err1 := strconv.ParseUint(uid, 10, 32)
	g, err2 := strconv.ParseUint(gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return User{}, fmt.Errorf("user %s: %w", name, err)
	}
	gecos, _, _ = strings.Cut(gecos, ",")
	return User{Found: true, Name: name, UID: uint32(u), GID: uint32(g), Home: home, Gecos: gecos}, nil
}

// Secret is what a line of shadow(5) or master.passwd(5) says of an account.
type Secret struct {
	Hash    string
	Class   string // BSD: login class
	Expired bool
}

// Places of fields in a line.
const (
	shadowExpire = 7 // shadow(5): days since 1970
	masterClass  = 4
	masterExpire = 6 // master.passwd(5): seconds since 1970
)

// Secret finds what is known of an account; nil: there is none. An account
// without a usable hash has a locked one. It needs the rights to read shadow(5).
func (a *Accounts) Secret(ctx context.Context, name string) (*Secret, error) {
	if name == "" || strings.ContainsAny(name, ":\n") {
		return nil, nil
	}
	f, err := os.Open(a.shadow)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if line := sc.Text(); strings.HasPrefix(line, name+":") {
			return a.parse(line), nil
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", a.shadow, err)
	}
	if a.bsd || !a.other.asked() {
		return nil, nil
	}
	line, err := a.other.entry(ctx, "shadow", name)
	if err != nil || line == "" {
		return nil, err
	}
	return a.parse(line), nil
}

func (a *Accounts) parse(line string) *Secret {
	f := strings.Split(line, ":")
	e := &Secret{Hash: f[1]}
	expire, unit := shadowExpire, int64(24*60*60)
	if a.bsd {
		expire, unit = masterExpire, 1
		if len(f) > masterClass {
			e.Class = f[masterClass]
		}
	}
	if len(f) > expire {
		n, err := strconv.ParseInt(f[expire], 10, 64)
		e.Expired = err == nil && (n > 0 || n == 0 && !a.bsd) && a.now().Unix()/unit >= n
	}
	return e
}
