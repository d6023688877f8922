package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"smtpd/internal/ctl"
	"smtpd/internal/mail"
)

// form prints one entry of the queue at the time now.
type form func(w io.Writer, e *ctl.Entry, now time.Time) error

// showQueue lists the queue, or one message of it.
func showQueue(print form) handler {
	return func(p *program, ctx context.Context, params []string) error { return p.list(ctx, print, nil, params) }
}

// showSelected lists what fits conditions, or with --dry-run among those says
// how many that are.
func showSelected(print form) handler {
	return func(p *program, ctx context.Context, params []string) error {
		words := slices.DeleteFunc(slices.Clone(params), func(w string) bool { return w == "--dry-run" })
		sel, err := ctl.ParseSelection(words)
		if err != nil {
			return failed("%v", err)
		}
		n, each := 0, print
		if len(words) < len(params) {
			each = func(io.Writer, *ctl.Entry, time.Time) error { n++; return nil }
		}
		err = p.list(ctx, each, sel, append([]string{ctl.Where}, words...))
		if err == nil && len(words) < len(params) {
			fmt.Fprintf(p.stdout, "%d envelope%s selected\n", n, plural(n > 1))
		}
		return err
	}
}

// list prints what the daemon lists, or without one what is in the spool: the
// envelopes of a message, those of a selection, or all.
func (p *program) list(ctx context.Context, print form, sel *ctl.Selection, params []string) error {
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return err
	}
	now := p.now()
	show := func(e *ctl.Entry) error {
		if sel != nil && !sel.Match(e, now) {
			return nil
		}
		return print(p.stdout, e, now)
	}
	c, err := ctl.Dial(ctx, p.socket)
	switch {
	case errors.Is(err, ctl.ErrNotRunning) && sel != nil:
		return p.offlineQueue(show, "")
	case errors.Is(err, ctl.ErrNotRunning):
		return p.offlineQueue(show, strings.Join(params, ""))
	case err != nil:
		return err
	}
	defer c.Close()
	_, err = c.Do(func(f ctl.Frame) error {
		e, err := ctl.ParseEntry(f.Fields)
		if err != nil {
			return err
		}
		return print(p.stdout, e, now) // the daemon has selected
	}, append([]string{ctl.ReqQueue}, params...)...)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return p.refused(f)
	}
	return err
}

// lineForm is the line that scripts know.
func lineForm(w io.Writer, e *ctl.Entry, now time.Time) error {
	_, err := fmt.Fprintln(w, e.Line(now))
	return err
}

// jsonEntry is an entry for programs. Times are RFC 3339 in UTC; those that
// there are not are left out.
type jsonEntry struct {
	Envelope   string   `json:"envelope"`
	Message    string   `json:"message"`
	Source     string   `json:"source"`
	Client     string   `json:"client,omitempty"`
	Kind       string   `json:"kind"`
	Action     string   `json:"action"`
	Flags      []string `json:"flags"`
	Sender     string   `json:"sender"`
	Recipient  string   `json:"recipient"`
	Dest       string   `json:"destination"`
	Created    string   `json:"created"`
	Expires    string   `json:"expires"`
	LastTry    string   `json:"last_try,omitempty"`
	Tries      int      `json:"tries"`
	State      string   `json:"state"`
	NextTry    string   `json:"next_try,omitempty"`
	Since      string   `json:"in_flight_since,omitempty"`
	WaitsFor   string   `json:"waits_for"`
	Status     string   `json:"last_status,omitempty"`
	StatusFrom string   `json:"last_status_from,omitempty"`
	Error      string   `json:"last_error,omitempty"`
}

func jsonForm(w io.Writer, e *ctl.Entry, now time.Time) error {
	v := &e.Envelope
	j := jsonEntry{
		Envelope: v.ID.String(), Message: v.ID.Message().String(), Source: ctl.Source(v.Client), Client: v.Client,
		Kind: v.Kind.String(), Action: v.Dispatcher, Flags: e.FlagNames(),
		Sender: v.Sender.String(), Recipient: v.Rcpt.String(), Dest: v.Dest.String(),
		Created: rfc3339(v.Created), Expires: rfc3339(v.Expires()), LastTry: rfc3339(v.LastTry), Tries: int(v.Retry),
		State: e.State.String(), WaitsFor: waitsFor(e, now), Error: v.LastError, StatusFrom: v.RemoteMTA,
	}
	if v.LastStatus.Code != 0 {
		j.Status = v.LastStatus.String()
	}
	switch e.State {
	case ctl.StatePending:
		j.NextTry = rfc3339(e.Since)
	case ctl.StateInflight:
		j.Since = rfc3339(e.Since)
	}
	return json.NewEncoder(w).Encode(&j)
}

func rfc3339(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// longForm is for people.
func longForm(w io.Writer, e *ctl.Entry, now time.Time) error {
	v := &e.Envelope
	sender := v.Sender.String()
	if v.Sender.IsNull() {
		sender = "<>"
	}
	to := v.Rcpt.String()
	if v.Dest != v.Rcpt {
		to += " (now " + v.Dest.String() + ")"
	}
	tried := "never tried"
	if v.Retry > 0 || !v.LastTry.IsZero() {
		tried = fmt.Sprintf("tried %d time%s", v.Retry, plural(v.Retry != 1))
	}
	if !v.LastTry.IsZero() {
		tried += ", last " + ctl.Duration(now.Sub(v.LastTry)) + " ago"
	}
	_, err := fmt.Fprintf(w, "%s  %s by action %q\n  from:    %s\n  to:      %s\n  age:     %s, %s, expires in %s\n  state:   %s\n",
		v.ID, v.Kind, v.Dispatcher, ctl.Vis(sender), ctl.Vis(to), ctl.Duration(now.Sub(v.Created)), tried,
		ctl.Duration(v.Expires().Sub(now)), waitsFor(e, now))
	if v.LastError != "" && err == nil {
		reply := v.LastError
		if v.RemoteMTA != "" {
			reply = v.RemoteMTA + ": " + reply
		}
		_, err = fmt.Fprintf(w, "  reply:   %s\n", ctl.Vis(reply))
	}
	return err
}

// waitsFor says in a few words what has to happen next.
func waitsFor(e *ctl.Entry, now time.Time) string {
	flags := e.Envelope.Flags
	switch {
	case e.State == ctl.StateOffline:
		return "the daemon, which is not running"
	case e.State == ctl.StateInvalid:
		return "its action to be configured again, or to be removed"
	case e.State == ctl.StateInflight && e.Reason != "":
		return e.Reason
	case e.State == ctl.StateInflight:
		return "the end of the attempt that began " + ctl.Duration(now.Sub(e.Since)) + " ago"
	case flags&mail.FlagSuspended != 0:
		return "an operator: resume envelope"
	case e.Wait == mail.WaitRelay:
		return "a limit: its relay has as much as it can use"
	case e.Wait == mail.WaitRelease || flags&mail.FlagHold != 0:
		return "its release: its action holds mail"
	case e.Wait == mail.WaitWindow:
		return "its release: its action holds mail, the next window is in " + ctl.Duration(e.Since.Sub(now))
	case e.Since.After(now):
		return "time: next try in " + ctl.Duration(e.Since.Sub(now))
	}
	return "its turn: due now"
}
