package lookup

import (
	"math/rand/v2"
	"sync"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/mail"
)

// Bounds of expansions that are handed over in parts.
const (
	partSize = imsg.MaxFrame - 64<<10 // octets of branches in one answer
	maxRest  = 256                    // ours: expansions that wait to be asked for
	restTime = 2 * time.Minute        // ours: smtp asks at once or never
)

// rest holds the branches that did not fit an answer until smtp asks for
// them. It is safe for concurrent use.
type rest struct {
	mu   sync.Mutex
	kept map[uint64]remainder
}

type remainder struct {
	branches []mail.Branch
	expires  time.Time
}

// cut splits off what fits one answer, at least one.
func cut(branches []mail.Branch) (part, others []mail.Branch) {
	size := 0
	for i := range branches {
		if size += branchSize(&branches[i]); i > 0 && (size > partSize || i == imsg.MaxItems) {
			return branches[:i], branches[i:]
		}
	}
	return branches, nil
}

// sizeOf is what branches take in a frame, at most, with what comes with them.
func sizeOf(branches []mail.Branch) int {
	size := imsg.MaxText + imsg.MaxName
	for i := range branches {
		size += branchSize(&branches[i])
	}
	return size
}

// branchSize is what a branch takes in a frame, at most.
func branchSize(b *mail.Branch) int {
	const numbers = 50 // all that is not text, and the lengths of that
	return numbers + len(b.Dispatcher) + len(b.Dest.User) + len(b.Dest.Domain) + len(b.User) + len(b.Exec) + len(b.SubAddr)
}

// keep puts branches away and gives the token to ask for them; 0: too many
// wait already.
func (r *rest) keep(branches []mail.Branch, now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for token, k := range r.kept {
		if now.After(k.expires) {
			delete(r.kept, token)
		}
	}
	if len(r.kept) >= maxRest {
		return 0
	}
	if r.kept == nil {
		r.kept = map[uint64]remainder{}
	}
	token := rand.Uint64()
	for token == 0 || r.kept[token].branches != nil {
		token = rand.Uint64()
	}
	r.kept[token] = remainder{branches, now.Add(restTime)}
	return token
}

// next is the answer to a token: branches, and another token if there are
// still more.
func (r *rest) next(token uint64, now time.Time) *imsg.RcptAnswer {
	r.mu.Lock()
	k, ok := r.kept[token]
	delete(r.kept, token)
	r.mu.Unlock()
	if !ok {
		return &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: temporary()}}
	}
	a := &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: mail.Status{Code: 250}}}
	part, others := cut(k.branches)
	if len(others) > 0 {
		if a.More = r.keep(others, now); a.More == 0 {
			return &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: temporary()}}
		}
	}
	a.Branches = part
	return a
}
