package mail

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestAddress(t *testing.T) {
	tests := map[string]Address{
		"":                    {},
		"user":                {User: "user"},
		"u@d":                 {"u", "d"},
		"a@b@c":               {"a@b", "c"},
		`"a@b"@[192.0.2.1]`:   {`"a@b"`, "[192.0.2.1]"},
		"Case@Kept.Example":   {"Case", "Kept.Example"},
		"müller@dömäin.test":  {"müller", "dömäin.test"},
		"u@[IPv6:2001:db8::]": {"u", "[IPv6:2001:db8::]"},
	}
	for s, want := range tests {
		got := SplitAddress(s)
		if got != want || got.String() != s {
			t.Errorf("%q: got %+v, printed %q", s, got, got)
		}
		if got.IsNull() != (s == "") {
			t.Errorf("%q: IsNull %v", s, got.IsNull())
		}
	}
	if a := SplitAddress("@d"); a != (Address{"", "d"}) || a.IsNull() {
		t.Errorf("a domain alone: %+v", a)
	}
}

func TestSplitTag(t *testing.T) {
	tests := []struct{ user, delim, name, tag string }{
		{"u+tag", "+", "u", "tag"},
		{"u+a+b", "+", "u", "a+b"},
		{"u", "+", "u", ""},
		{"u+", "+", "u", ""},
		{"+tag", "+", "", "tag"},
		{"u-tag", "-", "u", "tag"},
		{"u+tag", "", "u+tag", ""},
		{"u--tag", "--", "u", "tag"},
	}
	for _, tt := range tests {
		name, tag := Address{User: tt.user}.SplitTag(tt.delim)
		if name != tt.name || tag != tt.tag {
			t.Errorf("%q at %q: got %q, %q; want %q, %q", tt.user, tt.delim, name, tag, tt.name, tt.tag)
		}
	}
}

func TestIDs(t *testing.T) {
	m := MessageID(0x4e18854c)
	e := m.Envelope(0x390c2ac2)
	if m.String() != "4e18854c" || e.String() != "4e18854c390c2ac2" || e.Message() != m {
		t.Fatalf("%v %v %v", m, e, e.Message())
	}
	if MessageID(1).String() != "00000001" || SessionID(0).String() != "0000000000000000" {
		t.Fatal("leading zeros are lost")
	}
	if got, err := ParseMessageID("4e18854c"); got != m || err != nil {
		t.Errorf("%v %v", got, err)
	}
	if got, err := ParseEnvelopeID("4e18854c390c2ac2"); got != e || err != nil {
		t.Errorf("%v %v", got, err)
	}
	for _, s := range []string{"", "0", "4e18854", "4e18854c0", "00000000", "+e18854c", "-e18854c", "0x18854c",
		"4e18854g", " 4e18854", "4e_8854c", "4e18854c390c2ac2"} {
		if got, err := ParseMessageID(s); err == nil {
			t.Errorf("message %q: %v", s, got)
		}
	}
	for _, s := range []string{"", "4e18854c", "0000000000000000", "4e18854c390c2ac", "4e18854c390c2ac23"} {
		if got, err := ParseEnvelopeID(s); err == nil {
			t.Errorf("envelope %q: %v", s, got)
		}
	}
}

func TestKind(t *testing.T) {
	for k, want := range map[Kind]string{KindMDA: "mda", KindMTA: "mta", KindBounce: "bounce", 0: "?", 9: "?"} {
		if k.String() != want {
			t.Errorf("%d: got %q; want %q", k, k, want)
		}
	}
}

// Numbers that are stored in the queue must not move.
func TestStoredNumbers(t *testing.T) {
	for got, want := range map[int]int{
		int(KindMDA): 1, int(FlagRequireTLS): 32, int(FlagHold): 128, int(NotifyNever): 8, int(NoticeRelayed): 4, int(RetHeaders): 2,
	} {
		if got != want {
			t.Errorf("got %d; want %d", got, want)
		}
	}
}

func TestExpires(t *testing.T) {
	e := Envelope{Created: time.Unix(1000, 5), TTL: time.Hour}
	if got := e.Expires(); !got.Equal(time.Unix(4600, 5)) {
		t.Errorf("got %v", got)
	}
}

func TestStatus(t *testing.T) {
	tests := []struct {
		s                   string
		want                Status
		ok, perm, temporary bool
	}{
		{"250 2.0.0 Ok: queued", Status{250, [3]uint8{2, 0, 0}, "Ok: queued"}, true, false, false},
		{"550 Invalid recipient", Status{550, [3]uint8{}, "Invalid recipient"}, false, true, false},
		{"450 4.2.255 full", Status{450, [3]uint8{4, 2, 255}, "full"}, false, false, true},
		{"354 go on", Status{354, [3]uint8{}, "go on"}, false, false, true},
		{"250 3.0.0 no class", Status{250, [3]uint8{}, "3.0.0 no class"}, true, false, false},
		{"250 2.0.256 too high", Status{250, [3]uint8{}, "2.0.256 too high"}, true, false, false},
		{"250 2.0.0.1 too long", Status{250, [3]uint8{}, "2.0.0.1 too long"}, true, false, false},
	}
	for _, tt := range tests {
		got, ok := ParseStatus(tt.s)
		if !ok || *got != tt.want || got.String() != tt.s || got.Error() != tt.s {
			t.Errorf("%q: got %+v, %v", tt.s, got, ok)
			continue
		}
		if got.OK() != tt.ok || got.Permanent() != tt.perm || got.Temporary() != tt.temporary {
			t.Errorf("%q: ok %v, permanent %v, temporary %v", tt.s, got.OK(), got.Permanent(), got.Temporary())
		}
	}
	for _, s := range []string{"", "25", "2500", "250-more", "199 low", "600 high", "abc x", "+25 x", " 250 x"} {
		if got, ok := ParseStatus(s); ok {
			t.Errorf("%q: %+v", s, got)
		}
	}
	if got, ok := ParseStatus("250"); !ok || got.Text != "" || got.Code != 250 {
		t.Errorf("a bare code: %+v, %v", got, ok)
	}
	if !LocalError().Temporary() || (&Status{}).OK() || (&Status{}).Permanent() {
		t.Error("in doubt a failure is temporary")
	}
	if s := NewStatus(550, [3]uint8{5, 1, 1}, "a\r\nb"+strings.Repeat("x", 1000)); len(s.Text) != MaxStatusText || strings.ContainsAny(s.Text, "\r\n") {
		t.Errorf("%d octets: %.20q", len(s.Text), s.Text)
	}
}

func TestClean(t *testing.T) {
	tests := []struct {
		in   string
		max  int
		want string
	}{
		{"plain", 10, "plain"},
		{"plain", 3, "pla"},
		{"a\tb\r\nc\x00\x7f", 20, "a?b??c??"},
		{"é", 1, ""},
		{"aé", 2, "a"},
		{"aé", 3, "aé"},
		{"\xff\xfe", 9, "?"},
		{"a\xffb", 9, "a?b"},
		{"\u0085\u009b1m", 9, "??1m"},
		{"\x80\x80\x80", 2, ""},
		{"x", 0, ""},
		{"日本語", 7, "日本"},
	}
	for _, tt := range tests {
		if got := Clean(tt.in, tt.max); got != tt.want {
			t.Errorf("Clean(%q, %d): got %q; want %q", tt.in, tt.max, got, tt.want)
		}
	}
}

func FuzzStatus(f *testing.F) {
	for _, s := range []string{"250 2.0.0 Ok", "550", "451 4.3.0 \r\n", "250 2.0.0 5.1.1 x"} {
		f.Add(s, 10)
	}
	f.Fuzz(func(t *testing.T, s string, max int) {
		if max < 0 || max > 1<<20 {
			return
		}
		c := Clean(s, max)
		if len(c) > max || !utf8.ValidString(c) || strings.ContainsFunc(c, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Fatalf("Clean(%q, %d): %q", s, max, c)
		}
		if Clean(c, max) != c {
			t.Fatalf("Clean twice: %q", c)
		}
		st, ok := ParseStatus(s)
		if !ok {
			return
		}
		// What was read and is printed reads the same, unless the text begins like an
		// enhanced code itself.
		again, ok := ParseStatus(st.String())
		if !ok || (again.Enh == st.Enh && *again != *st) {
			t.Fatalf("%q: %+v, then %+v", s, st, again)
		}
	})
}
