package ctl

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Bounds of a selection. Ours.
const (
	maxConditions = 16
	maxCondition  = 512 // octets
)

// Selection picks envelopes by what they are: all its conditions hold.
type Selection struct{ conditions []condition }

type condition func(e *Entry, now time.Time) bool

// conditionOps are the names that a condition may have, with the operators that
// each takes.
var conditionOps = map[string]string{
	"from": "=", "to": "=", "domain": "=", "action": "=", "state": "=", "message": "=", "kind": "=", "flag": "=",
	"error": "~", "age": "<>", "tries": "<>",
}

// ParseSelection reads conditions: from=PATTERN, to=PATTERN (recipient as given
// or after expansion), domain=PATTERN (of the recipient), action=NAME,
// kind=mda|mta|bounce, state=pending|inflight|invalid, flag=suspend|hold|...,
// message=MSGID, error~REGEXP, age>DURATION, age<DURATION, tries>N, tries<N. A
// pattern may hold * and ?; case does not count. from=<> is the null
// reverse-path.
func ParseSelection(words []string) (*Selection, error) {
	if len(words) == 0 || len(words) > maxConditions {
		return nil, fmt.Errorf("a selection has 1 to %d conditions", maxConditions)
	}
	s := &Selection{}
	for _, w := range words {
		i := strings.IndexAny(w, "=~<>")
		if i < 1 || i == len(w)-1 || len(w) > maxCondition {
			return nil, fmt.Errorf("%q is no condition: NAME=VALUE, NAME~VALUE, NAME>VALUE or NAME<VALUE", w)
		}
		name, op, value := w[:i], w[i], w[i+1:]
		ops, known := conditionOps[name]
		if !known || strings.IndexByte(ops, op) < 0 {
			return nil, fmt.Errorf("%q: there is no condition %s%c", w, name, op)
		}
		c, err := newCondition(name, op, value)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", w, err)
		}
		s.conditions = append(s.conditions, c)
	}
	return s, nil
}

// Match reports whether the entry is selected.
func (s *Selection) Match(e *Entry, now time.Time) bool {
	for _, c := range s.conditions {
		if !c(e, now) {
			return false
		}
	}
	return true
}

func newCondition(name string, op byte, value string) (condition, error) {
	switch name {
	case "from":
		return addressCondition(value, func(e *Entry) []mail.Address { return []mail.Address{e.Envelope.Sender} })
	case "to":
		return addressCondition(value, func(e *Entry) []mail.Address {
			return []mail.Address{e.Envelope.Rcpt, e.Envelope.Dest}
		})
	case "domain":
		return patternCondition(value, func(e *Entry) []string { return []string{e.Envelope.Rcpt.Domain, e.Envelope.Dest.Domain} })
	case "action":
		return func(e *Entry, _ time.Time) bool { return e.Envelope.Dispatcher == value }, nil
	case "kind":
		return oneOf(value, []string{"mda", "mta", "bounce"}, func(e *Entry) string { return e.Envelope.Kind.String() })
	case "state":
		return oneOf(value, stateNames[:], func(e *Entry) string { return e.State.String() })
	case "flag":
		return flagCondition(value)
	case "message":
		id, err := mail.ParseMessageID(value)
		return func(e *Entry, _ time.Time) bool { return e.Envelope.ID.Message() == id }, err
	case "error":
		re, err := regexp.Compile("(?i)" + value)
		if err != nil {
			return nil, err
		}
		return func(e *Entry, _ time.Time) bool { return re.MatchString(e.Envelope.LastError) }, nil
	case "age":
		return ageCondition(op, value)
	}
	return triesCondition(op, value)
}

// fold makes patterns and what they are compared with lower-case.
func fold(s string) string { return strings.ToLower(s) }

func patternCondition(pattern string, texts func(*Entry) []string) (condition, error) {
	pattern = fold(pattern)
	return func(e *Entry, _ time.Time) bool {
		return slices.ContainsFunc(texts(e), func(s string) bool { return mail.MatchPattern(pattern, fold(s)) })
	}, nil
}

func addressCondition(pattern string, addrs func(*Entry) []mail.Address) (condition, error) {
	if pattern == "<>" {
		return func(e *Entry, _ time.Time) bool { return addrs(e)[0].IsNull() }, nil
	}
	pattern = strings.TrimSuffix(strings.TrimPrefix(pattern, "<"), ">")
	return patternCondition(pattern, func(e *Entry) []string {
		var list []string
		for _, a := range addrs(e) {
			if !a.IsNull() {
				list = append(list, a.String())
			}
		}
		return list
	})
}

func oneOf(value string, words []string, text func(*Entry) string) (condition, error) {
	if !slices.Contains(words, value) {
		return nil, fmt.Errorf("the values are %s", strings.Join(words, " "))
	}
	return func(e *Entry, _ time.Time) bool { return text(e) == value }, nil
}

func flagCondition(value string) (condition, error) {
	if !slices.ContainsFunc(flagNames[:], func(f flagName) bool { return f.name == value }) {
		return nil, errors.New("no such flag")
	}
	return func(e *Entry, _ time.Time) bool { return slices.Contains(e.FlagNames(), value) }, nil
}

var errDuration = errors.New("not a duration like 2h or 1d12h")

// ParseDuration reads a time like 90s, 2h or 1d12h.
func ParseDuration(value string) (time.Duration, error) {
	days, rest := time.Duration(0), value
	if n, tail, ok := strings.Cut(value, "d"); ok { // days, which time does not know
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, errDuration
		}
		days, rest = time.Duration(v)*24*time.Hour, tail
	}
	d := time.Duration(0)
	if rest != "" {
		var err error
		if d, err = time.ParseDuration(rest); err != nil || d < 0 {
			return 0, errDuration
		}
	}
	if d+days < 0 {
		return 0, errDuration // more than fits
	}
	return d + days, nil
}

func ageCondition(op byte, value string) (condition, error) {
	d, err := ParseDuration(value)
	if err != nil {
		return nil, err
	}
	return func(e *Entry, now time.Time) bool {
		age := now.Sub(e.Envelope.Created)
		return op == '>' && age > d || op == '<' && age < d
	}, nil
}

func triesCondition(op byte, value string) (condition, error) {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return nil, errors.New("not a number")
	}
	return func(e *Entry, _ time.Time) bool {
		return op == '>' && e.Envelope.Retry > uint16(n) || op == '<' && e.Envelope.Retry < uint16(n)
	}, nil
}
