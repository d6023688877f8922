package config

import "net/netip"

// TLSMode says how TLS starts on a listener.
type TLSMode string

// The modes of `listen on`.
const (
	TLSNone     TLSMode = ""
	TLSOffered  TLSMode = "tls"         // STARTTLS may be used
	TLSRequired TLSMode = "tls-require" // STARTTLS before MAIL
	TLSImplicit TLSMode = "smtps"       // from the first octet
)

// Listener is one address and port, or the local socket.
type Listener struct {
	Pos      Pos
	Name     string // interface or address word as written; "socket"
	IsSocket bool
	Addr     netip.AddrPort // network listeners

	Hostname  string // for banner and Received; empty: the server name
	Hostnames string // table: local address -> name
	Tag       string
	Filter    []string // filters, in their order

	TLS        TLSMode
	VerifyPeer bool     // the client certificate must verify
	PKI        []string // names; the first is the default, all serve SNI
	CA         string
	Ciphers    string
	Protocols  string

	Auth         bool   // AUTH is offered (inside TLS)
	AuthRequired bool   // MAIL is refused before AUTH
	AuthTable    string // empty: system users
	Scram        bool   // every entry of AuthTable is a verifier for SCRAM-SHA-256, so that is offered

	Senders    string // table: user -> addresses it may send from
	Masquerade bool

	MaskSource   bool
	ReceivedAuth bool
	DSN          bool // announced unless no-dsn
	ProxyV2      bool
	ProxyFrom    []netip.Prefix // who may send a PROXY header; empty: loopback, private and link-local addresses

	Repair          bool     // bare CR and LF in a message end lines; else it is refused
	LogConversation bool     // the dialogue goes to the log, secrets masked
	Without         []string // extensions left out, by their EHLO keyword in upper case
}

// Pending is a listener that waits for what it names to have an address.
type Pending struct {
	Listener *Listener // without Addr
	Port     uint16
	Family   string // "", "inet4" or "inet6"
}
