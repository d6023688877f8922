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

// maxVerify bounds the passwords that are checked at a time: the hashes are
// made to be slow.
const maxVerify = 2

// authenticate checks a password of an account of the system.
func (p *parent) authenticate(m *imsg.SystemAuth) *imsg.AuthResult {
	p.verifying <- struct{}{}
	defer func() { <-p.verifying }()
	hash, err := shadowHash(m.User)
	if err != nil {
		p.log.Warn("warn: authentication: " + err.Error())
		return &imsg.AuthResult{Temporary: true}
	}
	if hash == "" {
		return &imsg.AuthResult{}
	}
	ok, err := p.o.Verify(hash, m.Password)
	if err != nil {
		p.log.Warn("warn: authentication: the password hash of " + mail.Clean(m.User, 64) + " cannot be used")
	}
	return &imsg.AuthResult{OK: ok && err == nil}
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
