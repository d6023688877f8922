package deliver

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
)

// start runs a worker in this process and gives mda's end of the channel.
func start(t *testing.T) (mda *ipc.Link, ended chan error) {
	t.Helper()
	near, far := ipc.NewLink(imsg.MDA, imsg.Deliver), ipc.NewLink(imsg.Deliver, imsg.MDA)
	if err := ipc.Connect(near, far); err != nil {
		t.Fatal(err)
	}
	near.Serve(func(*ipc.Request) {}, nil, nil)
	ended = make(chan error, 1)
	go func() { ended <- Run(context.Background(), far, log.Discard()) }()
	t.Cleanup(func() {
		near.Close()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the worker ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the worker does not end when mda goes")
		}
	})
	return near, ended
}

func example(t *testing.T) *imsg.DeliverRun {
	return &imsg.DeliverRun{
		Envelope: mail.Envelope{ID: 0x0102030405060708, Kind: mail.KindMDA, User: "alice", Home: t.TempDir(),
			Sender: mail.Address{User: "a", Domain: "b"}, Rcpt: mail.Address{User: "c", Domain: "d"},
			Dest: mail.Address{User: "c+x", Domain: "d"}, Created: time.Now()},
		Method: "maildir", Delim: "+", Hostname: "mx", Inline: []byte("Subject: x\n\nhello\n"), Size: 18,
	}
}

func run(t *testing.T, l *ipc.Link, m *imsg.DeliverRun, f *os.File) *imsg.DeliverResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, _, err := l.Call(ctx, m, f)
	if err != nil {
		t.Fatal(err)
	}
	return a.(*imsg.DeliverResult)
}

func TestRun(t *testing.T) {
	l, _ := start(t)
	m := example(t)
	if r := run(t, l, m, nil); !r.Status.OK() || r.Stat != "Delivered" {
		t.Fatalf("got %+v", r)
	}
	files, _ := filepath.Glob(m.Envelope.Home + "/Maildir/new/*.0102030400000001.mx")
	if len(files) != 1 {
		t.Fatalf("files: %v", files)
	}
	got, _ := os.ReadFile(files[0])
	if want := "Return-Path: <a@b>\nDelivered-To: c@d\nSubject: x\n\nhello\n"; string(got) != want {
		t.Errorf("got %q; want %q", got, want)
	}

	m.Method, m.Command, m.Envelope.Exec = "pipe", `printf '%s\n' "$EXTENSION %{dest.user}"; exit 1`, ""
	if r := run(t, l, m, nil); r.Status.Code != 550 || r.Line != `"x c+x"` || r.Stat != `Error ("x c+x")` {
		t.Errorf("got %+v", r)
	}
	m.Size++
	if r := run(t, l, m, nil); r.Status.Code != 451 {
		t.Errorf("without its body: %+v", r)
	}
	m.Size--
	m.Method = "relay"
	if r := run(t, l, m, nil); !r.Status.Temporary() {
		t.Errorf("got %+v", r)
	}
}

func TestRunWithDescriptor(t *testing.T) {
	l, _ := start(t)
	m := example(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "body"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("Subject: file\n\nx\n"); err != nil {
		t.Fatal(err)
	}
	m.Inline, m.Size = nil, 17
	if r := run(t, l, m, f); !r.Status.OK() {
		t.Fatalf("got %+v", r)
	}
	m.Size, m.Envelope.ID = 18, m.Envelope.ID+1
	f, _ = os.Open(f.Name())
	if r := run(t, l, m, f); r.Status.Code != 451 {
		t.Errorf("a body that is too short: %+v", r)
	}
}

func TestEndsWithMDA(t *testing.T) {
	l, ended := start(t)
	m := example(t)
	m.Method, m.Command = "mda", "echo x >started; sleep 60"
	if err := syscall.Mkfifo(m.Envelope.Home+"/started", 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _, _, _ = l.Call(context.Background(), m, nil) }()
	if _, err := os.ReadFile(m.Envelope.Home + "/started"); err != nil { // a pipe: until the command has written
		t.Fatal(err)
	}
	begin := time.Now()
	l.Close()
	err := <-ended
	if took := time.Since(begin); err != nil || took > 10*time.Second {
		t.Errorf("ended with %v after %v", err, took)
	}
	ended <- err
}

func TestEndsWhenIdle(t *testing.T) {
	signal.Reset(syscall.SIGXFSZ) // Run does so too; what the runtime makes for the first must not belong to the bubble
	synctest.Test(t, func(t *testing.T) {
		far := ipc.NewLink(imsg.Deliver, imsg.MDA)
		begin := time.Now()
		if err := Run(t.Context(), far, log.Discard()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != idleTime {
			t.Errorf("ended after %v", took)
		}
	})
}
