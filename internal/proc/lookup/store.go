package lookup

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// Bounds of what is asked of LMTP stores at RCPT time.
const (
	// storeTime is how long a client waits for the answer of a store. Ours: above
	// what the delivery worker waits, so that its words are heard.
	storeTime = 12 * time.Second
	// takenTime and refusedTime are how long answers are remembered. Ours: a
	// mailbox that was made or emptied takes mail soon.
	takenTime   = time.Minute
	refusedTime = 10 * time.Second
	maxStores   = 10000 // ours
)

// storeKey is what decides a store's answer, within one configuration.
type storeKey struct {
	generation             uint64
	dispatcher, user, dest string
}

// storeSaid is a remembered answer.
type storeSaid struct {
	status  mail.Status
	expires time.Time
}

// stores asks LMTP stores about recipients by way of mda. It is safe for
// concurrent use.
type stores struct {
	mu     sync.Mutex
	said   map[storeKey]storeSaid
	warned time.Time // that a store could not be asked
}

func (st *stores) recall(key storeKey, now time.Time) (mail.Status, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	k, ok := st.said[key]
	return k.status, ok && now.Before(k.expires)
}

func (st *stores) remember(key storeKey, status mail.Status, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.said == nil || len(st.said) >= maxStores {
		st.said = map[storeKey]storeSaid{}
	}
	d := refusedTime
	if status.OK() {
		d = takenTime
	}
	st.said[key] = storeSaid{status, now.Add(d)}
}

// mayWarn reports whether it is time to say once more that stores do not answer.
func (st *stores) mayWarn(now time.Time) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if now.Sub(st.warned) < refusedTime {
		return false
	}
	st.warned = now
	return true
}

// verified asks the store of an action with verify-rcpt about a recipient that
// expansion took; not nil: the recipient gets this. Only one that leads to a
// single mailbox is asked about: one member whose mailbox is full must not keep
// the others of a list from their mail. A store that cannot be asked refuses
// nobody: the queue keeps the mail until it can.
func (s *server) verified(ctx context.Context, w *world, asked *mail.Envelope, branches []mail.Branch) *mail.Status {
	if len(branches) != 1 {
		return nil
	}
	act := w.conf.Actions[branches[0].Dispatcher]
	if act == nil || !act.VerifyRcpt || branches[0].Exec != "" {
		return nil
	}
	e := *asked
	e.Follow(&branches[0])
	now := s.env.Now()
	key := storeKey{w.conf.Generation, e.Dispatcher, e.User, e.Dest.String()}
	status, known := s.stores.recall(key, now)
	if !known {
		ctx, cancel := context.WithTimeout(ctx, storeTime)
		defer cancel()
		a, err := ipc.Ask[*imsg.StoreAnswer](ctx, s.peers.MDA, &imsg.StoreCheck{Envelope: e})
		if err != nil || !a.Answered {
			if s.stores.mayWarn(now) {
				why := "mda gives no answer"
				if err == nil {
					why = a.Status.Text
				}
				s.env.Log.Warn(fmt.Sprintf("warn: action %s: the store cannot be asked about recipients, mail is queued: %s", e.Dispatcher, why))
			}
			return nil
		}
		status = a.Status
		s.stores.remember(key, status, s.env.Now())
	}
	if status.OK() {
		return nil
	}
	// Stores say whom they mean; so do we.
	for _, name := range []string{e.Dest.String(), e.User} {
		status.Text = strings.TrimPrefix(status.Text, "<"+name+"> ")
	}
	if status.Code == 421 { // the store ends its session, we do not end ours
		status.Code = 451
	}
	return &status
}
