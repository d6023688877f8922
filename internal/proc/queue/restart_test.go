package queue

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// TestAgentDies: what mta was lent lapses, and its successor is lent it again
// once it has said what it holds.
func TestAgentDies(t *testing.T) {
	h := build(t)
	h.agents()
	id := h.commit(body, envelope(mail.KindMTA, "a@example.net"))[0].ID
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	next[*imsg.Transfer](h.mta)
	h.mta.link.Close()
	if l := h.heard(1); l[0].ID != id || l[0].Inflight || l[0].Retry != 0 {
		t.Fatalf("scheduled %+v", l)
	}
	// Nobody is there: the attempt waits.
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	mta := connect(t, h.peers.MTA, imsg.MTA)
	mta.send(&imsg.Inflight{})
	mta.send(&imsg.Inflight{Last: true})
	if tr, _ := next[*imsg.Transfer](mta); tr.Envelopes[0].ID != id {
		t.Errorf("transfer %+v", tr)
	}
	// Replaced without a gap: the successor holds nothing.
	again := connect(t, h.peers.MTA, imsg.MTA)
	again.send(&imsg.Inflight{Last: true})
	if l := h.heard(1); l[0].ID != id || l[0].Inflight {
		t.Fatalf("scheduled %+v", l)
	}
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	next[*imsg.Transfer](again)
}

// TestSchedulerDies: a new one hears of everything, and of what is under way.
func TestSchedulerDies(t *testing.T) {
	h := build(t)
	h.agents()
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net"))
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID}})
	next[*imsg.Transfer](h.mta)
	h.sched.link.Close()
	if got := h.scheduler(); len(got) != 2 || !got[0].Inflight || got[1].Inflight {
		t.Errorf("loaded %+v", got)
	}
	// It wants what is under way already: it is told so.
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID}})
	if got := h.heard(1); got[0].ID != l[0].ID || !got[0].Inflight {
		t.Errorf("told %+v", got)
	}
	ask[*imsg.Done](h.mta, &imsg.Results{Results: []imsg.Result{{ID: l[0].ID, Status: mail.Status{Code: 250}}}})
	h.gone(l[0].ID, mail.GoneDelivered)
}

// TestQueueDies: a new queue learns from the agents what is under way, lends
// nothing before, and takes late results.
func TestQueueDies(t *testing.T) {
	h := build(t)
	h.agents()
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net"))
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID}})
	next[*imsg.Transfer](h.mta)
	if err := h.stop(); err != nil {
		t.Fatal(err)
	}
	h.store.EndLeases("mta", []mail.EnvelopeID{l[0].ID}) // they were in memory
	h.open()
	if len(h.loaded) != 2 || h.loaded[0].Inflight {
		t.Errorf("loaded %+v", h.loaded)
	}
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID}})
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[1].ID}})
	mta := connect(t, h.peers.MTA, imsg.MTA)
	mta.send(&imsg.Inflight{IDs: []mail.EnvelopeID{l[0].ID, 0x99}, Last: true})
	// It is told that the first is under way, twice: for what mta said, and for
	// its attempt.
	for _, got := range h.heard(2) {
		if got.ID != l[0].ID || !got.Inflight {
			t.Errorf("told %+v", got)
		}
	}
	if tr, _ := next[*imsg.Transfer](mta); tr.Envelopes[0].ID != l[1].ID {
		t.Errorf("transfer %+v", tr)
	}
	ask[*imsg.Done](mta, &imsg.Results{Results: []imsg.Result{{ID: l[0].ID, Status: mail.Status{Code: 250}}}})
	h.gone(l[0].ID, mail.GoneDelivered)
}

// TestSMTPDies while a notice is on its way: it is tried again, and that counts
// as no try.
func TestSMTPDies(t *testing.T) {
	h := build(t)
	h.agents()
	id := h.commit(body, envelope(mail.KindMTA, "a@example.net"))[0].ID
	h.sched.send(&imsg.Expire{IDs: []mail.EnvelopeID{id}})
	h.gone(id, mail.GoneExpired)
	n := h.heard(1)[0].ID
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{n}})
	next[*imsg.Inject](h.smtp)
	h.smtp.link.Close()
	if l := h.heard(1); l[0].ID != n || l[0].Retry != 0 || l[0].Inflight {
		t.Errorf("told %+v", l)
	}
}

// TestHold: envelopes that mta has too many of wait until it wants them.
func TestHold(t *testing.T) {
	h := build(t)
	h.agents()
	id := h.commit(body, envelope(mail.KindMTA, "a@example.net"))[0].ID
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	next[*imsg.Transfer](h.mta)
	h.mta.send(&imsg.Hold{IDs: []mail.EnvelopeID{id, 0x99}, Key: 7})
	if m, _ := next[*imsg.Held](h.sched); m.Key != 7 || len(m.IDs) != 1 || m.IDs[0] != id {
		t.Errorf("held %+v", m)
	}
	h.mta.send(&imsg.Release{Key: 7, Count: 3})
	if m, _ := next[*imsg.Released](h.sched); m.Key != 7 || m.Count != 3 {
		t.Errorf("released %+v", m)
	}
	if _, ok := h.store.LeaseOf(id); ok {
		t.Error("held and leased")
	}
	// Who held them back goes: they are all wanted.
	h.mta.link.Close()
	if m, _ := next[*imsg.Released](h.sched); m.Key != 0 || m.Count != 0 {
		t.Errorf("released %+v", m)
	}
}

// slow is a store whose leases can be made to wait.
type slow struct {
	queue.Store
	gate atomic.Pointer[chan struct{}]
}

func (s *slow) Lease(ctx context.Context, owner string, until time.Time, ids []mail.EnvelopeID) ([]mail.Envelope, error) {
	if g := s.gate.Load(); g != nil {
		<-*g
	}
	return s.Store.Lease(ctx, owner, until, ids)
}

// TestOrder: a new queue that is slow to take over what mta named carries out
// what mta says next after it, and leaves no lease behind.
func TestOrder(t *testing.T) {
	st := &slow{Store: queuetest.NewMemory(t.TempDir(), time.Now)}
	h := &house{t: t, dir: t.TempDir(), store: st}
	h.open()
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net"))
	gate := make(chan struct{})
	st.gate.Store(&gate)
	h.mta = connect(t, h.peers.MTA, imsg.MTA)
	h.mta.send(&imsg.Inflight{IDs: []mail.EnvelopeID{l[0].ID, l[1].ID}, Last: true})
	h.mta.send(&imsg.Hold{IDs: []mail.EnvelopeID{l[0].ID}, Key: 7})
	answered := make(chan bool, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		a, err := ipc.Ask[*imsg.Done](ctx, h.mta.link, &imsg.Results{Results: []imsg.Result{
			{ID: l[1].ID, Status: mail.Status{Code: 250}}}})
		answered <- err == nil && a.OK
	}()
	h.mta.send(&imsg.Release{Key: 7})
	h.mta.send(&imsg.Retry{IDs: []mail.EnvelopeID{0x99}})
	// All of it has come, and nothing is done, when a later question is answered.
	ask[*imsg.Body](h.mta, &imsg.BodyOpen{Message: l[0].ID.Message()})
	close(gate)
	if !<-answered {
		t.Error("results were not taken")
	}
	for _, s := range h.heard(2) {
		if !s.Inflight {
			t.Errorf("%s is not under way", s.ID)
		}
	}
	if m, _ := next[*imsg.Held](h.sched); m.Key != 7 || !slices.Equal(m.IDs, []mail.EnvelopeID{l[0].ID}) {
		t.Errorf("held %+v", m)
	}
	var gone, released, retry bool
	for !gone || !released || !retry {
		select {
		case r := <-h.sched.in:
			switch m := r.Msg.(type) {
			case *imsg.Gone:
				gone = slices.Equal(m.IDs, []mail.EnvelopeID{l[1].ID})
			case *imsg.Released:
				released = m.Key == 7
			case *imsg.Retry:
				retry = released && slices.Equal(m.IDs, []mail.EnvelopeID{0x99})
			}
		case <-time.After(patience):
			t.Fatalf("gone %v, released %v, retry %v", gone, released, retry)
		}
	}
	if left := st.Leases("mta"); len(left) > 0 {
		t.Errorf("still lent: %v", left)
	}
}

// TestOthersResults: mda cannot end what mta was lent.
func TestOthersResults(t *testing.T) {
	h := build(t)
	h.agents()
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net"))
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID}})
	next[*imsg.Transfer](h.mta)
	ask[*imsg.Done](h.mda, &imsg.Results{Results: []imsg.Result{
		{ID: l[0].ID, Status: mail.Status{Code: 250}}, {ID: l[1].ID, Status: mail.Status{Code: 250}}}})
	h.heard(1) // of the second, which stays
	for _, s := range l {
		if _, err := h.store.Load(s.ID); err != nil {
			t.Errorf("%s: %v", s.ID, err)
		}
	}
}

func TestListing(t *testing.T) {
	h := build(t)
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMDA, "b@example.net"), envelope(mail.KindMTA, "c@example.net"))
	a := ask[*imsg.QueueListing](h.control, &imsg.QueueList{Max: 2})
	if len(a.Envelopes) != 2 || a.End || a.Envelopes[1].ID != l[1].ID || a.Envelopes[1].Dest.User != "b" {
		t.Errorf("%+v", a)
	}
	if a = ask[*imsg.QueueListing](h.control, &imsg.QueueList{After: l[1].ID, Max: 2}); len(a.Envelopes) != 1 || !a.End {
		t.Errorf("%+v", a)
	}
	if a = ask[*imsg.QueueListing](h.control, &imsg.EnvelopeGet{ID: l[2].ID}); len(a.Envelopes) != 1 || a.Envelopes[0].Dest.User != "c" {
		t.Errorf("%+v", a)
	}
	if a = ask[*imsg.QueueListing](h.control, &imsg.EnvelopeGet{ID: 5}); len(a.Envelopes) != 0 {
		t.Errorf("%+v", a)
	}
	if b := ask[*imsg.Body](h.control, &imsg.BodyOpen{Message: 5}); b.Status.Code != 550 {
		t.Errorf("%+v", b)
	}
	ask[*imsg.Stats](h.control, &imsg.StatsGet{})
	// Envelopes with long texts come in more slices, not in frames too large.
	long := envelope(mail.KindMTA, "a@example.net")
	long.Exec = strings.Repeat("x", 4096)
	var many []mail.Envelope
	for range 200 {
		many = append(many, long)
	}
	h.commit(body, many...)
	if a = ask[*imsg.QueueListing](h.control, &imsg.QueueList{Max: 1000}); len(a.Envelopes) == 0 || a.End {
		t.Errorf("%d, %v", len(a.Envelopes), a.End)
	}
}

// TestRun opens real spools, good and bad.
func TestRun(t *testing.T) {
	start := func(dir string, c *config.Config) (fatal string, err error) {
		configs := make(chan *config.Config, 1)
		configs <- c
		parent, far := ipc.NewLink(imsg.Queue, imsg.Parent), ipc.NewLink(imsg.Parent, imsg.Queue)
		heard := make(chan string, 1)
		far.Serve(func(r *ipc.Request) { heard <- r.Msg.(*imsg.Fatal).Text }, nil, nil)
		if err := ipc.Connect(parent, far); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		env := &privsep.Env{Log: log.Discard(), Stat: &stat.Set{}, Now: time.Now, Config: configs, Parent: parent, Ready: cancel}
		l := func(r imsg.Role) *ipc.Link { return ipc.NewLink(imsg.Queue, r) }
		err = Run(ctx, env, Peers{l(imsg.SMTP), l(imsg.Scheduler), l(imsg.MTA), l(imsg.MDA), l(imsg.Control)}, dir)
		if err != nil {
			select {
			case fatal = <-heard:
			case <-time.After(patience):
			}
		}
		return fatal, err
	}
	dir := t.TempDir()
	if _, err := start(dir, testConfig()); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "none")
	if fatal, err := start(missing, testConfig()); err == nil || fatal != err.Error() || !strings.HasPrefix(fatal, "spool "+missing+": ") {
		t.Errorf("%q, %v", fatal, err)
	}
	held, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if fatal, _ := start(dir, testConfig()); fatal != "spool "+dir+": in use by another smtpd" {
		t.Errorf("%q", fatal)
	}
	held.Close()
	c := testConfig()
	c.Queue.EncryptionKey = "short"
	if fatal, _ := start(dir, c); !strings.Contains(fatal, "queue encryption") {
		t.Errorf("%q", fatal)
	}
	if _, err := os.Stat(filepath.Join(dir, "queue.db")); errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
