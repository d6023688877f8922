package auth

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// Hashes of "secret" made by crypt(3) of libxcrypt 4.4.
var known = map[string]string{
	"yescrypt":           "$y$j9T$abcdefgh$IUWJt2doU4Kf6E/JP1UkAT3S5O3Q7SSA8SJirXIlEu9",
	"yescrypt, dearer":   "$y$jCT$abcdefghi.$jVpoHgCWbiLXdR60VclDjxheowbKVXmkgkEb42qdc8B",
	"sha512":             "$6$saltsalt$TVLlQcbpFVof5W3Yz4DTP6gRstiNuHwwTt6GLc1E5n0U0aDehy0S5knV8wiOQSpT0Y77vwPZN.Pq.H91p5hVO1",
	"sha512 with rounds": "$6$rounds=10000$saltsalt$WowrPBpEDVlCoruBosYlrZycTCx3//TyDHYqEhX9DUHHt0XTztUqzQDDUuvUGRA8aUe9p55hcAxeGcu58sm3u.",
	"sha256":             "$5$saltsalt$0IyaXrmV7.sGNS6tirgqHLqX/G.FBvgkYA.lpPdS5sA",
	"bcrypt b":           "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
	"bcrypt a":           "$2a$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
	"bcrypt y":           "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a",
	"md5":                "$1$saltsalt$9xy1btjgzLYfb7hivXtC//",
	"sha1":               "$sha1$40000$saltsalt$aEtYZcbid.RsDjsyIwriGgHxH8BG",
}

func pool(t testing.TB, workers int) *Pool {
	t.Helper()
	p, err := NewPool(workers)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestVerify(t *testing.T) {
	p := pool(t, 2)
	for name, hash := range known {
		t.Run(name, func(t *testing.T) {
			if err := Check(hash); err != nil {
				t.Errorf("check: %v", err)
			}
			for password, want := range map[string]bool{"secret": true, "Secret": false, "": false, "secret\x00x": false,
				strings.Repeat("s", 100): false, strings.Repeat("s", MaxPassword+1): false} {
				got, err := p.Verify(t.Context(), hash, password)
				if got != want || err != nil {
					t.Errorf("%.10q: got %v, %v, want %v", password, got, err, want)
				}
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	p := pool(t, 1)
	tests := map[string]struct {
		hash string
		want error // nil: no password fits
	}{
		"none":              {"", nil},
		"star":              {"*", nil},
		"locked":            {"!$6$saltsalt$TVLl", nil},
		"shadow":            {"x", nil},
		"clear text":        {"secret", ErrForm},
		"des":               {"ab01FAX.bQRSU", ErrForm},
		"plaintext":         {"$plaintext$secret", ErrForm},
		"unknown":           {"$99$salt$hash", ErrForm},
		"gost yescrypt":     {"$gy$j9T$abcdefgh$IUWJ", ErrForm},
		"bcrypt cost":       {"$2b$31$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", ErrCost},
		"bcrypt no cost":    {"$2b$xx$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a", ErrForm},
		"rounds":            {"$6$rounds=999999999$saltsalt$TVLl", ErrCost},
		"rounds, far more":  {"$5$rounds=99999999999999999999$saltsalt$TVLl", ErrCost},
		"scrypt":            {"$scrypt$ln=28,r=8,p=1$c2FsdHNhbHQ$a2V5", ErrCost},
		"scrypt passes":     {"$scrypt$ln=10,r=8,p=999$c2FsdHNhbHQ$a2V5", ErrCost},
		"argon2 memory":     {"$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$a2V5", ErrCost},
		"argon2 time":       {"$argon2id$v=19$m=64,t=4000,p=1$c2FsdHNhbHQ$a2V5", ErrCost},
		"pbkdf2 rounds":     {"$pbkdf2-sha512$999999999$c2FsdHNhbHQ$a2V5", ErrCost},
		"yescrypt settings": {"$y$$abcdefgh$IUWJ", ErrForm},
		"yescrypt memory":   {"$y$jPz$abcdefgh$IUWJ", ErrCost},
		"cut short":         {"$6$", ErrForm},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := p.Verify(t.Context(), tt.hash, "secret")
			if got || !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestHash(t *testing.T) {
	p := pool(t, 2)
	prefixes := map[Algorithm]string{SHA512: "$6$", SHA256: "$5$", Bcrypt: "$2b$11$", Yescrypt: "$y$j9T$"}
	for _, a := range Algorithms() {
		t.Run(string(a), func(t *testing.T) {
			hash, err := Hash("pässword", a)
			if err != nil {
				t.Fatal(err)
			}
			again, _ := Hash("pässword", a)
			if !strings.HasPrefix(hash, prefixes[a]) || strings.Contains(hash, "rounds") || hash == again {
				t.Errorf("got %s, then %s", hash, again)
			}
			if ok, err := p.Verify(t.Context(), hash, "pässword"); !ok || err != nil {
				t.Errorf("its own hash: got %v, %v", ok, err)
			}
			if b, ok := ParseAlgorithm(string(a)); !ok || b != a {
				t.Errorf("the name %s gives %s", a, b)
			}
		})
	}
	for _, password := range []string{"", "a\x00b", strings.Repeat("p", MaxPassword+1)} {
		if h, err := Hash(password, SHA512); err == nil {
			t.Errorf("%.5q: got %s", password, h)
		}
	}
	if _, err := Hash("x", "rot13"); !errors.Is(err, ErrForm) {
		t.Errorf("got %v, want %v", err, ErrForm)
	}
	if _, ok := ParseAlgorithm("rot13"); ok {
		t.Error("rot13 is an algorithm")
	}
}

func TestPoolIsBounded(t *testing.T) {
	p := pool(t, 1)
	p.workers <- struct{}{} // the worker is busy
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Verify(ctx, known["sha512"], "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	for range waiting {
		p.queue <- struct{}{}
	}
	if _, err := p.Verify(t.Context(), known["sha512"], "x"); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want %v", err, ErrBusy)
	}
	<-p.queue
	<-p.workers
	if ok, err := p.Verify(t.Context(), known["sha512"], "secret"); !ok || err != nil {
		t.Errorf("afterwards: got %v, %v", ok, err)
	}
}

func TestNobodyTakesAsLong(t *testing.T) {
	p := pool(t, 1)
	if err := p.VerifyNobody(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if p.model.Load() != nil {
		t.Error("the made-up hash became the model")
	}
	p.Verify(t.Context(), known["yescrypt"], "x")
	if m := p.model.Load(); m == nil || *m != known["yescrypt"] {
		t.Error("the hash in use is not the model")
	}
}

func FuzzCheck(f *testing.F) {
	for _, h := range known {
		f.Add(h)
	}
	f.Add("$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$a2V5")
	d, err := newDecoder()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, hash string) {
		if Check(hash) == nil && !Locked(hash) {
			d.Decode(hash) // must not panic
		}
	})
}

func BenchmarkSHA512(b *testing.B) {
	p := pool(b, 1)
	b.ReportAllocs()
	for b.Loop() {
		p.Verify(b.Context(), known["sha512"], "secret")
	}
}
