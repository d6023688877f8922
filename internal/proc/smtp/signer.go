package smtp

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/privsep"
)

// signTimeout bounds one signature. Ours: it takes under a millisecond, and a
// keys process that is being replaced is back in a second.
const signTimeout = 10 * time.Second

// A certificate may be here before its key is with keys: that has both from the
// same reload, but on a channel of its own. Ours: half a second in all.
const (
	renewalTries = 10
	renewalPause = 50 * time.Millisecond
)

// signer is a private key that stays in the keys process. It is safe for
// concurrent use.
type signer struct {
	keys asker
	pki  string
	pub  crypto.PublicKey
}

// Public implements crypto.Signer.
func (s *signer) Public() crypto.PublicKey { return s.pub }

// Sign implements crypto.Signer.
func (s *signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	m := &imsg.Sign{PKI: s.pki, Hash: uint8(opts.HashFunc()), PSSSalt: imsg.NoPSS, Digest: digest, KeyID: privsep.KeyID(s.pub)}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		m.PSSSalt = int64(pss.SaltLength)
	}
	ctx, cancel := context.WithTimeout(context.Background(), signTimeout)
	defer cancel()
	for range renewalTries {
		a, err := askAgain[*imsg.Signature](ctx, s.keys, m)
		if err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
		if len(a.Data) > 0 {
			return a.Data, nil
		}
		rest(ctx, renewalPause)
	}
	return nil, errors.New("sign: no such key")
}
