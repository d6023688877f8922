package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"smtpd/internal/bounce"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/queue"
)

// Of notices (spec).
const (
	noticeOwner = "queue"         // of the leases on notices
	gatherTime  = time.Second     // how long the recipients of one notice gather
	sessions    = 2               // notices on their way at a time
	injectTime  = 5 * time.Minute // ours: how long smtp may take
)

// noticer writes notices: what is due for one message, of one kind, becomes one.
type noticer struct {
	s    *state
	wait time.Duration // how long recipients gather
	sem  chan struct{} // holds one for each session

	mu     sync.Mutex
	groups map[groupKey][]mail.EnvelopeID
}

// groupKey is what the recipients of one notice have in common.
type groupKey struct {
	message mail.MessageID
	kind    mail.NoticeKind
	delay   time.Duration
	sender  mail.Address
}

func newNoticer(s *state) *noticer {
	return &noticer{s: s, sem: make(chan struct{}, sessions), groups: map[groupKey][]mail.EnvelopeID{}}
}

// take leases notices that are due and gathers them.
func (n *noticer) take(ids []mail.EnvelopeID) {
	s := n.s
	envs, err := s.store.Lease(s.work, noticeOwner, s.now().Add(leaseTime), ids)
	if err != nil {
		s.complain("lease", err)
	}
	got := map[mail.EnvelopeID]bool{}
	var wrong []mail.EnvelopeID
	for i := range envs {
		e := &envs[i]
		if e.Kind != mail.KindBounce {
			wrong = append(wrong, e.ID)
			continue
		}
		got[e.ID] = true
		n.gather(e)
	}
	s.store.EndLeases(noticeOwner, wrong)
	var rest []mail.EnvelopeID
	for _, id := range ids {
		if !got[id] {
			rest = append(rest, id)
		}
	}
	s.unleased(rest)
}

// gather adds a notice to its group; the first has the group sent a little
// later.
func (n *noticer) gather(e *mail.Envelope) {
	key := groupKey{e.ID.Message(), e.Notice, e.NoticeDelay, e.Sender}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, begun := n.groups[key]
	n.groups[key] = append(n.groups[key], e.ID)
	n.s.stat.Add("bounce.envelope", 1)
	if begun {
		return
	}
	n.s.stat.Add("bounce.message", 1)
	n.s.begin(func() {
		t := time.NewTimer(n.wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-n.s.ctx.Done():
			return
		}
		select {
		case n.sem <- struct{}{}:
		case <-n.s.ctx.Done():
			return
		}
		defer func() { <-n.sem }()
		n.mu.Lock()
		ids := n.groups[key]
		delete(n.groups, key)
		n.mu.Unlock()
		n.s.stat.Add("bounce.session", 1)
		n.send(key, ids)
		n.s.stat.Add("bounce.session", -1)
		n.s.stat.Add("bounce.message", -1)
		n.s.stat.Add("bounce.envelope", -int64(len(ids)))
	})
}

// send writes as many notices as it takes to report all of ids.
func (n *noticer) send(key groupKey, ids []mail.EnvelopeID) {
	s := n.s
	var envs []mail.Envelope
	for _, id := range ids {
		if e, err := s.store.Load(id); err == nil { // else it was removed meanwhile
			envs = append(envs, e)
		}
	}
	for len(envs) > 0 && s.ctx.Err() == nil {
		data, used, utf8, err := n.compose(key, envs)
		if err != nil {
			s.complain("notice about "+key.message.String(), err)
			n.giveBack(envs)
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, injectTime)
		in, err := ipc.Ask[*imsg.Injected](ctx, s.peers.SMTP, &imsg.Inject{Rcpt: key.sender, Data: data, UTF8: utf8, RequireTLS: requireTLS(envs[:used])})
		cancel()
		if err != nil {
			n.giveBack(envs) // smtp is not there: was not tried
			return
		}
		n.settle(key, envs[:used], &in.Status)
		envs = envs[used:]
	}
	n.giveBack(envs)
}

// requireTLS reports whether a notice has to keep to TLS as the message that it
// is about had to (RFC 8689 section 5).
func requireTLS(envs []mail.Envelope) bool {
	return slices.ContainsFunc(envs, func(e mail.Envelope) bool { return e.Flags&mail.FlagRequireTLS != 0 })
}

func (n *noticer) giveBack(envs []mail.Envelope) {
	var ids []mail.EnvelopeID
	for i := range envs {
		ids = append(ids, envs[i].ID)
	}
	n.s.unleased(n.s.store.EndLeases(noticeOwner, ids))
}

// compose writes one notice about the first of envs.
func (n *noticer) compose(key groupKey, envs []mail.Envelope) (data []byte, used int, utf8 bool, err error) {
	s := n.s
	info, err := s.store.Message(key.message)
	if err != nil {
		return nil, 0, false, err
	}
	b, err := s.store.Body(key.message)
	if err != nil {
		return nil, 0, false, err
	}
	original := io.Reader(bytes.NewReader(b.Inline))
	if b.File != nil {
		defer b.File.Close()
		original = b.File
	}
	c := s.config.Load()
	data, used, utf8 = (&bounce.Notice{
		Kind: key.kind, Server: c.ServerName, From: c.Bounce.From, Full: c.Bounce.Full, To: key.sender, Date: s.now(), ID: rand.Uint64(),
		Recipients: envs, Arrival: info.Arrival, Delay: key.delay, TTL: s.ttl(envs[0].Dispatcher),
		Original: original, Size: info.Size, Max: imsg.MaxData,
	}).Compose()
	return data, used, utf8, nil
}

// reports are the words of the log for the kinds of notices.
var reports = map[mail.NoticeKind]string{mail.NoticeFailed: "failure", mail.NoticeDelayed: "delay",
	mail.NoticeDelivered: "delivery", mail.NoticeRelayed: "relay"}

// settle makes the end of an injection durable. A notice that is refused for
// good is lost: there is nobody to tell.
func (n *noticer) settle(key groupKey, envs []mail.Envelope, st *mail.Status) {
	s := n.s
	now := s.now()
	ids := make([]mail.EnvelopeID, len(envs))
	for i := range envs {
		ids[i] = envs[i].ID
	}
	if !st.OK() {
		end, plural := "TempFail", ""
		if st.Permanent() {
			end = "PermFail"
		}
		if len(envs) > 1 {
			plural = "s"
		}
		s.log.Warn(fmt.Sprintf("warn: %s injecting %s report on message %s to <%s> for %d envelope%s: %s",
			end, reports[key.kind], key.message, key.sender, len(envs), plural, mail.Clean(st.String(), mail.MaxStatusText)))
	}
	out := s.apply(ids, func(e *mail.Envelope) queue.Verdict {
		if st.Temporary() {
			// What it reports stays as it is: only the tries count.
			e.LastTry = now
			e.Retry += uint16(min(1, ^e.Retry))
			return queue.Verdict{}
		}
		return queue.Verdict{Delete: true}
	})
	s.store.EndLeases(noticeOwner, ids)
	if out == nil {
		s.stay(ids)
		return
	}
	why := mail.GoneDelivered
	if st.Permanent() {
		why = mail.GoneFailed
	}
	for i := range out {
		s.tell(&out[i], why)
	}
}
