package privsep

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
)

// BenchmarkWorker measures what a delivery worker costs from the wish for one
// to the end of it, with a mail into a Maildir in between: for each of the
// programs in SMTPD, which take turns (`SMTPD=$PWD/bin/smtpd:/old/smtpd`). As root
// it runs as nobody, as the parent has it.
func BenchmarkWorker(b *testing.B) {
	if os.Getenv("SMTPD") == "" {
		b.Skip("SMTPD does not name the programs to be measured")
	}
	programs := filepath.SplitList(os.Getenv("SMTPD"))
	home := b.TempDir()
	for dir := home; dir != "/tmp" && len(dir) > 1; dir = filepath.Dir(dir) {
		if os.Chmod(dir, 0o755) != nil {
			break
		}
	}
	as := &As{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Dir: home}
	if as.UID == 0 {
		as.UID, as.GID = 65534, 65534
	}
	if err := os.Chown(home, int(as.UID), int(as.GID)); err != nil {
		b.Fatal(err)
	}
	errs, err := os.CreateTemp(b.TempDir(), "")
	if err != nil {
		b.Fatal(err)
	}
	defer errs.Close()
	text := []byte("Subject: x\n\n" + strings.Repeat(strings.Repeat("x", 63)+"\n", 64))
	sum := make([]sample, len(programs))
	id := mail.EnvelopeID(1 << 32)
	for b.Loop() {
		for i, exe := range programs {
			id++
			sum[i].add(oneWorker(b, exe, as, errs, &imsg.DeliverRun{
				Envelope: mail.Envelope{ID: id, Kind: mail.KindMDA, User: "nobody", Home: home, Created: time.Now(),
					Sender: mail.Address{User: "a", Domain: "b"}, Rcpt: mail.Address{User: "c", Domain: "d"},
					Dest: mail.Address{User: "c", Domain: "d"}},
				Method: "maildir", Delim: "+", Hostname: "mx", Inline: text, Size: int64(len(text))}))
		}
	}
	for i, exe := range programs {
		name := strings.NewReplacer("/", "_", " ", "_").Replace(exe)
		n := float64(b.N)
		b.ReportMetric(float64(sum[i].child.Microseconds())/n, name+":child-cpu-us")
		b.ReportMetric(float64(sum[i].parent.Microseconds())/n, name+":parent-cpu-us")
		b.ReportMetric(float64(sum[i].spawned.Microseconds())/n, name+":spawned-us")
		b.ReportMetric(float64(sum[i].first.Microseconds())/n, name+":first-us")
		b.ReportMetric(float64(sum[i].faults)/n, name+":faults")
		b.ReportMetric(float64(sum[i].switches)/n, name+":switches")
	}
}

// sample is what one worker took: of the processor, it and we, and of time until it
// was started and until its mail was there.
type sample struct {
	child, parent, spawned, first time.Duration
	faults, switches              int64
}

func (s *sample) add(o sample) {
	s.child += o.child
	s.parent += o.parent
	s.spawned += o.spawned
	s.first += o.first
	s.faults += o.faults
	s.switches += o.switches
}

// oneWorker has the program start as a worker, make one delivery and end.
func oneWorker(b *testing.B, exe string, as *As, errs *os.File, m *imsg.DeliverRun) (s sample) {
	var own syscall.Rusage
	used := func() time.Duration {
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
			b.Fatal(err)
		}
		return time.Duration(own.Utime.Nano() + own.Stime.Nano())
	}
	before, begin := used(), time.Now()
	cmd, near, err := spawn(exe, imsg.Deliver, Boot{}, as, errs)
	if err != nil {
		b.Fatal(err)
	}
	s.spawned = time.Since(begin)
	conn, err := ipc.Conn(near)
	if err != nil {
		b.Fatal(err)
	}
	link := ipc.NewLink(imsg.MDA, imsg.Deliver)
	link.Serve(func(*ipc.Request) {}, nil, func(error) {})
	link.Attach(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := ipc.Ask[*imsg.DeliverResult](ctx, link, m)
	s.first = time.Since(begin)
	link.Close()
	_ = cmd.Wait()
	s.parent = used() - before
	if err != nil || !a.Status.OK() {
		text, _ := os.ReadFile(errs.Name())
		b.Fatalf("%v %+v %s", err, a, bytes.TrimSpace(text))
	}
	ru := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	s.child = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	s.faults, s.switches = ru.Minflt, ru.Nvcsw+ru.Nivcsw
	return s
}
