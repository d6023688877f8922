package mda

import (
	"context"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

const (
	// userTTL is how long an account is known without asking again. Ours: short,
	// so that a change is seen at once by an operator's measure.
	userTTL = 5 * time.Second
	// maxUsers bounds the accounts known. Ours.
	maxUsers = 4096
	// lookupTime bounds one question about a user.
	lookupTime = 30 * time.Second
)

// userKey is a user as asked for: of a table, or of the system.
type userKey struct{ table, name string }

// user is what is known of one, or the deliveries that wait for it.
type user struct {
	info    imsg.UserInfo
	until   time.Time // zero: not known yet
	waiting []*job
}

// account says which user a delivery is for.
func account(j *job) userKey {
	if j.act.User != "" {
		return userKey{name: j.act.User}
	}
	return userKey{table: j.act.Userbase, name: j.env.User}
}

// withUser goes on with j once its user is known: at once when that is so.
// Deliveries for one user share the question.
func (s *state) withUser(ctx context.Context, j *job, tasks *sync.WaitGroup) {
	key := account(j)
	now := s.env.Now()
	s.mu.Lock()
	u := s.users[key]
	switch {
	case u != nil && now.Before(u.until):
		info := u.info
		s.mu.Unlock()
		s.found(j, info)
		return
	case u != nil && u.until.IsZero():
		u.waiting = append(u.waiting, j)
		s.mu.Unlock()
		return
	}
	s.forgetUsers(now)
	u = &user{waiting: []*job{j}}
	s.users[key] = u
	s.mu.Unlock()
	tasks.Go(func() { s.ask(ctx, key, u) })
}

// forgetUsers makes room. The lock is held.
func (s *state) forgetUsers(now time.Time) {
	if len(s.users) < maxUsers {
		return
	}
	for key, u := range s.users {
		if !u.until.IsZero() && now.After(u.until) {
			delete(s.users, key)
		}
	}
	for key, u := range s.users {
		if len(s.users) < maxUsers {
			return
		}
		if !u.until.IsZero() {
			delete(s.users, key)
		}
	}
}

func (s *state) ask(ctx context.Context, key userKey, u *user) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	info, err := ipc.Ask[*imsg.UserInfo](ctx, s.peers.Lookup, &imsg.UserbaseQuery{Table: key.table, User: key.name})
	if err != nil {
		info = &imsg.UserInfo{Temporary: true}
	}
	s.mu.Lock()
	waiting := u.waiting
	u.waiting = nil
	if info.Found {
		u.info, u.until = *info, s.env.Now().Add(userTTL)
	} else if s.users[key] == u {
		delete(s.users, key)
	}
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return // queue has them tried again
	}
	for _, j := range waiting {
		switch {
		case info.Found:
			s.found(j, *info)
		case info.Temporary:
			const text = "Temporary failure in user lookup"
			s.finished(j, failure(451, text, text))
		default:
			text := "Permanent failure in user lookup"
			if j.act.User != "" {
				text = "delivery user '" + mail.Clean(j.act.User, 64) + "' does not exist"
			}
			s.finished(j, failure(550, text, text))
		}
	}
}

// found gives a delivery its user. The home that expansion found out holds:
// with virtual users it is not that of the account.
func (s *state) found(j *job, info imsg.UserInfo) {
	if j.act.User == "" && j.env.Home != "" {
		info.Home = j.env.Home
	}
	if info.Name == "" {
		info.Name = account(j).name
	}
	j.user = info
	j.run.Envelope.User, j.run.Envelope.Home = info.Name, info.Home
	s.identified(j)
}
