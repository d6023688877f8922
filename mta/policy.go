package mta

import "smtpd/internal/config"

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

// tlsFacts are what the policy is decided from.
type tlsFacts struct {
	scheme     config.Scheme // of the relay URL; smtp without one
	tls        bool          // the action says tls
	noVerify   bool          // and no-verify
	requireTLS bool          // the message came with REQUIRETLS (RFC 8689)
}

// decideTLS is the whole decision. The first line that matches holds; false
// means that what is asked for contradicts itself.
func decideTLS(f tlsFacts) (tlsPolicy, bool) {
	verify := !f.noVerify
	switch {
	case (f.tls || f.requireTLS) && f.scheme == config.SchemeSMTPNoTLS:
		return tlsPolicy{why: "tls is asked for, but the relay URL says smtp+notls"}, false
	case f.scheme == config.SchemeSMTPNoTLS:
		return tlsPolicy{tlsNever, false, "never: the relay URL says smtp+notls"}, true
	case f.scheme == config.SchemeSMTPS && verify:
		return tlsPolicy{tlsImplicit, true, "from the first octet, verified: the relay URL says smtps"}, true
	case f.scheme == config.SchemeSMTPS:
		return tlsPolicy{tlsImplicit, false, "from the first octet, not verified: smtps with no-verify"}, true
	case f.requireTLS:
		return tlsPolicy{tlsRequired, true, "required and verified: the message asks for REQUIRETLS"}, true
	case f.tls && !verify:
		return tlsPolicy{tlsRequired, false, "required, not verified: the action says tls no-verify"}, true
	case f.tls:
		return tlsPolicy{tlsRequired, true, "required and verified: the action says tls"}, true
	case f.scheme == config.SchemeSMTPTLS && verify:
		return tlsPolicy{tlsRequired, true, "required and verified: the relay URL says smtp+tls"}, true
	case f.scheme == config.SchemeSMTPTLS:
		return tlsPolicy{tlsRequired, false, "required, not verified: smtp+tls with no-verify"}, true
	case f.scheme == config.SchemeLMTP:
		return tlsPolicy{tlsIfCan, false, "when offered, not verified: LMTP"}, true
	}
	return tlsPolicy{tlsIfCan, false, "when offered, not verified: nothing asks for more"}, true
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
