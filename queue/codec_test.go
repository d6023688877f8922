package queue

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

func sample() mail.Envelope {
	return mail.Envelope{ID: 7<<32 | 1, Kind: mail.KindBounce, Flags: mail.FlagHold, Dispatcher: "d", Tag: "t",
		SMTPName: "s", Helo: "h", Host: "o", Client: "c", Username: "u",
		Sender: mail.Address{User: "a", Domain: "b"}, Rcpt: mail.Address{User: "c", Domain: "d"}, Dest: mail.Address{User: "e", Domain: "f"},
		DSN:  mail.DSN{Notify: 3, Ret: 2, EnvID: "id", ORcpt: "rfc822;x"},
		User: "us", Home: "/h", Exec: "|x", SubAddr: "sub", Created: time.Unix(1, 2), TTL: time.Hour, LastTry: time.Unix(3, 0), Retry: 9,
		LastStatus: mail.Status{Code: 550, Enh: [3]uint8{5, 1, 1}, Text: "no"}, LastError: "550 no", RemoteMTA: "mx",
		DelayNotices: 2, Notice: mail.NoticeDelayed, NoticeDelay: -time.Second}
}

func TestEnvelopeCodec(t *testing.T) {
	first := sample() // as version 1 had it
	first.SubAddr = ""
	for name, e := range map[string]mail.Envelope{"all": sample(), "version 1": first, "least": {ID: 1, Kind: mail.KindMDA}} {
		b, err := appendEnvelope(nil, &e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeEnvelope(e.ID, b)
		if err != nil || got != e {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, e)
		}
		for n := range b {
			if _, err := decodeEnvelope(1, b[:n]); err == nil {
				t.Errorf("%s: %d of %d octets are an envelope", name, n, len(b))
			}
		}
		if _, err := decodeEnvelope(1, append(b, 0)); err == nil {
			t.Errorf("%s: one octet more is an envelope", name)
		}
	}
	long := sample()
	long.Exec = strings.Repeat("x", maxText+1)
	if _, err := appendEnvelope(nil, &long); err == nil {
		t.Error("a field over its bound was encoded")
	}
}

// TestXAES compares with the vectors of the specification (C2SP XAES-256-GCM).
func TestXAES(t *testing.T) {
	for _, test := range []struct {
		key       byte
		aad, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		s, err := newSealer(bytes.Repeat([]byte{test.key}, 32))
		if err != nil {
			t.Fatal(err)
		}
		nonce := "ABCDEFGHIJKLMNOPQRSTUVWX"
		box, err := s.sealWith(nil, []byte(nonce), []byte("XAES-256-GCM"), []byte(test.aad))
		if err != nil || hex.EncodeToString(box) != hex.EncodeToString([]byte(nonce))+test.want {
			t.Errorf("key %d: %x, %v", test.key, box, err)
		}
		if plain, err := s.open(box, []byte(test.aad)); string(plain) != "XAES-256-GCM" || err != nil {
			t.Errorf("key %d: %q, %v", test.key, plain, err)
		}
	}
}

func packers(t testing.TB) map[string]*packer {
	s, err := newSealer(bytes.Repeat([]byte("k"), KeySize))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*packer{"plain": {}, "gzip": {}, "sealed": {seal: s}, "both": {seal: s}}
	all["gzip"].compress.Store(true)
	all["both"].compress.Store(true)
	return all
}

func TestPack(t *testing.T) {
	for name, p := range packers(t) {
		for _, n := range []int{0, 1, 127, 128, 5000, 64 << 10} {
			plain := []byte(strings.Repeat("abcd", n/4+1)[:n])
			item, err := p.pack(kindBody, []byte("key1"), plain)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.unpack(kindBody, []byte("key1"), item); !bytes.Equal(got, plain) || err != nil {
				t.Errorf("%s %d: %d octets, %v", name, n, len(got), err)
			}
			for what, wrong := range map[string]func() ([]byte, error){
				"another key":  func() ([]byte, error) { return p.unpack(kindBody, []byte("key2"), item) },
				"another kind": func() ([]byte, error) { return p.unpack(kindMessage, []byte("key1"), item) },
				"cut":          func() ([]byte, error) { return p.unpack(kindBody, []byte("key1"), item[:len(item)-1]) },
			} {
				if _, err := wrong(); err == nil {
					t.Errorf("%s %d: %s passes", name, n, what)
				}
			}
		}
	}
}

// TestStreams: what is stored in a file comes back, and nothing else does.
func TestStreams(t *testing.T) {
	for name, p := range packers(t) {
		if name == "plain" {
			continue
		}
		for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 7} {
			plain := []byte(strings.Repeat("line of text\n", n/13+1)[:n])
			var z bytes.Buffer
			if err := p.packStream(&z, bytes.NewReader(plain), []byte("key1"), p.compress.Load()); err != nil {
				t.Fatal(err)
			}
			how := uint8(0)
			if p.compress.Load() {
				how |= storedGzip
			}
			if p.seal != nil {
				how |= storedSealed
			}
			var got bytes.Buffer
			if err := p.unpackStream(&got, bytes.NewReader(z.Bytes()), []byte("key1"), how); err != nil || !bytes.Equal(got.Bytes(), plain) {
				t.Errorf("%s %d: %d octets, %v", name, n, got.Len(), err)
			}
			if p.seal == nil {
				continue
			}
			for _, cut := range []int{1, 5, chunkSize} {
				if cut < z.Len() && p.unpackStream(io.Discard, bytes.NewReader(z.Bytes()[:z.Len()-cut]), []byte("key1"), how) == nil {
					t.Errorf("%s %d: cut by %d passes", name, n, cut)
				}
			}
			if p.unpackStream(io.Discard, bytes.NewReader(append(bytes.Clone(z.Bytes()), 0)), []byte("key1"), how) == nil {
				t.Errorf("%s %d: one octet more passes", name, n)
			}
			if p.unpackStream(io.Discard, bytes.NewReader(z.Bytes()), []byte("key2"), how) == nil {
				t.Errorf("%s %d: another key passes", name, n)
			}
		}
	}
}

// TestIDs: the counter goes round past ids that are taken.
func TestIDs(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	last := ^uint32(0) - idBlock/2
	for _, id := range []uint32{1, 5, idBlock + 5} {
		m := &Message{ID: mail.MessageID(id), Envelopes: []mail.Envelope{{Kind: mail.KindMDA}}}
		if err := s.Accept(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	s.ids.next, s.ids.limit = last, last
	first, err := s.Reserve(t.Context(), 1)
	if err != nil || uint32(first) != idBlock+6 {
		t.Errorf("after the end comes %s, %v; want %08x", first, err, idBlock+6)
	}
}

// TestNextID: what meta says may be older than the messages, also past the end of
// all ids.
func TestNextID(t *testing.T) {
	tests := map[string]struct {
		old  []uint32 // one, or none
		msgs []uint32
		want uint32 // 0: none
	}{
		"as it was":         {[]uint32{100}, []uint32{7, 99}, 100},
		"older":             {[]uint32{100}, []uint32{7, 100, 300}, 301 + idBlock},
		"wrapped":           {[]uint32{100}, []uint32{^uint32(0) - 5, 90}, 100},
		"older and wrapped": {[]uint32{^uint32(0) - 5}, []uint32{^uint32(0) - 7, 20}, 21 + idBlock},
		"lost":              {nil, []uint32{7, 300}, 301 + idBlock},
		"nothing":           {nil, nil, 0},
	}
	for name, test := range tests {
		v := &salvage{meta: map[string][]byte{}, items: map[byte]map[string][]byte{kindMessage: {}}}
		for _, id := range test.old {
			v.meta[string(metaIDs)] = binary.BigEndian.AppendUint32(nil, id)
		}
		for _, id := range test.msgs {
			key := msgKey(mail.MessageID(id))
			item := []byte("item")
			v.items[kindMessage][string(key)] = binary.BigEndian.AppendUint32(item, itemSum(kindMessage, key, item))
		}
		v.items[kindMessage]["\x7f\xff\xff\xff"] = []byte("not whole")
		got := v.nextID()
		if (got == nil) != (test.want == 0) || (got != nil && binary.BigEndian.Uint32(got) != test.want) {
			t.Errorf("%s: %x, want %x", name, got, test.want)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	e := sample()
	b, _ := appendEnvelope(nil, &e)
	f.Add(b)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEnvelope(7, b)
		if err != nil {
			return
		}
		again, err := appendEnvelope(nil, &e)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if len(again) > len(b) {
			t.Fatalf("%d octets grew to %d", len(b), len(again))
		}
		if got, err := decodeEnvelope(7, again); err != nil || got != e {
			t.Fatalf("%+v became %+v, %v", e, got, err)
		}
	})
}

func FuzzItem(f *testing.F) {
	all := packers(f)
	for _, p := range all {
		item, _ := p.pack(kindBody, []byte("key1"), []byte(strings.Repeat("text ", 100)))
		f.Add(item)
	}
	f.Fuzz(func(t *testing.T, item []byte) {
		for name, p := range all {
			plain, err := p.unpack(kindBody, []byte("key1"), item)
			if err == nil && name == "plain" && len(plain) > 1032*len(item) {
				t.Fatalf("%d octets of %d", len(plain), len(item))
			}
			if len(item) > 0 {
				p.unpackUnchecked(kindBody, []byte("key1"), item)
			}
			p.unpackStream(io.Discard, bytes.NewReader(item), []byte("key1"), storedSealed|storedGzip)
		}
		if r, err := decodeRecord(item); err == nil {
			if got, err := decodeRecord(r.encode()); err != nil || got != r {
				t.Fatalf("%+v became %+v, %v", r, got, err)
			}
		}
		if a, err := decodeAside("x", item); err == nil {
			b, err := a.encode()
			if err != nil || len(b) > len(item) {
				t.Fatalf("%d octets became %d, %v", len(item), len(b), err)
			}
		}
	})
}

// FuzzPages has a database file damaged in many places: looking at it and
// taking it apart must end, whatever it holds.
func FuzzPages(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		f.Fatal(err)
	}
	for range 30 {
		id, _ := s.Reserve(f.Context(), 1)
		m := &Message{ID: id, Body: bytes.Repeat([]byte("x"), 700), Size: 700, Envelopes: []mail.Envelope{sample(), sample()}}
		if err := s.Accept(f.Context(), m); err != nil {
			f.Fatal(err)
		}
	}
	var size int64
	s.view(func(v *view) error { size = v.tx.Size(); return nil })
	s.Close()
	db, err := os.ReadFile(filepath.Join(dir, dbName))
	if err != nil {
		f.Fatal(err)
	}
	db = db[:size]
	f.Add(uint64(1), uint16(1), []byte{0xff})
	f.Add(uint64(2), uint16(40), []byte{0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, seed uint64, places uint16, what []byte) {
		m := &image{b: bytes.Clone(db)}
		r := rand.New(rand.NewPCG(seed, 0))
		for range places % 200 {
			copy(m.b[r.IntN(len(m.b)):], what)
		}
		if m.check() == nil {
			return
		}
		v := m.salvage()
		s := &Bolt{o: Options{Now: time.Now}}
		s.orphans(v)
		if len(v.items[kindMessage]) > 30+int(places) {
			t.Errorf("%d messages of 30", len(v.items[kindMessage]))
		}
	})
}

func FuzzOldEnvelope(f *testing.F) {
	f.Add([]byte("version: 3\ntype: mda\nctime: 1\nsender: @\n"))
	f.Add([]byte("version: 2\ntype: bounce\nctime: 1\nbounce-type: warn\nflags: bounce|internal\nesc-class: 5\nesc-code: 999\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseOldEnvelope(b)
		if err != nil {
			return
		}
		if err := checkText(&e); err != nil {
			t.Fatal(err)
		}
		again, err := appendEnvelope(nil, &e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeEnvelope(e.ID, again); err != nil || got != e {
			t.Fatalf("%+v became %+v, %v", e, got, err)
		}
	})
}
