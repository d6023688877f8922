package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"

	"smtpd/internal/mail"
)

// verifyStep is how many messages are looked at between two lines of progress.
const verifyStep = 10000

// VerifyResult counts.
type VerifyResult struct{ Messages, Envelopes, Bad int }

// Verify reads the whole spool: pages, envelopes, bodies. What is damaged is
// moved aside and reported, one line each; of pages it can only be said. The
// store works meanwhile, but for the moment that the pages take.
func (s *Bolt) Verify(ctx context.Context, report func(line string)) (r VerifyResult, err error) {
	if err := s.verifyPages(); err != nil {
		r.Bad++
		report("the database is damaged, and is mended at the next start: " + err.Error())
	}
	var after mail.EnvelopeID
	for end := false; !end; {
		var l []mail.Envelope
		if l, end, err = s.List(after, MaxList); err != nil {
			return r, err
		}
		r.Envelopes += len(l)
		if len(l) > 0 {
			after = l[len(l)-1].ID
		}
	}
	var id mail.MessageID
	for ctx.Err() == nil {
		if id, err = s.nextMessage(id); err != nil || id == 0 {
			break
		}
		r.Messages++
		b, berr := s.Body(id)
		switch {
		case errors.Is(berr, ErrNotFound): // it went meanwhile
		case berr != nil:
			r.Bad++
			report(fmt.Sprintf("message %s: %v", id, berr))
		case b.File != nil:
			b.File.Close()
		}
		if r.Messages%verifyStep == 0 {
			report(fmt.Sprintf("%d messages", r.Messages))
		}
	}
	// What was found on the way has been moved when this has been done.
	serr := s.do(&job{apply: func(*txn) error { return nil }})
	return r, errors.Join(err, ctx.Err(), serr)
}

// nextMessage is the least id above id; 0: there is none.
func (s *Bolt) nextMessage(id mail.MessageID) (next mail.MessageID, err error) {
	if id == ^mail.MessageID(0) {
		return 0, nil
	}
	err = s.view(func(v *view) error {
		if k := v.first(bucketMsg, msgKey(id+1)); len(k) == 4 {
			next = mail.MessageID(binary.BigEndian.Uint32(k))
		}
		return nil
	})
	return next, err
}

// verifyPages looks at the database between two commits, once it has what the
// log holds.
func (s *Bolt) verifyPages() (damage error) {
	if runtime.GOOS == "openbsd" {
		return nil // there a second map does not show what was written since
	}
	err := s.do(&job{apply: func(*txn) error { return nil }, alone: func() error {
		if err := s.settle(); err != nil {
			return err
		}
		f, err := s.fs.OpenFile(s.path(dbName), os.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		m, err := mapImage(f)
		if err != nil {
			return err
		}
		defer m.release()
		damage = m.checkGuarded()
		return nil
	}})
	return errors.Join(err, damage)
}
