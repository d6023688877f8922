package imsg

// DNSQuery asks the name system. mta -> lookup; answered by DNSAnswer.
type DNSQuery struct {
	Name  string // without trailing dot
	QType uint16 // RFC 1035 section 3.2.2: A 1, PTR 12, MX 15, TXT 16, AAAA 28, TLSA 52
}

// Fields implements Msg.
func (m *DNSQuery) Fields(c *Codec) { c.Name(&m.Name); Uint(c, &m.QType) }

// DNSAnswer answers DNSQuery.
type DNSAnswer struct {
	Result  uint8 // resolver.Result: ok, no such name, no data, failure
	AD      bool  // validated by a resolver we may believe
	Records []DNSRecord
}

// DNSRecord is one record of the type asked for.
type DNSRecord struct {
	Pref uint16 // MX
	TTL  uint32 // seconds
	Data string // address or name as text; TXT and TLSA: the octets
}

// Fields implements Msg.
func (m *DNSAnswer) Fields(c *Codec) {
	Uint(c, &m.Result)
	c.Bool(&m.AD)
	List(c, &m.Records, MaxItems, func(c *Codec, r *DNSRecord) {
		Uint(c, &r.Pref)
		Uint(c, &r.TTL)
		c.Text(&r.Data)
	})
}

// UserbaseQuery asks for a user of a userbase table, or of the system when
// Table is empty. mda -> lookup; answered by UserInfo.
type UserbaseQuery struct {
	Table string
	User  string

	Generation uint64 // see TableQuery
}

// Fields implements Msg.
func (m *UserbaseQuery) Fields(c *Codec) { c.Name(&m.Table); c.Name(&m.User); Uint(c, &m.Generation) }
