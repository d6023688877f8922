package smtp

import (
	"slices"
	"testing"

	"smtpd/internal/imsg"
	engine "smtpd/internal/smtp"
)

// TestGenerations: a configuration is of use until its last session ends, and
// sessions by too many of them end.
func TestGenerations(t *testing.T) {
	var g generations
	g.begin(1)
	session := func(generation uint64) *engine.Session {
		sess := &engine.Session{}
		g.enter(generation)
		g.is(sess, generation)
		return sess
	}
	a, b := session(1), session(1)
	g.begin(2)
	c := session(2)
	if got := g.used(); !slices.Equal(got, []uint64{1}) {
		t.Errorf("used %v", got)
	}
	if g.leave(a) || !g.leave(b) {
		t.Error("it is the last session that counts")
	}
	if g.leave(c) || len(g.used()) != 0 {
		t.Error("the present one is always of use")
	}
	var oldest *engine.Session
	for n := uint64(2); n < 2+imsg.MaxGenerations; n++ {
		if end := g.begin(n); len(end) != 0 {
			t.Fatalf("at %d sessions have to end", n)
		}
		if s := session(n); oldest == nil {
			oldest = s
		}
	}
	if end := g.begin(2 + imsg.MaxGenerations); len(end) != 0 {
		t.Errorf("%d end, not one too early", len(end))
	}
	session(2 + imsg.MaxGenerations)
	if end := g.begin(3 + imsg.MaxGenerations); len(end) != 1 || end[0] != oldest {
		t.Errorf("%d have to end, want the oldest", len(end))
	}
	if len(g.used()) != imsg.MaxGenerations {
		t.Errorf("%d used", len(g.used()))
	}
}
