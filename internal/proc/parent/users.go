package parent

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

	"smtpd/internal/auth"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// accounts are the accounts of the system: those of its files, and those that
// other sources of the name service switch know. It is safe for concurrent use.
type accounts struct {
	shadow  string // shadow(5) or master.passwd(5)
	bsd     bool   // the form of shadow
	other   *nameService
	classes *bsdAuth // who checks passwords by login class; nil: hashes are compared
	now     func() time.Time
}

func newAccounts(now func() time.Time) *accounts {
	a := &accounts{shadow: "/etc/shadow", other: newNameService(now), now: now}
	if runtime.GOOS != "linux" {
		a.shadow, a.bsd = "/etc/master.passwd", true
	}
	if runtime.GOOS == "openbsd" {
		a.classes = newBSDAuth()
	}
	return a
}

// user looks an account of the system up.
func (a *accounts) user(ctx context.Context, name string) *imsg.UserInfo {
	info, err := lookupUser(name)
	if err == nil && !info.Found && a.other.asked() {
		info, err = a.other.user(ctx, name)
	}
	if err != nil {
		return &imsg.UserInfo{Name: name, Temporary: true}
	}
	return info
}

// lookupUser finds an account in passwd(5).
func lookupUser(name string) (*imsg.UserInfo, error) {
	u, err := osuser.Lookup(name)
	if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown {
		return &imsg.UserInfo{Name: name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	return userInfo(u.Username, u.Uid, u.Gid, u.Name, u.HomeDir)
}

// userInfo makes an account of the texts of passwd(5).
func userInfo(name, uid, gid, gecos, home string) (*imsg.UserInfo, error) {
	u, err1 := strconv.ParseUint(uid, 10, 32)
	g, err2 := strconv.ParseUint(gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	gecos, _, _ = strings.Cut(gecos, ",")
	return &imsg.UserInfo{Found: true, Name: name, UID: uint32(u), GID: uint32(g), Home: home, Gecos: gecos}, nil
}

// authenticate checks a password of an account of the system.
func (p *parent) authenticate(m *imsg.SystemAuth) *imsg.AuthResult {
	e, err := p.accounts.secret(p.ctx, m.User)
	if err != nil {
		p.log.Warn("warn: authentication: " + mail.Clean(err.Error(), mail.MaxStatusText))
		return &imsg.AuthResult{Temporary: true}
	}
	if e == nil || e.expired { // takes as long as a user that there is
		err := p.o.Passwords.VerifyNobody(p.ctx, m.Password)
		return &imsg.AuthResult{Temporary: err != nil}
	}
	if p.accounts.classes != nil {
		ok, err := p.accounts.classes.check(p.ctx, m.User, e.class, m.Password)
		if err != nil {
			p.log.Warn("warn: authentication: " + mail.Clean(err.Error(), mail.MaxStatusText))
		}
		return &imsg.AuthResult{OK: ok && err == nil, Temporary: err != nil}
	}
	ok, err := p.o.Passwords.Verify(p.ctx, e.hash, m.Password)
	switch {
	case errors.Is(err, auth.ErrForm), errors.Is(err, auth.ErrCost):
		p.log.Warn("warn: authentication: the password hash of " + mail.Clean(m.User, 64) + " cannot be used")
		return &imsg.AuthResult{}
	case err != nil:
		return &imsg.AuthResult{Temporary: true}
	}
	return &imsg.AuthResult{OK: ok}
}

// secret is what a line of shadow(5) or master.passwd(5) says of an account.
type secret struct {
	hash    string
	class   string // BSD: login class
	expired bool
}

// Places of fields in a line.
const (
	shadowExpire = 7 // shadow(5): days since 1970
	masterClass  = 4
	masterExpire = 6 // master.passwd(5): seconds since 1970
)

// secret finds what is known of an account; nil: there is none. An account
// without a usable hash has a locked one.
func (a *accounts) secret(ctx context.Context, name string) (*secret, error) {
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

func (a *accounts) parse(line string) *secret {
	f := strings.Split(line, ":")
	e := &secret{hash: f[1]}
	expire, unit := shadowExpire, int64(24*60*60)
	if a.bsd {
		expire, unit = masterExpire, 1
		if len(f) > masterClass {
			e.class = f[masterClass]
		}
	}
	if len(f) > expire {
		n, err := strconv.ParseInt(f[expire], 10, 64)
		e.expired = err == nil && (n > 0 || n == 0 && !a.bsd) && a.now().Unix()/unit >= n
	}
	return e
}
