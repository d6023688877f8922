package ctl

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
)

func at(sec int64) time.Time { return time.Unix(sec, 0) }

// trouble is the envelope of the recording of `show envelope`.
func trouble() mail.Envelope {
	a := mail.Address{User: "alice", Domain: "temp.mda.test"}
	return mail.Envelope{
		ID: 0x7f5a56b65f591e71, Kind: mail.KindMDA, Dispatcher: "tmpfail",
		SMTPName: "mx.example.org", Helo: "client.test", Host: "localhost", Client: "127.0.0.1",
		Sender: mail.Address{User: "alice", Domain: "mx.example.org"}, Rcpt: a, Dest: a,
		Created: at(1795216993), Retry: 2, User: "alice",
		LastStatus: mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: "trouble"}, LastError: `"trouble"`,
	}
}

func TestLine(t *testing.T) {
	now := at(1795217035)
	change := func(f func(*Entry)) Entry {
		e := Entry{Envelope: trouble(), State: StatePending, Since: now.Add(2 * time.Second)}
		f(&e)
		return e
	}
	tests := map[string]struct {
		entry Entry
		want  string
	}{
		"pending": {change(func(*Entry) {}),
			`7f5a56b65f591e71|inet4|mda||alice@mx.example.org|alice@temp.mda.test|alice@temp.mda.test|1795216993|1795216993|0|2|pending|2|"trouble"`},
		"suspended, overdue": {change(func(e *Entry) {
			e.Envelope.Flags = mail.FlagSuspended
			e.Envelope.Retry = 5
			e.Since = now.Add(-7 * time.Second)
		}), `7f5a56b65f591e71|inet4|mda|suspend|alice@mx.example.org|alice@temp.mda.test|alice@temp.mda.test|1795216993|1795216993|0|5|pending|-7|"trouble"`},
		"bounce in flight": {change(func(e *Entry) {
			e.Envelope.ID, e.Envelope.Kind = 0x7f5a56b603d6ebcc, mail.KindBounce
			e.Envelope.Created, e.Envelope.LastTry = at(1795217031), at(1795217031)
			e.Envelope.TTL, e.Envelope.Retry = 7*24*time.Hour, 0
			e.State, e.Since = StateInflight, now
		}), `7f5a56b603d6ebcc|inet4|bounce||alice@mx.example.org|alice@temp.mda.test|alice@temp.mda.test|1795217031|1795821831|1795217031|0|inflight|0|"trouble"`},
		"offline": {change(func(e *Entry) { e.State = StateOffline; e.Since = time.Time{} }),
			`7f5a56b65f591e71|inet4|mda||alice@mx.example.org|alice@temp.mda.test|alice@temp.mda.test|1795216993|1795216993|0|2|offline||"trouble"`},
		"null reverse-path, all flags": {change(func(e *Entry) {
			e.Envelope.Sender, e.Envelope.Client = mail.Address{}, "local"
			e.Envelope.Flags = mail.FlagBounce | mail.FlagAuthenticated | mail.FlagInternal | mail.FlagSuspended
			e.Wait, e.Reason = mail.WaitRelay, "a limit"
			e.State = StateInvalid
		}), `7f5a56b65f591e71|local|mda|bounce,auth,internal,suspend,hold|@|alice@temp.mda.test|alice@temp.mda.test|1795216993|1795216993|0|2|invalid||"trouble"`},
		"hostile": {change(func(e *Entry) {
			e.Envelope.Client = "[::1]"
			e.Envelope.Rcpt.User = "a|b\x1b[2J"
			e.Envelope.LastError = "no\nway\\ \xffé"
		}), `7f5a56b65f591e71|inet6|mda||alice@mx.example.org|a\174b\^[[2J@temp.mda.test|alice@temp.mda.test|1795216993|1795216993|0|2|pending|2|no\^Jway\\ \M^?é`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.entry.Line(now); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			again, err := ParseEntry(tt.entry.Fields())
			if err != nil {
				t.Fatal(err)
			}
			if got := again.Line(now); got != tt.want {
				t.Errorf("over the socket: got  %s\nwant %s", got, tt.want)
			}
			if again.Envelope.LastStatus != tt.entry.Envelope.LastStatus {
				t.Errorf("status: got %v; want %v", again.Envelope.LastStatus, tt.entry.Envelope.LastStatus)
			}
		})
	}
}

func TestEnvelopeText(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "envelope.want"))
	if err != nil {
		t.Fatal(err)
	}
	e := trouble()
	if got := EnvelopeText(&e); got != string(b) {
		t.Errorf("got\n%s\nwant\n%s", got, b)
	}

	e.Kind, e.Notice, e.NoticeDelay = mail.KindBounce, mail.NoticeDelayed, 4*time.Hour
	e.Username, e.Helo = "alice", "evil\nflags: bounce"
	e.Flags = mail.FlagAuthenticated | mail.FlagBounce
	e.DSN = mail.DSN{Notify: mail.NotifyFailure | mail.NotifySuccess, Ret: mail.RetHeaders, EnvID: "id", ORcpt: "rfc822;x"}
	got := EnvelopeText(&e)
	for _, want := range []string{"helo: evil?flags: bounce\n", "username: alice\n", "flags: authenticated bounce\n",
		"dsn-notify: 3\n", "dsn-ret: HDRS\n", "dsn-envid: id\n", "dsn-orcpt: rfc822;x\n", "bounce-delay: 14400\n", "bounce-type: delayed\n"} {
		if !strings.Contains(got, "\n"+want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestDuration(t *testing.T) {
	tests := map[time.Duration]string{
		0: "0s", time.Second: "1s", 62 * time.Second: "1m2s", time.Hour: "1h",
		26*time.Hour + 3*time.Minute + 4*time.Second: "1d2h3m4s", 500 * time.Millisecond: "0s", -time.Minute: "-1m",
	}
	for d, want := range tests {
		if got := Duration(d); got != want {
			t.Errorf("%d: got %s; want %s", d, got, want)
		}
	}
}

func TestSource(t *testing.T) {
	tests := map[string]string{"local": "local", "127.0.0.1": "inet4", "[::1]": "inet6", "2001:db8::1": "inet6", "": "?", "<unknown>": "?"}
	for client, want := range tests {
		if got := Source(client); got != want {
			t.Errorf("%q: got %s; want %s", client, got, want)
		}
	}
}

func BenchmarkEntry(b *testing.B) {
	e := Entry{Envelope: trouble(), State: StatePending, Since: at(1795217037)}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = appendFrame(buf[:0], KindRow, e.Fields())
		f, err := parseFrame(buf[4:])
		if err != nil {
			b.Fatal(err)
		}
		got, err := ParseEntry(f.Fields)
		if err != nil {
			b.Fatal(err)
		}
		_ = got.Line(at(1795217035))
	}
}
