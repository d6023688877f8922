package smtp

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/table"
)

// copyTime bounds the making of a copy. Ours.
const copyTime = 10 * time.Second

// copies are tables of lookup that built-in filters ask often, so that a phase
// costs no way to another process. Only those that are read from files come,
// and only small ones; lookup says when one was read again. The zero value is
// ready.
type copies struct {
	mu     sync.Mutex
	tables map[copyKey]*tableCopy

	asked sync.Map // copyKey -> *tally, of every table that is asked here
}

// tally is how often a table was asked here that lookup has not heard of yet.
type tally struct{ lookups, misses, errors atomic.Uint64 }

type copyKey struct {
	generation uint64
	name       string
}

// tableCopy is one of copies: nil while it is on its way, and when there is none
// to be had.
type tableCopy struct{ t *table.Table }

// table is the copy of a table, or nil. begin is true for the first who asks: a
// copy is to be made.
func (c *copies) table(k copyKey) (t *table.Table, begin *tableCopy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one := c.tables[k]; one != nil {
		return one.t, nil
	}
	if c.tables == nil {
		c.tables = map[copyKey]*tableCopy{}
	}
	begin = &tableCopy{}
	c.tables[k] = begin
	return nil, begin
}

// put makes t the copy that was begun, or, with again, has the next who asks
// begin anew. One that has been dropped meanwhile stays so.
func (c *copies) put(k copyKey, begun *tableCopy, t *table.Table, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.tables[k] != begun:
	case again:
		delete(c.tables, k)
	default:
		begun.t = t
	}
}

// drop lets go of the copies for which gone is true, made or under way.
func (c *copies) drop(gone func(copyKey) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tables {
		if gone(k) {
			delete(c.tables, k)
		}
	}
}

// forget drops what belongs to configurations that are gone.
func (c *copies) forget(gone func(copyKey) bool) {
	c.drop(gone)
	c.asked.Range(func(k, _ any) bool {
		if gone(k.(copyKey)) {
			c.asked.Delete(k)
		}
		return true
	})
}

// count books a question that was answered here.
func (c *copies) count(k copyKey, found bool, err error) {
	v, ok := c.asked.Load(k)
	if !ok {
		v, _ = c.asked.LoadOrStore(k, &tally{})
	}
	one := v.(*tally)
	one.lookups.Add(1)
	switch {
	case err != nil:
		one.errors.Add(1)
	case !found:
		one.misses.Add(1)
	}
}

// tallies is what was booked since the last time.
func (c *copies) tallies() *imsg.TableTallies {
	a := &imsg.TableTallies{}
	c.asked.Range(func(k, v any) bool {
		one := v.(*tally)
		if n := one.lookups.Swap(0); n > 0 {
			a.Tables = append(a.Tables, imsg.TableCount{Table: k.(copyKey).name, Generation: k.(copyKey).generation,
				Lookups: n, Misses: one.misses.Swap(0), Errors: one.errors.Swap(0)})
		}
		return len(a.Tables) < imsg.MaxTallies
	})
	return a
}

// copied is the copy of a table, or nil: then lookup is to be asked. The first
// question has a copy made.
func (b *backend) copied(name string) *table.Table {
	k := copyKey{b.generation, name}
	t, begun := b.s.copies.table(k)
	if begun != nil {
		b.s.wg.Go(func() { b.copyTable(k, begun) })
	}
	return t
}

// copyTable makes a copy that was begun.
func (b *backend) copyTable(k copyKey, begun *tableCopy) {
	ctx, cancel := context.WithTimeout(b.s.ctx, copyTime)
	defer cancel()
	a, err := ask[*imsg.TableCopied](ctx, b.s.lookup, &imsg.TableCopy{Table: k.name, Generation: k.generation})
	if err != nil || !a.OK {
		b.s.copies.put(k, begun, nil, err != nil)
		return
	}
	c := &config.Table{Name: k.name, Backend: "static", Type: config.TableList}
	for key := range bytes.SplitSeq(bytes.TrimSuffix(a.Keys, []byte{0}), []byte{0}) {
		if len(a.Keys) > 0 {
			c.List = append(c.List, string(key))
		}
	}
	t, err := table.Open(c, table.Options{Delim: b.limits.SubAddrDelim})
	b.s.copies.put(k, begun, t, err != nil)
}

// fromLookup carries out what lookup says unasked.
func (s *server) fromLookup(r *ipc.Request) {
	switch m := r.Msg.(type) {
	case *imsg.TableStale:
		s.copies.drop(func(k copyKey) bool { return k.name == m.Table })
		r.Reply(&imsg.Done{OK: true}, nil)
	case *imsg.TableTally:
		r.Reply(s.copies.tallies(), nil)
	}
}
