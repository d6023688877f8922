// Package auth makes and checks password hashes in the forms of crypt(3), and
// checks passwords by what SCRAM-SHA-256 keeps of them. It
// owns a bounded number of goroutines' worth of work, no more: checking a
// password is made to be slow, and strangers may ask for it. It never logs,
// keeps or returns a password.
package auth

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/go-crypt/crypt"
	"github.com/go-crypt/crypt/algorithm/argon2"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/md5crypt"
	"github.com/go-crypt/crypt/algorithm/pbkdf2"
	"github.com/go-crypt/crypt/algorithm/scrypt"
	"github.com/go-crypt/crypt/algorithm/sha1crypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
	"github.com/go-crypt/x/yescrypt"
)

// Errors that callers tell apart. Every error means that the password could not
// be checked, not that it is wrong.
var (
	ErrForm = errors.New("unknown form of password hash")
	ErrCost = errors.New("the password hash costs too much to check")
	ErrBusy = errors.New("too many passwords wait to be checked")
)

// MaxPassword bounds a password, in octets. Ours: what an AUTH line can hold.
const MaxPassword = 1024

// Bounds of the cost of a hash. Ours: some seconds and 256 MB at most.
const (
	maxBcrypt = 16
	maxRounds = 10_000_000
	maxMemory = 256 << 20
	maxPasses = 32
)

// waiting bounds those who wait for a worker. Ours: with yescrypt, some tens of
// seconds of work.
const waiting = 512

// Pool checks passwords, so many at a time. It is safe for concurrent use.
type Pool struct {
	// Around, when set before the first use, runs the work of each check.
	Around func(work func())

	workers chan struct{}
	queue   chan struct{}
	decoder *crypt.Decoder
	model   atomic.Pointer[string] // a hash like those in use
}

// NewPool makes a pool that keeps at most so many processors busy.
func NewPool(workers int) (*Pool, error) {
	d, err := newDecoder()
	if err != nil {
		return nil, fmt.Errorf("password hashes: %w", err)
	}
	return &Pool{workers: make(chan struct{}, max(workers, 1)),
		queue: make(chan struct{}, waiting), decoder: d}, nil
}

func newDecoder() (*crypt.Decoder, error) {
	d := crypt.NewDecoder()
	return d, errors.Join(argon2.RegisterDecoder(d), bcrypt.RegisterDecoder(d), md5crypt.RegisterDecoderCommon(d),
		pbkdf2.RegisterDecoder(d), scrypt.RegisterDecoder(d), sha1crypt.RegisterDecoder(d), shacrypt.RegisterDecoder(d))
}

// Verify reports whether the password fits the hash. A locked hash ("*", "!" and
// what begins so, "x", none at all) fits no password, and takes as long as
// another to say so. It waits for a worker until ctx ends; the work itself is
// not broken off.
func (p *Pool) Verify(ctx context.Context, hash, password string) (bool, error) {
	if Locked(hash) {
		return false, p.VerifyNobody(ctx, password)
	}
	if err := Check(hash); err != nil {
		return false, err
	}
	return p.run(ctx, hash, password)
}

// VerifyNobody takes the time that checking the password of a user would take,
// for one who does not exist. Its error is that of waiting.
func (p *Pool) VerifyNobody(ctx context.Context, password string) error {
	hash := defaultModel
	if m := p.model.Load(); m != nil {
		hash = *m
	}
	_, err := p.run(ctx, hash, password)
	return err
}

// defaultModel is a hash of a password that nobody has, in the usual form.
const defaultModel = "$6$nobodynobodynobo$" +
	"......................................................................................"

func (p *Pool) run(ctx context.Context, hash, password string) (bool, error) {
	if len(password) > MaxPassword || strings.ContainsRune(password, 0) {
		return false, nil // crypt(3) would compare what stands before the NUL
	}
	select {
	case p.queue <- struct{}{}:
		defer func() { <-p.queue }()
	default:
		return false, ErrBusy
	}
	select {
	case p.workers <- struct{}{}:
		defer func() { <-p.workers }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	var ok bool
	var err error
	p.around(func() { ok, err = p.matches(hash, password) })
	if err == nil && hash != defaultModel {
		p.model.Store(&hash)
	}
	return ok, err
}

func (p *Pool) around(work func()) {
	if p.Around != nil {
		p.Around(work)
		return
	}
	work()
}

// matches does the work.
func (p *Pool) matches(hash, password string) (bool, error) {
	if v, ok := ParseVerifier(hash); ok {
		return v.fits(password), nil
	}
	digest, err := p.decoder.Decode(hash)
	if err != nil {
		return false, ErrForm
	}
	if strings.HasPrefix(hash, "$2") && !strings.HasPrefix(hash, "$2$") && len(password) > 72 {
		password = password[:72] // as crypt(3) does
	}
	ok, err := digest.MatchAdvanced(password)
	if err != nil {
		return false, ErrForm
	}
	return ok, nil
}

// Locked reports a hash that stands for "no password at all".
func Locked(hash string) bool {
	return hash == "" || hash == "x" || hash[0] == '*' || hash[0] == '!'
}

// Check reports whether Verify could work with a hash: nil, ErrForm or ErrCost.
// It looks at the form alone and costs little.
func Check(hash string) error {
	if Locked(hash) {
		return nil
	}
	f := strings.Split(hash, "$")
	if strings.HasPrefix(hash, scramForm) {
		return checkScram(hash, f)
	}
	if len(f) < 4 || f[0] != "" {
		return ErrForm
	}
	params := f[2]
	switch f[1] {
	case "1":
	case "2", "2a", "2b", "2x", "2y", "bcrypt-sha256":
		return checkBcrypt(f[1], params)
	case "5", "6":
		if rounds, ok := strings.CutPrefix(params, "rounds="); ok {
			return checkMax(rounds, maxRounds)
		}
	case "y":
		return checkYescrypt(params)
	case "scrypt":
		return checkScrypt(params)
	case "argon2id", "argon2i", "argon2d":
		return checkArgon2(f)
	case "sha1", "pbkdf2", "pbkdf2-sha1", "pbkdf2-sha224", "pbkdf2-sha256", "pbkdf2-sha384", "pbkdf2-sha512":
		return checkMax(params, maxRounds)
	default:
		return ErrForm
	}
	return nil
}

// checkMax reads a number that may be at most limit.
func checkMax(s string, limit uint64) error {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || n > limit:
		return ErrCost
	case err != nil:
		return ErrForm
	}
	return nil
}

// parameter is the value of a name in "a=1,b=2".
func parameter(list, name string) string {
	for p := range strings.SplitSeq(list, ",") {
		if k, v, _ := strings.Cut(p, "="); k == name {
			return v
		}
	}
	return "0"
}

func checkBcrypt(form, params string) error {
	if form == "bcrypt-sha256" {
		params = parameter(params, "r")
	}
	return checkMax(params, maxBcrypt)
}

func checkScram(hash string, f []string) error {
	rounds, _, _ := strings.Cut(f[1], ":")
	if err := checkMax(rounds, maxRounds); err != nil {
		return err
	}
	if _, ok := ParseVerifier(hash); !ok {
		return ErrForm
	}
	return nil
}

func checkYescrypt(params string) error {
	if params == "" {
		return ErrForm
	}
	_, ln, r, err := yescrypt.DecodeSetting([]byte(params))
	if err != nil || ln < 1 || r < 1 {
		return ErrForm
	}
	return checkMemory(uint64(ln), uint64(r))
}

func checkScrypt(params string) error {
	ln, err1 := strconv.ParseUint(parameter(params, "ln"), 10, 8)
	r, err2 := strconv.ParseUint(parameter(params, "r"), 10, 32)
	p, err3 := strconv.ParseUint(parameter(params, "p"), 10, 32)
	if errors.Join(err1, err2, err3) != nil {
		return ErrForm
	}
	if p > maxPasses {
		return ErrCost
	}
	return checkMemory(ln, r)
}

// checkMemory bounds the 128·r·2^ln octets that scrypt works in.
func checkMemory(ln, r uint64) error {
	if ln > 30 || r > 1<<20 || 128*r<<ln > maxMemory {
		return ErrCost
	}
	return nil
}

func checkArgon2(f []string) error {
	params := f[2]
	if strings.HasPrefix(params, "v=") && len(f) > 4 {
		params = f[3]
	}
	for name, limit := range map[string]uint64{"m": maxMemory / 1024, "t": maxPasses, "p": 64} {
		if err := checkMax(parameter(params, name), limit); err != nil {
			return err
		}
	}
	return nil
}
