package auth

import (
	"errors"
	"testing"
)

// scramPencil is "pencil" with the salt of RFC 7677 section 3, its keys as
// computed by Python's hashlib.
const scramPencil = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$" +
	"WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="

// TestVerifyScram: PLAIN and LOGIN work against what SCRAM keeps.
func TestVerifyScram(t *testing.T) {
	p := pool(t, 1)
	if err := Check(scramPencil); err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{"pencil": true, "Pencil": false, "": false} {
		if got, err := p.Verify(t.Context(), scramPencil, password); got != want || err != nil {
			t.Errorf("%q: got %v, %v, want %v", password, got, err, want)
		}
	}
	tests := map[string]struct {
		hash string
		want error
	}{
		"too dear":     {"SCRAM-SHA-256$99999999:W22ZaJ0SNY7soEsUEjb6gQ==$a:b", ErrCost},
		"too cheap":    {"SCRAM-SHA-256$1" + scramPencil[len("SCRAM-SHA-256$4096"):], ErrForm},
		"cut":          {scramPencil[:60], ErrForm},
		"no keys":      {"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==", ErrForm},
		"another hash": {"SCRAM-SHA-1$4096:W22ZaJ0SNY7soEsUEjb6gQ==$a:b", ErrForm},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if ok, err := p.Verify(t.Context(), test.hash, "pencil"); ok || !errors.Is(err, test.want) {
				t.Errorf("got %v, %v, want %v", ok, err, test.want)
			}
		})
	}
}
