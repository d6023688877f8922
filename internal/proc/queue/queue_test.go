package queue

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
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

// patience bounds every wait of the tests.
const patience = 20 * time.Second

// house is the process under test with its neighbours, all played by the test.
type house struct {
	t     testing.TB
	env   *privsep.Env
	peers Peers
	log   *buffer
	store queue.Store
	dir   string

	smtp, sched, mta, mda, control *neighbour
	parent                         *ipc.Link
	fatal                          chan string
	loaded                         []imsg.Sched // what the scheduler was told at first
	stop                           func() error
}

// neighbour is the other end of a link.
type neighbour struct {
	t    testing.TB
	link *ipc.Link
	in   chan *ipc.Request
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// connect gives one edge a fresh pair of ends: a new neighbour.
func connect(t testing.TB, self *ipc.Link, role imsg.Role) *neighbour {
	t.Helper()
	n := &neighbour{t: t, link: ipc.NewLink(role, imsg.Queue), in: make(chan *ipc.Request, 1000)}
	n.link.Serve(func(r *ipc.Request) { n.in <- r }, nil, nil)
	if err := ipc.Connect(self, n.link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.link.Close)
	return n
}

// next waits for the next imsg, of type M.
func next[M imsg.Msg](n *neighbour) (M, *ipc.Request) {
	n.t.Helper()
	var none M
	select {
	case r := <-n.in:
		m, ok := r.Msg.(M)
		if !ok {
			n.t.Fatalf("%T came, not %T: %+v", r.Msg, none, r.Msg)
		}
		return m, r
	case <-time.After(patience):
		n.t.Fatalf("no %T came", none)
	}
	return none, nil
}

// send is Link.Send that must succeed.
func (n *neighbour) send(m imsg.Msg) {
	n.t.Helper()
	if err := n.link.Send(m, nil); err != nil {
		n.t.Fatal(err)
	}
}

func ask[A imsg.Msg](n *neighbour, m imsg.Msg) A {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	a, err := ipc.Ask[A](ctx, n.link, m)
	if err != nil {
		n.t.Fatalf("%T: %v", m, err)
	}
	return a
}

func testConfig() *config.Config {
	c := config.Defaults()
	c.ServerName = "mx.example.org"
	c.Actions["relay"] = &config.Action{Name: "relay", Method: config.MethodRelay, TTL: 2 * 24 * time.Hour}
	return c
}

// opener opens the store of the house: the one in memory, or one on disk.
func (h *house) opener(o queue.Options) (queue.Store, error) {
	if h.store != nil {
		return keep{h.store}, nil
	}
	b, err := queue.Open(h.dir, o)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// build makes a house around a store in memory that outlives the process.
func build(t testing.TB) *house {
	h := &house{t: t, dir: t.TempDir(), store: queuetest.NewMemory(t.TempDir(), time.Now)}
	h.open()
	return h
}

// open starts the process on the store of the house, with all neighbours.
func (h *house) open() {
	t := h.t
	h.log = &buffer{}
	h.fatal = make(chan string, 1)
	configs := make(chan *config.Config, 1)
	configs <- testConfig()
	ready := make(chan struct{})
	parent := ipc.NewLink(imsg.Queue, imsg.Parent)
	h.parent = ipc.NewLink(imsg.Parent, imsg.Queue)
	h.parent.Serve(func(r *ipc.Request) {
		if m, ok := r.Msg.(*imsg.Fatal); ok {
			h.fatal <- m.Text
		}
	}, nil, nil)
	if err := ipc.Connect(parent, h.parent); err != nil {
		t.Fatal(err)
	}
	h.env = &privsep.Env{Role: imsg.Queue, Log: log.New(h.log, log.FormPlain), Stat: &stat.Set{}, Now: time.Now,
		Config: configs, Parent: parent, Ready: func() { close(ready) }}
	h.peers = Peers{SMTP: ipc.NewLink(imsg.Queue, imsg.SMTP), Scheduler: ipc.NewLink(imsg.Queue, imsg.Scheduler),
		MTA: ipc.NewLink(imsg.Queue, imsg.MTA), MDA: ipc.NewLink(imsg.Queue, imsg.MDA), Control: ipc.NewLink(imsg.Queue, imsg.Control)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, h.env, h.peers, h.dir, h.opener, time.Millisecond)
	}()
	h.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(patience):
			return errors.New("did not end")
		}
	})
	t.Cleanup(func() { h.stop() })
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("ended at once: %v", err)
	}
	h.smtp = connect(t, h.peers.SMTP, imsg.SMTP)
	h.loaded = h.scheduler()
	h.control = connect(t, h.peers.Control, imsg.Control)
}

// scheduler attaches a new scheduler and gives what it loads.
func (h *house) scheduler() []imsg.Sched {
	h.t.Helper()
	h.sched = connect(h.t, h.peers.Scheduler, imsg.Scheduler)
	h.sched.send(&imsg.LoadAll{})
	var l []imsg.Sched
	for {
		m, _ := next[*imsg.Scheduled](h.sched)
		l = append(l, m.Envelopes...)
		if m.Loaded {
			return l
		}
	}
}

// keep is a store that is not closed with the process.
type keep struct{ queue.Store }

func (keep) Close() error { return nil }

// agents attaches mta and mda, who hold nothing.
func (h *house) agents() {
	h.mta, h.mda = connect(h.t, h.peers.MTA, imsg.MTA), connect(h.t, h.peers.MDA, imsg.MDA)
	h.mta.send(&imsg.Inflight{Last: true})
	h.mda.send(&imsg.Inflight{Last: true})
}

// envelope is one that smtp would commit.
func envelope(kind mail.Kind, rcpt string) mail.Envelope {
	return mail.Envelope{Kind: kind, Dispatcher: "relay", Sender: mail.SplitAddress("alice@example.org"),
		Rcpt: mail.SplitAddress(rcpt), Dest: mail.SplitAddress(rcpt)}
}

// commit stores a message and gives its envelopes as the scheduler heard of
// them.
func (h *house) commit(body string, envs ...mail.Envelope) []imsg.Sched {
	h.t.Helper()
	ids := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 1})
	if ids.Count != 1 {
		h.t.Fatal("no ids")
	}
	c := ask[*imsg.Committed](h.smtp, &imsg.Commit{ID: ids.First, Size: int64(len(body)), Inline: []byte(body), Envelopes: envs})
	if c.Status.Code != 250 {
		h.t.Fatal(c.Status.String())
	}
	return h.heard(len(envs))
}

// heard waits until the scheduler heard of n envelopes.
func (h *house) heard(n int) []imsg.Sched {
	h.t.Helper()
	var l []imsg.Sched
	for len(l) < n {
		m, _ := next[*imsg.Scheduled](h.sched)
		l = append(l, m.Envelopes...)
	}
	if len(l) != n {
		h.t.Fatalf("%d envelopes, want %d: %+v", len(l), n, l)
	}
	return l
}

// gone waits for the end of an envelope.
func (h *house) gone(id mail.EnvelopeID, why mail.GoneReason) {
	h.t.Helper()
	m, _ := next[*imsg.Gone](h.sched)
	if !slices.Equal(m.IDs, []mail.EnvelopeID{id}) || m.Why != why {
		h.t.Fatalf("gone %+v, want %s, %d", m, id, why)
	}
}

// ended waits for the end of n envelopes.
func (h *house) ended(n int) {
	h.t.Helper()
	for n > 0 {
		m, _ := next[*imsg.Gone](h.sched)
		n -= len(m.IDs)
	}
}

func (h *house) logged(want string) {
	h.t.Helper()
	if !strings.Contains(h.log.String(), want) {
		h.t.Errorf("the log has no %q:\n%s", want, h.log)
	}
}

const body = "Subject: hello\n\nthe text\n"

// TestLife follows a mail from commit to delivery.
func TestLife(t *testing.T) {
	h := build(t)
	h.agents()
	e := envelope(mail.KindMTA, "bob@Example.NET")
	l := h.commit(body, e)
	if s := l[0]; s.Kind != mail.KindMTA || s.Domain != "example.net" || s.TTL != 2*24*time.Hour || s.Created.IsZero() || s.Inflight {
		t.Errorf("scheduled %+v", s)
	}
	id := l[0].ID
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	tr, _ := next[*imsg.Transfer](h.mta)
	if len(tr.Envelopes) != 1 || tr.Envelopes[0].ID != id || string(tr.Inline) != body || tr.Size != int64(len(body)) {
		t.Fatalf("transfer %+v", tr)
	}
	if done := ask[*imsg.Done](h.mta, &imsg.Results{Results: []imsg.Result{{ID: id, Status: mail.Status{Code: 250}}}}); !done.OK {
		t.Fatal(done.Text)
	}
	h.gone(id, mail.GoneDelivered)
	if _, err := h.store.Load(id); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	// Told twice: no harm.
	if done := ask[*imsg.Done](h.mta, &imsg.Results{Results: []imsg.Result{{ID: id, Status: mail.Status{Code: 250}}}}); !done.OK {
		t.Fatal(done.Text)
	}
	h.gone(id, mail.GoneRemoved)
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}

func TestTempfail(t *testing.T) {
	h := build(t)
	h.agents()
	id := h.commit(body, envelope(mail.KindMDA, "bob@example.org"))[0].ID
	for try := range uint16(3) {
		h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
		tr, _ := next[*imsg.Transfer](h.mda)
		if tr.Envelopes[0].Retry != try {
			t.Fatalf("try %d: %+v", try, tr.Envelopes[0])
		}
		res := imsg.Result{ID: id, Attempt: try, Status: mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: "later"},
			Line: "\"trouble\nforged\"", Remote: "mx"}
		for range 2 { // the second time it is known
			if done := ask[*imsg.Done](h.mda, &imsg.Results{Results: []imsg.Result{res}}); !done.OK {
				t.Fatal(done.Text)
			}
			if l := h.heard(1); l[0].Retry != try+1 || l[0].LastTry.IsZero() || l[0].Inflight {
				t.Fatalf("scheduled %+v", l)
			}
		}
	}
	e, err := h.store.Load(id)
	if err != nil || e.LastError != `"trouble?forged"` || e.LastStatus.Text != "later" || e.RemoteMTA != "mx" {
		t.Errorf("%+v, %v", e, err)
	}
	// What was not tried does not count.
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
	next[*imsg.Transfer](h.mda)
	ask[*imsg.Done](h.mda, &imsg.Results{Results: []imsg.Result{{ID: id, Attempt: 3, Status: mail.Status{Code: 451}, NoTry: true}}})
	if l := h.heard(1); l[0].Retry != 3 || l[0].Inflight {
		t.Errorf("scheduled %+v", l)
	}
}

// TestNotice: a failure becomes a notice, which enters like any other mail.
func TestNotice(t *testing.T) {
	h := build(t)
	h.agents()
	l := h.commit(body, envelope(mail.KindMTA, "bob@example.net"), envelope(mail.KindMTA, "carol@example.net"))
	ids := []mail.EnvelopeID{l[0].ID, l[1].ID}
	h.sched.send(&imsg.Attempt{IDs: ids})
	next[*imsg.Transfer](h.mta)
	st, _ := mail.ParseStatus("550 5.1.1 no such user")
	var res []imsg.Result
	for _, id := range ids {
		res = append(res, imsg.Result{ID: id, Status: *st, Line: st.String(), Remote: "mx.example.net"})
	}
	ask[*imsg.Done](h.mta, &imsg.Results{Results: res})
	var notices []mail.EnvelopeID
	for range 2 {
		m, _ := next[*imsg.Gone](h.sched)
		if m.Why != mail.GoneFailed {
			t.Fatalf("gone %+v", m)
		}
		n := h.heard(1)[0]
		if n.Kind != mail.KindBounce || n.TTL != noticeTTL || n.Retry != 0 || !n.LastTry.IsZero() {
			t.Fatalf("notice %+v", n)
		}
		notices = append(notices, n.ID)
	}
	h.sched.send(&imsg.Attempt{IDs: notices})
	in, r := next[*imsg.Inject](h.smtp)
	for _, want := range []string{"To: alice@example.org\n", "bob@example.net: 550 5.1.1 no such user\n", "carol@example.net: 550",
		"Remote-MTA: dns; mx.example.net\n", "Status: 5.1.1\n", "Subject: hello\n"} {
		if !strings.Contains(string(in.Data), want) {
			t.Errorf("no %q in\n%s", want, in.Data)
		}
	}
	if in.Rcpt.String() != "alice@example.org" {
		t.Errorf("to %s", in.Rcpt)
	}
	// Refused for now: tried again, and then lost.
	r.Reply(&imsg.Injected{Status: mail.Status{Code: 451, Text: "later"}}, nil)
	if l := h.heard(2); l[0].Retry != 1 || l[1].Retry != 1 {
		t.Errorf("scheduled %+v", l)
	}
	h.sched.send(&imsg.Attempt{IDs: notices})
	in, r = next[*imsg.Inject](h.smtp)
	if !strings.Contains(string(in.Data), "550 5.1.1 no such user") {
		t.Errorf("the second notice tells something else:\n%s", in.Data)
	}
	r.Reply(&imsg.Injected{Status: *mail.NewStatus(550, [3]uint8{}, "Invalid recipient: <alice@example.org>")}, nil)
	h.ended(2)
	h.logged("warn: PermFail injecting failure report on message " + ids[0].Message().String() +
		" to <alice@example.org> for 2 envelopes: 550 Invalid recipient: <alice@example.org>\n")
	if _, err := h.store.Message(ids[0].Message()); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("the message is still there: %v", err)
	}
}

// TestNotify: who is told of what, by NOTIFY and reverse-path.
func TestNotify(t *testing.T) {
	ok, fail := mail.Status{Code: 250}, mail.Status{Code: 550}
	tests := map[string]struct {
		kind   mail.Kind
		notify mail.Notify
		res    imsg.Result
		null   bool
		want   mail.NoticeKind
		log    string
	}{
		"failure, nothing asked":      {mail.KindMTA, 0, imsg.Result{Status: fail}, false, mail.NoticeFailed, ""},
		"failure, failure":            {mail.KindMTA, mail.NotifyFailure, imsg.Result{Status: fail}, false, mail.NoticeFailed, ""},
		"failure, success only":       {mail.KindMTA, mail.NotifySuccess, imsg.Result{Status: fail}, false, 0, ""},
		"failure, delay only":         {mail.KindMTA, mail.NotifyDelay, imsg.Result{Status: fail}, false, 0, ""},
		"failure, never":              {mail.KindMTA, mail.NotifyNever, imsg.Result{Status: fail}, false, 0, ""},
		"failure, null reverse-path":  {mail.KindMTA, 0, imsg.Result{Status: fail}, true, 0, "warn: queue: no return path!"},
		"delivered, nothing asked":    {mail.KindMDA, 0, imsg.Result{Status: ok}, false, 0, ""},
		"delivered, success":          {mail.KindMDA, mail.NotifySuccess, imsg.Result{Status: ok}, false, mail.NoticeDelivered, ""},
		"delivered, success, to null": {mail.KindMDA, mail.NotifySuccess, imsg.Result{Status: ok}, true, 0, ""},
		"relayed to one with DSN":     {mail.KindMTA, mail.NotifySuccess, imsg.Result{Status: ok}, false, 0, ""},
		"relayed to one without":      {mail.KindMTA, mail.NotifySuccess, imsg.Result{Status: ok, Relayed: true}, false, mail.NoticeRelayed, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := build(t)
			h.agents()
			e := envelope(test.kind, "bob@example.net")
			e.DSN.Notify = test.notify
			if test.null {
				e.Sender = mail.Address{}
			}
			id := h.commit(body, e)[0].ID
			test.res.ID = id
			n := h.mta
			if test.kind == mail.KindMDA {
				n = h.mda
			}
			h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{id}})
			next[*imsg.Transfer](n)
			ask[*imsg.Done](n, &imsg.Results{Results: []imsg.Result{test.res}})
			next[*imsg.Gone](h.sched)
			all, err := queuetest.All(h.store, 10)
			switch {
			case err != nil:
				t.Fatal(err)
			case test.want == 0 && len(all) != 0:
				t.Errorf("told: %+v", all)
			case test.want != 0 && (len(all) != 1 || all[0].Notice != test.want || all[0].ID == id):
				t.Errorf("not told: %+v", all)
			}
			h.stop()
			if test.log != "" {
				h.logged(test.log)
			} else if h.log.String() != "" {
				t.Errorf("logged %s", h.log)
			}
		})
	}
}

func TestExpireDelayedRemove(t *testing.T) {
	h := build(t)
	h.agents()
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMDA, "b@example.net"), envelope(mail.KindMTA, "c@example.net"))
	// Delayed, told once for an interval.
	d := &imsg.Delayed{ID: l[0].ID, Interval: 4 * time.Hour, Number: 1}
	h.sched.send(d)
	n := h.heard(1)[0]
	if e, err := h.store.Load(n.ID); err != nil || e.Notice != mail.NoticeDelayed || e.NoticeDelay != 4*time.Hour {
		t.Errorf("delay notice %+v, %v", e, err)
	}
	again := &imsg.Delayed{ID: l[2].ID, Interval: 4 * time.Hour, Number: 1}
	h.sched.send(again)
	h.heard(1)
	h.sched.send(again)
	h.sched.send(&imsg.Expire{IDs: []mail.EnvelopeID{l[0].ID}})
	h.gone(l[0].ID, mail.GoneExpired)
	f := h.heard(1)[0]
	if e, err := h.store.Load(f.ID); err != nil || e.Notice != mail.NoticeFailed || e.LastError != "Envelope expired" {
		t.Errorf("notice %+v, %v", e, err)
	}
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{n.ID, f.ID}})
	var texts string
	for range 2 {
		in, r := next[*imsg.Inject](h.smtp)
		texts += string(in.Data)
		r.Reply(&imsg.Injected{Status: mail.Status{Code: 250}}, nil)
	}
	h.ended(2)
	for _, want := range []string{"delayed for more than 4 hours", "in the queue for up to 2 days", "Status: 5.4.7", ": Envelope expired"} {
		if !strings.Contains(texts, want) {
			t.Errorf("no %q in %s", want, texts)
		}
	}
	// Removed in flight: what comes back finds nothing.
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[1].ID}})
	next[*imsg.Transfer](h.mda)
	h.sched.send(&imsg.Remove{IDs: []mail.EnvelopeID{l[1].ID}})
	h.gone(l[1].ID, mail.GoneRemoved)
	ask[*imsg.Done](h.mda, &imsg.Results{Results: []imsg.Result{{ID: l[1].ID, Status: mail.Status{Code: 550}}}})
	h.gone(l[1].ID, mail.GoneRemoved)
	if _, err := h.store.Load(l[1].ID); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
	// What is in flight does not expire.
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[2].ID}})
	next[*imsg.Transfer](h.mta)
	h.sched.send(&imsg.Expire{IDs: []mail.EnvelopeID{l[2].ID}})
	if s := h.heard(1)[0]; s.ID != l[2].ID || !s.Inflight {
		t.Errorf("expired in flight: %+v", s)
	}
	h.logged("relay: Expire for " + l[0].ID.String() + ": from=<alice@example.org>, to=<a@example.net>, rcpt=<->, delay=0s, stat=Envelope expired\n")
	h.logged("delivery: Remove for " + l[1].ID.String() + ": from=<alice@example.org>, to=<b@example.net>, rcpt=<->, delay=0s, stat=Removed by administrator\n")
	if got := h.env.Stat.All(); got["queue.bounce"] != 3 || got["bounce.session"] != 0 || got["bounce.envelope"] != 0 || got["bounce.message"] != 0 {
		t.Errorf("counters %v", got)
	}
}

func TestSuspendAndLoad(t *testing.T) {
	h := build(t)
	l := h.commit(body, envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net"))
	h.sched.send(&imsg.Suspend{IDs: []mail.EnvelopeID{l[0].ID}, On: true})
	h.sched.send(&imsg.Suspend{IDs: []mail.EnvelopeID{l[1].ID}, On: true})
	h.sched.send(&imsg.Suspend{IDs: []mail.EnvelopeID{l[1].ID}, On: false})
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{0x77}}) // behind the others
	h.gone(0x77, mail.GoneRemoved)
	h.sched.send(&imsg.LoadAll{})
	m, _ := next[*imsg.Scheduled](h.sched)
	if len(m.Envelopes) != 2 || m.Envelopes[0].Flags&mail.FlagSuspended == 0 || m.Envelopes[1].Flags&mail.FlagSuspended != 0 || m.Loaded {
		t.Errorf("loaded %+v", m)
	}
	if m, _ := next[*imsg.Scheduled](h.sched); !m.Loaded {
		t.Errorf("not the end: %+v", m)
	}
}

// An operator's pause that the disk refuses at first is kept, and shown to the
// next scheduler meanwhile.
func TestSuspendOnFullDisk(t *testing.T) {
	h := build(t)
	m := h.store.(*queuetest.Memory)
	id := h.commit(body, envelope(mail.KindMTA, "a@example.net"))[0].ID
	m.Fail(mail.NewStatus(452, [3]uint8{4, 3, 1}, "full"))
	h.sched.send(&imsg.Suspend{IDs: []mail.EnvelopeID{id}, On: true})
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{0x77}}) // behind it
	h.gone(0x77, mail.GoneRemoved)
	h.sched.send(&imsg.LoadAll{})
	if l, _ := next[*imsg.Scheduled](h.sched); len(l.Envelopes) != 1 || l.Envelopes[0].Flags&mail.FlagSuspended == 0 {
		t.Errorf("loaded %+v", l)
	}
	if l, _ := next[*imsg.Scheduled](h.sched); !l.Loaded {
		t.Errorf("not the end: %+v", l)
	}
	if e, _ := h.store.Load(id); e.Flags&mail.FlagSuspended != 0 {
		t.Error("the full disk took it")
	}
	m.Fail(nil)
	for e, _ := h.store.Load(id); e.Flags&mail.FlagSuspended == 0; e, _ = h.store.Load(id) {
		select { // it is tried again every second
		case <-time.After(10 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("the pause was lost")
		}
	}
}

// A delay notice that the disk refuses at first is written once it does not, and
// once only.
func TestDelayedOnFullDisk(t *testing.T) {
	h := build(t)
	m := h.store.(*queuetest.Memory)
	id := h.commit(body, envelope(mail.KindMTA, "a@example.net"))[0].ID
	m.Fail(mail.NewStatus(452, [3]uint8{4, 3, 1}, "full"))
	d := &imsg.Delayed{ID: id, Interval: 4 * time.Hour, Number: 1}
	h.sched.send(d)
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{0x77}}) // behind it
	h.gone(0x77, mail.GoneRemoved)
	m.Fail(nil)
	h.sched.send(d)
	n := h.heard(1)[0]
	if e, err := h.store.Load(n.ID); err != nil || e.Notice != mail.NoticeDelayed {
		t.Errorf("%+v, %v", e, err)
	}
	if all, err := queuetest.All(h.store, 10); err != nil || len(all) != 2 {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
}

// Released domains are kept, and the next scheduler hears of them before any
// envelope.
func TestReleases(t *testing.T) {
	h := build(t)
	m := h.store.(*queuetest.Memory)
	h.commit(body, envelope(mail.KindMTA, "a@example.net"))
	until := time.Unix(1795216993, 7)
	want := &imsg.Releases{Number: 9, List: []imsg.DomainRelease{{Domain: "*.test", Until: until}, {Domain: "b.example", Until: until}}}
	m.Fail(mail.NewStatus(452, [3]uint8{4, 3, 1}, "full"))
	h.sched.send(&imsg.Releases{Number: 8})
	h.sched.send(want)
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{0x77}}) // behind it
	h.gone(0x77, mail.GoneRemoved)
	m.Fail(nil)
	got, _ := next[*imsg.Releases](h.sched)
	if got.Number == 8 {
		got, _ = next[*imsg.Releases](h.sched)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("kept %+v", got)
	}
	h.sched.link.Close()
	h.sched = connect(t, h.peers.Scheduler, imsg.Scheduler)
	h.sched.send(&imsg.LoadAll{})
	if got, _ := next[*imsg.Releases](h.sched); got.Number != 0 || !reflect.DeepEqual(got.List, want.List) {
		t.Errorf("told %+v", got)
	}
	next[*imsg.Scheduled](h.sched)
}

func TestRefused(t *testing.T) {
	h := build(t)
	ids := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 100})
	if ids.Count != 100 {
		t.Fatal(ids)
	}
	bounce := envelope(mail.KindBounce, "a@example.net")
	good := envelope(mail.KindMTA, "a@example.net")
	for name, c := range map[string]*imsg.Commit{
		"no recipients": {ID: ids.First, Size: 1, Inline: []byte("x")},
		"a notice":      {ID: ids.First, Size: 1, Inline: []byte("x"), Envelopes: []mail.Envelope{bounce}},
		"size":          {ID: ids.First, Size: 2, Inline: []byte("x"), Envelopes: []mail.Envelope{good}},
		"no file":       {ID: ids.First, Size: 2, InFile: true, Envelopes: []mail.Envelope{good}},
	} {
		if st := ask[*imsg.Committed](h.smtp, c).Status; st.Code != 451 {
			t.Errorf("%s: %s", name, st.String())
		}
	}
	h.store.(*queuetest.Memory).Fail(mail.NewStatus(452, [3]uint8{4, 3, 1}, "full"))
	if st := ask[*imsg.Committed](h.smtp, &imsg.Commit{ID: ids.First, Size: 1, Inline: []byte("x"), Envelopes: []mail.Envelope{good}}).Status; st.Code != 452 {
		t.Error(st.String())
	}
	if ids := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 1}); ids.Count != 0 {
		t.Error(ids)
	}
	h.store.(*queuetest.Memory).Fail(nil)
	if all, err := queuetest.All(h.store, 10); len(all) != 0 || err != nil {
		t.Error(all, err)
	}
}

// TestLarge: a body in a file, envelopes in parts, and who may read it.
func TestLarge(t *testing.T) {
	h := build(t)
	h.agents()
	id := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 1}).First
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, f, err := ipc.AskFile[*imsg.BodyCreated](ctx, h.smtp.link, &imsg.BodyCreate{ID: id})
	if err != nil || m.Status.Code != 250 || f == nil {
		t.Fatal(m, err)
	}
	io.WriteString(f, queuetest.Large())
	f.Close()
	h.smtp.send(&imsg.CommitPart{ID: id, Envelopes: []mail.Envelope{envelope(mail.KindMTA, "a@example.net"), envelope(mail.KindMTA, "b@example.net")}})
	c := ask[*imsg.Committed](h.smtp, &imsg.Commit{ID: id, InFile: true, Size: int64(len(queuetest.Large())),
		Envelopes: []mail.Envelope{envelope(mail.KindMTA, "c@example.net")}})
	if c.Status.Code != 250 {
		t.Fatal(c.Status.String())
	}
	l := h.heard(3)
	read := func(n *neighbour) (string, int) {
		b, f, err := ipc.AskFile[*imsg.Body](ctx, n.link, &imsg.BodyOpen{Message: id})
		if err != nil {
			t.Fatal(err)
		}
		if f == nil {
			return string(b.Inline), b.Status.Code
		}
		defer f.Close()
		if _, err := f.Write([]byte("x")); err == nil {
			t.Error("the body may be written")
		}
		all, err := io.ReadAll(f)
		if err != nil || !b.InFile || b.Size != int64(len(all)) {
			t.Errorf("%+v, %v", b, err)
		}
		return string(all), b.Status.Code
	}
	if _, code := read(h.mta); code != 451 {
		t.Errorf("read before it was lent: %d", code)
	}
	if got, code := read(h.control); code != 250 || got != queuetest.Large() {
		t.Errorf("control: %d", code)
	}
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{l[0].ID, l[2].ID}})
	tr, _ := next[*imsg.Transfer](h.mta)
	if len(tr.Inline) != 0 || len(tr.Envelopes) != 2 || tr.Size != int64(len(queuetest.Large())) {
		t.Errorf("transfer of %d, %d inline", len(tr.Envelopes), len(tr.Inline))
	}
	if got, code := read(h.mta); code != 250 || got != queuetest.Large() {
		t.Errorf("lent: %d", code)
	}
	// A commit whose part did not arrive is refused, not cut short.
	short := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 1}).First
	if c := ask[*imsg.Committed](h.smtp, &imsg.Commit{ID: short, Size: 1, Inline: []byte("\n"), Total: 3,
		Envelopes: []mail.Envelope{envelope(mail.KindMTA, "c@example.net")}}); c.Status.Code != 451 {
		t.Errorf("a commit with envelopes missing: %s", c.Status.String())
	}
	// Given up.
	next := ask[*imsg.ReservedIDs](h.smtp, &imsg.ReserveIDs{Count: 1}).First
	for range 2 {
		if m, f, err := ipc.AskFile[*imsg.BodyCreated](ctx, h.smtp.link, &imsg.BodyCreate{ID: next}); err != nil || m.Status.Code != 250 {
			t.Fatal(m, err)
		} else {
			f.Close()
		}
		h.smtp.link.Close() // smtp dies, and so does what it had begun
		h.smtp = connect(t, h.peers.SMTP, imsg.SMTP)
		deadline := time.Now().Add(patience)
		for entries := 1; entries > 0 && time.Now().Before(deadline); {
			l, _ := os.ReadDir(memoryDir(h.store))
			entries = len(l)
		}
	}
}

func memoryDir(s queue.Store) string { return s.(*queuetest.Memory).Dir() }

// TestInline: only so many bodies travel at a time.
func TestInline(t *testing.T) {
	h := build(t)
	h.agents()
	big := strings.Repeat("x", queue.MaxInline)
	var ids []mail.EnvelopeID
	n := maxInline/queue.MaxInline + 2
	for range n {
		ids = append(ids, h.commit(big, envelope(mail.KindMTA, "a@example.net"))[0].ID)
		h.sched.send(&imsg.Attempt{IDs: ids[len(ids)-1:]})
	}
	inline := 0
	for range n {
		if tr, _ := next[*imsg.Transfer](h.mta); len(tr.Inline) > 0 {
			inline++
		}
	}
	if inline != n-2 {
		t.Errorf("%d of %d inline", inline, n)
	}
	ask[*imsg.Done](h.mta, &imsg.Results{Results: []imsg.Result{{ID: ids[0], Status: mail.Status{Code: 250}}}})
	h.gone(ids[0], mail.GoneDelivered)
	h.sched.send(&imsg.Attempt{IDs: []mail.EnvelopeID{h.commit(big, envelope(mail.KindMTA, "a@example.net"))[0].ID}})
	if tr, _ := next[*imsg.Transfer](h.mta); len(tr.Inline) == 0 {
		t.Error("what was given back is not used")
	}
}
