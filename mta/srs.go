package mta

import (
	"crypto/sha1"
	"encoding/base64"
	"strings"
	"time"

	"smtpd/internal/mail"
)

// Letters of the day in an SRS address, and their range.
const (
	srsDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	srsDays   = 1024
)

// srsForward is the reverse-path for a message sent on in the name of domain.
// An address that is an SRS0 or SRS1 one already becomes SRS1: the first
// forwarder is kept, the ones between are left out. An address that would
// become too long is left alone.
func srsForward(key string, from mail.Address, domain string, now time.Time) mail.Address {
	if from.IsNull() || from.Domain == "" || strings.EqualFold(from.Domain, domain) {
		return from
	}
	var user string
	switch rest, old, host := srsParts(from); old {
	case "SRS0":
		body := from.Domain + "=" + rest
		user = "SRS1=" + srsHash(key, body+"@"+domain) + "=" + body
	case "SRS1":
		body := host + "=" + rest
		user = "SRS1=" + srsHash(key, body+"@"+domain) + "=" + body
	default:
		day := now.Unix() / 86400 % srsDays
		body := string([]byte{srsDigits[day>>5], srsDigits[day&31]}) + "=" + from.Domain + "=" + from.User
		user = "SRS0=" + srsHash(key, body+"@"+domain) + "=" + body
	}
	if len(user) > mail.MaxLocalPart {
		return from
	}
	return mail.Address{User: user, Domain: domain}
}

// srsParts takes an SRS address apart: what follows SRS0 with its separator, or
// what follows the second = of SRS1, and the first forwarder of that.
func srsParts(a mail.Address) (rest, kind, host string) {
	if len(a.User) < 5 || strings.IndexByte("=+-", a.User[4]) < 0 {
		return "", "", ""
	}
	switch kind = strings.ToUpper(a.User[:4]); kind {
	case "SRS0":
		return a.User[4:], kind, ""
	case "SRS1":
		parts := strings.SplitN(a.User[5:], "=", 3) // hash, host, and the rest with its separator
		if len(parts) == 3 && parts[2] != "" {
			return parts[2], kind, parts[1]
		}
	}
	return "", "", ""
}

// srsHash is the first 4 letters in base 64 of SHA-1 over key and text.
func srsHash(key, text string) string {
	sum := sha1.Sum([]byte(key + text))
	return base64.StdEncoding.EncodeToString(sum[:])[:4]
}
