package privsep

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// signTimeout bounds the wait for one signature. Ours: a handshake does not
// wait longer.
const signTimeout = 10 * time.Second

// Signer is a private key that stays with keys: a crypto.Signer that asks for
// each signature. It is safe for concurrent use.
type Signer struct {
	link *ipc.Link
	pki  string
	pub  crypto.PublicKey
}

// NewSigner makes a Signer for the key of a pki entry. link leads to keys; pub
// is the public key of the entry's certificate.
func NewSigner(link *ipc.Link, pki string, pub crypto.PublicKey) *Signer {
	return &Signer{link: link, pki: pki, pub: pub}
}

// KeyID tells one key from another: the SHA-256 of the public key in PKIX form,
// nil when it has none.
func KeyID(pub crypto.PublicKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256(der)
	return sum[:]
}

// Public implements crypto.Signer.
func (s *Signer) Public() crypto.PublicKey { return s.pub }

// Sign implements crypto.Signer. It waits for keys, at most signTimeout. It does
// not use the random source it is given.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	q := &imsg.Sign{PKI: s.pki, Hash: uint8(opts.HashFunc()), PSSSalt: imsg.NoPSS, Digest: digest, KeyID: KeyID(s.pub)}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		q.PSSSalt = int64(pss.SaltLength)
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	a, err := ipc.Ask[*imsg.Signature](ctx, s.link, q)
	if err != nil {
		return nil, fmt.Errorf("sign with the key of pki %s: %w", s.pki, err)
	}
	if len(a.Data) == 0 {
		return nil, errors.New("sign with the key of pki " + s.pki + ": refused")
	}
	return a.Data, nil
}
