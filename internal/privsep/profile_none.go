//go:build !profile

package privsep

import "smtpd/internal/imsg"

// profile is for builds that bench/profile makes.
func profile(imsg.Role) {}
