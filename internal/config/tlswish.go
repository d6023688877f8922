package config

import "strings"

// TLSWish is what `mta tls` says of a destination domain.
type TLSWish string

// The wishes. The empty one leaves it to the action.
const (
	TLSWishNever         TLSWish = "never"
	TLSWishOpportunistic TLSWish = "opportunistic"
	TLSWishRequired      TLSWish = "required" // whatever the certificate
	TLSWishVerified      TLSWish = "verified" // required, and the certificate must hold
)

// TLSWishes are all of them, for messages.
const TLSWishes = "never, opportunistic, required, verified"

// ParseTLSWish reads a wish; case does not matter.
func ParseTLSWish(s string) (TLSWish, bool) {
	switch w := TLSWish(strings.ToLower(s)); w {
	case TLSWishNever, TLSWishOpportunistic, TLSWishRequired, TLSWishVerified:
		return w, true
	}
	return "", false
}
