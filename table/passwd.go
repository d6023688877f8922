package table

import (
	"context"
	"strings"
	"sync/atomic"
)

// passwdTable is a file in the form of passwd(5):
// user:hash:uid:gid:gecos:home:shell, more fields are left alone. It offers
// Credentials and Userinfo.
type passwdTable struct {
	watch
	users atomic.Pointer[map[string]passwdUser]
}

type passwdUser struct {
	hash    string
	account string // as a value of Userinfo
}

// NewPasswd makes the backend of a file in the form of passwd(5), read at once
// and at each Update.
func NewPasswd(path string) (Backend, error) { return newPasswd(path, nil) }

func newPasswd(path string, open Opener) (Backend, error) {
	t := &passwdTable{watch: watch{path: path, open: open}}
	if err := t.Update(context.Background()); err != nil {
		return nil, err
	}
	return t, nil
}

// Update implements Backend.
func (t *passwdTable) Update(context.Context) error {
	file, err := t.reading()
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := readText(file, t.path)
	if err != nil {
		return err
	}
	users := map[string]passwdUser{}
	for n := 1; text != ""; n++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimSuffix(line, "\r")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, ":")
		if len(f) < 6 || f[0] == "" || hasControl(line) || len(line) > MaxValue {
			return &LineError{t.path, n, errEntry}
		}
		user := Fold(f[0])
		if _, twice := users[user]; twice {
			continue // as getpwnam does: the first counts
		}
		users[user] = passwdUser{hash: f[1], account: f[2] + ":" + f[3] + ":" + f[5]}
	}
	t.users.Store(&users)
	return nil
}

// Lookup implements Backend.
func (t *passwdTable) Lookup(_ context.Context, s Service, key string) (string, error) {
	u, ok := (*t.users.Load())[key]
	switch {
	case s&(Credentials|Userinfo) == 0:
		return "", ErrService
	case !ok, s == Credentials && u.hash == "":
		return "", ErrNotFound
	case s == Credentials:
		return key + ":" + u.hash, nil
	}
	return u.account, nil
}

// Check implements Backend.
func (t *passwdTable) Check(_ context.Context, s Service, key string) (bool, error) {
	if s&(Credentials|Userinfo) == 0 {
		return false, ErrService
	}
	_, ok := (*t.users.Load())[key]
	return ok, nil
}

// Fetch implements Backend.
func (t *passwdTable) Fetch(context.Context, Service) (string, error) { return "", ErrService }

// Services implements Backend.
func (t *passwdTable) Services() Service { return Credentials | Userinfo }

// Close implements Backend.
func (t *passwdTable) Close() error { return nil }

// Len is the number of users.
func (t *passwdTable) Len() int { return len(*t.users.Load()) }

// Accounts finds an account of the system by its name: ErrNotFound when there
// is none, any other error when that cannot be told now.
type Accounts func(ctx context.Context, name string) (Account, error)

// getpwnam is the table of the system's accounts.
type getpwnam struct{ find Accounts }

// NewGetpwnam makes the backend of the accounts of the system, which find
// knows. It offers Userinfo.
func NewGetpwnam(find Accounts) Backend { return getpwnam{find} }

// Lookup implements Backend.
func (t getpwnam) Lookup(ctx context.Context, s Service, key string) (string, error) {
	if s != Userinfo {
		return "", ErrService
	}
	a, err := t.find(ctx, key)
	if err != nil {
		return "", err
	}
	return a.String(), nil
}

// Check implements Backend.
func (t getpwnam) Check(ctx context.Context, s Service, key string) (bool, error) {
	_, err := t.Lookup(ctx, s, key)
	if err == ErrNotFound {
		return false, nil
	}
	return err == nil, err
}

// Fetch implements Backend.
func (t getpwnam) Fetch(context.Context, Service) (string, error) { return "", ErrService }

// Update implements Backend.
func (t getpwnam) Update(context.Context) error { return nil }

// Services implements Backend.
func (t getpwnam) Services() Service { return Userinfo }

// Close implements Backend.
func (t getpwnam) Close() error { return nil }
