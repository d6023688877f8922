package parent

import (
	"errors"

	"smtpd/internal/accounts"
	"smtpd/internal/auth"
	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// user looks an account of the system up for another process.
func (p *parent) user(name string) *imsg.UserInfo {
	u, err := p.accounts.User(p.ctx, name)
	if err != nil {
		return &imsg.UserInfo{Name: name, Temporary: true}
	}
	return &imsg.UserInfo{Found: u.Found, Name: u.Name, UID: u.UID, GID: u.GID, Home: u.Home, Gecos: u.Gecos}
}

// forward reads ~/.forward of a user for lookup, which may open nothing.
func forward(q *imsg.ForwardOpen) *imsg.ForwardFile {
	f := accounts.ReadForward(q.User, q.UID, q.Home)
	answer := &imsg.ForwardFile{Present: f.Present, Data: f.Data, Reason: mail.Clean(f.Reason, imsg.MaxText)}
	if f.Refuse != nil {
		answer.Status = *f.Refuse
	}
	return answer
}

// authenticate checks a password of an account of the system.
func (p *parent) authenticate(m *imsg.SystemAuth) *imsg.AuthResult {
	e, err := p.accounts.Secret(p.ctx, m.User)
	if err != nil {
		p.log.Warn("warn: authentication: " + mail.Clean(err.Error(), mail.MaxStatusText))
		return &imsg.AuthResult{Temporary: true}
	}
	if e == nil || e.Expired { // takes as long as a user that there is
		err := p.o.Passwords.VerifyNobody(p.ctx, m.Password)
		return &imsg.AuthResult{Temporary: err != nil}
	}
	if p.classes != nil {
		ok, err := p.classes.check(p.ctx, m.User, e.Class, m.Password)
		if err != nil {
			p.log.Warn("warn: authentication: " + mail.Clean(err.Error(), mail.MaxStatusText))
		}
		return &imsg.AuthResult{OK: ok && err == nil, Temporary: err != nil}
	}
	ok, err := p.o.Passwords.Verify(p.ctx, e.Hash, m.Password)
	switch {
	case errors.Is(err, auth.ErrForm), errors.Is(err, auth.ErrCost):
		p.log.Warn("warn: authentication: the password hash of " + mail.Clean(m.User, 64) + " cannot be used")
		return &imsg.AuthResult{}
	case err != nil:
		return &imsg.AuthResult{Temporary: true}
	}
	return &imsg.AuthResult{OK: ok}
}
