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
	partSize = imsg.MaxFrame - 64<<10 // octets of envelopes in one answer
	maxRest  = 256                    // ours: expansions that wait to be asked for
	restTime = 2 * time.Minute        // ours: smtp asks at once or never
)

// rest holds the envelopes that did not fit an answer until smtp asks for
// them. It is safe for concurrent use.
type rest struct {
	mu   sync.Mutex
	kept map[uint64]remainder
}

type remainder struct {
	envelopes []mail.Envelope
	expires   time.Time
}

// cut splits off what fits one answer, at least one envelope.
func cut(envs []mail.Envelope) (part, others []mail.Envelope) {
	size := 0
	for i := range envs {
		if size += envelopeSize(&envs[i]); i > 0 && (size > partSize || i == imsg.MaxItems) {
			return envs[:i], envs[i:]
		}
	}
	return envs, nil
}

// sizeOf is what envelopes take in a frame, at most, with what comes with them.
func sizeOf(envs []mail.Envelope) int {
	size := imsg.MaxText + imsg.MaxName
	for i := range envs {
		size += envelopeSize(&envs[i])
	}
	return size
}

// envelopeSize is what an envelope takes in a frame, at most.
func envelopeSize(e *mail.Envelope) int {
	const numbers = 200 // all that is not text, and the lengths of that
	return numbers + len(e.Dispatcher) + len(e.Tag) + len(e.SMTPName) + len(e.Helo) + len(e.Host) + len(e.Client) +
		len(e.Username) + len(e.Sender.User) + len(e.Sender.Domain) + len(e.Rcpt.User) + len(e.Rcpt.Domain) +
		len(e.Dest.User) + len(e.Dest.Domain) + len(e.DSN.EnvID) + len(e.DSN.ORcpt) + len(e.User) + len(e.Home) +
		len(e.Exec) + len(e.SubAddr) + len(e.LastStatus.Text) + len(e.LastError) + len(e.RemoteMTA)
}

// keep puts envelopes away and gives the token to ask for them; 0: too many
// wait already.
func (r *rest) keep(envs []mail.Envelope, now time.Time) uint64 {
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
	for token == 0 || r.kept[token].envelopes != nil {
		token = rand.Uint64()
	}
	r.kept[token] = remainder{envs, now.Add(restTime)}
	return token
}

// next is the answer to a token: envelopes, and another token if there are
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
	part, others := cut(k.envelopes)
	if len(others) > 0 {
		if a.More = r.keep(others, now); a.More == 0 {
			return &imsg.RcptAnswer{RcptOutcome: imsg.RcptOutcome{Status: temporary()}}
		}
	}
	a.Envelopes = part
	return a
}
