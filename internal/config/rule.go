package config

// Rule is one `match` line.
type Rule struct {
	Pos    Pos
	Number int // 1-based, as printed by -n -v

	From     From
	For      For
	Tag      *Match // nil: not asked for
	HELO     *Match
	Auth     *Match // Table empty: any login
	TLS      *Match // Table always empty
	MailFrom *Match
	RcptTo   *Match

	Reject bool
	Reply  string // with Reject: "550 5.7.1 text" instead of the usual words
	Action string // name; empty when Reject
}

// Match is one option that a table, or a mere fact, decides.
type Match struct {
	Not   bool
	Table string
	Regex bool
}

// FromKind is where a message may come from.
type FromKind string

// The kinds of from; `from auth`, `from mail-from` are FromAny with the option.
const (
	FromLocal  FromKind = "local" // also the default
	FromAny    FromKind = "any"
	FromSocket FromKind = "socket"
	FromSrc    FromKind = "src"
	FromRDNS   FromKind = "rdns" // Table empty: any known reverse name
)

// From is the from part of a rule.
type From struct {
	Kind FromKind
	Match
}

// ForKind is where a message may go.
type ForKind string

// The kinds of for; `for rcpt-to` is ForAny with the option.
const (
	ForLocal  ForKind = "local" // also the default
	ForAny    ForKind = "any"
	ForDomain ForKind = "domain"
)

// For is the for part of a rule.
type For struct {
	Kind ForKind
	Match
}
