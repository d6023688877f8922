package queue_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpd/internal/mail"
	"smtpd/queue"
	"smtpd/queue/queuetest"
)

// oldSpool writes files of a spool of OpenSMTPD: id/name -> content.
func oldSpool(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, "queue", name[:2], name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func zip(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	z.Close()
	return b.String()
}

// third is an envelope as 7.8 shows it.
const third = `version: 3
dispatcher: tmpfail
type: mda
smtpname: mx.example.org
helo: client.test
hostname: localhost
errorline: "trouble"
sockaddr: 127.0.0.1
sender: alice@mx.example.org
rcpt: alice@temp.mda.test
dest: alice@temp.mda.test
ctime: 1795216993
last-try: 0
last-bounce: 0
ttl: 0
retry: 2
dsn-notify: 0
esc-class: 4
esc-code: 30
mda-user: alice
`

const second = `version: 2
type: mta
smtpname: mx.example.org
helo: [client]
hostname: <unknown>
sockaddr: IPv6:::1
sender: @
rcpt: a@b.test
dest: c@d.test
ctime: 1795216993
last-try: 1795216999
expire: 345600
retry: 0
flags: authenticated internal
dsn-notify: success,failure
dsn-ret: FULL
dsn-envid: QQ
dsn-orcpt: o+2Bx@y.test
mta-relay: smtp://mail.test
`

func TestImport(t *testing.T) {
	bounce := strings.Replace(third, "type: mda", "type: bounce", 1) + "bounce-type: delayed\nbounce-delay: 14400\nbounce-ttl: 0\n"
	dir := oldSpool(t, map[string]string{
		"7f5a56b6/7f5a56b65f591e71": third, "7f5a56b6/7f5a56b603d6ebcc": bounce, "7f5a56b6/message": "Subject: x\n\nhello\n",
		"00000001/0000000100000001": zip(second), "00000001/message": zip(queuetest.Large()),
		"00000002/0000000200000001": third, // without a message
		"00000003/0000000300000001": "version: 9\n", "00000003/message": "x",
		"00000004/0000000400000001": third, "00000004/message": "\x01\x02\x03encrypted",
		"00000005/0000000500000001": strings.Replace(third, "sender: ", "sender: \x01", 1), "00000005/message": "x",
		"00000006/message": "nobody wants it",
	})
	s := open(t, t.TempDir(), queue.Options{})
	defer s.Close()
	var lines []string
	var told int
	im := &queue.Import{Dir: dir, Report: func(l string) { lines = append(lines, l) },
		Edit: func(e *mail.Envelope) { e.Tag = "edited" },
		Done: func(l []mail.Envelope) { told += len(l) }}
	r, err := im.Run(t.Context(), s)
	if err != nil || r.Messages != 2 || r.Envelopes != 3 || r.Left != 5 || told != 3 ||
		r.Dispatchers["tmpfail"] != 2 || r.Dispatchers["import-mta"] != 1 {
		t.Errorf("%+v, %v, told %d, %q", r, err, told, lines)
	}
	if got, err := queuetest.Read(s, 0x7f5a56b6); got != "Subject: x\n\nhello\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := queuetest.Read(s, 1); got != queuetest.Large() || err != nil {
		t.Errorf("%d octets, %v", len(got), err)
	}
	all, _ := queuetest.All(s, 10)
	at := time.Unix(1795216993, 0)
	addr := mail.SplitAddress
	want := []mail.Envelope{
		{Kind: mail.KindMTA, Dispatcher: "import-mta", Flags: mail.FlagAuthenticated | mail.FlagInternal, Tag: "edited", SMTPName: "mx.example.org",
			Helo: "[client]", Host: "<unknown>", Client: "[::1]", Rcpt: addr("a@b.test"), Dest: addr("c@d.test"),
			DSN: mail.DSN{Notify: 3, Ret: mail.RetFull, EnvID: "QQ", ORcpt: "rfc822;o+2Bx@y.test"}, Created: at, LastTry: time.Unix(1795216999, 0), TTL: 96 * time.Hour},
		{Kind: mail.KindBounce, Notice: mail.NoticeDelayed, NoticeDelay: 4 * time.Hour},
		{Kind: mail.KindMDA},
	}
	for i := 1; i < 3; i++ {
		w := &want[i]
		w.Dispatcher, w.Tag, w.SMTPName, w.Helo, w.Host, w.Client = "tmpfail", "edited", "mx.example.org", "client.test", "localhost", "127.0.0.1"
		w.Sender, w.Rcpt, w.Dest = addr("alice@mx.example.org"), addr("alice@temp.mda.test"), addr("alice@temp.mda.test")
		w.LastError, w.Created, w.Retry, w.User = `"trouble"`, at, 2, "alice"
		w.LastStatus = mail.Status{Code: 450, Enh: [3]uint8{4, 3, 0}}
	}
	if len(all) != 3 {
		t.Fatalf("%d envelopes", len(all))
	}
	for i := range all {
		want[i].ID = all[i].ID
		if all[i] != want[i] {
			t.Errorf("got  %+v\nwant %+v", all[i], want[i])
		}
	}
	// Again: what came over is not there any more, what did not is.
	r, err = im.Run(t.Context(), s)
	if err != nil || r.Messages != 0 || r.Left != 5 {
		t.Errorf("again: %+v, %v", r, err)
	}
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "00000004 left: message: it is encrypted") }) {
		t.Errorf("%q", lines)
	}
}

// TestImportTaken: an old id that is in use here is replaced.
func TestImportTaken(t *testing.T) {
	s := open(t, t.TempDir(), queue.Options{})
	defer s.Close()
	id, err := put(t, s, "ours")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, i := range []mail.MessageID{id, id + 1} { // taken, and soon to be
		files[fmt.Sprintf("%s/%s", i, i.Envelope(7))] = third
		files[fmt.Sprintf("%s/message", i)] = "theirs " + i.String()
	}
	r, err := (&queue.Import{Dir: filepath.Join(oldSpool(t, files), "queue")}).Run(t.Context(), s)
	if err != nil || r.Messages != 2 {
		t.Fatal(r, err)
	}
	all, _ := queuetest.All(s, 10)
	if len(all) != 3 {
		t.Errorf("%d envelopes", len(all))
	}
	if got, _ := queuetest.Read(s, id); got != "ours" {
		t.Errorf("%q", got)
	}
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	bodies := stock(t, dir, 20)
	var lines []string
	s, err := queue.Open(dir, queue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Verify(t.Context(), func(l string) { lines = append(lines, l) })
	if err != nil || r.Messages != len(bodies) || r.Envelopes != len(bodies) || r.Bad != 0 {
		t.Errorf("%+v, %v, %q", r, err, lines)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "body", "*", "*"))
	os.Truncate(files[0], 7)
	r, err = s.Verify(t.Context(), func(l string) { lines = append(lines, l) })
	if err != nil || r.Bad != 1 || len(lines) != 1 {
		t.Errorf("%+v, %v, %q", r, err, lines)
	}
	if l, _, _ := s.Corrupt("", 10); len(l) != 1 {
		t.Errorf("aside %+v", l)
	}
}
