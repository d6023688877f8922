package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/ctl"
)

// handler carries a command out; params are the words for its placeholders.
type handler func(p *program, ctx context.Context, params []string) error

// entry is one command.
type entry struct {
	words string
	run   handler
	extra bool
}

// commands are all of them. The order is that of OpenSMTPD, in which
// possibilities are offered; our own come behind.
func commands() []entry {
	return []entry{
		{"discover <evpid>", discover, false},
		{"discover <msgid>", discover, false},
		{"pause mta from <addr> for <str>", block(ctl.ReqBlock), false},
		{"resume mta from <addr> for <str>", block(ctl.ReqUnblock), false},
		{"show mta paused", show("mta paused"), false},
		{"log brief", flip("verbose", false), false},
		{"log verbose", flip("verbose", true), false},
		{"monitor", monitor, false},
		{"pause envelope <evpid>", count(ctl.ReqPause, "paused"), false},
		{"pause envelope <msgid>", count(ctl.ReqPause, "paused"), false},
		{"pause envelope all", count(ctl.ReqPause, "paused"), false},
		{"pause mda", flip("mda", true), false},
		{"pause mta", flip("mta", true), false},
		{"pause smtp", flip("smtp", true), false},
		{"profile <str>", profile(true), false},
		{"remove <evpid>", count(ctl.ReqRemove, "removed"), false},
		{"remove <msgid>", count(ctl.ReqRemove, "removed"), false},
		{"remove all", count(ctl.ReqRemove, "removed"), false},
		{"resume envelope <evpid>", count(ctl.ReqResume, "resumed"), false},
		{"resume envelope <msgid>", count(ctl.ReqResume, "resumed"), false},
		{"resume envelope all", count(ctl.ReqResume, "resumed"), false},
		{"resume mda", flip("mda", false), false},
		{"resume mta", flip("mta", false), false},
		{"resume route <routeid>", resumeRoute, false},
		{"resume smtp", flip("smtp", false), false},
		{"schedule <msgid>", count(ctl.ReqSchedule, "scheduled"), false},
		{"schedule <evpid>", count(ctl.ReqSchedule, "scheduled"), false},
		{"schedule all", count(ctl.ReqSchedule, "scheduled"), false},
		{"show envelope <evpid>", showEnvelope, false},
		{"show hoststats", show("hoststats"), false},
		{"show message <msgid>", showMessage, false},
		{"show message <evpid>", showMessage, false},
		{"show queue", showQueue(lineForm), false},
		{"show queue <msgid>", showQueue(lineForm), false},
		{"show hosts", show("hosts"), false},
		{"show relays", show("relays"), false},
		{"show routes", show("routes"), false},
		{"show stats", showStats, false},
		{"show status", showStatus, false},
		{"trace <str>", trace(true), false},
		{"unprofile <str>", profile(false), false},
		{"untrace <str>", trace(false), false},
		{"update table <str>", updateTable, false},
		{"encrypt", encrypt, false},
		{"encrypt <str>", encrypt, false},
		{"spf walk", spfWalk, false},

		{"trace smtp", traceSMTP(true, nil), true},
		{"trace smtp from <str>", traceSMTP(true, []string{"from"}), true},
		{"trace smtp for <str>", traceSMTP(true, []string{"for"}), true},
		{"trace smtp from <str> for <str>", traceSMTP(true, []string{"from", "for"}), true},
		{"untrace smtp", traceSMTP(false, nil), true},
		{"untrace smtp from <str>", traceSMTP(false, []string{"from"}), true},
		{"discover all", discover, true},
		{"corrupt inspect <str>", onSpool("corrupt inspect"), true},
		{"corrupt remove <str>", onSpool("corrupt remove"), true},
		{"corrupt return <str>", onSpool("corrupt return"), true},
		{"encrypt -a <str>", encryptWith, true},
		{"encrypt -a <str> <str>", encryptWith, true},
		{"explain --json <facts>", explainMail(true), true},
		{"explain <facts>", explainMail(false), true},
		{"lookup <str> <str>", lookup, true},
		{"lookup <str> <str> <str>", lookup, true},
		{"pause envelope where", selected(ctl.ReqPause, "paused"), true},
		{"pause where", selected(ctl.ReqPause, "paused"), true},
		{"queue compact", onSpool("queue compact"), true},
		{"queue import", importSpool, true},
		{"queue import <str>", importSpool, true},
		{"queue verify", onSpool("queue verify"), true},
		{"reload", reload, true},
		{"release <str>", release, true},
		{"release <str> for <str>", release, true},
		{"remove where", selected(ctl.ReqRemove, "removed"), true},
		{"resume envelope where", selected(ctl.ReqResume, "resumed"), true},
		{"resume where", selected(ctl.ReqResume, "resumed"), true},
		{"schedule where", selected(ctl.ReqSchedule, "scheduled"), true},
		{"show corrupt", onSpool("corrupt"), true},
		{"show filters", show("filters"), true},
		{"show queue --json", showQueue(jsonForm), true},
		{"show queue --json <msgid>", showQueue(jsonForm), true},
		{"show queue -v", showQueue(longForm), true},
		{"show queue -v <msgid>", showQueue(longForm), true},
		{"show queue --json where", showSelected(jsonForm), true},
		{"show queue -v where", showSelected(longForm), true},
		{"show queue where", showSelected(lineForm), true},
		{"show tables", show("tables"), true},
		{"show tls <str>", showOf("tls"), true},
	}
}

// command parses and carries out the words of smtpctl.
func (p *program) command(ctx context.Context, words []string) error {
	run, params, err := grammar().parse(words)
	if e, ok := errors.AsType[*misuse](err); ok {
		fmt.Fprint(p.stderr, e.text)
		return &exit{status: exitParse}
	}
	return run(p, ctx, params)
}

// ask is one request to the daemon by an administrator.
func (p *program) ask(ctx context.Context, each func(ctl.Frame) error, request ...string) (string, error) {
	if err := errors.Join(p.settle(), p.needRoot()); err != nil {
		return "", err
	}
	c, err := p.dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Do(each, request...)
}

// simple asks for what either succeeds or fails, and says so. The reason goes
// to standard error: the answer itself is what scripts compare.
func (p *program) simple(ctx context.Context, request ...string) error {
	answer, err := p.ask(ctx, nil, request...)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return p.refused(f)
	}
	if err == nil {
		for line := range strings.Lines(answer) { // warnings of a reload
			fmt.Fprintln(p.stderr, ctl.Vis(strings.TrimSuffix(line, "\n")))
		}
		fmt.Fprintln(p.stdout, "command succeeded")
	}
	return err
}

func (p *program) refused(f *ctl.Failure) error {
	fmt.Fprintln(p.stdout, "command failed")
	if err := p.stdout.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(f.Reason) {
		fmt.Fprintln(p.stderr, ctl.Vis(strings.TrimSuffix(line, "\n")))
	}
	return &exit{status: exitFailed}
}

func flip(name string, on bool) handler {
	return func(p *program, ctx context.Context, _ []string) error {
		return p.simple(ctx, ctl.ReqSwitch, name, onOff(on))
	}
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// keyed is a switch with a keyword, checked here.
func keyed(name string, on bool, keys ...string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		if !slices.Contains(keys, params[0]) {
			return failed("invalid %s keyword: %s", name, params[0])
		}
		return p.simple(ctx, ctl.ReqSwitch, name+" "+params[0], onOff(on))
	}
}

func trace(on bool) handler {
	return keyed("trace", on, "imsg", "io", "smtp", "filters", "mta", "bounce", "scheduler", "lookup", "stat",
		"rules", "mproc", "expand", "all")
}

// traceSMTP is the topic smtp for chosen clients, for a time; words say what the
// parameters are.
func traceSMTP(on bool, words []string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		name := "trace smtp"
		for i, w := range words {
			text := params[i]
			switch w {
			case "from":
				net, err := network(text)
				if err != nil {
					return failed("not an address or network: %s", text)
				}
				text = net
			case "for":
				if d, err := time.ParseDuration(text); err != nil || d <= 0 {
					return failed("not a time like 90s, 10m or 2h: %s", text)
				}
			}
			name += " " + w + " " + text
		}
		return p.simple(ctx, ctl.ReqSwitch, name, onOff(on))
	}
}

// network checks an address or a network, and gives its usual form.
func network(text string) (string, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return a.Unmap().String(), nil
	}
	n, err := netip.ParsePrefix(text)
	return n.Masked().String(), err
}

func profile(on bool) handler { return keyed("profile", on, "imsg", "queue") }

// count applies a request to envelopes and says how many it touched.
func count(request, done string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		what := "all"
		if len(params) > 0 {
			what = params[0]
		}
		n, err := p.number(ctx, request, what)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%d envelope%s %s\n", n, plural(n > 1), done)
		return nil
	}
}

// selected applies a request to the envelopes that fit conditions, or with
// --dry-run among those says how many that are.
func selected(request, done string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		mode, words := "", slices.DeleteFunc(slices.Clone(params), func(w string) bool { return w == "--dry-run" })
		if len(words) < len(params) {
			mode, done = ctl.DryRun, "selected"
		}
		if _, err := ctl.ParseSelection(words); err != nil {
			return failed("%v", err)
		}
		n, err := p.number(ctx, append([]string{request, ctl.Where, mode}, words...)...)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "%d envelope%s %s\n", n, plural(n > 1), done)
		return nil
	}
}

// release lets held mail for a domain leave: what there is now, and for a time
// what comes.
func release(p *program, ctx context.Context, params []string) error {
	domain, seconds := params[0], "0"
	if domain == "all" {
		domain = "*"
	}
	if len(params) > 1 {
		d, err := ctl.ParseDuration(params[1])
		if err != nil || d < time.Second || d > maxRelease {
			return failed("not a time like 90s, 30m or 1d: %s", params[1])
		}
		seconds = strconv.FormatInt(int64(d/time.Second), 10)
	}
	n, err := p.number(ctx, ctl.ReqRelease, domain, seconds)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "%d envelope%s released\n", n, plural(n > 1))
	return nil
}

// maxRelease bounds a release: what shall last longer belongs in the
// configuration. Ours.
const maxRelease = 31 * 24 * time.Hour

func discover(p *program, ctx context.Context, params []string) error {
	what := "all"
	if len(params) > 0 {
		what = params[0]
	}
	n, err := p.number(ctx, ctl.ReqDiscover, what)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "%d envelope%s discovered\n", n, plural(n != 1))
	return nil
}

func (p *program) number(ctx context.Context, request ...string) (int64, error) {
	text, err := p.ask(ctx, nil, request...)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return 0, p.refused(f)
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func plural(many bool) string {
	if many {
		return "s"
	}
	return ""
}

func block(request string) handler {
	return func(p *program, ctx context.Context, params []string) error {
		return p.simple(ctx, request, params[0], params[1])
	}
}

func resumeRoute(p *program, ctx context.Context, params []string) error {
	return p.simple(ctx, ctl.ReqRoute, params[0])
}

func updateTable(p *program, ctx context.Context, params []string) error {
	return p.simple(ctx, ctl.ReqUpdate, params[0])
}

func reload(p *program, ctx context.Context, _ []string) error { return p.simple(ctx, ctl.ReqReload) }

// Exit statuses of lookup beside 0, found.
const (
	exitNotFound  = 1
	exitTemporary = 75
)

// maxQuestion bounds what lookup asks, in octets. Ours: four times the longest
// key of a table; control takes no more.
const maxQuestion = 4096

// lookup asks a table of the daemon and prints what it says as "name: value".
// Without a key it takes the next value of a list.
func lookup(p *program, ctx context.Context, params []string) error {
	for _, word := range params {
		if len(word) > maxQuestion {
			return failed("the question is too long")
		}
	}
	var row ctl.Frame
	_, err := p.ask(ctx, func(f ctl.Frame) error { row = f; return nil }, append([]string{ctl.ReqLookup}, params...)...)
	if f, ok := errors.AsType[*ctl.Failure](err); ok {
		return p.refused(f)
	}
	if err != nil {
		return err
	}
	result, value := row.Arg(0), row.Arg(1)
	fmt.Fprintf(p.stdout, "result: %s\n", result)
	if value != "" {
		fmt.Fprintf(p.stdout, "value: %s\n", ctl.Vis(value))
	}
	if reason := row.Arg(3); reason != "" {
		fmt.Fprintf(p.stdout, "reason: %s\n", ctl.Vis(reason))
	}
	fmt.Fprintf(p.stdout, "time: %sus\n", row.Arg(2))
	switch result {
	case "found":
		return nil
	case "not found":
		return &exit{status: exitNotFound}
	}
	return &exit{status: exitTemporary}
}
