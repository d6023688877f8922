package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/explain"
)

// cases is smtpd -n --cases: a file of lines "facts -> what becomes of it". A
// line without the arrow holds facts for all lines below it.
func cases(ctx context.Context, f *flags, conf *config.Config, stdout, stderr io.Writer) int {
	file, err := os.Open(f.cases)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer file.Close()
	d, err := newDecider(conf)
	if err != nil {
		fmt.Fprintf(stderr, "smtpd: %v\n", err)
		return exitError
	}
	defer d.close()
	sc := bufio.NewScanner(file)
	total, wrong, broken := 0, 0, 0
	var common []string
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		left, right, arrow := strings.Cut(line, "->")
		facts := append(slices.Clip(common), strings.Fields(left)...)
		if !arrow {
			if err := d.commonFacts(facts); err != nil {
				fmt.Fprintf(stderr, "%s:%d: %v\n", f.cases, n, err)
				broken++
				continue
			}
			common = facts
			continue
		}
		total++
		differs, err := d.tryCase(ctx, facts, right)
		if err != nil {
			fmt.Fprintf(stderr, "%s:%d: %v\n", f.cases, n, err)
			broken++
		}
		if differs != "" {
			wrong++
			fmt.Fprintf(stdout, "%s:%d: %s\n", f.cases, n, differs)
		}
	}
	if err := sc.Err(); err != nil {
		fmt.Fprintf(stderr, "smtpd: %s: %v\n", f.cases, err)
		return exitError
	}
	fmt.Fprintf(stdout, "%d cases, %d differ\n", total, wrong)
	switch {
	case broken > 0:
		return exitError
	case wrong > 0:
		return exitRefused
	}
	return exitAccepted
}

// wantCase is what a line ought to be.
const wantCase = `expected "facts -> action NAME", "facts -> reject" or "facts -> tempfail"`

// commonFacts checks a line without an arrow. One with a recipient was to have
// one.
func (d *decider) commonFacts(facts []string) error {
	for _, w := range facts {
		if strings.HasPrefix(w, "rcpt=") {
			return fmt.Errorf("%s", wantCase)
		}
	}
	_, err := explain.ParseFacts(d.conf, append(slices.Clip(facts), "rcpt=anybody@localhost"))
	return err
}

// tryCase decides one line; the result is what differs, empty when nothing does.
func (d *decider) tryCase(ctx context.Context, facts []string, want string) (string, error) {
	want = strings.Join(strings.Fields(want), " ")
	name, isAction := strings.CutPrefix(want, "action ")
	name = strings.Trim(name, `"`)
	if want != "reject" && want != "tempfail" && !isAction || name == "" {
		return "", fmt.Errorf("%q: %s", want, wantCase)
	}
	q, err := explain.ParseFacts(d.conf, facts)
	if err != nil {
		return "", err
	}
	v := explain.Decide(ctx, d.x, q)
	got := ""
	switch {
	case v.Exit() == exitError:
		got = "tempfail"
	case !v.Accepted:
		got = "reject"
	case isAction && endsWith(v, name):
		return "", nil
	default:
		got = "action " + v.Action
		if ends := v.Actions(); len(ends) != 1 || ends[0] != v.Action {
			got += ", which ends with action " + strings.Join(ends, ", ")
		}
	}
	if got == want {
		return "", nil
	}
	if isAction {
		want = "action " + name
	}
	return fmt.Sprintf("got %s, expected %s%s", got, want, because(v)), nil
}

// endsWith reports whether mail goes by an action: that of the rule that decided,
// or the one that all envelopes end with, when aliases lead on.
func endsWith(v *explain.Verdict, name string) bool {
	ends := v.Actions()
	return v.Action == name || len(ends) == 1 && ends[0] == name
}

// because is the rule that decided and, of a refusal, the last step to it.
func because(v *explain.Verdict) string {
	var parts []string
	if v.Rule != "" {
		parts = append(parts, v.Rule)
	}
	if n := len(v.Steps); !v.Accepted && n > 0 && (v.Rule == "" || len(v.Steps[n-1].Rules) == 0) {
		parts = append(parts, v.Steps[n-1].Text)
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ": ") + ")"
}
