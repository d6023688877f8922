package lookup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"smtpd/internal/accounts"
	"smtpd/internal/expand"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/table"
)

// Bounds of what is remembered of the system's accounts.
const (
	userTime = 5 * time.Second // ours: an account that goes, goes soon
	maxUsers = 10000           // ours
)

// errParent is what the parent says when it cannot tell.
var errParent = errors.New("the user database gives no answer")

// system asks the parent for accounts and .forward files. It is safe for
// concurrent use. Accounts that exist are remembered for a moment; that one
// does not exist, and what a .forward file holds, never.
type system struct {
	parent *ipc.Link
	now    func() time.Time

	mu    sync.Mutex
	users map[string]knownUser
}

type knownUser struct {
	user    expand.User
	expires time.Time
}

func newSystem(parent *ipc.Link, now func() time.Time) *system {
	return &system{parent: parent, now: now, users: map[string]knownUser{}}
}

// User implements expand.System.
func (s *system) User(ctx context.Context, name string) (expand.User, error) {
	if len(name) > imsg.MaxName || name == "" {
		return expand.User{}, table.ErrNotFound
	}
	now := s.now()
	s.mu.Lock()
	k, ok := s.users[name]
	s.mu.Unlock()
	if ok && now.Before(k.expires) {
		return k.user, nil
	}
	a, err := ipc.Ask[*imsg.UserInfo](ctx, s.parent, &imsg.UserQuery{Name: name})
	switch {
	case err != nil:
		return expand.User{}, fmt.Errorf("user %s: %w", name, err)
	case a.Temporary:
		return expand.User{}, fmt.Errorf("user %s: %w", name, errParent)
	case !a.Found:
		return expand.User{}, table.ErrNotFound
	}
	u := expand.User{Name: a.Name, UID: a.UID, GID: a.GID, Home: a.Home}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) >= maxUsers {
		clear(s.users)
	}
	s.users[name] = knownUser{u, now.Add(userTime)}
	return u, nil
}

// account is User for the tables.
func (s *system) account(ctx context.Context, name string) (table.Account, error) {
	u, err := s.User(ctx, name)
	return table.Account{UID: u.UID, GID: u.GID, Home: u.Home}, err
}

// Forward implements expand.System.
func (s *system) Forward(ctx context.Context, u expand.User) (expand.Forward, error) {
	a, err := ipc.Ask[*imsg.ForwardFile](ctx, s.parent,
		&imsg.ForwardOpen{User: u.Name, UID: u.UID, GID: u.GID, Home: u.Home})
	if err != nil {
		return expand.Forward{}, fmt.Errorf(".forward of %s: %w", u.Name, err)
	}
	f := expand.Forward{Present: a.Present, Data: a.Data, Reason: a.Reason}
	if a.Status.Code != 0 {
		f.Refuse = &a.Status
	}
	return f, nil
}

// Include implements expand.System: the file is opened with the rights of this
// process, which are nobody's.
func (s *system) Include(_ context.Context, path string) (string, error) {
	return accounts.ReadInclude(path, expand.MaxInclude, nil)
}
