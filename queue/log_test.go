package queue

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"smtpd/internal/mail"
)

// testLog makes logs.
type testLog struct {
	salt [saltSize]byte
	b    []byte
}

func newTestLog() *testLog {
	l := &testLog{salt: [saltSize]byte{1, 2, 3, 4, 5, 6, 7, 8}, b: make([]byte, logBlock)}
	copy(l.b, logHeader(l.salt))
	return l
}

// add adds a record that sets or, where there is no text, deletes one key each.
func (l *testLog) add(seq uint64, items ...string) (at, end int) {
	own := &layer{}
	for _, item := range items {
		key, text, ok := strings.Cut(item, "=")
		e := entry{key: key, under: true}
		if ok {
			e.item = []byte(text)
		}
		own.set(bucketMeta, e)
	}
	b := make([]byte, recordHead)
	for in, e := range own.all() {
		b = appendOp(b, in, e)
	}
	at = len(l.b)
	l.b = append(l.b, sealRecord(b, l.salt, seq)...)
	return at, at + len(b)
}

// text is what a reader found, in the order of keys.
func text(r *logReader) string {
	var b strings.Builder
	for _, e := range r.over.all() {
		if e.item == nil {
			fmt.Fprintf(&b, "-%s ", e.key)
		} else {
			fmt.Fprintf(&b, "%s=%.9s ", e.key, e.item)
		}
	}
	return strings.TrimSpace(b.String())
}

var long = strings.Repeat("0123456789abcdef", 1000)

func TestReadRecords(t *testing.T) {
	forged := newTestLog()
	forged.salt = [saltSize]byte{8, 7, 6, 5, 4, 3, 2, 1}
	forged.b = nil
	forged.add(1000, "forged=yes")
	pad := func(n int) string { return strings.Repeat("x", n) }
	tests := map[string]struct {
		make    func(l *testLog)
		known   uint64
		want    string
		last    uint64
		damaged bool
		mended  int
	}{
		"empty":             {func(l *testLog) {}, 7, "", 7, false, 0},
		"some":              {func(l *testLog) { l.add(1, "a=1", "b=1"); l.add(2, "a=2"); l.add(3, "b") }, 0, "a=2 -b", 3, false, 0},
		"known":             {func(l *testLog) { l.add(1, "a=1"); l.add(2, "b=2") }, 2, "", 2, false, 0},
		"numbers left out":  {func(l *testLog) { l.add(1, "a=1"); l.add(9, "b=2") }, 0, "a=1 b=2", 9, false, 0},
		"begun anew":        {func(l *testLog) { l.add(5, "a=5"); l.add(2, "a=2"); l.add(3, "b=3") }, 0, "a=5", 5, false, 0},
		"begun anew, known": {func(l *testLog) { l.add(5, "a=5"); l.add(2, "a=2"); l.add(3, "b=3") }, 4, "a=5", 5, false, 0},
		"no longer than the file": {func(l *testLog) {
			at, _ := l.add(1, "a=1")
			h := l.b[at:][:recordHead]
			binary.BigEndian.PutUint32(h[saltSize+8:], 1<<31)
			binary.BigEndian.PutUint32(h[recordHead-4:], crcOf(h[:recordHead-4]))
		}, 0, "", 0, false, 0},
		"the end is torn": {func(l *testLog) {
			l.add(1, "a=1")
			at, _ := l.add(2, "b="+long)
			clear(l.b[at+8192:][:512])
		}, 0, "a=1", 1, false, 0},
		"the head is torn": {func(l *testLog) {
			l.add(1, "a=1")
			at, _ := l.add(2, "b="+long)
			clear(l.b[at:][:512])
		}, 0, "a=1", 1, false, 0},
		"torn over an old one": {func(l *testLog) {
			l.add(2, "a="+long)
			l.add(3, "b=3")
			n := newTestLog()
			n.add(9, "c="+strings.Repeat("c", 9000))
			copy(l.b[logBlock:], n.b[logBlock:][:8192])
		}, 3, "", 3, false, 0},
		"a sector in the middle": {func(l *testLog) {
			l.add(1, "a=1")
			at, _ := l.add(2, "aa=2", "b="+long)
			l.add(3, "c=3")
			clear(l.b[at+8192:][:512])
		}, 0, "a=1 aa=2 b=012345678 c=3", 3, true, 0},
		"a block in the middle": {func(l *testLog) {
			l.add(1, "a=1")
			at, _ := l.add(2, "b="+long)
			l.add(3, "c=3")
			clear(l.b[at:][:logBlock])
		}, 0, "a=1 c=3", 3, true, 0},
		"the header": {func(l *testLog) { l.add(1, "a=1"); clear(l.b[:512]) }, 0, "a=1", 1, true, 0},
		"forged, reached": {func(l *testLog) {
			// One that lies in a body at the beginning of a block, and nothing is
			// before it that would lead around it.
			at, _ := l.add(2, "b="+pad(logBlock-recordHead-6)+string(forged.b)+pad(4*logBlock))
			l.add(3, "c=3")
			if !bytes.Equal(l.b[at+logBlock:][:recordHead], forged.b[:recordHead]) {
				panic("not where it should be")
			}
			clear(l.b[at:][:recordHead])
		}, 0, "c=3", 3, true, 0},
		"the newest is torn, and all is read again": {func(l *testLog) {
			at, _ := l.add(9, "a=unacknowledged", "b="+long)
			clear(l.b[at+8192:][:512])
			l.add(2, "c=2")
			l.add(3, "d=3")
		}, 0, "c=2 d=3", 3, true, 0},
		"another log's": {func(l *testLog) { l.b = append(l.b, forged.b...) }, 0, "", 0, false, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newTestLog()
			test.make(l)
			l.b = append(l.b, make([]byte, 3*logBlock)...)
			r := readRecords(bytes.Clone(l.b), test.known)
			if got := text(r); got != test.want || r.last != test.last || (r.damaged > 0) != test.damaged || r.mended != test.mended || r.foreign {
				t.Errorf("%q, last %d, damaged %d, mended %d, foreign %v", got, r.last, r.damaged, r.mended, r.foreign)
			}
		})
	}
}

func crcOf(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }

// TestOneOctet: one wrong octet anywhere in a log changes nothing, whether a
// record follows or not.
func TestOneOctet(t *testing.T) {
	l := newTestLog()
	ends := []int{logHead}
	starts := []int{0}
	for i := range 4 {
		at, end := l.add(uint64(i+1), fmt.Sprintf("a%d=%d", i, i), "a=all", fmt.Sprintf("b%d=%s", i, long[:i*3000]))
		starts, ends = append(starts, at), append(ends, end)
	}
	l.b = append(l.b, make([]byte, 2*logBlock)...)
	want := text(readRecords(bytes.Clone(l.b), 0))
	places := 0
	for i := range starts {
		for at := starts[i]; at < ends[i]; at++ {
			if at > starts[i]+200 && at < ends[i]-50 && at%61 != 0 {
				continue
			}
			b := bytes.Clone(l.b)
			b[at] ^= byte(1 + at%255)
			r := readRecords(b, 0)
			if got := text(r); got != want || r.damaged > 0 || r.mended != 1 || r.foreign {
				t.Fatalf("octet %d: %q, damaged %d, mended %d", at, got, r.damaged, r.mended)
			}
			places++
		}
	}
	t.Logf("%d places", places)
}

// TestTorn: whatever sectors of the last record are on disk, over zeros or over
// older records, it is there as a whole or not at all, and nothing is reported.
func TestTorn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 3000 {
		old := newTestLog()
		for i := range 5 {
			old.add(uint64(i+1), fmt.Sprintf("old%d=%s", i, long[:r.IntN(9000)]))
		}
		l := newTestLog()
		l.add(10, "a=1")
		before := len(l.b)
		_, end := l.add(11, "b="+long[:r.IntN(12000)], "c=2", "old1")
		b := append(bytes.Clone(old.b), make([]byte, 8*logBlock)...)
		if n%2 == 0 {
			clear(b[logBlock:])
		}
		copy(b, l.b[:before])
		all := true
		for at := before; at < len(l.b); at += 512 {
			if r.IntN(8) > 0 {
				copy(b[at:], l.b[at:at+512])
			} else if at < end && !bytes.Equal(b[at:min(at+512, end)], l.b[at:min(at+512, end)]) {
				all = false
			}
		}
		got := readRecords(b, 5)
		want := "a=1"
		if all {
			want = text(readRecords(l.b, 5))
		}
		if text(got) != want || got.damaged > 0 || got.mended > 0 {
			t.Fatalf("%d: %q, want %q, damaged %d, mended %d", n, text(got), want, got.damaged, got.mended)
		}
	}
}

// FuzzLog: no file makes the reader end badly, or take more than it holds.
func FuzzLog(f *testing.F) {
	l := newTestLog()
	l.add(1, "a=1", "b="+long)
	l.add(2, "c")
	l.add(3, "d="+long[:3000])
	f.Add(uint64(1), uint16(3), []byte{0xff, 0, 1})
	f.Add(uint64(2), uint16(0), l.b[logBlock:][:100])
	f.Fuzz(func(t *testing.T, seed uint64, places uint16, what []byte) {
		b := bytes.Clone(l.b)
		r := rand.New(rand.NewPCG(seed, 0))
		for range places % 100 {
			copy(b[r.IntN(len(b)):], what)
		}
		if seed%3 == 0 { // as if it were what somebody wrote
			ops := append(make([]byte, recordHead), what...)
			b = append(b, sealRecord(ops, l.salt, 1+seed%8)...)
		}
		got := readRecords(b[:len(b)-int(seed%5000)], seed%4)
		if got.over.count > len(b)/3 {
			t.Errorf("%d entries of %d octets", got.over.count, len(b))
		}
		readRecords(what, 0)
	})
}

// TestView holds what is read through layers against a map.
func TestView(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := &Bolt{db: db, over: &layer{}, gone: make(chan struct{})}
	err = db.Update(func(tx *bbolt.Tx) error {
		for b := range buckets {
			if _, err := tx.CreateBucket(b.name()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 9))
	want := map[string]string{}
	key := func() string { return fmt.Sprintf("%05d", r.IntN(3000)) }
	fail := fmt.Errorf("left out")
	for round := range 400 {
		var jobs []*job
		next := maps.Clone(want)
		for range 1 + r.IntN(8) {
			mine := maps.Clone(next)
			bad := r.IntN(4) == 0
			var steps []func(*txn) error
			for range r.IntN(12) {
				k, v := key(), fmt.Sprint(r.Uint32())
				if r.IntN(3) == 0 {
					delete(mine, k)
					steps = append(steps, func(tx *txn) error { return tx.delete(bucketEnv, []byte(k)) })
				} else {
					mine[k] = v
					steps = append(steps, func(tx *txn) error { return tx.put(bucketEnv, []byte(k), []byte(v)) })
				}
			}
			jobs = append(jobs, &job{apply: func(tx *txn) error {
				for _, f := range steps {
					if err := f(tx); err != nil {
						t.Error(err)
					}
				}
				if bad {
					return fail
				}
				return nil
			}})
			if !bad {
				next = mine
			}
		}
		tx, err := s.run(jobs)
		if err != nil {
			t.Fatal(err)
		}
		same(t, s, want) // nobody sees it yet
		s.publish(tx.own)
		want = next
		same(t, s, want)
		if round%40 == 39 {
			if err := s.checkpoint1(); err != nil {
				t.Fatal(err)
			}
			same(t, s, want)
		}
	}
	if s.over.count != 0 {
		t.Errorf("%d entries left", s.over.count)
	}
}

// checkpoint1 is checkpoint where there is no log.
func (s *Bolt) checkpoint1() error {
	err := s.flush(s.over)
	s.over = &layer{}
	return err
}

// same compares a bucket, read from the beginning and from anywhere.
func same(t *testing.T, s *Bolt, want map[string]string) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(want))
	err := s.view(func(v *view) error {
		for _, from := range []string{"", "01000", fmt.Sprintf("%05d", len(keys)%3000)} {
			rest := keys[slices.IndexFunc(append(slices.Clone(keys), "z"), func(k string) bool { return k >= from }):]
			for k, item := range v.from(bucketEnv, []byte(from)) {
				if len(rest) == 0 || rest[0] != string(k) || want[rest[0]] != string(item) {
					return fmt.Errorf("from %q: %q=%q, %d left", from, k, item, len(rest))
				}
				rest = rest[1:]
			}
			if len(rest) > 0 {
				return fmt.Errorf("from %q: %d are missing", from, len(rest))
			}
		}
		for k, item := range want {
			if got := v.get(bucketEnv, []byte(k)); string(got) != item {
				return fmt.Errorf("%q: %q, want %q", k, got, item)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNothingLeft: mail that came and went between two checkpoints never touches
// the database.
func TestNothingLeft(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Reserve(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	there := s.over.count // what the counter of ids left
	id, _ := s.Reserve(t.Context(), 1)
	m := &Message{ID: id, Body: []byte("x"), Size: 1, Arrival: time.Unix(1, 0)}
	m.Envelopes = append(m.Envelopes, sample(), sample())
	if err := s.Accept(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if s.over.count != there+4 {
		t.Errorf("%d entries more", s.over.count-there)
	}
	for n := uint32(1); n <= 2; n++ {
		c := Change{ID: id.Envelope(n), Attempt: AnyAttempt, Edit: func(*mail.Envelope) Verdict { return Verdict{Delete: true} }}
		if out, err := s.Apply(t.Context(), []Change{c}); err != nil || out[0].Err != nil {
			t.Fatal(err, out)
		}
	}
	if s.over.count != there {
		t.Errorf("%d entries are left", s.over.count-there)
	}
	if b, err := os.ReadFile(s.path(dbName)); err != nil || bytes.Contains(b, []byte("rfc822;x")) {
		t.Error("the database has seen it", err)
	}
}
