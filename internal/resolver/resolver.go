// Package resolver asks the name system in types of our own: a caching stub
// that speaks to recursive servers by UDP and TCP and reads /etc/hosts as the C
// library does. It owns its cache, its sockets and one goroutine for each
// question under way; Close ends them. It validates nothing itself: AD is
// passed on only from a server that may be believed.
package resolver

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/idna"
)

// Result is how a question ended; imsg.DNSAnswer carries it as a number.
type Result uint8

// The results.
const (
	OK         Result = iota // there are records
	NoSuchName               // the name does not exist (NXDOMAIN), or cannot
	NoData                   // the name exists, but not with this type
	Failure                  // nobody could tell now
)

// String is the result in one word, for traces.
func (r Result) String() string {
	return [...]string{"ok", "no-such-name", "no-data", "failure"}[min(r, Failure)]
}

// The types of record that can be asked for (RFC 1035 section 3.2.2, RFC 3596,
// RFC 6698). Any other ends as NoData.
const (
	TypeA     uint16 = 1
	TypeCNAME uint16 = 5
	TypePTR   uint16 = 12
	TypeMX    uint16 = 15
	TypeTXT   uint16 = 16
	TypeAAAA  uint16 = 28
	TypeTLSA  uint16 = 52
)

// Record is one record of the type asked for.
type Record struct {
	Pref uint16 // MX
	TTL  uint32 // seconds that it may still be used
	// Data is an address or a name without final dot as text (the root is "."),
	// for TXT the joined strings, for TLSA the octets of the record's data.
	Data string
}

// Answer is what came of a question. Records is empty unless Result is OK.
type Answer struct {
	Result  Result
	AD      bool // validated by a server that may be believed
	Records []Record
}

// Bounds.
const (
	MaxRecords = 256       // ours: records of one answer; the rest is dropped
	MaxData    = 4096      // ours: octets of one record; a larger one is dropped
	maxEntries = 16 << 10  // ours: answers in the cache
	maxFlights = 512       // ours: questions under way at one time
	maxTTL     = time.Hour // ours: a change is seen within the hour
	maxNoTTL   = 5 * time.Minute
	failTTL    = 30 * time.Second // SERVFAIL and the like (RFC 2308 section 7.1)
	deadTTL    = 5 * time.Second  // no server answered (RFC 2308 section 7.2)
	checkFiles = time.Second      // how often resolv.conf and hosts are looked at
)

// Options say where a Resolver gets its answers. The zero value is what most
// systems want.
type Options struct {
	Servers    []string // "address:port"; empty: those of ResolvConf
	ResolvConf string   // empty: /etc/resolv.conf
	Hosts      string   // empty: /etc/hosts
	Now        func() time.Time
	// Trace gives who is told of each answer, one line; nil, or what gives nil:
	// nobody is.
	Trace func() func(line string)
}

// Resolver answers questions. It is safe for concurrent use.
type Resolver struct {
	now    func() time.Time
	trace  func() func(line string)
	ctx    context.Context // ends with Close; the life of questions under way
	cancel context.CancelFunc
	done   sync.WaitGroup
	slots  chan struct{}
	files  *files

	mu      sync.Mutex
	closed  bool
	epoch   int // counts flushes: what was asked before one is not kept
	cache   map[question]*entry
	flights map[question]*flight
}

// question is a cache key: name in lower case, without final dot.
type question struct {
	name  string
	qtype uint16
}

type entry struct {
	answer  Answer
	stored  time.Time
	expires time.Time
}

// flight is a question under way; who asks it again waits for the same answer.
type flight struct {
	done   chan struct{}
	epoch  int
	answer Answer
	from   string // the server that gave it
}

// New makes a Resolver. It reads resolv.conf and hosts when first asked.
func New(o Options) *Resolver {
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Resolver{now: o.Now, trace: o.Trace, slots: make(chan struct{}, maxFlights),
		cache: map[question]*entry{}, flights: map[question]*flight{}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.files = newFiles(o)
	return r
}

// Close ends the questions under way and waits for them. A Resolver that is
// closed answers Failure.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.done.Wait()
}

// SetServers replaces the servers, as Options.Servers, and forgets what the old
// ones said, if they differ.
func (r *Resolver) SetServers(servers []string) {
	if r.files.setServers(servers) {
		r.flush()
	}
}

func (r *Resolver) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.cache)
	r.epoch++
}

// Lookup asks for the records of a name, which may be an internationalised one
// and end in a dot. It waits until ctx ends, at most some 15 s.
func (r *Resolver) Lookup(ctx context.Context, name string, qtype uint16) Answer {
	begin := r.now()
	a, from := r.lookup(ctx, name, qtype)
	r.tell(func() string { return traceLine(name, qtype, a, from, r.now().Sub(begin)) })
	return a
}

// lookup is Lookup, and tells where the answer is from.
func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16) (Answer, string) {
	name, ok := canonical(name)
	if !ok {
		return Answer{Result: NoSuchName}, "nobody: it cannot be a name"
	}
	if r.files.refresh(r.now()) {
		r.flush()
	}
	if a, ok := r.files.lookup(name, qtype); ok {
		return a, "hosts"
	}
	q := question{name, qtype}
	if _, known := dns.TypeToString[qtype]; !known || !wanted[qtype] {
		return Answer{Result: NoData}, "nobody: the type is not asked for"
	}
	a, f := r.cached(q)
	if f == nil {
		return a, "the cache"
	}
	select {
	case <-f.done:
		return f.answer, f.from
	case <-ctx.Done():
		return Answer{Result: Failure}, "nobody yet"
	}
}

var wanted = map[uint16]bool{TypeA: true, TypeCNAME: true, TypePTR: true, TypeMX: true,
	TypeTXT: true, TypeAAAA: true, TypeTLSA: true}

// canonical is the name in lower-case A-labels without final dot, and whether it
// can be a name at all.
func canonical(name string) (string, bool) {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if name[i] >= 0x80 {
			ascii, err := idna.Lookup.ToASCII(name)
			if err != nil {
				return "", false
			}
			name = ascii
			break
		}
	}
	name = strings.ToLower(name)
	if name == "" || len(name) > 253 || strings.ContainsAny(name, "\\ \t\r\n\x00") {
		return "", false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
	}
	return name, true
}

// cached is the answer that the cache holds; without one the flight that will
// bring it.
func (r *Resolver) cached(q question) (Answer, *flight) {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.cache[q]; e != nil && now.Before(e.expires) {
		return aged(e.answer, now.Sub(e.stored)), nil
	}
	if f := r.flights[q]; f != nil {
		return Answer{}, f
	}
	if r.closed {
		return Answer{Result: Failure}, nil
	}
	f := &flight{done: make(chan struct{}), epoch: r.epoch}
	r.flights[q] = f
	r.done.Go(func() { r.fly(q, f) })
	return Answer{}, f
}

// aged is an answer whose records have lain in the cache for a while.
func aged(a Answer, age time.Duration) Answer {
	s := uint32(age / time.Second)
	if s == 0 || len(a.Records) == 0 {
		return a
	}
	recs := make([]Record, len(a.Records))
	for i, rec := range a.Records {
		rec.TTL -= min(s, rec.TTL)
		recs[i] = rec
	}
	a.Records = recs
	return a
}

// fly asks the servers and tells all who wait.
func (r *Resolver) fly(q question, f *flight) {
	a, ttl, from := Answer{Result: Failure}, time.Duration(0), noServer
	select {
	case r.slots <- struct{}{}:
		a, ttl, from = r.ask(q)
		<-r.slots
	case <-r.ctx.Done():
	}
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if ttl > 0 && f.epoch == r.epoch {
		r.makeRoom(now)
		r.cache[q] = &entry{answer: a, stored: now, expires: now.Add(ttl)}
	}
	delete(r.flights, q)
	f.answer, f.from = a, from
	close(f.done)
}

// makeRoom drops entries when the cache is full: the expired, and of the rest
// one in eight, as the map's order has it.
func (r *Resolver) makeRoom(now time.Time) {
	if len(r.cache) < maxEntries {
		return
	}
	n := 0
	for q, e := range r.cache {
		if n++; n%8 == 0 || !now.Before(e.expires) {
			delete(r.cache, q)
		}
	}
}

// Reverse asks for the names of an address.
func (r *Resolver) Reverse(ctx context.Context, addr netip.Addr) Answer {
	name, err := dns.ReverseAddr(addr.Unmap().WithZone("").String())
	if err != nil {
		return Answer{Result: NoSuchName}
	}
	return r.Lookup(ctx, name, TypePTR)
}

// Addrs asks for the addresses of a name of both families, IPv6 first. OK means
// that there are some; Failure, that a family without an answer may have more.
func (r *Resolver) Addrs(ctx context.Context, name string) ([]netip.Addr, Result) {
	var six, four Answer
	var both sync.WaitGroup
	both.Go(func() { six = r.Lookup(ctx, name, TypeAAAA) })
	four = r.Lookup(ctx, name, TypeA)
	both.Wait()
	var addrs []netip.Addr
	for _, rec := range append(six.Records[:len(six.Records):len(six.Records)], four.Records...) {
		if a, err := netip.ParseAddr(rec.Data); err == nil {
			addrs = append(addrs, a)
		}
	}
	switch {
	case six.Result == Failure || four.Result == Failure:
		return addrs, Failure
	case len(addrs) > 0:
		return addrs, OK
	case six.Result == NoData || four.Result == NoData:
		return nil, NoData
	}
	return nil, NoSuchName
}
