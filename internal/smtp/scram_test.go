package smtp

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"

	"smtpd/internal/auth"
	"smtpd/internal/config"
)

// verifier makes what a server keeps of a password.
func verifier(t testing.TB, password, salt string, n int) *auth.Verifier {
	t.Helper()
	salted, err := pbkdf2.Key(sha256.New, password, []byte(salt), n, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	client := sum(salted, []byte("Client Key"))
	return &auth.Verifier{Salt: []byte(salt), Iterations: n, StoredKey: sha256.Sum256(client[:]), ServerKey: sum(salted, []byte("Server Key"))}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func unb64(t testing.TB, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The example of RFC 7677 section 3.
func TestScramExample(t *testing.T) {
	v := verifier(t, "pencil", unb64(t, "W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	s := &scramServer{nonce: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", verifier: func(user string) (*auth.Verifier, error) {
		if user != "user" {
			return nil, ErrCredentials
		}
		return v, nil
	}}
	steps := [][2]string{
		{"n,,n=user,r=rOprNGfwEbeRWgbNEkqO", "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"},
		{"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
			"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="},
	}
	for _, step := range steps {
		got, done, err := s.Next([]byte(step[0]))
		if err != nil || done || string(got) != step[1] {
			t.Fatalf("got %q, %v, %v; want %q", got, done, err, step[1])
		}
	}
	if _, done, err := s.Next([]byte{}); !done || err != nil {
		t.Errorf("got %v, %v at the end", done, err)
	}
}

// proof is the client's last message for what the server said.
func proof(t testing.TB, password, gs2, bare, first string) string {
	t.Helper()
	f := strings.Split(first, ",")
	n, _ := strconv.Atoi(f[2][2:])
	salted, err := pbkdf2.Key(sha256.New, password, []byte(unb64(t, f[1][2:])), n, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	final := "c=" + b64(gs2) + "," + f[0]
	key := sum(salted, []byte("Client Key"))
	stored := sha256.Sum256(key[:])
	sig := sum(stored[:], []byte(bare+","+first+","+final))
	for i := range key {
		key[i] ^= sig[i]
	}
	return final + ",p=" + b64(string(key[:]))
}

func TestScramSession(t *testing.T) {
	tests := map[string]struct {
		user, password string
		want           string
	}{
		"right":          {"alice", "secret", "235 2.7.0 Authentication succeeded"},
		"odd name":       {"a=2Cb=3Dc", "secret", "235 2.7.0 Authentication succeeded"},
		"wrong password": {"alice", "wrong", replyAuthFailed},
		"unknown user":   {"nobody", "secret", replyAuthFailed},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := newSetup().withTLS(t, config.TLSImplicit)
			u.l.Auth, u.c.ScramSecret = true, []byte("x")
			v := verifier(t, "secret", "salt", 4096)
			u.b.verifiers = map[string]*auth.Verifier{"alice": v, "a,b=c": v}
			c := u.dial(t)
			c.startTLS()
			c.reply()
			if got := c.cmd("EHLO c"); !strings.Contains(got, "\n250-AUTH PLAIN LOGIN SCRAM-SHA-256\n") {
				t.Fatalf("got %q", got)
			}
			bare := "n=" + tt.user + ",r=abc"
			if got := c.cmd("AUTH SCRAM-SHA-256"); got != "334 " {
				t.Fatalf("got %q", got)
			}
			first := unb64(t, strings.TrimPrefix(c.cmd(b64("n,,"+bare)), "334 "))
			got := c.cmd(b64(proof(t, tt.password, "n,,", bare, first)))
			if strings.HasPrefix(got, "334 ") {
				got = c.cmd("")
			}
			if got != tt.want {
				t.Errorf("got %q; want %q", got, tt.want)
			}
		})
	}
}

func TestScramMalformed(t *testing.T) {
	v := verifier(t, "secret", "salt", 4096)
	ok := func(string) (*auth.Verifier, error) { return v, nil }
	for _, msg := range []string{"", "n,,", "n,,n=a", "n,,n=,r=x", "n,,n=a,r=", "p=tls-unique,,n=a,r=x", "x,,n=a,r=x", "n,b=c,n=a,r=x", "n,,n=a=b,r=x", "n,,n=a\n,r=x", "n,,m=x,n=a,r=x", "n,,n=a,r=" + strings.Repeat("x", 300)} {
		s := &scramServer{nonce: "n", verifier: ok}
		if got, done, err := s.Next([]byte(msg)); !errors.Is(err, errSASL) || done {
			t.Errorf("%.40q: got %q, %v, %v", msg, got, done, err)
		}
	}
	for _, msg := range []string{"", "c=biws,r=xn", "c=biws,r=xn,p=", "c=biws,r=x,p=" + b64(strings.Repeat("x", 32)), "c=eSws,r=xn,p=" + b64(strings.Repeat("x", 32)), "c=biws,r=xn,p=" + b64("short"), "c=biws,r=xnmore,p=" + b64(strings.Repeat("x", 32))} {
		s := &scramServer{nonce: "n", verifier: ok}
		if _, _, err := s.Next([]byte("n,,n=a,r=x")); err != nil {
			t.Fatal(err)
		}
		if got, done, err := s.Next([]byte(msg)); !errors.Is(err, errSASL) || done {
			t.Errorf("%q: got %q, %v, %v", msg, got, done, err)
		}
	}
}

func TestParseVerifier(t *testing.T) {
	key := b64(strings.Repeat("k", 32))
	good := "SCRAM-SHA-256$4096:" + b64("salt") + "$" + key + ":" + key
	if v, ok := auth.ParseVerifier(good); !ok || v.Iterations != 4096 || string(v.Salt) != "salt" || v.ServerKey[31] != 'k' {
		t.Errorf("got %+v, %v", v, ok)
	}
	for _, s := range []string{"", "$6$x$y", "SCRAM-SHA-256$", strings.Replace(good, "4096", "1", 1), strings.Replace(good, "4096", "99999999", 1), good + "x", strings.Replace(good, b64("salt"), "", 1), strings.TrimSuffix(good, key)} {
		if _, ok := auth.ParseVerifier(s); ok {
			t.Errorf("%q is accepted", s)
		}
	}
}

func FuzzScram(f *testing.F) {
	f.Add("n,,n=user,r=abc", "c=biws,r=abcn,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	v := verifier(f, "secret", "salt", 4096)
	f.Fuzz(func(t *testing.T, a, b string) {
		s := &scramServer{nonce: "n", verifier: func(string) (*auth.Verifier, error) { return v, nil }}
		if _, _, err := s.Next([]byte(a)); err != nil {
			return
		}
		if _, done, err := s.Next([]byte(b)); err == nil || done {
			t.Fatalf("%q, %q log in", a, b)
		}
	})
}
