package auth

import (
	"errors"
	"fmt"
	"strings"

	"github.com/go-crypt/crypt/algorithm"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/scrypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
)

// Algorithm is a form of hash that Hash can make.
type Algorithm string

// The algorithms. All are checked by crypt(3) of current systems; BSD systems
// know Bcrypt alone.
const (
	SHA512   Algorithm = "sha512"   // $6$, the default: every Linux has it
	SHA256   Algorithm = "sha256"   // $5$
	Bcrypt   Algorithm = "bcrypt"   // $2b$
	Yescrypt Algorithm = "yescrypt" // $y$
)

// Algorithms are all of them, the default first.
func Algorithms() []Algorithm { return []Algorithm{SHA512, SHA256, Bcrypt, Yescrypt} }

// ParseAlgorithm reads the name of an algorithm, or what stands between the
// dollar signs of its hashes; empty is the default.
func ParseAlgorithm(word string) (Algorithm, bool) {
	switch strings.Trim(word, "$") {
	case "", "6", string(SHA512):
		return SHA512, true
	case "5", string(SHA256):
		return SHA256, true
	case "2b", "2a", "2y", "blowfish", string(Bcrypt):
		return Bcrypt, true
	case "y", string(Yescrypt):
		return Yescrypt, true
	}
	return "", false
}

// Costs of new hashes: the defaults of crypt(3), for those who read them
// elsewhere. Bcrypt's is that of OpenBSD today.
const (
	shaRounds    = 5000
	saltOctets   = 16
	bcryptCost   = 11
	yescryptLN   = 12
	yescryptSize = 32
)

var errPassword = errors.New("the password is empty, too long or holds a NUL")

// Hash makes a hash of a password with a new salt.
func Hash(password string, a Algorithm) (string, error) {
	if password == "" || len(password) > MaxPassword || strings.ContainsRune(password, 0) {
		return "", errPassword
	}
	var h algorithm.Hash
	var err error
	switch a {
	case SHA512:
		h, err = shacrypt.New(shacrypt.WithSHA512(), shacrypt.WithIterations(shaRounds), shacrypt.WithSaltLength(saltOctets))
	case SHA256:
		h, err = shacrypt.New(shacrypt.WithSHA256(), shacrypt.WithIterations(shaRounds), shacrypt.WithSaltLength(saltOctets))
	case Bcrypt:
		h, err = bcrypt.New(bcrypt.WithVariant(bcrypt.VariantStandard), bcrypt.WithIterations(bcryptCost))
		password = password[:min(len(password), 72)]
	case Yescrypt:
		h, err = scrypt.NewYescrypt(scrypt.WithLN(yescryptLN), scrypt.WithR(yescryptSize), scrypt.WithP(1))
	default:
		return "", fmt.Errorf("%w: %s", ErrForm, a)
	}
	if err != nil {
		return "", fmt.Errorf("hash: %w", err)
	}
	digest, err := h.Hash(password)
	if err != nil {
		return "", fmt.Errorf("hash: %w", err)
	}
	// crypt(3) leaves out the number of rounds that it takes by default.
	return strings.Replace(digest.Encode(), fmt.Sprintf("$rounds=%d$", shaRounds), "$", 1), nil
}
