package smtp

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"smtpd/internal/auth"
	"smtpd/internal/mail"
)

// Bounds of SCRAM. Ours.
const (
	scramNonce      = 18  // octets of our part of the nonce
	maxScramNonce   = 256 // octets of the client's part
	scramSaltOctets = 16  // of a user who does not exist
)

// scramServer is the server's part of SCRAM-SHA-256 without channel binding, as
// a mechanism of go-sasl. A user who does not exist gets salt and nonce like
// any other and fails at the end.
type scramServer struct {
	verifier func(user string) (*auth.Verifier, error) // ErrCredentials: there is none
	secret   []byte                                    // makes the salt of unknown users
	nonce    string                                    // our part
	step     int
	gs2      string // header of the client's first message
	bare     string // the rest of it
	first    string // our first message
	v        *auth.Verifier
	unknown  bool
}

// Next implements sasl.Server.
func (t *scramServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if t.step == 0 && response == nil {
		return nil, false, nil // no initial response: the client begins now
	}
	t.step++
	switch t.step {
	case 1:
		challenge, err = t.begin(string(response))
	case 2:
		challenge, err = t.check(response)
	default:
		done = true // what the client says to our signature is nothing
	}
	return challenge, done, err
}

// begin answers client-first-message.
func (t *scramServer) begin(msg string) ([]byte, error) {
	parts := strings.SplitN(msg, ",", 3)
	if len(parts) != 3 || (parts[0] != "n" && parts[0] != "y") || (parts[1] != "" && !strings.HasPrefix(parts[1], "a=")) {
		return nil, errSASL // a binding that we did not offer is an error as well
	}
	t.gs2, t.bare = parts[0]+","+parts[1]+",", parts[2]
	user, rest, _ := strings.Cut(t.bare, ",")
	nonce, _, _ := strings.Cut(rest, ",")
	name, ok := scramName(user)
	if !ok || len(nonce) < 3 || len(nonce) > maxScramNonce || nonce[:2] != "r=" {
		return nil, errSASL
	}
	v, err := t.verifier(name)
	switch {
	case errors.Is(err, ErrCredentials):
		t.unknown = true
		mac := hmac.New(sha256.New, t.secret)
		mac.Write([]byte(name))
		v = &auth.Verifier{Salt: mac.Sum(nil)[:scramSaltOctets], Iterations: auth.MinIterations}
	case err != nil:
		return nil, err
	}
	t.v = v
	t.nonce = nonce + t.nonce // "r=" included
	t.first = t.nonce + ",s=" + base64.StdEncoding.EncodeToString(v.Salt) + ",i=" + strconv.Itoa(v.Iterations)
	return []byte(t.first), nil
}

// scramName reads "n=saslname".
func scramName(s string) (string, bool) {
	name, ok := strings.CutPrefix(s, "n=")
	for i := 0; i < len(name); i++ {
		if name[i] == '=' && !strings.HasPrefix(name[i:], "=2C") && !strings.HasPrefix(name[i:], "=3D") {
			return "", false
		}
	}
	name = strings.NewReplacer("=2C", ",", "=3D", "=").Replace(name)
	return name, ok && name != "" && len(name) <= maxUser && mail.Clean(name, maxUser) == name
}

// check answers client-final-message.
func (t *scramServer) check(msg []byte) ([]byte, error) {
	i := bytes.LastIndex(msg, []byte(",p="))
	if i < 0 {
		return nil, errSASL
	}
	bare, proof := string(msg[:i]), make([]byte, base64.StdEncoding.DecodedLen(len(msg)))
	n, err := base64.StdEncoding.Decode(proof, msg[i+3:])
	binding := "c=" + base64.StdEncoding.EncodeToString([]byte(t.gs2))
	if err != nil || n != sha256.Size || (bare != binding+","+t.nonce && !strings.HasPrefix(bare, binding+","+t.nonce+",")) {
		return nil, errSASL
	}
	said := []byte(t.bare + "," + t.first + "," + bare)
	key := sum(t.v.StoredKey[:], said)
	subtle.XORBytes(key[:], key[:], proof[:n])
	stored := sha256.Sum256(key[:])
	if subtle.ConstantTimeCompare(stored[:], t.v.StoredKey[:]) != 1 || t.unknown {
		return nil, ErrCredentials
	}
	signature := sum(t.v.ServerKey[:], said)
	return []byte("v=" + base64.StdEncoding.EncodeToString(signature[:])), nil
}

func sum(key, text []byte) (out [sha256.Size]byte) {
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	mac.Sum(out[:0])
	return out
}

// scram makes the mechanism ready for one attempt.
func (l *login) scram() *scramServer {
	return &scramServer{secret: l.s.c.ScramSecret, nonce: rand.Text()[:scramNonce],
		verifier: func(user string) (*auth.Verifier, error) {
			l.user = user
			ctx, cancel := context.WithTimeout(l.s.ctx, lookupTimeout)
			defer cancel()
			v, err := l.s.c.Backend.Verifier(ctx, user)
			if err != nil && !errors.Is(err, ErrCredentials) {
				return nil, errBackend
			}
			return v, err
		}}
}
