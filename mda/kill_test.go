package mda

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpd/internal/mail"
)

// killVar makes the test binary a worker that dies: STEP NUMBER NAMED HOME.
const killVar = "MDA_TEST_KILL"

// inBatches is how many messages a worker that dies has to deliver: the first
// makes one batch, the others the next.
const inBatches = 9

// batchDelivery is message i of those, for alice or, tagged, for alice+tag whose
// mail goes into the same folder; every third has its text in a file.
func batchDelivery(home string, i int, tagged bool) *Delivery {
	v := &Delivery{ID: mail.EnvelopeID(0x10211800+i)<<32 + 1, Created: exampleTime, Method: Maildir,
		Values: Values{Sender: mail.Address{User: "a", Domain: "b.org"}, Rcpt: mail.Address{User: "team", Domain: "md.test"},
			Dest: mail.Address{User: "alice", Domain: "md.test"}, User: "alice", Home: home, Delim: "+"},
		Hostname: "mx.example.org"}
	if tagged {
		v.ID, v.Dest.User = v.ID+1, "alice+tag"
	}
	text := batchText(i)
	if v.Text = (Text{Data: text}); i%3 == 0 {
		v.Text = Text{File: bytes.NewReader(text), Size: int64(len(text))}
	}
	return v
}

func batchText(i int) []byte {
	return fmt.Appendf(nil, "Subject: %d\n\n%s", i, strings.Repeat("0123456789abcde\n", 100+9000*(i%3/2)))
}

// killMain delivers two batches and kills itself at a step of the last.
func killMain(how string) int {
	var step, home string
	var number int
	if _, err := fmt.Sscan(how, &step, &number, &home); err != nil {
		fmt.Println(err)
		return 1
	}
	d := New(Options{UID: os.Geteuid(), SpoolDir: home})
	var mu sync.Mutex
	var joined sync.WaitGroup
	joined.Add(inBatches)
	seen := map[string]int{}
	alone := make(chan struct{}) // closed once the first batch is made up
	named := make(chan struct{}) // closed once it has its name
	d.fault = func(s string) error {
		if s == "join" {
			joined.Done()
			return nil
		}
		mu.Lock()
		seen[s]++
		n := seen[s]
		mu.Unlock()
		switch {
		case s == "write" && n == 1:
			close(alone)
		case s == "sync" && n == 1:
			joined.Wait() // the others pile up behind the first
		case s == "dirsync" && n == 1:
			close(named)
		case s == "write" && n == 2:
			<-named
		}
		if s == step && n == number+1 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	var wg sync.WaitGroup
	for i := range inBatches {
		v := batchDelivery(home, i, false)
		wg.Go(func() { d.Deliver(context.Background(), v) })
		<-alone
	}
	wg.Wait()
	return 1 // it should not have come so far
}

// TestMaildirBatchKilled kills a worker at each stage of a batch of eight files.
// Whoever delivers them again, whichever recipient of a message comes first,
// makes no second file, and none is missing or cut short.
func TestMaildirBatchKilled(t *testing.T) {
	stages := map[string][]int{"write": {1, 5, 8}, "sync": {1, 4, 8}, "rename": {1, 4, 8}, "dirsync": {1}}
	for step, numbers := range stages {
		for _, number := range numbers {
			t.Run(fmt.Sprintf("%s %d", step, number), func(t *testing.T) {
				t.Parallel()
				killBatch(t, step, number)
			})
		}
	}
}

func killBatch(t *testing.T, step string, number int) {
	home := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", killVar, step, number, home))
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); err == nil || !ok || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the worker: %v %s", err, out)
	}
	first := 1 // of the batch before
	switch step {
	case "rename":
		first += number - 1
	case "dirsync":
		first += inBatches - 1
	}
	if n := len(list(t, home, "Maildir/new")); n != first {
		t.Errorf("%d files in new at the end of the worker; want %d", n, first)
	}
	d := newDeliverer(t, nil)
	for _, tagged := range []bool{true, false} {
		var wg sync.WaitGroup
		for i := range inBatches {
			v := batchDelivery(home, i, tagged)
			v.Retry = 1
			wg.Go(func() {
				if r := d.Deliver(context.Background(), v); !r.Status.OK() {
					t.Errorf("%d: %+v", i, r)
				}
			})
		}
		wg.Wait()
	}
	files := list(t, home, "Maildir/new")
	got := map[string]bool{}
	for _, f := range files {
		_, text, _ := strings.Cut(content(t, home, "Maildir/new", f), exampleFront)
		got[text] = true
	}
	for i := range inBatches {
		if !got[string(batchText(i))] {
			t.Errorf("message %d is missing, or not whole", i)
		}
	}
	if len(files) != inBatches {
		t.Errorf("%d files of %d messages: %v", len(files), inBatches, files)
	}
	for _, left := range list(t, home, "Maildir/tmp") {
		if !strings.Contains(left, fmt.Sprintf(".%d_", cmd.Process.Pid)) {
			t.Errorf("left in tmp, and not by the killed worker: %s", left)
		}
	}
}

// TestBatchHands: files of a large batch are written at the same time, by as many
// hands as were made room for.
func TestBatchHands(t *testing.T) {
	const n = 1 + manyFiles
	d := newDeliverer(t, nil)
	var told atomic.Int32
	d.o.Wide = func() { told.Add(1) }
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var joined sync.WaitGroup
	joined.Add(n)
	var first, met sync.Once
	alone, pair, both := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d.fault = func(s string) error {
		switch {
		case s == "join":
			joined.Done()
		case s == "write":
			first.Do(func() { close(alone) })
		case s == "sync" && told.Load() == 0:
			joined.Wait() // the others pile up behind the first
		case s == "sync":
			select {
			case pair <- struct{}{}:
			case <-pair:
				met.Do(func() { close(both) })
			case <-both:
			case <-ctx.Done():
			}
		}
		return nil
	}
	home := t.TempDir()
	var wg sync.WaitGroup
	for i := range n {
		v := batchDelivery(home, i, false)
		wg.Go(func() {
			if r := d.Deliver(context.Background(), v); !r.Status.OK() {
				t.Errorf("%d: %+v", i, r)
			}
		})
		<-alone
	}
	wg.Wait()
	if told.Load() != 1 || ctx.Err() != nil {
		t.Errorf("told %d times, %v", told.Load(), ctx.Err())
	}
	if k := len(list(t, home, "Maildir/new")); k != n {
		t.Errorf("%d files of %d", k, n)
	}
}
