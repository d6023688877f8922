package mda

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/internal/privsep"
	"smtpd/internal/stat"
)

const (
	// maxPlain bounds the deliveries, commands aside, that one worker has at a
	// time. Ours: so many connections a store can be asked for.
	maxPlain = 32
	// maxFiles is that while they are Maildir deliveries. Ours: twice what the
	// engine writes to disk together, so that its next batch is there when one is
	// done and the answers to that are on their way.
	maxFiles = 128
	// idleTime is how long a worker without work is kept. It ends by itself a
	// little later, so it is never asked when it may be gone.
	idleTime = 8 * time.Second
	// startTime bounds the start of a worker, runTime a delivery: the worker
	// itself ends it after 300 s.
	startTime = 30 * time.Second
	runTime   = 330 * time.Second
	// plainFactor is how many times as many deliveries may wait as `mda limit`
	// says when no command is run for them. Ours: each takes a millisecond, so
	// giving them back and forth would cost more than it saves.
	plainFactor = 40
	// holdCheck is when a user's envelopes are asked for once more who has
	// nothing left: the wish may have overtaken the envelopes on their way back.
	holdCheck = time.Second
	// maxAgain bounds how often a delivery is handed to another worker because
	// the one that should have made it was gone.
	maxAgain = 3
)

// pool shares out the places for workers, as many as `mda limit max-session`
// says, and hands deliveries to them.
type pool struct {
	env      *privsep.Env
	finished func(*job, *imsg.DeliverResult)
	hold     func(key uint64, j *job)
	release  func(key uint64, count int)
	spawn    func(*lane, imsg.UserInfo) (*worker, error)
	now      func() time.Time
	tasks    sync.WaitGroup
	all      context.Context // ends at the latest moment
	endAll   context.CancelFunc

	gPending, gRunning, gUser *stat.Counter

	mu       sync.Mutex
	limits   config.MDA
	lanes    map[identity]*lane
	waiting  []*lane             // want a worker
	coming   map[*lane]time.Time // whose worker was begun then and may not be up yet
	maxFresh int                 // of these
	flows    bool                // deliveries come, or have a moment ago
	came     time.Time           // the latest of them
	moved    time.Time           // the latest that came or ended
	live     int                 // workers there or starting
	busy     int                 // commands running
	check    *time.Timer
	stopped  bool
}

func newPool(env *privsep.Env) *pool {
	p := &pool{env: env, now: env.Now, lanes: map[identity]*lane{}, coming: map[*lane]time.Time{},
		maxFresh: freshPerCPU * runtime.NumCPU(),
		gPending: env.Stat.Counter("mda.pending"), gRunning: env.Stat.Counter("mda.running"), gUser: env.Stat.Counter("mda.user")}
	p.spawn = p.newWorker
	p.all, p.endAll = context.WithCancel(context.Background())
	return p
}

func (p *pool) setLimits(m config.MDA) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = m
	p.limits.MaxSession, p.limits.MaxSessionPerUser = max(m.MaxSession, 1), max(m.MaxSessionPerUser, 1)
}

// submit takes a delivery whose user is known. It does not block. A user who has
// too many waiting already must not fill the queue's places for all: what is
// over goes back until there is room.
func (p *pool) submit(j *job) {
	id := identity{uid: j.as.UID, gid: j.as.GID, mbox: j.run.Method == string(config.MethodMbox), store: j.store()}
	p.mu.Lock()
	l := p.lanes[id]
	if l == nil {
		l = &lane{id: id, back: map[string]*handed{}}
		p.lanes[id] = l
		p.gUser.Add(1)
	}
	full := p.limits.TaskHiwat > 0 && l.waiting(j) >= p.limits.TaskHiwat
	if full && j.answer != nil {
		p.mu.Unlock()
		p.finished(j, tempfail("too much mail waits for this user"))
		return
	}
	if party := j.party(); full {
		if l.back[party] == nil {
			l.back[party] = &handed{}
		}
		l.back[party].held += 1 + len(j.twins)
		p.mu.Unlock()
		p.hold(id.key(party), j)
		return
	}
	p.gPending.Add(1)
	l.add(j)
	l.asked = l.asked || j.answer != nil
	l.came = p.now()
	p.flows, p.came, p.moved = true, l.came, l.came
	p.pump(l)
	p.mu.Unlock()
}

// room says how many of the envelopes given back are wanted now that a delivery
// has ended; 0: none. The lock is held.
func (p *pool) room(l *lane, j *job) int {
	party := j.party()
	b := l.back[party]
	if b == nil || p.stopped {
		return 0
	}
	n := 0
	if l.waiting(j) < max(p.limits.TaskLowat, 1) {
		n = max(p.limits.TaskRelease, 1)
		if !j.isCommand() {
			n *= plainFactor
		}
		n = min(b.held, n)
		b.held -= n
	}
	if b.held == 0 && l.plain.of(party)+len(l.commands) == 0 && (l.id.store != "" || l.unused()) {
		delete(l.back, party)
		time.AfterFunc(holdCheck, func() { p.release(l.id.key(party), 0) })
	}
	return n
}

// pump does what can be done for a lane. The lock is held.
func (p *pool) pump(l *lane) {
	if p.stopped {
		return
	}
	w := l.worker
	switch {
	case w == nil && !l.empty():
		p.place(l)
	case w != nil && !w.leave && !w.dead:
		p.hand(l, w)
	}
	if l.worker == nil && !l.starting && l.empty() && l.unused() && len(l.back) == 0 {
		delete(p.lanes, l.id)
		p.gUser.Add(-1)
	}
}

// hand gives a worker what it can take.
func (p *pool) hand(l *lane, w *worker) {
	for l.running < l.most() {
		j := l.plain.next()
		if j == nil {
			break
		}
		l.running++
		p.launch(l, w, j)
	}
	for p.takesCommand(l) {
		l.busy++
		p.busy++
		j := l.commands[0]
		l.commands = rest(l.commands)
		p.launch(l, w, j)
	}
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	if l.unused() {
		l.idle = time.AfterFunc(idleTime, func() { p.retire(l, w) })
	}
}

func (p *pool) takesCommand(l *lane) bool {
	return len(l.commands) > 0 && l.busy < p.limits.MaxSessionPerUser && p.busy < p.limits.MaxSession
}

func (p *pool) launch(l *lane, w *worker, j *job) {
	p.gPending.Add(-1)
	p.gRunning.Add(1)
	p.tasks.Go(func() { p.run(l, w, j) })
}

// retire lets go of a worker that has had nothing to do.
func (p *pool) retire(l *lane, w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.worker == w && !w.leave && !p.stopped && l.unused() && l.empty() {
		p.dismiss(l, w)
	}
}

// startWorker has a worker started for a lane that has deliveries.
func (p *pool) startWorker(l *lane) {
	l.starting, l.asked = true, false
	p.live++
	p.coming[l] = p.now()
	as := l.first().as
	p.tasks.Go(func() { p.start(l, as) })
}

var errStart = errors.New("no delivery process")

// start has the parent start a worker.
func (p *pool) start(l *lane, u imsg.UserInfo) {
	w, err := p.spawn(l, u)
	p.mu.Lock()
	l.starting = false
	if err == nil && !p.stopped {
		l.worker = w
		w.link.Serve(func(*ipc.Request) {}, nil, func(error) { p.lost(l, w) })
		p.pump(l)
		p.mu.Unlock()
		return
	}
	p.live--
	delete(p.coming, l)
	stopped := p.stopped
	var failed []*job
	if !stopped {
		failed = l.take()
		p.gPending.Add(-int64(len(failed)))
	}
	back := l.back
	l.back = map[string]*handed{}
	p.turns()
	p.pump(l)
	p.mu.Unlock()
	if err == nil {
		w.link.Close()
	}
	if stopped {
		return
	}
	for party := range back {
		p.release(l.id.key(party), 0)
	}
	for _, j := range failed {
		p.finished(j, tempfail(mail.Clean(err.Error(), 200)))
	}
}

func (p *pool) newWorker(l *lane, u imsg.UserInfo) (*worker, error) {
	ctx, cancel := context.WithTimeout(p.all, startTime)
	defer cancel()
	m := &imsg.DeliverStart{User: u.Name, UID: l.id.uid, GID: l.id.gid, Home: u.Home, Mbox: l.id.mbox, Store: l.id.store != ""}
	a, f, err := ipc.AskFile[*imsg.DeliverStarted](ctx, p.env.Parent, m)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errStart, err)
	case f == nil && a.Error == "":
		return nil, errStart
	case f == nil:
		return nil, fmt.Errorf("%w: %s", errStart, a.Error)
	}
	conn, err := ipc.Conn(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errStart, err)
	}
	link := ipc.NewLink(imsg.MDA, imsg.Deliver)
	link.Attach(conn)
	return p.worker(link), nil
}

func (p *pool) worker(link channel) *worker {
	w := &worker{link: link, begun: p.now()}
	w.gone, w.end = context.WithCancel(p.all)
	return w
}

// lost is told that a worker has ended. What it had begun fails, what it has
// not gets another.
func (p *pool) lost(l *lane, w *worker) {
	w.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.worker != w {
		return
	}
	l.worker = nil
	p.live--
	if !w.leave && !p.stopped && !l.unused() {
		p.env.Log.Warn(fmt.Sprintf("warn: mda: a delivery process of uid %d has died", l.id.uid))
	} else {
		p.env.Log.Debug(fmt.Sprintf("debug: mda: the delivery process of uid %d has ended", l.id.uid))
	}
	p.turns()
	p.pump(l)
}

// run has one delivery made, and judges what comes of it.
func (p *pool) run(l *lane, w *worker, j *job) {
	res, again := p.ask(w, j)
	p.mu.Lock()
	p.gRunning.Add(-1)
	if j.isCommand() {
		l.busy--
		p.busy--
	} else {
		l.running--
		l.plain.ended(j)
	}
	if again && !p.stopped {
		p.gPending.Add(1)
		l.add(j)
	}
	stopped := p.stopped
	if w.leave && l.worker == w && !stopped {
		p.dismiss(l, w)
	}
	p.moved = p.now()
	room := p.room(l, j)
	p.pump(l)
	if !w.answered {
		w.answered = true
		p.turns()
	}
	if j.isCommand() {
		p.pumpCommands()
	}
	p.mu.Unlock()
	if room > 0 {
		p.release(l.id.key(j.party()), room)
	}
	if again || (res == nil && stopped) {
		return
	}
	p.finished(j, res)
}

// pumpCommands looks at the lanes that wait for one of the places for commands,
// of which there is one more. The lock is held.
func (p *pool) pumpCommands() {
	if p.busy != p.limits.MaxSession-1 {
		return // there were places before: nobody waits for one
	}
	for _, l := range p.lanes {
		if len(l.commands) > 0 && l.worker != nil {
			p.pump(l)
		}
	}
}

// ask sends the delivery to the worker. again means that the worker has not
// seen it; no result, that the process ends before there was one.
func (p *pool) ask(w *worker, j *job) (res *imsg.DeliverResult, again bool) {
	ctx, cancel := context.WithTimeout(w.gone, runTime)
	defer cancel()
	m := j.run
	var file *os.File
	var err error
	if j.answer == nil {
		m.Inline, file, err = j.body.open(ctx)
		m.Size = j.body.size
	}
	if err != nil {
		if p.all.Err() != nil {
			return nil, false
		}
		if w.gone.Err() != nil {
			return p.another(j)
		}
		return tempfail(mail.Clean(err.Error(), 200)), false
	}
	a, f, err := w.link.Call(ctx, &m, file)
	if f != nil {
		f.Close()
	}
	if r, ok := a.(*imsg.DeliverResult); ok && err == nil {
		return r, false
	}
	switch {
	case p.all.Err() != nil:
		return nil, false
	case errors.Is(err, ipc.ErrDown):
		return p.another(j)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		w.link.Close() // it does not keep to its own limit
		return tempfail("terminated; timeout"), false
	case w.gone.Err() == nil && !errors.Is(err, ipc.ErrGone):
		// The delivery does not fit an imsg: that is not the worker's doing.
		return tempfail(mail.Clean(fmt.Sprint(err), 200)), false
	}
	p.mu.Lock()
	w.dead = true
	p.mu.Unlock()
	return tempfail("the delivery process died"), false
}

// another has a delivery wait for the next worker.
func (p *pool) another(j *job) (*imsg.DeliverResult, bool) {
	if j.again++; j.again > maxAgain {
		return tempfail("no delivery process stays"), false
	}
	return nil, true
}

// stop starts nothing more and waits for what runs, for so long at most.
func (p *pool) stop(wait time.Duration) {
	p.mu.Lock()
	p.stopped = true
	if p.check != nil {
		p.check.Stop()
	}
	var idle []*worker
	for _, l := range p.lanes {
		if l.idle != nil {
			l.idle.Stop()
		}
		if l.worker != nil && l.unused() {
			idle = append(idle, l.worker)
		}
	}
	p.mu.Unlock()
	for _, w := range idle {
		w.link.Close()
	}
	timer := time.AfterFunc(wait, p.endAll)
	defer timer.Stop()
	p.tasks.Wait()
	p.endAll()
	p.mu.Lock()
	var rest []*worker
	for _, l := range p.lanes {
		if l.worker != nil {
			rest = append(rest, l.worker)
		}
	}
	p.mu.Unlock()
	for _, w := range rest {
		w.link.Close()
	}
}
