package ctl

import (
	"strconv"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// State is where an envelope of a listing stands.
type State uint8

// The states.
const (
	StateInvalid  State = iota // the scheduler does not know it: its action is gone
	StatePending               // waits; Since is when it is tried
	StateInflight              // is being tried; Since is when that began
	StateOffline               // nobody can say: there is no scheduler
)

var stateNames = [...]string{"invalid", "pending", "inflight", "offline"}

// String is the word of show queue.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "?"
}

// Entry is one envelope as listings show it. Of Envelope only the fields that
// Fields sends are meaningful to who gets it over the socket.
type Entry struct {
	Envelope mail.Envelope
	State    State
	Since    time.Time
	Wait     mail.Wait // beside time
	Reason   string    // why mta keeps it waiting, in a few words; empty: it does not, or is not asked
}

// entryFields is how many fields an Entry has on the socket.
const entryFields = 20

// Fields is the entry as a Row.
func (e *Entry) Fields() []string {
	v := &e.Envelope
	return []string{
		v.ID.String(), v.Client, number(int64(v.Kind)), number(int64(v.Flags)),
		v.Sender.String(), v.Rcpt.String(), v.Dest.String(),
		unixTime(v.Created), number(int64(v.TTL / time.Second)), unixTime(v.LastTry), number(int64(v.Retry)),
		number(int64(e.State)), unixTime(e.Since), number(int64(e.Wait)),
		v.LastError, number(int64(v.LastStatus.Code)), v.LastStatus.String(), v.RemoteMTA, v.Dispatcher, e.Reason,
	}
}

// ParseEntry is the inverse of Fields; times are cut to whole seconds.
func ParseEntry(f []string) (*Entry, error) {
	if len(f) != entryFields {
		return nil, ErrFrame
	}
	id, err := mail.ParseEnvelopeID(f[0])
	if err != nil {
		return nil, ErrFrame
	}
	n := reader{ok: true}
	e := &Entry{
		State: State(n.num(f[11], 255)), Since: n.time(f[12]), Wait: mail.Wait(n.num(f[13], 255)), Reason: f[19],
		Envelope: mail.Envelope{
			ID: id, Client: f[1], Kind: mail.Kind(n.num(f[2], 255)), Flags: mail.Flags(n.num(f[3], 1<<16-1)),
			Sender: mail.SplitAddress(f[4]), Rcpt: mail.SplitAddress(f[5]), Dest: mail.SplitAddress(f[6]),
			Created: n.time(f[7]), TTL: time.Duration(n.num(f[8], 1<<33)) * time.Second,
			LastTry: n.time(f[9]), Retry: uint16(n.num(f[10], 1<<16-1)),
			LastError: f[14], RemoteMTA: f[17], Dispatcher: f[18],
		},
	}
	if n.num(f[15], 999) != 0 {
		st, ok := mail.ParseStatus(f[16])
		if !ok {
			return nil, ErrFrame
		}
		e.Envelope.LastStatus = *st
	}
	if !n.ok {
		return nil, ErrFrame
	}
	return e, nil
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

// unixTime is whole seconds; the zero time is 0.
func unixTime(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return number(t.Unix())
}

// reader remembers the first mistake.
type reader struct{ ok bool }

func (r *reader) num(s string, max int64) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > max {
		r.ok = false
		return 0
	}
	return n
}

func (r *reader) time(s string) time.Time {
	n := r.num(s, 1<<40)
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

// Line is the entry as `smtpctl show queue` prints it at the time now, without
// the line end: 13 fields between bars. A bar or control octet within an
// address or text is written as \ooo or like vis(3), so that fields stay
// fields.
func (e *Entry) Line(now time.Time) string {
	v := &e.Envelope
	expires := v.Created
	if !expires.IsZero() {
		expires = v.Expires()
	}
	fields := [...]string{
		v.ID.String(), Source(v.Client), v.Kind.String(), strings.Join(e.FlagNames(), ","),
		showAddress(v.Sender), showAddress(v.Rcpt), showAddress(v.Dest),
		unixTime(v.Created), unixTime(expires), unixTime(v.LastTry), strconv.Itoa(int(v.Retry)),
		e.State.String(), e.when(now), Vis(v.LastError),
	}
	return strings.Join(fields[:], "|")
}

// when is the second half of field 12.
func (e *Entry) when(now time.Time) string {
	switch e.State {
	case StatePending:
		return number(int64(e.Since.Sub(now).Round(time.Second) / time.Second))
	case StateInflight:
		return number(int64(now.Sub(e.Since) / time.Second))
	}
	return ""
}

// flagNames are the words of field 4, in its order.
var flagNames = [...]flagName{
	{mail.FlagBounce, "bounce"}, {mail.FlagAuthenticated, "auth"}, {mail.FlagInternal, "internal"},
	{mail.FlagSuspended, "suspend"}, {mail.FlagHold, "hold"},
}

type flagName struct {
	flag mail.Flags
	name string
}

// FlagNames are the words of field 4.
func (e *Entry) FlagNames() []string {
	flags := e.Envelope.Flags
	if e.Wait != mail.WaitTime {
		flags |= mail.FlagHold
	}
	words := []string{}
	for _, f := range flagNames {
		if flags&f.flag != 0 {
			words = append(words, f.name)
		}
	}
	return words
}

// Source is field 2 for the client address of an envelope: "local", "inet4",
// "inet6" or "?".
func Source(client string) string {
	switch {
	case client == "local":
		return client
	case strings.HasPrefix(client, "["), strings.Count(client, ":") > 1:
		return "inet6"
	case client != "" && strings.Trim(client, "0123456789.") == "":
		return "inet4"
	}
	return "?"
}

// showAddress prints the null reverse-path as "@", as OpenSMTPD does.
func showAddress(a mail.Address) string {
	return strings.ReplaceAll(Vis(a.User+"@"+a.Domain), "|", `\174`)
}
