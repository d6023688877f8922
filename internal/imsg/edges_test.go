package imsg

import (
	"slices"
	"testing"
)

// processes are all roles, the workers included.
var processes = append([]Role{Parent, Deliver}, Children...)

func TestRoles(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range processes {
		s := r.String()
		got, ok := ParseRole(s)
		if !ok || got != r || seen[s] || s == "?" {
			t.Errorf("role %d: %q, %v, %v", r, s, got, ok)
		}
		seen[s] = true
	}
	if len(seen) != int(Deliver) {
		t.Errorf("%d roles named; want %d", len(seen), Deliver)
	}
	for _, s := range []string{"", "?", "Parent", "smtpd"} {
		if r, ok := ParseRole(s); ok {
			t.Errorf("ParseRole(%q): %v", s, r)
		}
	}
	if Role(99).String() != "?" || Role(0).String() != "?" {
		t.Error("an unknown role has a name")
	}
}

// Descriptors come with what may come at all.
func TestCarriers(t *testing.T) {
	for _, n := range carriers {
		if n.make() == nil || !MayCarry(n) {
			t.Errorf("type %d", n)
		}
	}
	if MayCarry(TypeSign) || MayCarry(0) {
		t.Error("a descriptor may come with anything")
	}
}

// both are types that answer and are also sent unasked.
var both = []Type{TypeSwitches}

func TestEdges(t *testing.T) {
	used := map[Type]bool{}
	for from := range allowed {
		for to, types := range allowed[from] {
			from, to := Role(from), Role(to)
			if len(types) > 0 && (!slices.Contains(processes, from) || !slices.Contains(processes, to) || from == to) {
				t.Errorf("edge %v -> %v", from, to)
			}
			for i, n := range types {
				used[n] = true
				if n.make() == nil {
					t.Errorf("%v -> %v: type %d is not an imsg", from, to, n)
				}
				if slices.Contains(types[:i], n) {
					t.Errorf("%v -> %v: type %d twice", from, to, n)
				}
				if !May(from, to, n) {
					t.Errorf("%v -> %v: type %d is listed and may not", from, to, n)
				}
			}
		}
	}
	for q, a := range replies {
		q := Type(q)
		if a == 0 {
			continue
		}
		if !used[q] {
			t.Errorf("type %d is answered and never sent", q)
		}
		if used[a] && !slices.Contains(both, a) {
			t.Errorf("type %d is an answer and is on an edge", a)
		}
		if ReplyOf(a) != 0 {
			t.Errorf("type %d answers %d and is answered itself", a, q)
		}
		if ReplyOf(q) != a {
			t.Errorf("ReplyOf(%d): %d; want %d", q, ReplyOf(q), a)
		}
	}
	for _, a := range replies {
		used[a] = used[a] || a != 0
	}
	for n := Type(1); n <= lastType; n++ {
		if n.make() != nil && !used[n] {
			t.Errorf("%s is on no edge", name1(n.make()))
		}
	}
}

func TestNothingElseIsAllowed(t *testing.T) {
	for _, tt := range []struct {
		from, to Role
		t        Type
	}{
		{SMTP, Scheduler, TypeAttempt},    // no such edge
		{Queue, Scheduler, TypeAttempt},   // the wrong direction
		{SMTP, Queue, TypeResults},        // another's words
		{Keys, SMTP, TypeSignature},       // an answer that nobody asked for
		{SMTP, SMTP, TypeSign},            // oneself
		{Deliver, MDA, TypeDeliverResult}, // an answer, too
		{0, 0, 0},
		{Deliver + 1, Keys, TypeSign}, // who is that?
		{SMTP, 255, TypeSign},
	} {
		if May(tt.from, tt.to, tt.t) {
			t.Errorf("%v may send %d to %v", tt.from, tt.t, tt.to)
		}
	}
}

func TestReplyOfNothing(t *testing.T) {
	for _, n := range []Type{0, TypeShutdown, lastType + 1, 1<<16 - 1} {
		if a := ReplyOf(n); a != 0 {
			t.Errorf("%d is answered by %d", n, a)
		}
	}
}

func TestNeighbours(t *testing.T) {
	for _, a := range Children {
		n := Neighbours(a)
		if slices.Contains(n, a) || slices.Contains(n, Parent) || slices.Contains(n, Deliver) {
			t.Errorf("neighbours of %v: %v", a, n)
		}
		for _, b := range n {
			if !slices.Contains(Neighbours(b), a) {
				t.Errorf("%v has the neighbour %v, but not the other way round", a, b)
			}
			if !Connected(a, b) {
				t.Errorf("%v and %v are not connected", a, b)
			}
		}
		for _, b := range Children {
			talk := len(allowed[a][b])+len(allowed[b][a]) > 0
			if talk != slices.Contains(n, b) {
				t.Errorf("%v and %v: talk %v, neighbours %v", a, b, talk, !talk)
			}
		}
		for _, imsg := range []Type{TypeConfigure, TypePeerLink, TypeSwitches, TypeShutdown} {
			if !May(Parent, a, imsg) {
				t.Errorf("the parent may not send %d to %v", imsg, a)
			}
		}
		for _, imsg := range []Type{TypeReady, TypeFatal, TypeViolation} {
			if !May(a, Parent, imsg) {
				t.Errorf("%v may not send %d to the parent", a, imsg)
			}
		}
		if a != Control && !May(Control, a, TypeStatsGet) {
			t.Errorf("control may not ask %v for its counters", a)
		}
	}
}
