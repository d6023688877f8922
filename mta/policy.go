package mta

import (
	"context"
	"strings"

	"smtpd/internal/config"
)

// tlsNeed is what a session asks of TLS.
type tlsNeed uint8

const (
	tlsNever    tlsNeed = iota
	tlsIfCan            // STARTTLS when offered; any certificate; in clear when it fails
	tlsRequired         // nothing is sent without it
	tlsImplicit         // from the first octet
)

// tlsPolicy is how a relay uses TLS, and why.
type tlsPolicy struct {
	need   tlsNeed
	verify bool   // name and chain of the certificate must hold
	why    string // for the operator
}

// String is the policy without its reason.
func (p tlsPolicy) String() string {
	verified := ", not verified"
	if p.verify {
		verified = ", verified"
	}
	switch p.need {
	case tlsNever:
		return "never"
	case tlsRequired:
		return "required" + verified
	case tlsImplicit:
		return "from the first octet" + verified
	}
	return "when offered" + verified
}

// hostTrust is why we believe that a host is one for the destination.
type hostTrust uint8

const (
	hostGiven   hostTrust = iota // the relay URL, or an address literal, names it
	hostFromDNS                  // MX records that anybody may have changed on the way
	hostSecured                  // MX records that DNSSEC vouches for; a policy of MTA-STS would too
)

// tlsFacts are what the policy is decided from. DANE and MTA-STS will be two
// more of them, each with a row in tlsRows.
type tlsFacts struct {
	scheme     config.Scheme  // of the relay URL; smtp without one
	tls        bool           // the action says tls
	noVerify   bool           // and no-verify
	requireTLS bool           // the message came with REQUIRETLS (RFC 8689)
	notice     bool           // it is a notice, which is rather sent than lost (section 5)
	host       hostTrust      // asked for with requireTLS only
	domain     config.TLSWish // what mta tls says of the destination
}

// tlsRow is one line of the decision.
type tlsRow struct {
	holds  func(f *tlsFacts) bool
	need   tlsNeed
	verify bool
	fail   *failure // not nil: mail does not go
	why    string
}

// tlsRows is the whole decision: the first row that holds decides.
var tlsRows = []tlsRow{
	{fail: &failTLSWanted, why: "tls is asked for, but the relay URL says smtp+notls",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPNoTLS && (f.tls || f.requireTLS) }},
	{need: tlsNever, why: "the relay URL says smtp+notls",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPNoTLS }},
	{need: tlsImplicit, verify: true, why: "the relay URL says smtps, and the message asks for REQUIRETLS",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPS && f.requireTLS }},
	{need: tlsImplicit, why: "the relay URL says smtps, the action no-verify",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPS && f.noVerify }},
	{need: tlsImplicit, verify: true, why: "the relay URL says smtps",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPS }},
	{fail: &failUnsecured, why: "the message asks for REQUIRETLS, and neither DNSSEC nor MTA-STS secures the mail exchangers",
		holds: func(f *tlsFacts) bool { return f.requireTLS && !f.notice && f.host == hostFromDNS }},
	{need: tlsRequired, verify: true, why: "the message asks for REQUIRETLS",
		holds: func(f *tlsFacts) bool { return f.requireTLS }},
	{need: tlsNever, why: "mta tls says never for the domain",
		holds: func(f *tlsFacts) bool { return f.domain == config.TLSWishNever }},
	{need: tlsIfCan, why: "mta tls says opportunistic for the domain",
		holds: func(f *tlsFacts) bool { return f.domain == config.TLSWishOpportunistic }},
	{need: tlsRequired, why: "mta tls says required for the domain",
		holds: func(f *tlsFacts) bool { return f.domain == config.TLSWishRequired }},
	{need: tlsRequired, verify: true, why: "mta tls says verified for the domain",
		holds: func(f *tlsFacts) bool { return f.domain == config.TLSWishVerified }},
	{need: tlsRequired, why: "the action says tls no-verify",
		holds: func(f *tlsFacts) bool { return f.tls && f.noVerify }},
	{need: tlsRequired, verify: true, why: "the action says tls",
		holds: func(f *tlsFacts) bool { return f.tls }},
	{need: tlsRequired, why: "the relay URL says smtp+tls, the action no-verify",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPTLS && f.noVerify }},
	{need: tlsRequired, verify: true, why: "the relay URL says smtp+tls",
		holds: func(f *tlsFacts) bool { return f.scheme == config.SchemeSMTPTLS }},
	{need: tlsIfCan, why: "nothing asks for more",
		holds: func(*tlsFacts) bool { return true }},
}

// decideTLS is what tlsRows say of the facts; a failure: mail does not go, and
// why is in the policy.
func decideTLS(f tlsFacts) (tlsPolicy, *failure) {
	for i := range tlsRows {
		if r := &tlsRows[i]; r.holds(&f) {
			return tlsPolicy{r.need, r.verify, r.why}, r.fail
		}
	}
	return tlsPolicy{}, &failTLSWanted // not reached: the last row always holds
}

// trustIn is why the hosts of a destination without relay host would be believed
// (RFC 8689 section 4.2.1), or why there are none.
func (e *Engine) trustIn(ctx context.Context, domain string) (hostTrust, *failure) {
	if strings.HasPrefix(domain, "[") {
		return hostGiven, nil
	}
	secured, result := e.opt.DNS.Secured(ctx, domain, TypeMX)
	switch {
	case result == DNSFailure: // a forged answer too: it may have been repaired next time
		return hostFromDNS, &failMXLookup
	case result == DNSNoName:
		return hostFromDNS, &failNoDomain
	case secured:
		return hostSecured, nil
	}
	return hostFromDNS, nil
}

// scheme is how the log and listings name what a relay does.
func (p tlsPolicy) scheme(lmtp bool) config.Scheme {
	switch {
	case lmtp:
		return config.SchemeLMTP
	case p.need == tlsNever:
		return config.SchemeSMTPNoTLS
	case p.need == tlsRequired:
		return config.SchemeSMTPTLS
	case p.need == tlsImplicit:
		return config.SchemeSMTPS
	}
	return config.SchemeSMTP
}

// tlsWish asks the table of mta tls about a domain, and then about the domains
// above it as "*.example.org".
func (e *Engine) tlsWish(ctx context.Context, domain string) (config.TLSWish, *failure) {
	e.mu.Lock()
	name := e.cfg.MTA.TLS
	e.mu.Unlock()
	if name == "" {
		return "", nil
	}
	for key, rest := domain, domain; ; key = "*." + rest {
		value, found, err := e.opt.Tables.Lookup(ctx, name, "tlspolicy", key)
		if err != nil {
			return "", &failTLSTable
		}
		if found {
			wish, ok := config.ParseTLSWish(value)
			if !ok {
				f := failTLSTable.with("mta tls: " + key + " is none of " + config.TLSWishes)
				return "", &f
			}
			return wish, nil
		}
		var ok bool
		if _, rest, ok = strings.Cut(rest, "."); !ok {
			return "", nil
		}
	}
}
