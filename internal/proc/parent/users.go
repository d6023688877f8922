package parent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"runtime"
	"strconv"
	"strings"

	"smtpd/internal/auth"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// user looks an account of the system up.
func user(name string) *imsg.UserInfo {
	info, err := lookupUser(name)
	if err != nil {
		return &imsg.UserInfo{Name: name, Temporary: true}
	}
	return info
}

func lookupUser(name string) (*imsg.UserInfo, error) {
	u, err := osuser.Lookup(name)
	if _, unknown := errors.AsType[osuser.UnknownUserError](err); unknown {
		return &imsg.UserInfo{Name: name}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("user %s: %w", name, err)
	}
	gecos, _, _ := strings.Cut(u.Name, ",")
	return &imsg.UserInfo{Found: true, Name: u.Username, UID: uint32(uid), GID: uint32(gid),
		Home: u.HomeDir, Gecos: gecos}, nil
}

// shadowFile holds the password hashes: shadow(5), master.passwd(5).
func shadowFile() string {
	if runtime.GOOS == "linux" {
		return "/etc/shadow"
	}
	return "/etc/master.passwd"
}

// authenticate checks a password of an account of the system.
func (p *parent) authenticate(m *imsg.SystemAuth) *imsg.AuthResult {
	hash, err := shadowHash(m.User)
	if err != nil {
		p.log.Warn("warn: authentication: " + err.Error())
		return &imsg.AuthResult{Temporary: true}
	}
	if hash == "" { // takes as long as a user that there is
		err := p.o.Passwords.VerifyNobody(p.ctx, m.Password)
		return &imsg.AuthResult{Temporary: err != nil}
	}
	ok, err := p.o.Passwords.Verify(p.ctx, hash, m.Password)
	switch {
	case errors.Is(err, auth.ErrForm):
		p.log.Warn("warn: authentication: the password hash of " + mail.Clean(m.User, 64) + " cannot be used")
		return &imsg.AuthResult{}
	case err != nil:
		return &imsg.AuthResult{Temporary: true}
	}
	return &imsg.AuthResult{OK: ok}
}

// shadowHash is the password hash of an account; empty: it has none that could
// be used.
func shadowHash(name string) (string, error) {
	f, err := os.Open(shadowFile())
	if err != nil {
		return "", err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.SplitN(sc.Text(), ":", 3)
		if len(fields) >= 2 && fields[0] == name {
			if h := fields[1]; len(h) > 1 && h[0] != '!' && h[0] != '*' {
				return h, nil
			}
			return "", nil
		}
	}
	return "", nil
}
