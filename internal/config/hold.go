package config

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

// Hold is when the mail of an action that holds it may leave by itself. Without
// windows it never does: it waits for an operator.
type Hold struct {
	Windows []Window
}

// Window is a time of the week, by the clock of this host.
type Window struct {
	Days     uint8 // bit n: begins on time.Weekday(n)
	From, To int   // minutes since midnight; To not behind From: it ends on the next day
}

// MaxWindows bounds the windows of one action. Ours.
const MaxWindows = 64

const day = 24 * 60

var errWindow = errors.New(`expected times and perhaps days, such as "22:00-06:00" or "Mon-Fri 01:30-04:00"`)

// ParseWindow reads "[DAY[-DAY][,DAY...] ]HH:MM-HH:MM"; days are the first three
// letters of their English names, of any case, and 24:00 is the end of a day.
func ParseWindow(s string) (Window, error) {
	w := Window{Days: 1<<7 - 1}
	fields := strings.Fields(s)
	if len(fields) == 2 {
		w.Days = 0
		for _, part := range strings.Split(fields[0], ",") {
			first, last, isRange := strings.Cut(part, "-")
			from, ok1 := weekday(first)
			to, ok2 := from, true
			if isRange {
				to, ok2 = weekday(last)
			}
			if !ok1 || !ok2 {
				return Window{}, errWindow
			}
			for d := from; ; d = (d + 1) % 7 {
				w.Days |= 1 << d
				if d == to {
					break
				}
			}
		}
		fields = fields[1:]
	}
	if len(fields) != 1 {
		return Window{}, errWindow
	}
	from, to, _ := strings.Cut(fields[0], "-")
	var ok1, ok2 bool
	w.From, ok1 = clock(from)
	w.To, ok2 = clock(to)
	if !ok1 || !ok2 || w.From == day || w.From == w.To {
		return Window{}, errWindow
	}
	return w, nil
}

func weekday(s string) (time.Weekday, bool) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(s, d.String()[:3]) {
			return d, true
		}
	}
	return 0, false
}

// clock reads HH:MM as minutes since midnight.
func clock(s string) (int, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	h, err1 := strconv.ParseUint(s[:2], 10, 8)
	m, err2 := strconv.ParseUint(s[3:], 10, 8)
	if err1 != nil || err2 != nil || h > 24 || m > 59 || h == 24 && m > 0 {
		return 0, false
	}
	return int(h)*60 + int(m), true
}

// String is the window as ParseWindow reads it.
func (w Window) String() string {
	var names []string
	for d := time.Sunday; d <= time.Saturday; d++ {
		if w.Days&(1<<d) != 0 {
			names = append(names, d.String()[:3])
		}
	}
	text := minutes(w.From) + "-" + minutes(w.To)
	if len(names) == 7 {
		return text
	}
	return strings.Join(names, ",") + " " + text
}

func minutes(n int) string {
	two := func(n int) string { return strconv.Itoa(n/10) + strconv.Itoa(n%10) }
	return two(n/60) + ":" + two(n%60)
}

// on is the window that begins on the day of t, if there is one.
func (w Window) on(t time.Time) (from, to time.Time, ok bool) {
	if w.Days&(1<<t.Weekday()) == 0 {
		return from, to, false
	}
	y, m, d := t.Date()
	end := w.To
	if end <= w.From {
		end += day
	}
	at := func(n int) time.Time { return time.Date(y, m, d, 0, n, 0, 0, t.Location()) }
	return at(w.From), at(end), true
}

// Open reports whether mail may leave at a time, and until when that holds: the
// zero time when nothing changes by itself.
func (h *Hold) Open(t time.Time) (open bool, until time.Time) {
	noon := time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, t.Location())
	var next time.Time
	end := t
	for n := -1; n <= 8; n++ { // days; windows of one follow those of the one before
		for range h.Windows { // one may begin where another ends
			for _, w := range h.Windows {
				from, to, ok := w.on(noon.AddDate(0, 0, n))
				switch {
				case !ok:
				case !from.After(end) && to.After(end):
					open, end = true, to
				case from.After(t) && (next.IsZero() || from.Before(next)):
					next = from
				}
			}
		}
	}
	switch {
	case !open:
		return false, next
	case end.Sub(t) > 7*24*time.Hour:
		return true, time.Time{} // the week has no gap
	}
	return true, end
}
