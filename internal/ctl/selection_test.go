package ctl

import (
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

func TestSelection(t *testing.T) {
	now := at(1795217035)
	e := Entry{Envelope: trouble(), State: StatePending, Wait: mail.WaitRelay} // 42 s old, tried twice
	e.Envelope.Dest = mail.Address{User: "a/b[c", Domain: "Dest.Test"}
	null := e
	null.Envelope.Sender = mail.Address{}
	tests := map[string]struct {
		entry Entry
		want  bool
	}{
		"from=alice@mx.example.org":        {e, true},
		"from=<ALICE@*>":                   {e, true},
		"from=alice":                       {e, false},
		"from=<>":                          {e, false},
		"from=* to=*":                      {e, true},
		"from=*@*":                         {null, false},
		"from=<> age>0s":                   {null, true},
		"to=alice@temp.mda.test":           {e, true},
		"to=a/b[c@dest.test":               {e, true},
		"to=a*@dest.????":                  {e, true},
		"domain=dest.test":                 {e, true},
		"domain=*.mda.test":                {e, true},
		"domain=test":                      {e, false},
		"action=tmpfail":                   {e, true},
		"action=tmp":                       {e, false},
		"kind=mda":                         {e, true},
		"kind=mta":                         {e, false},
		"state=pending":                    {e, true},
		"state=inflight":                   {e, false},
		"flag=hold":                        {e, true},
		"flag=suspend":                     {e, false},
		"message=7f5a56b6":                 {e, true},
		"message=7f5a56b7":                 {e, false},
		"error~TROUBLE":                    {e, true},
		"error~^trouble":                   {e, false},
		"age>41s":                          {e, true},
		"age>42s":                          {e, false},
		"age<1d":                           {e, true},
		"age<1d2h":                         {e, true},
		"age>2h":                           {e, false},
		"tries>1 tries<3":                  {e, true},
		"tries>2":                          {e, false},
		"from=alice@* age>10s kind=mda":    {e, true},
		"from=alice@* age>10s kind=bounce": {e, false},
	}
	for words, tt := range tests {
		t.Run(words, func(t *testing.T) {
			s, err := ParseSelection(strings.Fields(words))
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Match(&tt.entry, now); got != tt.want {
				t.Errorf("got %v; want %v", got, tt.want)
			}
		})
	}
}

func TestSelectionRefused(t *testing.T) {
	for _, words := range []string{"", "from", "=x", "from=", "from~x", "age=2h", "age>x", "age>-2h", "age>xd", "age>65535d999999h", "tries>x", "state=x",
		"kind=x", "flag=x", "message=0", "error~(", "color=red", "from=" + strings.Repeat("x", maxCondition),
		strings.Repeat("age>1s ", maxConditions+1)} {
		if _, err := ParseSelection(strings.Fields(words)); err == nil {
			t.Errorf("%.40q was accepted", words)
		}
	}
}

func FuzzSelection(f *testing.F) {
	f.Add("from=*@x.test age>2h error~timeout")
	e := Entry{Envelope: trouble(), State: StatePending}
	f.Fuzz(func(t *testing.T, words string) {
		if s, err := ParseSelection(strings.Fields(words)); err == nil {
			s.Match(&e, time.Unix(0, 0))
		}
	})
}
