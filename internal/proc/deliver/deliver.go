// Package deliver is the delivery worker: the process that runs as a recipient
// and carries out the deliveries to this user, one after the other and several
// at a time, while there is work. It owns nothing but its channel to mda and
// what the delivery engine keeps open. It must never deliver as anybody but the
// user it was started as, nor stay when mda has gone.
package deliver

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/mda"
)

const (
	// idleTime is how long a worker waits for more work. mda lets go of it
	// earlier; this ends one that mda has forgotten.
	idleTime = 10 * time.Second
	// timeLimit ends one delivery (delivery.md section 3).
	timeLimit = 300 * time.Second
	// maxRunning bounds the deliveries under way; mda sends fewer.
	maxRunning = 192
)

// worker is one delivery process.
type worker struct {
	d    *mda.Deliverer
	idle chan struct{} // nudged when the last delivery has ended

	catch sync.Once // SIGXFSZ is caught, no longer ignored

	mu   sync.Mutex
	open int // requests not yet answered
}

// Run serves mda until the channel ends, ctx ends, or nothing came for ten
// seconds. Deliveries under way are ended when mda goes: it cannot hear of them
// any more and has them tried again.
func Run(ctx context.Context, link *ipc.Link, logger *log.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A file that reaches the user's limit is an error of that delivery, not the
	// end of the process.
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)

	w := &worker{idle: make(chan struct{}, 1)}
	w.d = mda.New(mda.Options{UID: os.Geteuid(), Report: func(line string) { logger.Warn(line) }, Start: w.start, Wide: wide})
	defer w.d.Close()
	serve, wait := ipc.Async(maxRunning, func(r *ipc.Request) { w.serve(ctx, r) })
	link.Serve(func(r *ipc.Request) { w.began(); serve(r) }, nil, func(error) { cancel() })
	defer wait()
	defer cancel()
	defer link.Close()

	timer := time.NewTimer(idleTime)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.idle:
			timer.Reset(idleTime)
		case <-timer.C:
			if w.unused() {
				return nil
			}
			timer.Reset(idleTime)
		}
	}
}

// start starts a command by start: with the timers and signals of any process.
func (w *worker) start(start func() error) error {
	// What is ignored stays so in what is started, what is caught does not. To
	// catch signals takes a thread, which a worker that starts no command lacks.
	w.catch.Do(func() { signal.Notify(make(chan os.Signal, 1), syscall.SIGXFSZ) })
	return privsep.ExactTime(start)
}

func (w *worker) began() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
}

func (w *worker) ended() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open--; w.open == 0 {
		select {
		case w.idle <- struct{}{}:
		default:
		}
	}
}

func (w *worker) unused() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open == 0
}

// serve makes one delivery.
func (w *worker) serve(ctx context.Context, r *ipc.Request) {
	defer w.ended()
	if r.File != nil {
		defer r.File.Close()
	}
	m, ok := r.Msg.(*imsg.DeliverRun)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	if r.File == nil && int64(len(m.Inline)) != m.Size {
		// The body did not come with it: not a word may be lost, so not now.
		const text = "the message did not reach the delivery process"
		r.Reply(&imsg.DeliverResult{Status: mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: text},
			Line: text, Stat: "Error (" + text + ")"}, nil)
		return
	}
	if m.Verify {
		r.Reply(w.verify(ctx, m), nil)
		return
	}
	res := w.d.Deliver(ctx, delivery(m, r.File))
	r.Reply(&imsg.DeliverResult{Status: res.Status, Line: res.Line, Stat: res.Stat, Loop: res.Loop}, nil)
}

// verifyTime bounds a question to a store. Ours: a client waits for it.
const verifyTime = 10 * time.Second

// verify asks the store about a recipient.
func (w *worker) verify(ctx context.Context, m *imsg.DeliverRun) *imsg.DeliverResult {
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	st, err := w.d.VerifyRcpt(ctx, delivery(m, nil))
	if err != nil {
		return &imsg.DeliverResult{Status: mail.Status{Code: 451, Enh: [3]uint8{4, 3, 0}, Text: mail.Clean(err.Error(), mail.MaxStatusText)}}
	}
	return &imsg.DeliverResult{Status: *st, Store: true}
}

// delivery is what the engine is to do.
func delivery(m *imsg.DeliverRun, file *os.File) *mda.Delivery {
	e := &m.Envelope
	v := &mda.Delivery{
		ID: e.ID, Created: e.Created, Retry: e.Retry, UTF8: e.Flags&mail.FlagUTF8 != 0,
		Method: mda.Method(m.Method), Path: m.Path, Command: m.Command, Wrapper: m.Wrapper,
		Junk: m.Junk, OrigTo: m.Original, RcptTo: m.RcptTo, Hostname: m.Hostname,
		Values: mda.Values{Sender: e.Sender, Rcpt: e.Rcpt, Dest: e.Dest, User: e.User, Home: e.Home, Delim: m.Delim,
			SubAddr: e.SubAddr},
		Text: mda.Text{Data: m.Inline, Size: m.Size},
	}
	if file != nil {
		v.Text = mda.Text{File: file, Size: m.Size}
	}
	return v
}

// wide lets as many threads run as mda has hands. A worker begins with one, which
// starts sooner and is all that a few mails need.
func wide() { runtime.GOMAXPROCS(mda.Hands) }
