package config

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// CipherList is what a list of ciphers, written as OpenSSL has it, leaves of the
// suites that there are. TLS 1.3 has no choice.
type CipherList struct {
	Suites  []uint16 // of TLS 1.2 and before; empty: those that are held secure
	Unknown []string // words that mean nothing, not even to OpenSSL
}

// ParseCiphers reads words parted by colons, commas or blanks: names of suites,
// OpenSSL's or the registry's, and classes such as HIGH or ECDHE, several joined
// by +; ! leaves out for good, - for now. Classes choose among the suites that
// are held secure; others have to be named.
func ParseCiphers(list string) (CipherList, error) {
	var out CipherList
	secure, all := tlsSuites(tls.CipherSuites()), tlsSuites(append(tls.CipherSuites(), tls.InsecureCipherSuites()...))
	killed, chosen, only13 := map[uint16]bool{}, []uint16{}, true
	for _, w := range cipherWords(list) {
		name := strings.TrimLeft(w, "!-+")
		found, known := matchSuites(name, secure, all)
		if !known {
			out.Unknown = append(out.Unknown, w)
			continue
		}
		for _, id := range found {
			switch w[0] {
			case '!':
				killed[id] = true
				chosen = slices.DeleteFunc(chosen, func(c uint16) bool { return c == id })
			case '-':
				chosen = slices.DeleteFunc(chosen, func(c uint16) bool { return c == id })
			case '+': // order, which is the library's
			default:
				if !killed[id] && !slices.Contains(chosen, id) {
					chosen = append(chosen, id)
				}
			}
		}
		only13 = only13 && (isTLS13(name) || strings.HasPrefix(name, "@"))
	}
	if len(cipherWords(list)) == len(out.Unknown) || only13 {
		return out, nil
	}
	if len(chosen) == 0 {
		return out, fmt.Errorf("no cipher that there is here is left by %q", list)
	}
	if len(chosen) < len(secure) || slices.ContainsFunc(secure, func(s tlsSuite) bool { return !slices.Contains(chosen, s.id) }) {
		out.Suites = chosen
	}
	return out, nil
}

func cipherWords(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(":, \t;", r) })
}

// tlsSuite is a suite with the words that choose it.
type tlsSuite struct {
	id    uint16
	names []string // OpenSSL's and the registry's
	class []string
}

// tlsSuites are those below TLS 1.3.
func tlsSuites(suites []*tls.CipherSuite) []tlsSuite {
	var out []tlsSuite
	for _, s := range suites {
		if s.SupportedVersions[0] >= tls.VersionTLS13 {
			continue
		}
		out = append(out, tlsSuite{s.ID, []string{s.Name, OpenSSLName(s.Name)}, suiteClasses(s.Name)})
	}
	return out
}

// suiteClasses are the classes of OpenSSL that hold a suite, upper-case.
func suiteClasses(name string) []string {
	c := []string{"ALL"}
	add := func(piece string, words ...string) {
		if strings.Contains(name, piece) {
			c = append(c, words...)
		}
	}
	add("_ECDHE_", "ECDHE", "EECDH", "KECDHE", "KEECDH", "ECDH")
	add("_ECDSA_", "ECDSA", "AECDSA")
	if strings.Contains(name, "_ECDHE_RSA_") {
		c = append(c, "ARSA")
	} else if strings.HasPrefix(name, "TLS_RSA_") {
		c = append(c, "ARSA", "RSA", "KRSA")
	}
	add("_AES_", "AES", "HIGH", "DEFAULT")
	add("_AES_128_", "AES128")
	add("_AES_256_", "AES256")
	add("_GCM_", "AESGCM", "TLSV1.2")
	add("CHACHA20", "CHACHA20", "HIGH", "DEFAULT", "TLSV1.2")
	add("_3DES_", "3DES", "MEDIUM")
	add("_RC4_", "RC4", "MEDIUM")
	add("_CBC_SHA256", "TLSV1.2")
	switch {
	case strings.HasSuffix(name, "_SHA"):
		c = append(c, "SHA", "SHA1", "SSLV3", "TLSV1", "TLSV1.0")
	case strings.HasSuffix(name, "_SHA256"):
		c = append(c, "SHA256")
	case strings.HasSuffix(name, "_SHA384"):
		c = append(c, "SHA384")
	}
	return c
}

// emptyClasses are words of OpenSSL and LibreSSL for which there is no suite
// here, or that say something else than which.
var emptyClasses = strings.Fields("ANULL ENULL NULL MD5 LOW EXP EXPORT EXPORT40 EXPORT56 DES PSK KPSK APSK SRP DSS ADSS DSA DH ADH AECDH " +
	"DHE EDH KDHE KEDH KDH KDHR KDHD ADHE CAMELLIA CAMELLIA128 CAMELLIA256 SEED IDEA ARIA ARIA128 ARIA256 ARIAGCM AESCCM AESCCM8 " +
	"RC2 FIPS SSLV2 KRB5 KECDH KECDHR KECDHE KECDHS AECDH GOST KGOST AGOST GOST94 GOST89MAC SUITEB128 SUITEB192 COMPLEMENTOFALL " +
	"COMPLEMENTOFDEFAULT STREEBOG256 CBC")

// libtlsGroups are the words of libtls.
var libtlsGroups = []string{"SECURE", "DEFAULT", "COMPAT", "LEGACY", "INSECURE", "ALL"}

// matchSuites finds what a word stands for; false: nobody knows it.
func matchSuites(word string, secure, all []tlsSuite) (ids []uint16, known bool) {
	up := strings.ToUpper(word)
	if word == "" || strings.HasPrefix(word, "@") || isTLS13(word) {
		return nil, true
	}
	for _, s := range all {
		if slices.ContainsFunc(s.names, func(n string) bool { return strings.EqualFold(n, word) }) {
			return []uint16{s.id}, true
		}
	}
	if slices.Contains(libtlsGroups, up) {
		for _, s := range secure {
			ids = append(ids, s.id)
		}
		return ids, true
	}
	parts := strings.Split(up, "+")
	for _, p := range parts {
		inUse := slices.ContainsFunc(all, func(s tlsSuite) bool { return slices.Contains(s.class, p) })
		if !inUse && !slices.Contains(emptyClasses, p) {
			return nil, foreignSuite(up)
		}
	}
	for _, s := range secure {
		if !slices.ContainsFunc(parts, func(p string) bool { return !slices.Contains(s.class, p) }) {
			ids = append(ids, s.id)
		}
	}
	return ids, true
}

// foreignSuite reports what looks like the name of a suite that other libraries
// have.
func foreignSuite(up string) bool {
	return strings.Count(up, "-") >= 2 && strings.Contains(up, "-SHA") || strings.HasPrefix(up, "TLS_") && strings.Contains(up, "_WITH_")
}

// isTLS13 reports the name of a suite of TLS 1.3.
func isTLS13(word string) bool {
	return slices.ContainsFunc(tls.CipherSuites(), func(s *tls.CipherSuite) bool {
		return s.SupportedVersions[0] >= tls.VersionTLS13 && strings.EqualFold(s.Name, word)
	}) || strings.EqualFold(word, "TLSv1.3")
}

// OpenSSLName is what OpenSSL calls a suite of TLS 1.2 and before.
func OpenSSLName(s string) string {
	s = strings.TrimPrefix(s, "TLS_")
	s = strings.TrimPrefix(s, "RSA_WITH_")
	if strings.Contains(s, "CHACHA20") {
		s = strings.TrimSuffix(s, "_SHA256")
	}
	return strings.NewReplacer("RC4_128", "RC4", "3DES_EDE", "DES-CBC3", "_WITH_", "-", "_CBC", "", "AES_", "AES", "_", "-").Replace(s)
}

// CipherWords are words that a list can hold, for those who misspell them.
func CipherWords() []string {
	words := append(slices.Clone(emptyClasses), libtlsGroups...)
	for _, s := range tlsSuites(tls.CipherSuites()) {
		words = append(words, s.names[1])
		words = append(words, s.class...)
	}
	slices.Sort(words)
	return slices.Compact(words)
}
