package expand

import (
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
)

// The Sender Rewriting Scheme: mta gives a forwarded message a reverse-path
// that leads back here,
//
//	SRS0=HHHH=TT=domain=user@here    or, of one that was rewritten before,
//	SRS1=HHHH=host=rest@here         (rest is what followed SRS0 at host)
//
// TT is the day in base 32, HHHH begins the base 64 of SHA-1 over the key and
// what follows it.
const (
	srsDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	srsDays   = 1024
	srsAhead  = 1 // ours, as OpenSMTPD: days that another clock may be ahead
)

var (
	errSRSForm = errors.New("not an SRS address")
	errSRSHash = errors.New("made with another key, or changed")
	errSRSOld  = errors.New("too old")
)

// isSRS reports a local-part that claims to be an SRS one.
func isSRS(user string) bool {
	return len(user) > 5 && strings.IndexByte("=+-", user[4]) >= 0 &&
		(strings.EqualFold(user[:4], "SRS0") || strings.EqualFold(user[:4], "SRS1"))
}

// srsDecode gives the reverse-path that an SRS address of ours stands for.
func srsDecode(c *config.SRS, addr mail.Address, now time.Time) (mail.Address, error) {
	hash, body, ok := strings.Cut(addr.User[5:], "=")
	if !ok {
		return mail.Address{}, errSRSForm
	}
	text := body + "@" + addr.Domain
	if !srsSigned(string(c.Key), hash, text) && (c.Backup == "" || !srsSigned(string(c.Backup), hash, text)) {
		return mail.Address{}, errSRSHash
	}
	var back mail.Address
	if addr.User[3] == '1' {
		host, rest, _ := strings.Cut(body, "=")
		back = mail.Address{User: "SRS0" + rest, Domain: host}
		if !isSRS(back.User) {
			return mail.Address{}, errSRSForm
		}
	} else {
		day, rest, _ := strings.Cut(body, "=")
		if err := srsFresh(day, c.TTL, now); err != nil {
			return mail.Address{}, err
		}
		back.Domain, back.User, _ = strings.Cut(rest, "=")
	}
	if back.User == "" || back.Domain == "" || strings.ContainsAny(back.Domain, "@ <>") {
		return mail.Address{}, errSRSForm
	}
	return back, nil
}

// srsSigned compares hashes without case, which some hosts fold.
func srsSigned(key, hash, text string) bool {
	sum := sha1.Sum([]byte(key + text))
	want := base64.StdEncoding.EncodeToString(sum[:])[:4]
	return subtle.ConstantTimeCompare([]byte(strings.ToLower(want)), []byte(strings.ToLower(hash))) == 1
}

// srsFresh checks a day against the present one; days count modulo srsDays.
func srsFresh(day string, ttl time.Duration, now time.Time) error {
	if len(day) != 2 {
		return errSRSForm
	}
	hi := strings.IndexByte(srsDigits, upper(day[0]))
	lo := strings.IndexByte(srsDigits, upper(day[1]))
	if hi < 0 || lo < 0 {
		return errSRSForm
	}
	today := int(now.Unix() / 86400 % srsDays)
	age := (today - (hi<<5 | lo) + srsAhead + srsDays) % srsDays
	if age > int(ttl/(24*time.Hour))+srsAhead {
		return errSRSOld
	}
	return nil
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - ('a' - 'A')
	}
	return c
}
