package queue

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"smtpd/internal/mail"
)

// Bounds of one commit group.
const (
	maxGroup      = 4096            // ours: jobs in one transaction
	maxGroupBytes = 16 << 20        // ours: octets that one transaction takes in
	fullGroup     = 16              // ours: jobs at a time while the disk is full
	fullPause     = time.Second     // ours: how long new mail is refused untried then
	trimEvery     = 16 << 20        // ours: octets looked at between two trims of the map
	trimIdle      = 2 * time.Second // ours: how long nothing happens before it is trimmed
	reserveEvery  = time.Minute     // ours: how often the reserve is tried to be filled
	lookedAt      = 16 << 10        // ours: octets that a job or a reader maps, about
	fillPercent   = 0.9             // of a page: ids grow, so pages fill from one side
	smallGroup    = 4               // ours: jobs in a group, of which fewer are no crowd
	gatherTime    = 2 * time.Millisecond
	maxUndo       = 4 * maxGroup // ours: accepted messages of failed groups to take back
	fullText      = "Insufficient system storage"
	failText      = "Temporary failure"
)

// statusFull and statusFailed are what the world is told of a disk that is
// full, or fails.
func statusFull() *mail.Status   { return mail.NewStatus(452, [3]uint8{4, 3, 1}, fullText) }
func statusFailed() *mail.Status { return mail.NewStatus(451, [3]uint8{4, 3, 0}, failText) }

// job is one caller's part of a group.
type job struct {
	apply func(*txn) error // may run more than once
	size  int              // octets it brings
	grows bool             // new mail: what is refused first when the disk is full
	id    mail.MessageID   // of new mail: taken back when the group's end is in doubt
	alone func() error     // instead: runs between groups
	ended bool             // it is durable, or err is its own
	err   error
	done  chan struct{}
}

// txn is what a group sees and changes: the spool, and over it a layer of its
// own, which nobody else sees before it is durable.
type txn struct {
	view
	s     *Bolt
	own   *layer
	undo  []undone // what the job that runs has changed
	after []func() // run once the group is durable
}

// undone is what a layer said of a key before.
type undone struct {
	in  bucket
	old entry
	had bool
}

func (t *txn) set(b bucket, e entry) {
	old, had := t.own.of[b].get(e.key)
	old.key = e.key
	t.undo = append(t.undo, undone{b, old, had})
	t.own.set(b, e)
}

func (t *txn) put(b bucket, key, item []byte) error {
	if !keyFits(key) {
		return fmt.Errorf("%w: a key of %d octets", ErrInvalid, len(key))
	}
	t.set(b, entry{key: string(key), item: item})
	return nil
}

func (t *txn) delete(b bucket, key []byte) error {
	if t.get(b, key) != nil {
		t.set(b, entry{key: string(key), under: t.under(b).Get(key) != nil})
	}
	return nil
}

// rollBack takes back what a job has changed and what was to be done after it.
func (t *txn) rollBack(after int) {
	for _, u := range slices.Backward(t.undo) {
		if u.had {
			t.own.set(u.in, u.old)
		} else {
			t.own.remove(u.in, u.old.key)
		}
	}
	t.after = t.after[:after]
}

// committer is the queue before the loop that commits.
type committer struct {
	mu      sync.Mutex
	waiting []*job
	closed  bool
	want    int           // jobs that end the gathering of a group
	crowd   atomic.Int64  // as Message.Crowd said last
	wake    chan struct{} // holds one
	ended   chan struct{}

	// Below: the loop's own.
	last      int // jobs in the group before
	undo      []mail.MessageID
	fullUntil time.Time
	reserveAt time.Time // when the reserve is tried to be filled again
}

func (c *committer) init() {
	c.wake = make(chan struct{}, 1)
	c.ended = make(chan struct{})
}

// do hands a job to the loop and waits for its end.
func (s *Bolt) do(j *job) error {
	j.done = make(chan struct{})
	if !s.submit(j) {
		return ErrClosed
	}
	<-j.done
	return j.err
}

// submit hands a job to the loop; its done, if any, is closed at the end.
func (s *Bolt) submit(j *job) bool {
	c := &s.commits
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.waiting = append(c.waiting, j)
	due := len(c.waiting) >= c.want
	c.mu.Unlock()
	if !due {
		return true
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return true
}

// commitLoop commits whatever waits, and again, until the store is closed and
// nothing waits: the time that one commit takes is the window in which the next
// group gathers.
func (s *Bolt) commitLoop() {
	c := &s.commits
	defer close(c.ended)
	debug.SetPanicOnFault(true) // a read error inside the map becomes a panic
	for {
		c.gather()
		c.mu.Lock()
		jobs, closed := c.waiting, c.closed
		n := groupSize(jobs)
		c.waiting = append([]*job(nil), jobs[n:]...)
		c.mu.Unlock()
		if n == 0 {
			if closed {
				s.settle()
				return
			}
			s.idle()
			continue
		}
		c.last = n
		s.group(jobs[:n:n])
	}
}

// gather waits until a crowd that is known to come is there, or gatherTime.
func (c *committer) gather() {
	c.mu.Lock()
	c.want = gatherUntil(len(c.waiting), c.last, int(c.crowd.Load()))
	wait := len(c.waiting) < c.want && !c.closed
	if wait {
		select {
		case <-c.wake: // of those who are here already
		default:
		}
	}
	c.mu.Unlock()
	if !wait {
		return
	}
	t := time.NewTimer(gatherTime)
	defer t.Stop()
	select {
	case <-c.wake:
	case <-t.C:
	}
}

// gatherUntil is how many jobs a group waits for when some have come: the commit
// of a group costs as much as ten jobs in it. Half of the crowd works on while
// the other half is committed; few, and those who come one by one, wait for
// nobody.
func gatherUntil(waiting, last, crowd int) int {
	if waiting == 0 || last < smallGroup {
		return 0
	}
	return min(2*last, crowd/2)
}

// idle waits for something to do. When nothing comes it empties the log and
// trims the map.
func (s *Bolt) idle() {
	c := &s.commits
	if s.looked.Load() > 0 || s.over.count > 0 {
		t := time.NewTimer(trimIdle)
		defer t.Stop()
		select {
		case <-c.wake:
			return
		case <-t.C:
			if many := s.over.count > maxOver/16; s.over.count > 0 {
				s.settle()
				if many {
					debug.FreeOSMemory() // what lay over the database
				}
			}
			s.trim()
		}
	}
	<-c.wake
}

// groupSize is how many of the jobs fit one transaction.
func groupSize(jobs []*job) int {
	size := 0
	for i, j := range jobs {
		if size += j.size; i == maxGroup || (i > 0 && size > maxGroupBytes) {
			return i
		}
	}
	return len(jobs)
}

// group carries out jobs and tells their callers.
func (s *Bolt) group(jobs []*job) {
	c := &s.commits
	if s.o.Now().Before(c.fullUntil) {
		refuseNew(jobs)
	}
	err := s.commitAll(jobs)
	if isFull(err) {
		// Make room for what makes room: new mail waits outside, and the
		// reserve is there for the rest.
		c.fullUntil = s.o.Now().Add(fullPause)
		refuseNew(jobs)
		if err = s.commitAll(jobs); isFull(err) && s.dropReserve() {
			c.reserveAt = s.o.Now().Add(reserveEvery)
			s.tellSlow(err)
			err = s.commitAll(jobs)
		}
	}
	looked := int64(0)
	for _, j := range jobs {
		looked += int64(j.size + lookedAt)
		if !j.ended {
			j.err = err
		}
		if j.done != nil {
			close(j.done)
		}
	}
	if s.logFull() {
		s.settle()
	}
	if s.looked.Add(looked) > trimEvery {
		s.trim()
	}
	if now := s.o.Now(); err == nil && now.After(c.reserveAt) && now.After(c.fullUntil) {
		s.makeRoom(now)
	}
}

// makeRoom makes the log and the reserve where they are missing. They leave as much
// room as they take: given up soon, they would be of no use.
func (s *Bolt) makeRoom(now time.Time) {
	if s.reserve && s.log.f != nil {
		if s.log.at > logBlock { // it takes records
			s.tellSlow(nil)
		}
		return
	}
	s.commits.reserveAt = now.Add(reserveEvery)
	need := int64(0)
	if s.log.f == nil {
		need += s.log.size
	}
	if !s.reserve {
		need += s.reserveSize()
	}
	err := s.hasRoom(2 * need)
	if err == nil {
		err = s.furnish()
	}
	s.tellSlow(err)
}

// furnish makes the log and the reserve where they are missing. Without the one each
// group goes into the database, without the other new mail does.
func (s *Bolt) furnish() (err error) {
	if s.log.f == nil {
		if err = s.settle(); err == nil {
			err = s.openLog()
		}
	}
	if rerr := s.makeReserve(); err == nil {
		err = rerr
	}
	return err
}

// tellSlow tells why the log is of no use, or nil, when that has not been told.
func (s *Bolt) tellSlow(why error) {
	if s.slow != (why != nil) {
		s.slow = why != nil
		s.o.Slow(why)
	}
}

// refuseNew ends new mail with 452.
func refuseNew(jobs []*job) {
	for _, j := range jobs {
		if j.grows && !j.ended {
			j.err, j.ended = statusFull(), true
		}
	}
}

// commitAll commits the jobs that have not ended: all at once, or some at a
// time while the disk is full.
func (s *Bolt) commitAll(jobs []*job) error {
	jobs = slices.DeleteFunc(slices.Clone(jobs), func(j *job) bool { return j.ended })
	step := len(jobs)
	if s.o.Now().Before(s.commits.fullUntil) {
		step = fullGroup
	}
	for len(jobs) > 0 {
		n := min(step, len(jobs))
		if err := s.commit(jobs[:n]); err != nil {
			return err
		}
		for _, j := range jobs[:n] {
			if j.ended = true; !j.grows && j.err == nil {
				s.commits.fullUntil = time.Time{} // it may have made room
			}
		}
		jobs = jobs[n:]
	}
	return nil
}

// commit makes one group of changes durable. What is returned concerns all.
func (s *Bolt) commit(jobs []*job) (err error) {
	if s.broken() != nil {
		return statusFailed()
	}
	for _, j := range jobs {
		if j.alone != nil {
			j.err = j.alone()
		}
	}
	t, err := s.attempt(jobs)
	if err != nil {
		s.failed(jobs)
		return s.diskError(err)
	}
	s.commits.undo = nil
	for _, f := range t.after {
		f()
	}
	return nil
}

// attempt runs the jobs and makes what they change durable: in the log, or in
// the database when there is no log, or it fails.
func (s *Bolt) attempt(jobs []*job) (t *txn, err error) {
	defer s.guard("commit", &err)
	size := int64(recordHead)
	for _, j := range jobs {
		size += int64(j.size)
	}
	if s.log.doubt || size > s.log.size-s.log.at {
		if err := s.checkpoint(); err != nil {
			return nil, err
		}
	}
	if t, err = s.run(jobs); err != nil || t.own.count == 0 {
		return t, err
	}
	if s.logs(jobs) {
		if err = s.log.append(t.own); err == nil {
			s.publish(t.own)
			return t, nil
		}
		if !errors.Is(err, errNoLog) {
			s.tellSlow(fmt.Errorf("%s: %w", logName, plain(err)))
			s.commits.reserveAt = s.o.Now().Add(reserveEvery) // before that it does not work again
		}
	}
	// What lies over the database first: readers shall not see one without the
	// other. And the database has no doubt what is to be done of the log.
	if err := s.checkpoint(); err != nil {
		return nil, err
	}
	return t, s.flush(t.own)
}

// run runs the jobs that have not failed. One that fails is left out with all
// its changes; its error is its own.
func (s *Bolt) run(jobs []*job) (*txn, error) {
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, err
	}
	t := &txn{s: s, own: &layer{}}
	t.view = view{tx: tx, layers: []*layer{t.own, s.over}}
	if err := t.takeBack(s.commits.undo); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		after := len(t.after)
		t.undo = t.undo[:0]
		if j.err = j.apply(t); j.err != nil {
			t.rollBack(after)
		}
	}
	return t, tx.Rollback()
}

// failed remembers new mail of a group whose end is in doubt: its senders were
// told to try again, so a copy that is there after all must not stay.
func (s *Bolt) failed(jobs []*job) {
	for _, j := range jobs {
		if j.grows && j.err == nil && len(s.commits.undo) < maxUndo {
			s.commits.undo = append(s.commits.undo, j.id)
		}
	}
}

// diskError is what callers are told of a failed transaction.
func (s *Bolt) diskError(err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %w", statusFull(), err)
	}
	return fmt.Errorf("%w: %w", statusFailed(), err)
}

// isFull reports that err is a want of room. bbolt flattens some errors to text.
func isFull(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

// guard makes an error of a panic inside the database: a damaged page, or a
// read error in the map. The database is not written again after that; whoever
// runs the store should end and open it anew, when it is checked and mended.
func (s *Bolt) guard(what string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %s: %v", statusFailed(), what, r)
		s.setBroken(*err)
	}
}
