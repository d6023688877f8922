package main

import (
	"errors"
	"fmt"
	"io"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// spoolReader is the part of a queue.Store that can be asked while there is no
// daemon.
type spoolReader interface {
	Load(id mail.EnvelopeID) (mail.Envelope, error)
	List(after mail.EnvelopeID, max int) (l []mail.Envelope, end bool, err error)
	Body(id mail.MessageID) (*queue.Body, error)
	Close() error
}

// offline opens the spool for reading, or says that nobody is there to ask.
func (p *program) offline() (spoolReader, error) {
	if p.spool == "" {
		return nil, failed("%v", ctl.ErrNotRunning)
	}
	return p.openSpool(p.spool)
}

// offlineQueue shows what is in the spool of a daemon that is not running: the
// envelopes of a message, or all when the id is empty.
func (p *program) offlineQueue(show func(*ctl.Entry) error, message string) error {
	var only mail.MessageID
	var after mail.EnvelopeID
	if message != "" {
		id, err := mail.ParseMessageID(message)
		if err != nil {
			return err
		}
		only, after = id, id.Envelope(0)-1
	}
	s, err := p.offline()
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		list, end, err := s.List(after, queue.MaxList)
		if err != nil {
			return err
		}
		for i := range list {
			if only != 0 && list[i].ID.Message() != only {
				return nil
			}
			if err := show(&ctl.Entry{Envelope: list[i], State: ctl.StateOffline}); err != nil {
				return err
			}
			after = list[i].ID
		}
		if end || len(list) == 0 {
			return nil
		}
	}
}

// offlineItem prints an envelope or a message from the spool.
func (p *program) offlineItem(request, id string) error {
	s, err := p.offline()
	if err != nil {
		return err
	}
	defer s.Close()
	if request == ctl.ReqEnvelope {
		err = p.offlineEnvelope(s, id)
	} else {
		err = p.offlineMessage(s, id)
	}
	if errors.Is(err, queue.ErrNotFound) {
		return failed(missing)
	}
	return err
}

func (p *program) offlineEnvelope(s spoolReader, text string) error {
	id, err := mail.ParseEnvelopeID(text)
	if err != nil {
		return err
	}
	e, err := s.Load(id)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(p.stdout, ctl.EnvelopeText(&e))
	return err
}

func (p *program) offlineMessage(s spoolReader, text string) error {
	id, err := mail.ParseMessageID(text)
	if err != nil {
		return err
	}
	b, err := s.Body(id)
	if err != nil {
		return err
	}
	if b.File == nil {
		_, err = p.stdout.Write(b.Inline)
		return err
	}
	defer b.File.Close()
	_, err = io.Copy(p.stdout, b.File)
	return err
}
