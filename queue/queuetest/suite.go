package queuetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
)

// Epoch is the time at which mail in the suite arrives.
func Epoch() time.Time { return time.Unix(1795216993, 0) }

// Envelope makes an envelope with something in every field, for recipient n.
func Envelope(n int) mail.Envelope {
	return mail.Envelope{
		Kind: mail.KindMTA, Flags: mail.FlagAuthenticated, Dispatcher: "relay", Tag: "in",
		SMTPName: "mx.example.org", Helo: "client.test", Host: "localhost", Client: "127.0.0.1", Username: "u",
		Sender: mail.Address{User: "alice", Domain: "example.org"},
		Rcpt:   mail.Address{User: fmt.Sprintf("r%d", n), Domain: "example.net"},
		Dest:   mail.Address{User: fmt.Sprintf("d%d", n), Domain: "example.net"},
		DSN:    mail.DSN{Notify: mail.NotifyFailure, Ret: mail.RetFull, EnvID: "QQ+2B", ORcpt: "rfc822;r@example.net"},
		User:   "bob", Home: "/home/bob", Exec: "|cat\t-u",
		Created: Epoch(), TTL: 96 * time.Hour, LastTry: Epoch().Add(time.Second),
		LastStatus: mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: "later"}, LastError: `451 4.3.0 "later"`,
		RemoteMTA: "mx1.example.net", DelayNotices: 1, NoticeDelay: time.Hour,
	}
}

// put stores a message with so many envelopes.
func put(t *testing.T, s queue.Store, body string, rcpts int) mail.MessageID {
	t.Helper()
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	m := message1(id, body, rcpts)
	if err := s.Accept(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return id
}

func message1(id mail.MessageID, body string, rcpts int) *queue.Message {
	m := &queue.Message{ID: id, Arrival: Epoch(), Body: []byte(body), Size: int64(len(body))}
	for n := range rcpts {
		m.Envelopes = append(m.Envelopes, Envelope(n+1))
	}
	return m
}

// putFile stores a message whose body is in a file.
func putFile(t *testing.T, s queue.Store, body string) (mail.MessageID, error) {
	t.Helper()
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.NewBody(id)
	if err != nil {
		return id, err
	}
	if _, err := io.WriteString(f, body); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m := message1(id, "", 1)
	m.InFile, m.Size = true, int64(len(body))
	return id, s.Accept(t.Context(), m)
}

// Read gives the whole body of a message.
func Read(s queue.Store, id mail.MessageID) (string, error) {
	b, err := s.Body(id)
	if err != nil {
		return "", err
	}
	if b.File == nil {
		return string(b.Inline), nil
	}
	defer b.File.Close()
	all, err := io.ReadAll(b.File)
	return string(all), err
}

// All lists a store in slices of n.
func All(s queue.Store, n int) ([]mail.Envelope, error) {
	var all []mail.Envelope
	var after mail.EnvelopeID
	for {
		l, end, err := s.List(after, n)
		if err != nil {
			return all, err
		}
		all = append(all, l...)
		if end {
			return all, nil
		}
		if len(l) == 0 {
			return all, errors.New("an empty slice that is not the end")
		}
		after = l[len(l)-1].ID
	}
}

func remove(*mail.Envelope) queue.Verdict { return queue.Verdict{Delete: true} }

// apply1 carries out one change.
func apply1(t *testing.T, s queue.Store, c queue.Change) queue.Outcome {
	t.Helper()
	out, err := s.Apply(t.Context(), []queue.Change{c})
	if err != nil || len(out) != 1 {
		t.Fatalf("Apply: %v, %v", out, err)
	}
	return out[0]
}

// Large is a body that goes into a file.
func Large() string { return strings.Repeat("a line of a large body\n", queue.MaxInline/20) }

// TestStore is what every Store promises. open makes an empty one.
func TestStore(t *testing.T, open func(t *testing.T) queue.Store) {
	for name, test := range map[string]func(*testing.T, queue.Store){
		"accept": testAccept, "twice": testTwice, "refused": testRefused, "files": testFiles,
		"reserve": testReserve, "apply": testApply, "stale": testStale, "add": testAdd, "last": testLast,
		"alone": testAlone, "list": testList, "lease": testLease, "many": testMany, "note": testNote, "close": testClose,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			test(t, s)
			s.Close()
		})
	}
}

func testAccept(t *testing.T, s queue.Store) {
	id := put(t, s, "Subject: x\n\nhello\n", 2)
	for n := range 2 {
		want := Envelope(n + 1)
		want.ID = id.Envelope(uint32(n) + 1)
		got, err := s.Load(want.ID)
		if err != nil || !same(got, want) {
			t.Errorf("envelope %d: %+v, %v; want %+v", n, got, err, want)
		}
	}
	if got, err := Read(s, id); got != "Subject: x\n\nhello\n" || err != nil {
		t.Errorf("body %q, %v", got, err)
	}
	info, err := s.Message(id)
	if err != nil || info.Size != 18 || !info.Arrival.Equal(Epoch()) || info.InFile {
		t.Errorf("message %+v, %v", info, err)
	}
	if _, err := s.Load(id.Envelope(3)); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("a third envelope: %v", err)
	}
	for _, f := range []func() error{
		func() error { _, err := s.Message(id + 1); return err },
		func() error { _, err := s.Body(id + 1); return err },
	} {
		if err := f(); !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("another message: %v", err)
		}
	}
	empty := put(t, s, "", 1)
	if got, err := Read(s, empty); got != "" || err != nil {
		t.Errorf("empty body %q, %v", got, err)
	}
}

// same compares envelopes; times by the moment.
func same(a, b mail.Envelope) bool {
	if !a.Created.Equal(b.Created) || !a.LastTry.Equal(b.LastTry) {
		return false
	}
	a.Created, a.LastTry = b.Created, b.LastTry
	return a == b
}

func testTwice(t *testing.T, s queue.Store) {
	id := put(t, s, "one", 1)
	if err := s.Accept(t.Context(), message1(id, "one", 1)); err != nil {
		t.Errorf("the same message again: %v", err)
	}
	for name, m := range map[string]*queue.Message{"body": message1(id, "two", 1), "recipients": message1(id, "one", 2)} {
		if err := s.Accept(t.Context(), m); !errors.Is(err, queue.ErrExists) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	if all, err := All(s, 10); len(all) != 1 || err != nil {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
}

func testRefused(t *testing.T, s queue.Store) {
	id, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]*queue.Message{
		"no id":         message1(0, "x", 1),
		"no recipients": message1(id, "x", 0),
		"wrong size":    message1(id, "x", 1),
		"too large":     message1(id, Large(), 1),
		"newline":       message1(id, "x", 1),
		"no kind":       message1(id, "x", 1),
		"no file":       message1(id, "", 1),
	}
	bad["wrong size"].Size = 2
	bad["newline"].Envelopes[0].LastError = "x\ntype: mda"
	bad["no kind"].Envelopes[0].Kind = 0
	bad["no file"].InFile = true
	for name, m := range bad {
		if err := s.Accept(t.Context(), m); !errors.Is(err, queue.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Accept(ctx, message1(id, "x", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if all, err := All(s, 10); len(all) != 0 || err != nil {
		t.Errorf("%d envelopes, %v", len(all), err)
	}
}

func testFiles(t *testing.T, s queue.Store) {
	id, err := putFile(t, s, Large())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Read(s, id); got != Large() || err != nil {
		t.Errorf("body of %d octets, %v", len(got), err)
	}
	if info, err := s.Message(id); !info.InFile || info.Size != int64(len(Large())) || err != nil {
		t.Errorf("message %+v, %v", info, err)
	}
	b, err := s.Body(id)
	if err != nil || b.File == nil {
		t.Fatal(b, err)
	}
	defer b.File.Close()
	apply1(t, s, queue.Change{ID: id.Envelope(1), Edit: remove})
	if _, err := s.Body(id); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	if rest, err := io.ReadAll(b.File); string(rest) != Large() || err != nil {
		t.Errorf("an open body ended at %d, %v", len(rest), err)
	}
	// Given up, and then anew.
	next, _ := s.Reserve(t.Context(), 1)
	f, err := s.NewBody(next)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := s.NewBody(next); !errors.Is(err, queue.ErrExists) {
		t.Errorf("a second file: %v", err)
	}
	s.DropBody(next)
	s.DropBody(next)
	m := message1(next, "", 1)
	m.InFile = true
	if err := s.Accept(t.Context(), m); !errors.Is(err, queue.ErrInvalid) {
		t.Errorf("a file given up: %v", err)
	}
	if f, err = s.NewBody(next); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m.Size = 7
	if err := s.Accept(t.Context(), m); !errors.Is(err, queue.ErrInvalid) {
		t.Errorf("a file of another size: %v", err)
	}
}

func testReserve(t *testing.T, s queue.Store) {
	var last mail.MessageID
	for _, n := range []int{1, 1, queue.MaxReserve, 64, queue.MaxReserve, queue.MaxReserve, queue.MaxReserve, 3} {
		first, err := s.Reserve(t.Context(), n)
		if err != nil || first <= last {
			t.Fatalf("%s after %s, %v", first, last, err)
		}
		last = first + mail.MessageID(n) - 1
	}
	for _, n := range []int{0, -1, queue.MaxReserve + 1} {
		if _, err := s.Reserve(t.Context(), n); !errors.Is(err, queue.ErrInvalid) {
			t.Errorf("%d ids: %v", n, err)
		}
	}
}

func testApply(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 3)
	out, err := s.Apply(t.Context(), []queue.Change{
		{ID: id.Envelope(1), Edit: remove},
		{ID: id.Envelope(2), Edit: func(e *mail.Envelope) queue.Verdict {
			e.Retry++
			e.LastError = "later"
			e.ID = 0 // not looked at
			return queue.Verdict{}
		}},
		{ID: id.Envelope(9), Edit: remove},
	})
	if err != nil || len(out) != 3 {
		t.Fatal(out, err)
	}
	if !out[0].Deleted || out[0].Err != nil || out[0].Envelope.ID != id.Envelope(1) {
		t.Errorf("deleted: %+v", out[0])
	}
	if out[1].Deleted || out[1].Err != nil || out[1].Envelope.Retry != 1 || out[1].Envelope.ID != id.Envelope(2) {
		t.Errorf("changed: %+v", out[1])
	}
	if !errors.Is(out[2].Err, queue.ErrNotFound) {
		t.Errorf("not there: %+v", out[2])
	}
	all, err := All(s, 10)
	if err != nil || len(all) != 2 || all[0].LastError != "later" || all[0].Retry != 1 {
		t.Errorf("left: %+v, %v", all, err)
	}
	if out, err := s.Apply(t.Context(), nil); len(out) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", out, err)
	}
}

func testStale(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 1).Envelope(1)
	try := queue.Change{ID: id, Attempt: 0, Edit: func(e *mail.Envelope) queue.Verdict {
		e.Retry++
		return queue.Verdict{}
	}}
	if o := apply1(t, s, try); o.Err != nil {
		t.Fatal(o.Err)
	}
	o := apply1(t, s, try)
	if !errors.Is(o.Err, queue.ErrStale) || o.Envelope.Retry != 1 {
		t.Errorf("told twice: %+v", o)
	}
	try.Attempt = queue.AnyAttempt
	if o := apply1(t, s, try); o.Err != nil || o.Envelope.Retry != 2 {
		t.Errorf("any attempt: %+v", o)
	}
}

func testAdd(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 2)
	notice := func(*mail.Envelope) queue.Verdict {
		n := Envelope(7)
		n.Kind = mail.KindBounce
		return queue.Verdict{Delete: true, Add: &n}
	}
	first := apply1(t, s, queue.Change{ID: id.Envelope(2), Edit: notice})
	if first.Added == nil || first.Added.ID != id.Envelope(3) {
		t.Fatalf("added %+v", first.Added)
	}
	if o := apply1(t, s, queue.Change{ID: id.Envelope(3), Edit: remove}); !o.Deleted {
		t.Fatal(o)
	}
	second := apply1(t, s, queue.Change{ID: id.Envelope(1), Edit: notice})
	if second.Added == nil || second.Added.ID != id.Envelope(4) {
		t.Errorf("a number came twice: %+v", second.Added)
	}
	e, err := s.Load(id.Envelope(4))
	if err != nil || e.Kind != mail.KindBounce {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := Read(s, id); err != nil {
		t.Errorf("the body went: %v", err)
	}
}

func testLast(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 2)
	apply1(t, s, queue.Change{ID: id.Envelope(2), Edit: remove})
	if _, err := s.Message(id); err != nil {
		t.Errorf("after one of two: %v", err)
	}
	apply1(t, s, queue.Change{ID: id.Envelope(1), Edit: remove})
	if _, err := s.Message(id); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("after both: %v", err)
	}
	if o := apply1(t, s, queue.Change{ID: id.Envelope(1), Edit: remove}); !errors.Is(o.Err, queue.ErrNotFound) {
		t.Errorf("told twice: %+v", o)
	}
}

// testAlone: one change that cannot be stored harms no other.
func testAlone(t *testing.T, s queue.Store) {
	good, bad := put(t, s, "good", 1), put(t, s, "bad", 1)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			out, err := s.Apply(t.Context(), []queue.Change{
				{ID: bad.Envelope(1), Attempt: queue.AnyAttempt, Edit: func(e *mail.Envelope) queue.Verdict {
					e.LastError = "forged\nline"
					return queue.Verdict{}
				}},
				{ID: good.Envelope(1), Attempt: queue.AnyAttempt, Edit: func(e *mail.Envelope) queue.Verdict {
					e.Retry++
					return queue.Verdict{}
				}},
			})
			if err != nil || !errors.Is(out[0].Err, queue.ErrInvalid) || out[1].Err != nil {
				t.Errorf("%v, %v", out, err)
			}
		})
	}
	wg.Wait()
	if e, err := s.Load(good.Envelope(1)); e.Retry != 20 || err != nil {
		t.Errorf("good: %d, %v", e.Retry, err)
	}
	if e, err := s.Load(bad.Envelope(1)); e.LastError != Envelope(1).LastError || err != nil {
		t.Errorf("bad: %q, %v", e.LastError, err)
	}
}

func testList(t *testing.T, s queue.Store) {
	want := 0
	for i := range 12 {
		put(t, s, "x", i%3+1)
		want += i%3 + 1
	}
	for _, n := range []int{1, 5, 24, 100} {
		all, err := All(s, n)
		if err != nil || len(all) != want {
			t.Errorf("in slices of %d: %d of %d, %v", n, len(all), want, err)
		}
		if !slices.IsSortedFunc(all, func(a, b mail.Envelope) int { return int(int64(a.ID) - int64(b.ID)) }) {
			t.Errorf("in slices of %d: not in order", n)
		}
	}
	if l, end, err := s.List(^mail.EnvelopeID(0), 10); len(l) != 0 || !end || err != nil {
		t.Errorf("behind the last: %v, %v, %v", l, end, err)
	}
}

func testLease(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 3)
	ids := []mail.EnvelopeID{id.Envelope(1), id.Envelope(2), id.Envelope(3), id.Envelope(4)}
	far := time.Now().Add(time.Hour)
	got, err := s.Lease(t.Context(), "mta", far, ids[1:])
	if err != nil || len(got) != 2 || got[0].ID != ids[1] || !same(got[0], withID(Envelope(2), ids[1])) {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := s.Lease(t.Context(), "mda", far, ids); err != nil || len(got) != 1 || got[0].ID != ids[0] {
		t.Errorf("what others hold: %+v, %v", got, err)
	}
	if l, ok := s.LeaseOf(ids[1]); !ok || l.Owner != "mta" || l.Attempt != 0 {
		t.Errorf("lease %+v, %v", l, ok)
	}
	if l := s.Leases("mta"); len(l) != 2 {
		t.Errorf("leases %v", l)
	}
	if ended := s.EndLeases("mda", ids); !slices.Equal(ended, ids[:1]) {
		t.Errorf("ended %v", ended)
	}
	apply1(t, s, queue.Change{ID: ids[1], Edit: remove})
	if _, ok := s.LeaseOf(ids[1]); ok {
		t.Error("a deleted envelope is leased")
	}
	// An expired lease is none.
	if _, err := s.Lease(t.Context(), "mda", time.Now().Add(-time.Hour), ids[:1]); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.LeaseOf(ids[0]); ok {
		t.Error("an expired lease holds")
	}
	if got, err := s.Lease(t.Context(), "mta", far, ids[:1]); err != nil || len(got) != 1 {
		t.Errorf("after expiry: %v, %v", got, err)
	}
}

func withID(e mail.Envelope, id mail.EnvelopeID) mail.Envelope { e.ID = id; return e }

func testMany(t *testing.T, s queue.Store) {
	const writers, each = 16, 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	bodies := map[mail.MessageID]string{}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				id, err := s.Reserve(t.Context(), 1)
				body := strings.Repeat(fmt.Sprintf("%d.%d ", w, i), 1+100*i)
				if err == nil {
					err = s.Accept(t.Context(), message1(id, body, 1+i%2))
				}
				if err != nil {
					t.Error(err)
					return
				}
				if i%3 == 0 {
					if out, err := s.Apply(t.Context(), []queue.Change{{ID: id.Envelope(1), Edit: remove}}); err != nil || !out[0].Deleted {
						t.Error(out, err)
					}
				}
				if i%3 != 0 || i%2 == 1 {
					mu.Lock()
					bodies[id] = body
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	seen := map[mail.MessageID]bool{}
	all, err := All(s, 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		seen[e.ID.Message()] = true
	}
	for id, want := range bodies {
		if got, err := Read(s, id); got != want || err != nil || !seen[id] {
			t.Errorf("%s: %d octets, %v, listed %v", id, len(got), err, seen[id])
		}
	}
	if len(seen) != len(bodies) {
		t.Errorf("%d messages, want %d", len(seen), len(bodies))
	}
}

func testNote(t *testing.T, s queue.Store) {
	for _, want := range []string{"", "one", strings.Repeat("a longer one\n", 20000), "two", ""} {
		if err := s.Note(t.Context(), "n", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Noted("n"); string(got) != want || err != nil {
			t.Errorf("%d octets of %d, %v", len(got), len(want), err)
		}
		if got, err := s.Noted("other"); got != nil || err != nil {
			t.Errorf("another: %q, %v", got, err)
		}
	}
}

func testClose(t *testing.T, s queue.Store) {
	id := put(t, s, "x", 1)
	next, err := s.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Accept(t.Context(), message1(next, "x", 1)); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	if _, err := s.Apply(t.Context(), []queue.Change{{ID: id.Envelope(1), Edit: remove}}); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("apply: %v", err)
	}
}

// TestReopen is what a Store that lasts promises: what was acknowledged is there
// when it is opened again. open opens the same place each time.
func TestReopen(t *testing.T, open func(t *testing.T) queue.Store) {
	s := open(t)
	small := put(t, s, "small", 2)
	large, err := putFile(t, s, Large())
	if err != nil {
		t.Fatal(err)
	}
	apply1(t, s, queue.Change{ID: small.Envelope(1), Edit: remove})
	if err := s.Note(t.Context(), "n", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	begun, _ := s.Reserve(t.Context(), 1)
	if f, err := s.NewBody(begun); err != nil {
		t.Fatal(err)
	} else {
		f.Close()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t)
	defer s.Close()
	all, err := All(s, 10)
	if err != nil || len(all) != 2 || all[0].ID != small.Envelope(2) || all[1].ID != large.Envelope(1) ||
		!same(all[0], withID(Envelope(2), all[0].ID)) {
		t.Fatalf("%+v, %v", all, err)
	}
	for id, want := range map[mail.MessageID]string{small: "small", large: Large()} {
		if got, err := Read(s, id); !bytes.Equal([]byte(got), []byte(want)) || err != nil {
			t.Errorf("%s: %d octets, %v", id, len(got), err)
		}
	}
	if got, err := s.Noted("n"); string(got) != "kept" || err != nil {
		t.Errorf("noted %q, %v", got, err)
	}
	if next, err := s.Reserve(t.Context(), 1); err != nil || next <= begun {
		t.Errorf("id %s again, after %s, %v", next, begun, err)
	}
	f, err := s.NewBody(begun)
	if err != nil {
		t.Fatalf("what was begun is in the way: %v", err)
	}
	f.Close()
}
