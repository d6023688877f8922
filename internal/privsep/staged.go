package privsep

import (
	"sync"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
)

// staged is a configuration between its two steps: it has come and is being made
// ready, and waits for the word to use it or to forget it. It is safe for
// concurrent use.
type staged struct {
	mu    sync.Mutex
	conf  *config.Config // the last to come that has not been decided; nil: none
	abort func()         // takes back what was made ready for conf; may be nil
	turn  sync.Mutex     // held while something is made ready
}

// prepare has the process look at conf and tells the result.
func (s *staged) prepare(env *Env, conf *config.Config, tell func(error)) {
	s.drop(conf)
	go func() { // ends with what the process makes ready; the parent waits for its word
		s.turn.Lock()
		var abort func()
		var err error
		if f := env.prepare.Load(); f != nil {
			abort, err = (*f)(conf)
		}
		s.turn.Unlock()
		s.mu.Lock()
		if err == nil && s.conf == conf {
			s.abort, abort = abort, nil
		}
		s.mu.Unlock()
		if abort != nil {
			abort() // given up meanwhile, or refused
		}
		tell(err)
	}()
}

// drop forgets what is staged and stages next, which may be nil.
func (s *staged) drop(next *config.Config) {
	s.mu.Lock()
	abort := s.abort
	s.conf, s.abort = next, nil
	s.mu.Unlock()
	if abort != nil {
		abort()
	}
}

// apply ends the wait of what is staged: it goes to use, or is forgotten.
func (s *staged) apply(m *imsg.Apply, use func(*config.Config)) {
	s.mu.Lock()
	conf := s.conf
	s.mu.Unlock()
	if conf == nil || conf.Generation != m.Generation {
		return
	}
	if !m.Commit {
		s.drop(nil)
		return
	}
	s.mu.Lock()
	s.conf, s.abort = nil, nil
	s.mu.Unlock()
	use(conf)
}
