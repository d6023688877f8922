// Package keys is the process that holds the private keys. It owns them from
// the configuration on, in memory only, and signs digests for smtp, mta and
// lookup. It must never give a key away, not into an imsg, nor the log, nor an
// error.
package keys

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync/atomic"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
)

// Peers are the channels this process is given, and all that it is given.
type Peers struct{ SMTP, MTA, Lookup, Control *ipc.Link }

// Run serves until ctx ends and the signatures begun are made.
func Run(ctx context.Context, env *privsep.Env, p Peers) error {
	s := &state{log: env.Log}
	env.OnPrepare(func(c *config.Config) (func(), error) { return nil, prepare(c) })
	select {
	case c := <-env.Config:
		s.configure(c)
	case <-ctx.Done():
		return nil
	}
	// As many at a time as there are processors; the channels bound those that
	// wait.
	handler, wait := ipc.Async(runtime.GOMAXPROCS(0), s.handle)
	for _, l := range []*ipc.Link{p.SMTP, p.MTA, p.Lookup} {
		l.Serve(handler, nil, nil)
	}
	p.Control.Serve(env.AnswerStats, nil, nil)
	env.Ready()
	for {
		select {
		case c := <-env.Config:
			s.configure(c)
			env.Works(c)
		case <-env.Switches: // none concerns us
		case <-ctx.Done():
			wait()
			return nil
		}
	}
}

// state is all that the process has.
type state struct {
	log  *log.Logger
	ring atomic.Pointer[map[string][]owned] // by name of the pki entry, the newest first
}

// owned is a key with its name among those of the same pki entry.
type owned struct {
	signer
	id []byte

	leaving bool // the configuration has it no more
}

// maxOld is how many keys an entry keeps. Ours: the present one, and the one
// before: others learn of a renewal sooner or later than we do, and handshakes
// on the old certificate go on.
const maxOld = 2

// prepare reports a key that could not be used.
func prepare(c *config.Config) error {
	for name, pki := range c.PKI {
		if pki.Key == "" {
			continue
		}
		if _, err := parse([]byte(string(pki.Key))); err != nil {
			return fmt.Errorf("pki %s: the key %s cannot be used: %w", name, pki.KeyFile, err)
		}
	}
	return nil
}

// configure replaces all keys. One that cannot be used is reported and left
// out: those who ask for it get no signature.
func (s *state) configure(c *config.Config) {
	ring := map[string][]owned{}
	var before map[string][]owned
	if old := s.ring.Load(); old != nil {
		before = *old
	}
	for name, pki := range c.PKI {
		if pki.Key == "" {
			continue
		}
		k, err := parse([]byte(string(pki.Key)))
		if err != nil {
			s.log.Warn(fmt.Sprintf("warn: keys: the key of a pki cannot be used: %v", err), slog.String("pki", name))
			continue
		}
		ring[name] = append(ring[name], owned{signer: k, id: privsep.KeyID(k.key.Public())})
		for _, old := range before[name] {
			if len(ring[name]) < maxOld && !bytes.Equal(old.id, ring[name][0].id) {
				ring[name] = append(ring[name], old)
			}
		}
	}
	// A session that began before its pki entry went may still ask for STARTTLS:
	// such keys stay until the configuration changes once more.
	for name, old := range before {
		if c.PKI[name] == nil && !old[0].leaving {
			last := old[0]
			last.leaving = true
			ring[name] = []owned{last}
		}
	}
	s.ring.Store(&ring)
}

// handle answers with a signature, or with an empty one.
func (s *state) handle(r *ipc.Request) {
	if m, ok := r.Msg.(*imsg.Sign); ok {
		r.Reply(&imsg.Signature{Data: s.sign(m)}, nil)
	}
}

// sign is the signature that m asks for; nil: there is none.
func (s *state) sign(m *imsg.Sign) []byte {
	keys := (*s.ring.Load())[m.PKI]
	i := slices.IndexFunc(keys, func(k owned) bool { return len(m.KeyID) == 0 || bytes.Equal(k.id, m.KeyID) })
	if i < 0 {
		s.log.Debug("keys: no key", slog.String("pki", m.PKI))
		return nil
	}
	sig, err := keys[i].sign(m)
	if err != nil {
		s.log.Warn("warn: keys: "+err.Error(), slog.String("pki", m.PKI))
		return nil
	}
	return sig
}
