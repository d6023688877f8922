// Package queuetest proves stores: a suite that every queue.Store must pass, a
// store in memory for tests of other packages, and a disk that can fail or stop
// at any write. It owns nothing outside the folders its callers give it and is
// never linked into the daemon.
package queuetest

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
)

// Memory is a Store that forgets everything with the process; what Accept needs
// a file for is kept in a folder. It is safe for concurrent use.
type Memory struct {
	dir    string
	now    func() time.Time
	leases queue.LeaseTable

	mu     sync.Mutex
	closed bool
	fail   error
	next   mail.MessageID
	msgs   map[mail.MessageID]*message
	envs   map[mail.EnvelopeID]mail.Envelope
	files  map[mail.MessageID]string
	notes  map[string][]byte
}

type message struct {
	info  queue.Info
	sum   uint32
	rcpts int
	next  uint32
	body  []byte
}

var _ queue.Store = (*Memory)(nil)

// NewMemory makes an empty Memory that puts files into dir. now is the clock of
// its leases.
func NewMemory(dir string, now func() time.Time) *Memory {
	return &Memory{dir: dir, now: now, next: 0x10000000, msgs: map[mail.MessageID]*message{},
		envs: map[mail.EnvelopeID]mail.Envelope{}, files: map[mail.MessageID]string{}, notes: map[string][]byte{}}
}

// Fail makes every change fail with err until it is called with nil.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

// change begins a change; it leaves m locked when it gives nil.
func (m *Memory) change(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	err := m.fail
	if m.closed {
		err = queue.ErrClosed
	}
	if err != nil {
		m.mu.Unlock()
	}
	return err
}

// Reserve implements queue.Store.
func (m *Memory) Reserve(ctx context.Context, n int) (mail.MessageID, error) {
	if n < 1 || n > queue.MaxReserve {
		return 0, queue.ErrInvalid
	}
	if err := m.change(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	first := m.next
	m.next += mail.MessageID(n)
	return first, nil
}

// NewBody implements queue.Store.
func (m *Memory) NewBody(id mail.MessageID) (*os.File, error) {
	if err := m.change(context.Background()); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	if m.files[id] != "" || id == 0 {
		return nil, queue.ErrExists
	}
	name := filepath.Join(m.dir, id.String())
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		m.files[id] = name
	}
	return f, err
}

// DropBody implements queue.Store.
func (m *Memory) DropBody(id mail.MessageID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takeFile(id)
}

func (m *Memory) takeFile(id mail.MessageID) ([]byte, error) {
	name := m.files[id]
	if name == "" {
		return nil, queue.ErrInvalid
	}
	delete(m.files, id)
	b, err := os.ReadFile(name)
	os.Remove(name)
	return b, err
}

// Accept implements queue.Store.
func (m *Memory) Accept(ctx context.Context, msg *queue.Message) error {
	if err := m.change(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	body := bytes.Clone(msg.Body)
	if msg.InFile {
		var err error
		if body, err = m.takeFile(msg.ID); err != nil {
			return err
		}
	}
	if msg.ID == 0 || len(msg.Envelopes) == 0 || len(msg.Envelopes) > queue.MaxRecipients ||
		int64(len(body)) != msg.Size || (!msg.InFile && len(body) > queue.MaxInline) {
		return queue.ErrInvalid
	}
	sum := crc32.ChecksumIEEE(body)
	if old := m.msgs[msg.ID]; old != nil {
		if old.sum == sum && old.info.Size == msg.Size && old.rcpts == len(msg.Envelopes) && !msg.InFile {
			return nil
		}
		return queue.ErrExists
	}
	for i := range msg.Envelopes {
		if err := valid(&msg.Envelopes[i]); err != nil {
			return err
		}
	}
	n := len(msg.Envelopes)
	for i := range msg.Envelopes {
		e := &msg.Envelopes[i]
		e.ID = msg.ID.Envelope(uint32(i) + 1)
		m.envs[e.ID] = *e
	}
	m.msgs[msg.ID] = &message{info: queue.Info{Size: msg.Size, Arrival: msg.Arrival, InFile: msg.InFile},
		sum: sum, rcpts: n, next: uint32(n) + 1, body: body}
	return nil
}

// valid is the least that every store checks.
func valid(e *mail.Envelope) error {
	for _, s := range []string{e.Dispatcher, e.Helo, e.Host, e.Sender.User, e.Sender.Domain, e.Rcpt.User,
		e.Rcpt.Domain, e.Dest.User, e.Dest.Domain, e.LastError, e.LastStatus.Text,
		strings.ReplaceAll(e.Exec, "\t", " "), e.User} {
		if mail.Clean(s, len(s)) != s {
			return fmt.Errorf("%w: %q", queue.ErrInvalid, s)
		}
	}
	if e.Kind < mail.KindMDA || e.Kind > mail.KindBounce {
		return queue.ErrInvalid
	}
	return nil
}

// Apply implements queue.Store.
func (m *Memory) Apply(ctx context.Context, changes []queue.Change) ([]queue.Outcome, error) {
	if err := m.change(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	out := make([]queue.Outcome, len(changes))
	for i := range changes {
		m.apply(&changes[i], &out[i])
	}
	return out, nil
}

func (m *Memory) apply(c *queue.Change, o *queue.Outcome) {
	e, ok := m.envs[c.ID]
	if !ok {
		o.Err = queue.ErrNotFound
		return
	}
	o.Envelope = e
	if c.Attempt != queue.AnyAttempt && int(e.Retry) != c.Attempt {
		o.Err = queue.ErrStale
		return
	}
	v := c.Edit(&e)
	e.ID = c.ID
	if o.Err = valid(&e); o.Err != nil {
		return
	}
	msg := m.msgs[c.ID.Message()]
	if v.Add != nil {
		if o.Err = valid(v.Add); o.Err != nil {
			return
		}
		add := *v.Add
		add.ID = c.ID.Message().Envelope(msg.next)
		msg.next++
		m.envs[add.ID] = add
		o.Added = &add
	}
	o.Envelope, o.Deleted = e, v.Delete
	if !v.Delete {
		m.envs[c.ID] = e
		return
	}
	delete(m.envs, c.ID)
	m.leases.Drop(c.ID)
	for id := range m.envs {
		if id.Message() == c.ID.Message() {
			return
		}
	}
	delete(m.msgs, c.ID.Message())
}

// Load implements queue.Store.
func (m *Memory) Load(id mail.EnvelopeID) (mail.Envelope, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.envs[id]
	if !ok {
		return e, queue.ErrNotFound
	}
	return e, nil
}

// List implements queue.Store.
func (m *Memory) List(after mail.EnvelopeID, max int) (l []mail.Envelope, end bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []mail.EnvelopeID
	for id := range m.envs {
		if id > after {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids[:min(len(ids), max, queue.MaxList)] {
		l = append(l, m.envs[id])
	}
	return l, len(l) == len(ids), nil
}

// Message implements queue.Store.
func (m *Memory) Message(id mail.MessageID) (queue.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg := m.msgs[id]
	if msg == nil {
		return queue.Info{}, queue.ErrNotFound
	}
	return msg.info, nil
}

// Body implements queue.Store.
func (m *Memory) Body(id mail.MessageID) (*queue.Body, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	msg := m.msgs[id]
	if msg == nil {
		return nil, queue.ErrNotFound
	}
	b := &queue.Body{Size: msg.info.Size}
	if !msg.info.InFile {
		b.Inline = bytes.Clone(msg.body)
		return b, nil
	}
	name := filepath.Join(m.dir, "read-"+id.String())
	defer os.Remove(name)
	if err := os.WriteFile(name, msg.body, 0o600); err != nil {
		return nil, err
	}
	var err error
	b.File, err = os.Open(name)
	return b, err
}

// Note implements queue.Store.
func (m *Memory) Note(ctx context.Context, name string, value []byte) error {
	if err := m.change(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	m.notes[name] = bytes.Clone(value)
	return nil
}

// Noted implements queue.Store.
func (m *Memory) Noted(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.notes[name]; len(v) > 0 {
		return bytes.Clone(v), nil
	}
	return nil, nil
}

// Lease implements queue.Store.
func (m *Memory) Lease(ctx context.Context, owner string, until time.Time, ids []mail.EnvelopeID) ([]mail.Envelope, error) {
	var l []mail.Envelope
	for _, id := range ids {
		e, err := m.Load(id)
		if err == nil && m.leases.Take(id, queue.Lease{Owner: owner, Until: until, Attempt: e.Retry}, m.now()) {
			l = append(l, e)
		}
	}
	return l, ctx.Err()
}

// LeaseOf implements queue.Store.
func (m *Memory) LeaseOf(id mail.EnvelopeID) (queue.Lease, bool) { return m.leases.Get(id, m.now()) }

// EndLeases implements queue.Store.
func (m *Memory) EndLeases(owner string, ids []mail.EnvelopeID) []mail.EnvelopeID {
	return m.leases.End(owner, ids)
}

// Leases implements queue.Store.
func (m *Memory) Leases(owner string) []mail.EnvelopeID { return m.leases.Of(owner) }

// Close implements queue.Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// Dir is the folder of the files that were begun.
func (m *Memory) Dir() string { return m.dir }
