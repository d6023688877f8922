package mda

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
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
	// time. Ours: as many as the engine writes to disk together.
	maxPlain = 32
	// idleTime is how long a worker without work is kept. It ends by itself a
	// little later, so it is never asked when it may be gone.
	idleTime = 8 * time.Second
	// turnTime is how long a worker that has work is kept when others want its
	// place.
	turnTime = 2 * time.Second
	// While all places are taken and mail goes on coming, a user waits for the place
	// of a worker without work until turnMails have gathered, or for turnWait. Ours:
	// to start a worker costs as much as ten deliveries, and what has gathered goes
	// to disk together; users who took turns for each mail did nothing else. Once no
	// mail has come for flowTime, there is nothing to gather.
	turnMails = 8
	turnWait  = time.Second
	flowTime  = 20 * time.Millisecond
	// turnCheck is how often places are looked at while users wait.
	turnCheck = flowTime
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

// identity is what a worker runs as. A worker for system mailboxes does nothing
// else, for the parent may give it the group that owns them.
type identity struct {
	uid, gid uint32
	mbox     bool
}

// lane is the deliveries of one identity, and its worker.
type lane struct {
	id       identity
	plain    []*job
	commands []*job

	worker   *worker // nil: none
	starting bool
	wants    bool      // is in pool.waiting
	running  int       // plain deliveries with the worker
	busy     int       // commands with the worker
	held     int       // envelopes given back to queue until there is room, as far as known
	recheck  bool      // there may be some that are not known of
	last     time.Time // had work
	since    time.Time // wants a worker
	asked    bool      // a client waits for the answer of a store
	idle     *time.Timer
}

// worker is one delivery process.
type worker struct {
	link  *ipc.Link
	begun time.Time
	gone  context.Context // ends when the channel does
	end   context.CancelFunc
	leave bool // gets nothing more: its place is wanted
}

// pool shares out the places for workers, as many as `mda limit max-session`
// says, and hands deliveries to them.
type pool struct {
	env      *privsep.Env
	finished func(*job, *imsg.DeliverResult)
	hold     func(key uint64, j *job)
	release  func(key uint64, count int)
	now      func() time.Time
	tasks    sync.WaitGroup
	all      context.Context // ends at the latest moment
	endAll   context.CancelFunc

	gPending, gRunning, gUser *stat.Counter

	mu      sync.Mutex
	limits  config.MDA
	lanes   map[identity]*lane
	waiting []*lane   // want a worker, in order
	came    time.Time // the latest delivery
	live    int       // workers there or starting
	busy    int       // commands running
	check   *time.Timer
	stopped bool
}

func newPool(env *privsep.Env) *pool {
	p := &pool{env: env, now: env.Now, lanes: map[identity]*lane{},
		gPending: env.Stat.Counter("mda.pending"), gRunning: env.Stat.Counter("mda.running"), gUser: env.Stat.Counter("mda.user")}
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
	id := identity{uid: j.user.UID, gid: j.user.GID, mbox: j.run.Method == string(config.MethodMbox)}
	p.mu.Lock()
	l := p.lanes[id]
	if l == nil {
		l = &lane{id: id}
		p.lanes[id] = l
		p.gUser.Add(1)
	}
	waiting, hiwat := l.waiting(j.isCommand()), p.limits.TaskHiwat
	full := hiwat > 0 && waiting >= hiwat
	if full && j.answer != nil {
		p.mu.Unlock()
		p.finished(j, tempfail("too much mail waits for this user"))
		return
	}
	if full {
		l.held += 1 + len(j.twins)
		l.recheck = true
		p.mu.Unlock()
		p.hold(id.key(), j)
		return
	}
	p.gPending.Add(1)
	l.add(j)
	l.asked = l.asked || j.answer != nil
	p.came = p.now()
	p.pump(l)
	p.mu.Unlock()
}

// key names an identity to the scheduler. The top bit tells it from the keys of
// mta; two identities with one key would only share their turns.
func (id identity) key() uint64 {
	key := 1<<63 | uint64(id.uid)<<30 | uint64(id.gid)<<1&(1<<30-1)
	if id.mbox {
		key |= 1
	}
	return key
}

// waiting counts the deliveries that wait, as `mda limit` does.
func (l *lane) waiting(command bool) int {
	if command {
		return len(l.commands)
	}
	return len(l.plain) / plainFactor
}

// room says how many of the envelopes given back are wanted now that a delivery
// has ended; 0: none. The lock is held.
func (p *pool) room(l *lane, command bool) int {
	if !l.recheck || p.stopped {
		return 0
	}
	n := 0
	if l.waiting(command) < max(p.limits.TaskLowat, 1) {
		n = max(p.limits.TaskRelease, 1)
		if !command {
			n *= plainFactor
		}
		n = min(l.held, n)
		l.held -= n
	}
	if l.held == 0 && l.empty() && l.unused() {
		l.recheck = false
		time.AfterFunc(holdCheck, func() { p.release(l.id.key(), 0) })
	}
	return n
}

func (l *lane) add(j *job) {
	if j.isCommand() {
		l.commands = append(l.commands, j)
	} else {
		l.plain = append(l.plain, j)
	}
}

func (l *lane) empty() bool { return len(l.plain)+len(l.commands) == 0 }

func (l *lane) unused() bool { return l.running+l.busy == 0 }

// pump does what can be done for a lane. The lock is held.
func (p *pool) pump(l *lane) {
	if p.stopped {
		return
	}
	w := l.worker
	switch {
	case w == nil && !l.empty():
		p.place(l)
	case w != nil && !w.leave:
		p.hand(l, w)
	}
	if l.worker == nil && !l.starting && l.empty() && l.unused() && l.held == 0 {
		delete(p.lanes, l.id)
		p.gUser.Add(-1)
	}
}

// hand gives a worker what it can take.
func (p *pool) hand(l *lane, w *worker) {
	for len(l.plain) > 0 && l.running < maxPlain {
		l.running++
		l.plain = p.launch(l, w, l.plain)
	}
	for p.takesCommand(l) {
		l.busy++
		p.busy++
		l.commands = p.launch(l, w, l.commands)
	}
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	if l.unused() {
		l.last = p.now()
		l.idle = time.AfterFunc(idleTime, func() { p.retire(l, w) })
	}
}

func (p *pool) takesCommand(l *lane) bool {
	return len(l.commands) > 0 && l.busy < p.limits.MaxSessionPerUser && p.busy < p.limits.MaxSession
}

func (p *pool) launch(l *lane, w *worker, list []*job) []*job {
	j := list[0]
	p.gPending.Add(-1)
	p.gRunning.Add(1)
	p.tasks.Go(func() { p.run(l, w, j) })
	if list = list[1:]; len(list) == 0 {
		return nil
	}
	return list
}

// retire lets go of a worker that has had nothing to do.
func (p *pool) retire(l *lane, w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.worker == w && !w.leave && !p.stopped && l.unused() && l.empty() {
		p.dismiss(l, w)
	}
}

// place starts a worker for a lane, or has it wait for its turn.
func (p *pool) place(l *lane) {
	if l.starting || l.wants {
		return
	}
	if p.live < p.limits.MaxSession && len(p.waiting) == 0 {
		p.startWorker(l)
		return
	}
	l.wants, l.since = true, p.now()
	p.waiting = append(p.waiting, l)
	p.makeRoom()
}

func (p *pool) startWorker(l *lane) {
	l.starting, l.asked = true, false
	p.live++
	j := append(l.plain[:len(l.plain):len(l.plain)], l.commands...)[0]
	p.tasks.Go(func() { p.start(l, j.user) })
}

// fill gives free places to those who wait. The lock is held.
func (p *pool) fill() {
	for len(p.waiting) > 0 && p.live < p.limits.MaxSession && !p.stopped {
		// Who has waited enough comes before who has not.
		now := p.now()
		i := max(0, slices.IndexFunc(p.waiting, func(l *lane) bool { return p.ready(l, now) }))
		l := p.waiting[i]
		p.waiting = slices.Delete(p.waiting, i, i+1)
		l.wants = false
		if !l.empty() {
			p.startWorker(l)
		}
	}
}

// makeRoom ends workers while others have waited enough for their places: first
// those without work, the longest so before the others, then those whose turn is
// over. It comes back for the rest. The lock is held.
func (p *pool) makeRoom() {
	if p.stopped || len(p.waiting) == 0 {
		return
	}
	now := p.now()
	want := p.due(now)
	var idle, over []*lane
	for _, l := range p.lanes {
		switch w := l.worker; {
		case w == nil:
		case w.leave:
			want-- // its place will be free
		case l.unused() && l.empty():
			idle = append(idle, l)
		case now.Sub(w.begun) >= turnTime:
			over = append(over, l)
		}
	}
	if want > 0 {
		slices.SortFunc(idle, func(a, b *lane) int { return a.last.Compare(b.last) })
		rest := append(idle, over...)
		for _, l := range rest[:min(want, len(rest))] {
			p.dismiss(l, l.worker)
		}
	}
	if p.check == nil {
		p.check = time.AfterFunc(turnCheck, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.check = nil
			p.fill()
			p.makeRoom()
		})
	}
}

// due counts those who have waited enough.
func (p *pool) due(now time.Time) int {
	n := 0
	for _, l := range p.waiting {
		if p.ready(l, now) {
			n++
		}
	}
	return n
}

// ready reports whether a lane has waited enough for the place of another.
func (p *pool) ready(l *lane, now time.Time) bool {
	return l.asked || len(l.plain)+len(l.commands) >= turnMails ||
		now.Sub(l.since) >= turnWait || now.Sub(p.came) >= flowTime
}

// dismiss gives a worker nothing more and ends it once it has nothing to do.
// The lock is held; closing a link calls lost, which wants it too.
func (p *pool) dismiss(l *lane, w *worker) {
	w.leave = true
	if l.unused() {
		p.tasks.Go(w.link.Close)
	}
}

var errStart = errors.New("no delivery process")

// start has the parent start a worker.
func (p *pool) start(l *lane, u imsg.UserInfo) {
	w, err := p.newWorker(l, u)
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
	failed := slices.Concat(l.plain, l.commands)
	stopped := p.stopped
	if !stopped {
		l.plain, l.commands = nil, nil
		p.gPending.Add(-int64(len(failed)))
	}
	held := l.held
	l.held = 0
	p.fill()
	p.pump(l)
	p.mu.Unlock()
	if err == nil {
		w.link.Close()
	}
	if stopped {
		return
	}
	if held > 0 {
		p.release(l.id.key(), 0)
	}
	for _, j := range failed {
		p.finished(j, tempfail(mail.Clean(err.Error(), 200)))
	}
}

func (p *pool) newWorker(l *lane, u imsg.UserInfo) (*worker, error) {
	ctx, cancel := context.WithTimeout(p.all, startTime)
	defer cancel()
	m := &imsg.DeliverStart{User: u.Name, UID: l.id.uid, GID: l.id.gid, Home: u.Home, Mbox: l.id.mbox}
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
	w := &worker{link: ipc.NewLink(imsg.MDA, imsg.Deliver), begun: p.now()}
	w.gone, w.end = context.WithCancel(p.all)
	w.link.Attach(conn)
	return w, nil
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
	p.fill()
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
	}
	if again && !p.stopped {
		p.gPending.Add(1)
		l.add(j)
	}
	stopped := p.stopped
	if w.leave && l.worker == w && !stopped {
		p.dismiss(l, w)
	}
	room := p.room(l, j.isCommand())
	p.pump(l)
	if j.isCommand() {
		p.pumpCommands()
	}
	p.mu.Unlock()
	if room > 0 {
		p.release(l.id.key(), room)
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
