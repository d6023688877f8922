package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strconv"
	"strings"
)

// scramForm begins a verifier for SCRAM-SHA-256.
const scramForm = "SCRAM-SHA-256$"

// Bounds of a verifier. Ours, but for the lower one: RFC 7677 section 4.
const (
	MinIterations = 4096
	maxScramSalt  = 256
)

// Verifier is what a server keeps of a password for SCRAM-SHA-256 (RFC 5802
// section 3, RFC 7677): enough to check it, not to use it elsewhere.
type Verifier struct {
	Salt       []byte
	Iterations int
	StoredKey  [sha256.Size]byte
	ServerKey  [sha256.Size]byte
}

// ParseVerifier reads "SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey", the
// form of RFC 5803 and of PostgreSQL, with base64 for all but the number.
func ParseVerifier(s string) (*Verifier, bool) {
	rest, ok := strings.CutPrefix(s, scramForm)
	params, keys, ok2 := strings.Cut(rest, "$")
	count, salt, ok3 := strings.Cut(params, ":")
	stored, server, ok4 := strings.Cut(keys, ":")
	n, err := strconv.ParseUint(count, 10, 32)
	if !ok || !ok2 || !ok3 || !ok4 || err != nil || n < MinIterations || n > maxRounds {
		return nil, false
	}
	v := &Verifier{Iterations: int(n)}
	if v.Salt, err = base64.StdEncoding.DecodeString(salt); err != nil || len(v.Salt) == 0 || len(v.Salt) > maxScramSalt {
		return nil, false
	}
	return v, decodeKey(&v.StoredKey, stored) && decodeKey(&v.ServerKey, server)
}

func decodeKey(key *[sha256.Size]byte, s string) bool {
	b, err := base64.StdEncoding.DecodeString(s)
	return err == nil && copy(key[:], b) == len(key) && len(b) == len(key)
}

// fits reports whether v was made of the password; it takes as long as the
// verifier's number of rounds says.
func (v *Verifier) fits(password string) bool {
	salted, err := pbkdf2.Key(sha256.New, password, v.Salt, v.Iterations, sha256.Size)
	if err != nil {
		return false // FIPS mode, and a salt or password too short for it
	}
	mac := hmac.New(sha256.New, salted)
	mac.Write([]byte("Client Key"))
	stored := sha256.Sum256(mac.Sum(nil))
	return subtle.ConstantTimeCompare(stored[:], v.StoredKey[:]) == 1
}
