package queue

import (
	"sync"
	"time"

	"smtpd/internal/mail"
)

// LeaseTable holds leases in memory, for stores that one process has to itself.
// The zero value works; it is safe for concurrent use.
type LeaseTable struct {
	mu sync.Mutex
	m  map[mail.EnvelopeID]Lease
}

// Take leases id unless somebody holds it at now.
func (t *LeaseTable) Take(id mail.EnvelopeID, l Lease, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if held, ok := t.m[id]; ok && now.Before(held.Until) {
		return false
	}
	if t.m == nil {
		t.m = map[mail.EnvelopeID]Lease{}
	}
	t.m[id] = l
	return true
}

// Get finds who holds id at now.
func (t *LeaseTable) Get(id mail.EnvelopeID, now time.Time) (Lease, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l, ok := t.m[id]
	if !ok || !now.Before(l.Until) {
		return Lease{}, false
	}
	return l, true
}

// Drop ends the lease of id, whoever has it.
func (t *LeaseTable) Drop(id mail.EnvelopeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.m, id)
}

// End ends those leases of ids that owner has, and returns them.
func (t *LeaseTable) End(owner string, ids []mail.EnvelopeID) []mail.EnvelopeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ended []mail.EnvelopeID
	for _, id := range ids {
		if l, ok := t.m[id]; ok && l.Owner == owner {
			delete(t.m, id)
			ended = append(ended, id)
		}
	}
	return ended
}

// Of lists what owner has.
func (t *LeaseTable) Of(owner string) []mail.EnvelopeID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []mail.EnvelopeID
	for id, l := range t.m {
		if l.Owner == owner {
			ids = append(ids, id)
		}
	}
	return ids
}
