package smtp

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// tlsFacts are what is known of a secured channel.
type tlsFacts struct {
	cipher   string // "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
	verified bool   // the client's certificate
	cert     *x509.Certificate
}

// canStartTLS reports whether STARTTLS is offered now.
func (s *Session) canStartTLS() bool {
	mode := s.c.Listener.TLS
	return s.c.TLS != nil && s.tls == nil && (mode == config.TLSOffered || mode == config.TLSRequired)
}

// starttls is STARTTLS (RFC 3207).
func (s *Session) starttls(arg string) {
	switch {
	case s.helo == "" || s.tx != nil:
		s.refuse(replySequence)
		return
	case arg != "":
		s.refuse(replyNoParameters)
		return
	case s.tls != nil:
		s.refuse(replySecured)
		return
	case !s.canStartTLS():
		s.refuse(replyUnsupported)
		return
	}
	if _, ok := s.ask(PhaseStartTLS, ""); !ok {
		return
	}
	if len(s.wire.buffered()) > 0 {
		s.refuse(replyJoinedTLS) // commands in the clear must not run inside TLS
		s.close(reasonBadInput)
		return
	}
	s.say(replyStartTLS)
	s.wire.flush()
	if s.startTLS() {
		s.helo, s.esmtp = "", false
	}
}

// startTLS shakes hands; when that fails the session ends.
func (s *Session) startTLS() bool {
	if s.c.TLS == nil {
		s.close("tls-accept-failed")
		return false
	}
	if err := s.raw.SetDeadline(time.Now().Add(s.c.SMTP.HandshakeTimeout)); err != nil {
		s.broken(err)
		return false
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.c.SMTP.HandshakeTimeout)
	defer cancel()
	conn := tls.Server(s.raw, s.c.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		s.close("io-error: TLS handshake: " + mail.Clean(err.Error(), maxEcho))
		return false
	}
	st := conn.ConnectionState()
	s.wire.nc, s.wire.until = conn, time.Time{} // the handshake had its own
	s.tls = &tlsFacts{cipher: CipherText(&st), verified: len(st.VerifiedChains) > 0}
	s.c.Stat.Add(s.tlsCounter(), 1)
	s.c.Log.Event(s.client.Session, "smtp tls", log.Raw("ciphers", s.tls.cipher))
	s.report(EventTLS, s.tls.cipher)
	if len(st.PeerCertificates) > 0 {
		s.tls.cert = st.PeerCertificates[0]
		s.logCert()
	}
	return true
}

func (s *Session) logCert() {
	sum := sha256.Sum256(s.tls.cert.Raw)
	result := "unchecked"
	if s.tls.verified {
		result = "verified"
	}
	s.c.Log.Event(s.client.Session, "smtp cert-check", log.Quoted("result", result),
		log.Quoted("fingerprint", "SHA256:"+hex.EncodeToString(sum[:])))
}

// OpenSSLName is the name that OpenSSL has for a cipher suite of TLS 1.2:
// TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 is ECDHE-RSA-AES128-GCM-SHA256.
func OpenSSLName(name string) string {
	return strings.NewReplacer("TLS_RSA_WITH_", "", "TLS_", "", "_WITH_", "-", "AES_128_CBC", "AES128", "AES_256_CBC", "AES256",
		"AES_128", "AES128", "AES_256", "AES256", "CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", "_", "-").Replace(name)
}

// CipherText names the protocol and cipher of a connection as the log and trace
// fields show them: "TLSv1.3:TLS_AES_256_GCM_SHA384:256", the suites of older
// protocols by their names in OpenSSL.
func CipherText(st *tls.ConnectionState) string {
	name := tls.CipherSuiteName(st.CipherSuite)
	bits := "128"
	if strings.Contains(name, "AES_256") || strings.Contains(name, "CHACHA20") {
		bits = "256"
	}
	version := strings.Replace(tls.VersionName(st.Version), "TLS ", "TLSv", 1)
	if st.Version < tls.VersionTLS13 {
		name = OpenSSLName(name)
	}
	return version + ":" + name + ":" + bits
}
