package imsg

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// envelopeOf is an envelope with something in every field, made from n.
func envelopeOf(n int) (e mail.Envelope) {
	fillFrom(n, reflect.ValueOf(&e).Elem())
	return e
}

// branchOf is a branch like that.
func branchOf(n int) (b mail.Branch) {
	fillFrom(n, reflect.ValueOf(&b).Elem())
	return b
}

func fillFrom(n int, v reflect.Value) {
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.String:
			v.SetString(fmt.Sprintf("text %d", n))
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				v.Set(reflect.ValueOf(time.Unix(int64(n), 7)))
				return
			}
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Array:
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Int, reflect.Int64:
			v.SetInt(int64(n))
		case reflect.Bool:
			v.SetBool(n%2 == 1)
		default:
			v.SetUint(uint64(n))
		}
	}
	fill(v)
}

// Each field alone differs from the envelope before, in both directions, and
// what is alike costs nothing.
func TestEnvelopes(t *testing.T) {
	a, b := envelopeOf(1), envelopeOf(2)
	var list []mail.Envelope
	for i := range envelopeFields {
		e := a
		c := Codec{}
		envelopeFields[i](&c, &b)
		c.reading = true
		envelopeFields[i](&c, &e)
		if got := differing(&a, &e); c.err != nil || got != 1<<i {
			t.Fatalf("field %d: %v, differs in %b", i, c.err, got)
		}
		list = append(list, a, e, a)
	}
	list = append(list, mail.Envelope{}, b, a)
	m := &Commit{ID: 1, Envelopes: list}
	frame, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(m.Type(), frame)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("got %+v, %v", got, err)
	}
	var alike Commit
	for range 1000 {
		alike.Envelopes = append(alike.Envelopes, a)
	}
	if frame, err = Append(nil, &alike); err != nil || len(frame) > 2500 {
		t.Errorf("1000 alike: %d octets, %v", len(frame), err)
	}
}

// The first outcome of an answer carries what the others refer to.
func TestRcptAnswerNext(t *testing.T) {
	m := &RcptAnswer{RcptOutcome: RcptOutcome{Status: mail.Status{Code: 250}, Branches: []mail.Branch{branchOf(1), branchOf(2)}}}
	for i := range 5 {
		o := RcptOutcome{Status: mail.Status{Code: 550 + i/3}, Rule: "f:1", More: uint64(i), Own: i == 1}
		if i%2 == 0 {
			o.Branches = []mail.Branch{branchOf(2), branchOf(i)}
		}
		m.Next = append(m.Next, o)
	}
	for i := range reflect.TypeFor[mail.Branch]().NumField() { // each alone differs
		b, c := branchOf(1), branchOf(2)
		reflect.ValueOf(&b).Elem().Field(i).Set(reflect.ValueOf(c).Field(i))
		m.Next = append(m.Next, RcptOutcome{Branches: []mail.Branch{branchOf(1), b, branchOf(1)}})
	}
	frame, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(m.Type(), frame); err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// Recipients that differ in nothing else, each field of theirs alone.
func TestRcptCheckNext(t *testing.T) {
	m := &RcptCheck{Envelope: envelopeOf(1)}
	a := mail.Recipient{Address: m.Envelope.Rcpt, DSN: m.Envelope.DSN}
	user, domain, dsn := a, a, a
	user.User, domain.Domain, dsn.DSN.ORcpt = "other", "other.test", "rfc822;x"
	for range 2 {
		m.Next = append(m.Next, a, user, a, domain, a, dsn, mail.Recipient{})
	}
	frame, err := Append(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Decode(m.Type(), frame); err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// A field that does not exist breaks the protocol.
func TestEnvelopesUnknownField(t *testing.T) {
	frame, err := Append(nil, &Commit{ID: 1})
	if err != nil {
		t.Fatal(err)
	}
	c := Codec{}
	list := []mail.Envelope{{}}
	envelopes(&c, &list, &mail.Envelope{})
	for bit := range 64 {
		c := Codec{}
		n := 1
		c.Count(&n, 1)
		c.uvarint(1<<bit, ^uint64(0))
		for range 64 {
			c.uvarint(0, 0)
		}
		var got []mail.Envelope
		c.reading = true
		envelopes(&c, &got, &mail.Envelope{})
		if bad := bit >= len(envelopeFields); (c.err != nil) != bad {
			t.Errorf("bit %d: %v (frame %d)", bit, c.err, len(frame))
		}
	}
}
