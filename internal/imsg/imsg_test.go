package imsg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// lastType is the highest number in use.
const lastType = Type(len(kinds) - 1)

// all are the imsgs, empty, one of each type.
func all(t testing.TB) []Msg {
	t.Helper()
	var ms []Msg
	for n := Type(1); n <= lastType; n++ {
		m := n.make()
		if m == nil {
			continue // a number that is not in use
		}
		if m.Type() != n {
			t.Fatalf("type %d makes a %T of type %d", n, m, m.Type())
		}
		ms = append(ms, m)
	}
	return ms
}

func name1(m Msg) string { return reflect.TypeOf(m).Elem().Name() }

// fill gives every field a value that is not zero and within all bounds.
func fill(v reflect.Value, rng *rand.Rand) {
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000, 1+rng.Int64N(1e9))))
		return
	case reflect.TypeFor[[]byte]():
		b := make([]byte, 1+rng.IntN(30))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		v.SetBytes(b)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), rng)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1+rng.IntN(3), 3))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), rng)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text é %x", rng.Uint32()))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int64:
		v.SetInt(1 + rng.Int64() - rng.Int64())
	case reflect.Int: // a count, or the code of a Status
		v.SetInt(1 + rng.Int64N(599))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + rng.Uint64N(1<<v.Type().Bits()-1))
	default:
		panic("no way to fill a " + v.Type().String())
	}
}

func filled(m Msg, seed uint64) Msg {
	fill(reflect.ValueOf(m).Elem(), rand.New(rand.NewPCG(seed, uint64(m.Type()))))
	return m
}

func encode(t testing.TB, m Msg) []byte {
	t.Helper()
	b, err := Append(nil, m)
	if err != nil {
		t.Fatalf("%s: %v", name1(m), err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for _, m := range all(t) {
		t.Run(name1(m), func(t *testing.T) {
			for seed := range uint64(20) {
				if seed > 0 {
					filled(m, seed)
				}
				b := encode(t, m)
				got, err := Decode(m.Type(), b)
				if err != nil {
					t.Fatalf("Decode: %v", err)
				}
				if !reflect.DeepEqual(got, m) {
					t.Fatalf("got  %+v\nwant %+v", got, m)
				}
			}
		})
	}
}

// What is decoded does not share memory with the frame, which is used again.
func TestDecodeCopies(t *testing.T) {
	for _, m := range all(t) {
		b := encode(t, filled(m, 1))
		got, err := Decode(m.Type(), b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = 0xff
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s changed with the frame", name1(m))
		}
	}
}

// Append goes on where the slice ends and leaves what was there.
func TestAppend(t *testing.T) {
	for _, m := range all(t) {
		want := encode(t, filled(m, 1))
		got, err := Append([]byte("head"), m)
		if err != nil || !bytes.Equal(got, append([]byte("head"), want...)) {
			t.Errorf("%s: %q, %v", name1(m), got, err)
		}
	}
}

func TestTruncated(t *testing.T) {
	for _, m := range all(t) {
		b := encode(t, filled(m, 1))
		for n := range len(b) {
			if _, err := Decode(m.Type(), b[:n:n]); !errors.Is(err, ErrShort) {
				t.Errorf("%s cut to %d of %d octets: %v", name1(m), n, len(b), err)
			}
		}
	}
}

func TestLeftover(t *testing.T) {
	for _, m := range all(t) {
		b := append(encode(t, filled(m, 1)), 0)
		if _, err := Decode(m.Type(), b); !errors.Is(err, ErrLeftover) {
			t.Errorf("%s: %v", name1(m), err)
		}
	}
}

func TestUnknownType(t *testing.T) {
	for _, n := range []Type{0, lastType + 1, 65535} {
		if m, err := Decode(n, nil); !errors.Is(err, ErrKind) || m != nil {
			t.Errorf("type %d: %v, %v", n, m, err)
		}
	}
}

// bounded are the fields of v, at any depth, that have a length.
func bounded(v reflect.Value, path string, f func(path string, v reflect.Value)) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
	case v.Kind() == reflect.String || v.Kind() == reflect.Slice:
		f(path, v)
		if v.Kind() == reflect.Slice && v.Len() > 0 {
			bounded(v.Index(0), path+"[0]", f)
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			bounded(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	}
}

// No field goes out longer than the longest bound there is.
func TestTooLongToSend(t *testing.T) {
	for _, m := range all(t) {
		bounded(reflect.ValueOf(filled(m, 1)).Elem(), name1(m), func(path string, v reflect.Value) {
			old := reflect.ValueOf(v.Interface())
			switch {
			case v.Kind() == reflect.String:
				v.SetString(strings.Repeat("x", MaxData+1))
			case v.Type().Elem().Kind() == reflect.Uint8:
				v.SetBytes(make([]byte, MaxData+1))
			default:
				v.Set(reflect.MakeSlice(v.Type(), MaxItems+1, MaxItems+1))
			}
			if _, err := Append(nil, m); !errors.Is(err, ErrShort) {
				t.Errorf("%s is sent whatever its length: %v", path, err)
			}
			v.Set(old)
		})
	}
}

// Nor is a field taken that is longer, even when the frame holds it.
func TestTooLongToTake(t *testing.T) {
	const mark = "\x01\x02mark\x03"
	for _, m := range all(t) {
		bounded(reflect.ValueOf(filled(m, 1)).Elem(), name1(m), func(path string, v reflect.Value) {
			old := reflect.ValueOf(v.Interface())
			items := false
			switch {
			case v.Kind() == reflect.String:
				v.SetString(mark)
			case v.Type().Elem().Kind() == reflect.Uint8:
				v.SetBytes([]byte(mark))
			default:
				items = true
			}
			if !items {
				b := encode(t, m)
				i := bytes.Index(b, []byte(mark))
				long := binary.AppendUvarint(append([]byte(nil), b[:i-1]...), MaxData+1)
				long = append(append(long, make([]byte, MaxData+1)...), b[i+len(mark):]...)
				if _, err := Decode(m.Type(), long); !errors.Is(err, ErrShort) {
					t.Errorf("%s is taken whatever its length: %v", path, err)
				}
			}
			v.Set(old)
		})
	}
}

// A list that claims to be long costs nothing before its items are there.
func TestClaimsCostNothing(t *testing.T) {
	b := binary.AppendUvarint(nil, MaxItems)
	b = append(b, make([]byte, 3)...)
	if n := testing.AllocsPerRun(10, func() {
		if _, err := Decode(TypeGone, b); err == nil {
			t.Fatal("taken")
		}
	}); n > 3 {
		t.Errorf("%v allocations", n)
	}
}

func TestNumbers(t *testing.T) {
	tests := map[string]struct {
		m    Msg
		from string // field to be set
		to   any
		ok   bool
	}{
		"negative count":     {&QueueList{}, "Max", -1, false},
		"count at its bound": {&QueueList{}, "Max", MaxItems, true},
		"count over it":      {&QueueList{}, "Max", MaxItems + 1, false},
		"least integer":      {&Count{}, "N", int64(-1 << 63), true},
		"largest integer":    {&Count{}, "N", int64(1<<63 - 1), true},
	}
	for name, tt := range tests {
		reflect.ValueOf(tt.m).Elem().FieldByName(tt.from).Set(reflect.ValueOf(tt.to))
		b, err := Append(nil, tt.m)
		if (err == nil) != tt.ok {
			t.Errorf("%s: Append: %v", name, err)
		}
		if !tt.ok {
			continue
		}
		if got, err := Decode(tt.m.Type(), b); err != nil || !reflect.DeepEqual(got, tt.m) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, tt.m)
		}
	}
	raw := map[string]struct {
		t Type
		b []byte
	}{
		"a bool of 2":            {TypeSessionOpened, []byte{2}},
		"an octet of 300":        {TypeDNSAnswer, []byte{0xac, 0x02, 0, 0}},
		"a number without end":   {TypeCount, bytes.Repeat([]byte{0xff}, 11)},
		"a number of 70 bits":    {TypeCount, append(bytes.Repeat([]byte{0xff}, 9), 0x7f)},
		"more items than octets": {TypeGone, []byte{5, 1, 1, 1}},
	}
	for name, tt := range raw {
		if m, err := Decode(tt.t, tt.b); !errors.Is(err, ErrShort) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// A process that was taken over cannot end a line of ours by its text.
func TestControlOctets(t *testing.T) {
	const bad = "a\r\nb\x00\x7f"
	res := &Results{Results: []Result{{Line: bad, Remote: bad}}}
	res.Results[0].Status.Text = bad
	ans := &RcptAnswer{}
	ans.Status.Text = bad
	com := &Commit{Envelopes: make([]mail.Envelope, 1)}
	e := &com.Envelopes[0]
	e.Dispatcher, e.Helo, e.Host, e.LastError, e.Sender.User, e.Dest.Domain, e.DSN.EnvID = bad, bad, bad, bad, bad, bad, bad
	for _, m := range []Msg{res, ans, com, &DeliverResult{Line: bad, Stat: bad}} {
		got, err := Decode(m.Type(), encode(t, m))
		if err != nil {
			t.Fatal(err)
		}
		bounded(reflect.ValueOf(got).Elem(), name1(got), func(path string, v reflect.Value) {
			if s := v.String(); v.Kind() == reflect.String && s != "" && s != "a??b??" {
				t.Errorf("%s: %q", path, s)
			}
		})
	}
}

// TestListIsWhole finds imsgs and types in the source that the list leaves out.
func TestListIsWhole(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	imsgs, types := 0, 0
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv != nil && d.Name.Name == "Fields" {
					imsgs++
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if v, ok := s.(*ast.ValueSpec); ok && d.Tok == token.CONST && strings.HasPrefix(v.Names[0].Name, "Type") {
						types++
					}
				}
			}
		}
	}
	if n := len(all(t)); imsgs != n || types != n {
		t.Errorf("%d imsgs and %d types in the source, %d in the list", imsgs, types, n)
	}
}

// FuzzDecode: what is taken is sent again in the same form, and no longer.
func FuzzDecode(f *testing.F) {
	for _, m := range all(f) {
		f.Add(uint16(m.Type()), encode(f, m))
		f.Add(uint16(m.Type()), encode(f, filled(m, 1)))
	}
	f.Fuzz(func(t *testing.T, n uint16, b []byte) {
		m, err := Decode(Type(n), b)
		if err != nil {
			if m != nil {
				t.Fatal("an error and an imsg")
			}
			return
		}
		again, err := Append(nil, m)
		if err != nil {
			t.Fatalf("%+v was taken and cannot be sent: %v", m, err)
		}
		if len(again) > len(b) {
			t.Fatalf("grew from %d to %d octets", len(b), len(again))
		}
		got, err := Decode(Type(n), again)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("got %+v, %v; want %+v", got, err, m)
		}
	})
}

func BenchmarkEnvelope(b *testing.B) {
	m := filled(&Commit{}, 1).(*Commit)
	m.Envelopes = m.Envelopes[:1]
	m.Inline = make([]byte, 4096)
	buf := encode(b, m)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if buf, err = Append(buf[:0], m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Decode(TypeCommit, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
