package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"

	"smtpd/internal/imsg"
)

var (
	errNoKey    = errors.New("no private key in the file")
	errLocked   = errors.New("the private key is protected by a pass phrase")
	errKeyType  = errors.New("neither RSA, ECDSA nor Ed25519")
	errBadKey   = errors.New("not a valid private key")
	errHash     = errors.New("refused to sign: hash and key do not go together")
	errDigest   = errors.New("refused to sign: a digest of the wrong length")
	errSalt     = errors.New("refused to sign: a salt of the wrong length")
	errNoResult = errors.New("signing failed")
)

// signer is one private key.
type signer struct{ key crypto.Signer }

// String keeps the key out of whatever prints a signer.
func (signer) String() string { return "private key" }

// GoString does the same for %#v.
func (signer) GoString() string { return "private key" }

// parse finds the first private key in PEM text: PKCS #8 (RFC 5958), PKCS #1
// (RFC 8017) or SEC 1 (RFC 5915). Its errors hold nothing of the text.
func parse(text []byte) (signer, error) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return signer{}, errNoKey
		}
		if b.Headers["DEK-Info"] != "" || b.Type == "ENCRYPTED PRIVATE KEY" {
			return signer{}, errLocked
		}
		var key any
		var err error
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		default:
			continue // a certificate, or EC PARAMETERS
		}
		if err != nil {
			return signer{}, errBadKey
		}
		switch k := key.(type) {
		case *rsa.PrivateKey:
			return signer{k}, nil
		case *ecdsa.PrivateKey:
			return signer{k}, nil
		case ed25519.PrivateKey:
			return signer{k}, nil
		}
		return signer{}, errKeyType
	}
}

// hashes are those that TLS 1.0 to 1.3 (RFC 5246, RFC 8446) and DKIM (RFC 6376,
// RFC 8301) sign.
var hashes = []crypto.Hash{crypto.MD5SHA1, crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512}

// sign checks the request before the key touches it: the asker may be in the
// hands of an attacker.
func (s signer) sign(m *imsg.Sign) ([]byte, error) {
	h := crypto.Hash(m.Hash)
	opts := crypto.SignerOpts(h)
	switch s.key.(type) {
	case ed25519.PrivateKey:
		if h != 0 || m.PSSSalt != imsg.NoPSS {
			return nil, errHash
		}
	case *rsa.PrivateKey, *ecdsa.PrivateKey:
		if !slices.Contains(hashes, h) {
			return nil, errHash
		}
		if len(m.Digest) != h.Size() {
			return nil, errDigest
		}
	}
	if m.PSSSalt != imsg.NoPSS {
		if _, ok := s.key.(*rsa.PrivateKey); !ok {
			return nil, errHash
		}
		if m.PSSSalt < rsa.PSSSaltLengthEqualsHash || m.PSSSalt > int64(h.Size()) {
			return nil, errSalt
		}
		opts = &rsa.PSSOptions{SaltLength: int(m.PSSSalt), Hash: h}
	}
	sig, err := s.key.Sign(rand.Reader, m.Digest, opts)
	if err != nil {
		return nil, errNoResult
	}
	return sig, nil
}
