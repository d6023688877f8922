package control

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// Bounds of what is shown. Ours.
const (
	listSlice = 1000    // envelopes asked for at a time (DESIGN section 4)
	maxLines  = 1 << 20 // parts of Lines before a process that never ends is left
	showPause = 200 * time.Millisecond
)

// show passes on lines that another process prints about itself.
func (r *request) show() (string, error) {
	word, _, _ := strings.Cut(r.arg(0), " ")
	var l *ipc.Link
	switch word {
	case "hosts", "hoststats", "relays", "routes", "mta", "tls":
		l = r.peers.MTA
	case "tables", "filters":
		l = r.peers.Lookup
	case "corrupt", "queue":
		l = r.peers.Queue
	default:
		return "", &ctl.Failure{Reason: "nothing of that name to show"}
	}
	skip := 0
	for range maxLines {
		m, err := ask[*imsg.Lines](r, l, callTimeout, &imsg.Show{What: r.arg(0), Skip: skip})
		if err != nil {
			return "", err
		}
		if err := r.c.Send(ctl.KindData, string(m.Text)); err != nil {
			return "", err
		}
		if !m.More {
			break
		}
		n := strings.Count(string(m.Text), "\n")
		if skip += n; n > 0 {
			continue
		}
		// Under way: the client sees what there is, and that somebody lives.
		if err := r.c.Flush(); err != nil {
			return "", err
		}
		select {
		case <-r.ctx.Done():
			return "", r.ctx.Err()
		case <-time.After(showPause):
		}
	}
	return "", nil
}

// stats sends the counters of all processes, sorted by name. A process that is
// not there is left out.
func (r *request) stats() (string, error) {
	all := r.env.Stat.All()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, l := range r.peers.all() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(r.ctx, statsTimeout)
			defer cancel()
			m, err := ipc.Ask[*imsg.Stats](ctx, l, &imsg.StatsGet{})
			if err != nil {
				return // its counters are gone with it
			}
			mu.Lock()
			defer mu.Unlock()
			for _, v := range m.Values {
				all[v.Name] += v.Value
			}
		})
	}
	wg.Wait()
	uptime := r.env.Now().Sub(*r.started.Load())
	text := map[string]string{"uptime.human": ctl.Duration(uptime)}
	all["uptime"] = int64(uptime / time.Second)
	for name, v := range all {
		text[name] = strconv.FormatInt(v, 10)
	}
	for _, name := range slices.Sorted(maps.Keys(text)) {
		if err := r.c.Send(ctl.KindRow, name, text[name]); err != nil {
			return "", err
		}
	}
	return "", nil
}

// queue lists envelopes: all, those of a message, or a selection.
func (r *request) queue() (string, error) {
	var only mail.MessageID
	var sel *ctl.Selection
	var err error
	switch {
	case r.arg(0) == ctl.Where:
		if sel, err = ctl.ParseSelection(r.args[1:]); err != nil {
			return "", &ctl.Failure{Reason: err.Error()}
		}
	case r.arg(0) != "":
		if only, err = mail.ParseMessageID(r.arg(0)); err != nil {
			return "", &ctl.Failure{Reason: "invalid id"}
		}
	}
	now := r.env.Now()
	return "", r.each(only, func(e *ctl.Entry) error {
		if sel != nil && !sel.Match(e, now) {
			return nil
		}
		return r.c.Send(ctl.KindRow, e.Fields()...)
	})
}

// listing is one slice of the queue.
type listing struct {
	list []mail.Envelope
	end  bool
	err  error
}

// fetch asks for the slice behind after, of one message or of all.
func (r *request) fetch(only mail.MessageID, after mail.EnvelopeID) listing {
	l, err := ask[*imsg.QueueListing](r, r.peers.Queue, callTimeout, &imsg.QueueList{After: after, Max: listSlice})
	if err != nil {
		return listing{err: err}
	}
	s := listing{list: l.Envelopes, end: l.End || len(l.Envelopes) == 0}
	if i := slices.IndexFunc(s.list, func(e mail.Envelope) bool { return only != 0 && e.ID.Message() != only }); i >= 0 {
		s.list, s.end = s.list[:i], true
	}
	return s
}

// each calls f for the envelopes of a message, or of all, in the order of their
// ids. They come in slices, each with what the scheduler knows of it; the next
// is fetched while one is worked on.
func (r *request) each(only mail.MessageID, f func(*ctl.Entry) error) error {
	var after mail.EnvelopeID
	if only != 0 {
		after = only.Envelope(0) - 1
	}
	next := make(chan listing, 1) // a fetch nobody waits for ends all the same
	next <- r.fetch(only, after)
	scheduler := true
	var waits map[mail.EnvelopeID]string // of mta; asked when one is there
	for {
		l := <-next
		if l.err != nil {
			return l.err
		}
		if !l.end {
			after = l.list[len(l.list)-1].ID
			r.wg.Go(func() { next <- r.fetch(only, after) })
		}
		var states []imsg.SchedState
		if scheduler {
			states, scheduler = r.states(l.list)
		}
		for i := range l.list {
			e := ctl.Entry{Envelope: l.list[i], State: ctl.StateOffline}
			if states != nil {
				place(&e, &states[i])
				if e.State == ctl.StateInflight && e.Envelope.Kind == mail.KindMTA {
					if waits == nil {
						waits = r.waits()
					}
					e.Reason = waits[e.Envelope.ID]
				}
			}
			if err := f(&e); err != nil {
				return err
			}
		}
		if l.end {
			return nil
		}
	}
}

// states asks the scheduler where the envelopes stand; false: it does not say.
func (r *request) states(list []mail.Envelope) ([]imsg.SchedState, bool) {
	if len(list) == 0 {
		return nil, true
	}
	ids := make([]mail.EnvelopeID, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	m, err := ask[*imsg.SchedStates](r, r.peers.Scheduler, callTimeout, &imsg.SchedGet{IDs: ids})
	if err != nil || len(m.States) != len(ids) {
		return nil, false
	}
	return m.States, true
}

// place says in e what the scheduler knows.
func place(e *ctl.Entry, st *imsg.SchedState) {
	e.Since, e.Wait = st.Since, st.Wait
	if st.Suspend {
		e.Envelope.Flags |= mail.FlagSuspended
	}
	switch {
	case !st.Known, st.Wait == mail.WaitAction:
		e.State = ctl.StateInvalid
	case st.Inflight:
		e.State = ctl.StateInflight
	default:
		e.State = ctl.StatePending
	}
}

// waits asks mta why what it has in flight waits. Without an answer nothing is
// known; the map is never nil.
func (r *request) waits() map[mail.EnvelopeID]string {
	all := map[mail.EnvelopeID]string{}
	for skip, more := 0, true; more && skip < maxLines; {
		m, err := ask[*imsg.Lines](r, r.peers.MTA, statsTimeout, &imsg.Show{What: "waits", Skip: skip})
		if err != nil {
			break
		}
		for line := range strings.Lines(string(m.Text)) {
			skip++
			why, ids, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			for _, word := range strings.Fields(ids) {
				if id, err := mail.ParseEnvelopeID(word); err == nil {
					all[id] = why
				}
			}
		}
		more = m.More && len(m.Text) > 0
	}
	return all
}
