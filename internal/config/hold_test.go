package config

import (
	"strings"
	"testing"
	"time"
)

func TestParseWindow(t *testing.T) {
	tests := map[string]string{ // "": refused
		"22:00-06:00":              "22:00-06:00",
		"00:00-24:00":              "00:00-24:00",
		"mon-FRI 01:30-04:05":      "Mon,Tue,Wed,Thu,Fri 01:30-04:05",
		"Sat-Sun 00:00-24:00":      "Sun,Sat 00:00-24:00",
		"Tue,Thu  12:00-13:00":     "Tue,Thu 12:00-13:00",
		"Fri-Mon,Wed 23:00-01:00":  "Sun,Mon,Wed,Fri,Sat 23:00-01:00",
		"":                         "",
		"22:00":                    "",
		"22:00-22:00":              "",
		"24:00-06:00":              "",
		"24:01-06:00":              "",
		"9:00-10:00":               "",
		"09:60-10:00":              "",
		"Monday 09:00-10:00":       "",
		"Mon- 09:00-10:00":         "",
		"Mon 09:00-10:00 11:00-12": "",
		"-1:00-10:00":              "",
	}
	for in, want := range tests {
		w, err := ParseWindow(in)
		got := ""
		if err == nil {
			got = w.String()
			if again, err := ParseWindow(got); err != nil || again != w {
				t.Errorf("%q: %q reads as %v, %v", in, got, again, err)
			}
		}
		if got != want {
			t.Errorf("ParseWindow(%q): %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzParseWindow(f *testing.F) {
	f.Add("Fri-Mon,Wed 23:00-01:00")
	f.Fuzz(func(t *testing.T, s string) {
		w, err := ParseWindow(s)
		if err != nil {
			return
		}
		if again, err := ParseWindow(w.String()); err != nil || again != w {
			t.Errorf("%q: %q reads as %v, %v", s, w.String(), again, err)
		}
	})
}

func TestHoldOpen(t *testing.T) {
	zone := time.FixedZone("X", 3*3600)
	// 21 November 2026 is a Saturday.
	at := func(s string) time.Time {
		v, err := time.ParseInLocation("2 15:04:05", s, zone)
		if err != nil {
			t.Fatal(err)
		}
		return v.AddDate(2026, 10, 0)
	}
	tests := map[string]struct{ windows, now, want string }{
		"none":                 {"", "21 12:00:00", "closed"},
		"later today":          {"22:00-06:00", "21 12:00:00", "closed 21 22:00:00"},
		"opens now":            {"22:00-06:00", "21 22:00:00", "open 22 06:00:00"},
		"over midnight":        {"22:00-06:00", "22 05:59:59", "open 22 06:00:00"},
		"closes now":           {"22:00-06:00", "22 06:00:00", "closed 22 22:00:00"},
		"begun yesterday only": {"Fri 22:00-06:00", "21 02:00:00", "open 21 06:00:00"},
		"not today":            {"Fri 22:00-06:00", "21 22:00:00", "closed 27 22:00:00"},
		"a week ahead":         {"Sat 10:00-11:00", "21 11:00:00", "closed 28 10:00:00"},
		"one behind the other": {"10:00-11:00|11:00-12:00", "21 10:30:00", "open 21 12:00:00"},
		"backwards":            {"11:00-12:00|10:30-11:30|09:00-10:45", "21 09:30:00", "open 21 12:00:00"},
		"the first of two":     {"18:00-19:00|14:00-15:00", "21 12:00:00", "closed 21 14:00:00"},
		"whole days":           {"Sat-Sun 00:00-24:00", "21 12:00:00", "open 23 00:00:00"},
		"always":               {"00:00-24:00", "21 12:00:00", "open"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := &Hold{}
			for _, s := range strings.Split(tt.windows, "|") {
				if s == "" {
					continue
				}
				w, err := ParseWindow(s)
				if err != nil {
					t.Fatal(err)
				}
				h.Windows = append(h.Windows, w)
			}
			open, until := h.Open(at(tt.now))
			got := map[bool]string{true: "open", false: "closed"}[open]
			if !until.IsZero() {
				got += until.Format(" 2 15:04:05")
			}
			if got != tt.want {
				t.Errorf("got %s; want %s", got, tt.want)
			}
		})
	}
}

// An hour that the clock skips or repeats makes a window shorter or longer, and
// never wrong for more than that.
func TestHoldSummerTime(t *testing.T) {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zones here")
	}
	w, _ := ParseWindow("01:00-04:00")
	h := &Hold{Windows: []Window{w}}
	for day, want := range map[int]time.Duration{29: 2 * time.Hour, 28: 3 * time.Hour} {
		start := time.Date(2026, 3, day, 1, 0, 0, 0, zone)
		if open, until := h.Open(start); !open || until.Sub(start) != want {
			t.Errorf("March %d: %v until %v", day, open, until)
		}
	}
}
