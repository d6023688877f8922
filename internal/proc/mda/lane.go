package mda

import (
	"context"
	"hash/fnv"
	"os"
	"slices"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
)

// identity is what a worker runs as, and for what. A worker for system mailboxes
// does nothing else, for the parent may give it the group that owns them, and one
// for a store nothing else either: the store may be slow.
type identity struct {
	uid, gid uint32
	mbox     bool
	store    string // TCP: as the action names it
}

// key names those of a party among an identity's deliveries to the scheduler. The
// top bit tells it from the keys of mta; two with one key would only share their
// turns.
func (id identity) key(party string) uint64 {
	if id.store != "" {
		h := fnv.New64a()
		_, _ = h.Write([]byte(id.store + "\x00" + party))
		return 1<<63 | h.Sum64()
	}
	key := 1<<63 | uint64(id.uid)<<30 | uint64(id.gid)<<1&(1<<30-1)
	if id.mbox {
		key |= 1
	}
	return key
}

// lane is the deliveries of one identity, and its worker.
type lane struct {
	id       identity
	plain    line
	commands []*job
	back     map[string]*handed // by party; what is with queue until there is room

	worker   *worker // nil: none
	starting bool
	wants    bool // is in pool.waiting
	running  int  // plain deliveries with the worker
	busy     int  // commands with the worker
	idle     *time.Timer

	came  time.Time // the latest delivery
	since time.Time // wants a worker
	asked bool      // a client waits for the answer of a store
}

// handed is envelopes given back to queue, as far as known; there may be some
// that are not known of.
type handed struct{ held int }

// worker is one delivery process.
type worker struct {
	link     channel
	begun    time.Time
	answered bool            // has made a delivery
	gone     context.Context // ends when the channel does
	end      context.CancelFunc
	dead     bool      // gets nothing more: it has died, lost will be told
	leave    bool      // likewise: its place is wanted
	left     time.Time // since then
}

// channel is the part of ipc.Link that a worker is driven by.
type channel interface {
	Call(ctx context.Context, m imsg.Msg, f *os.File) (imsg.Msg, *os.File, error)
	Serve(h ipc.Handler, onAttach func(), onLost func(error))
	Close()
}

// waiting counts the deliveries that wait, as `mda limit` does.
func (l *lane) waiting(j *job) int {
	if j.isCommand() {
		return len(l.commands)
	}
	return l.plain.of(j.party()) / plainFactor
}

func (l *lane) add(j *job) {
	if j.isCommand() {
		l.commands = append(l.commands, j)
	} else {
		l.plain.add(j)
	}
}

func (l *lane) count() int { return l.plain.n + len(l.commands) }

func (l *lane) empty() bool { return l.count() == 0 }

func (l *lane) unused() bool { return l.running+l.busy == 0 }

// first is a delivery that waits; there must be one.
func (l *lane) first() *job {
	if len(l.commands) > 0 {
		return l.commands[0]
	}
	return l.firstPlain()
}

// firstPlain is one that is no command.
func (l *lane) firstPlain() *job {
	if len(l.plain.asked) > 0 {
		return l.plain.asked[0]
	}
	return l.plain.parties[l.plain.turns[0]][0]
}

// most is how many plain deliveries its worker may have, by what comes next.
func (l *lane) most() int {
	if l.plain.n > 0 && l.id.store == "" && l.firstPlain().run.Method == string(config.MethodMaildir) {
		return maxFiles
	}
	return maxPlain
}

// take empties the lane.
func (l *lane) take() []*job {
	all := append(l.commands, l.plain.asked...)
	for _, party := range l.plain.turns {
		all = append(all, l.plain.parties[party]...)
	}
	l.commands, l.plain = nil, line{running: l.plain.running}
	return all
}

// store is the TCP store that a delivery goes to and that need not care who
// brings it; empty: none. A path that begins with a format may turn out to be
// that of a socket, whose owner and peer matter.
func (j *job) store() string {
	m := &j.run
	if m.Method != string(config.MethodLMTP) || m.Wrapper != "" || m.Path == "" {
		return ""
	}
	switch m.Path[0] {
	case '/', '%', '~':
		return ""
	}
	return m.Path
}

// party is who takes turns with others in a lane.
func (j *job) party() string {
	if j.store() == "" {
		return ""
	}
	return j.env.User
}

// maxParty bounds the deliveries that a worker for a store makes for one party at a
// time. Ours: one whose mailbox hangs must leave most of it to the others.
const maxParty = 8

// line is deliveries that wait: first what clients wait for, then the parties in
// turn, each in order. The zero value is empty.
type line struct {
	n       int
	asked   []*job
	turns   []string // parties that have deliveries, next first
	parties map[string][]*job
	running map[string]int // of parties: taken out and not ended
}

func (q *line) add(j *job) {
	q.n++
	if j.answer != nil {
		q.asked = append(q.asked, j)
		return
	}
	party := j.party()
	if q.parties == nil {
		q.parties = map[string][]*job{}
	}
	if q.running == nil {
		q.running = map[string]int{}
	}
	if len(q.parties[party]) == 0 {
		q.turns = append(q.turns, party)
	}
	q.parties[party] = append(q.parties[party], j)
}

// next takes one out that may be made now; nil: there is none.
func (q *line) next() *job {
	if len(q.asked) > 0 {
		j := q.asked[0]
		q.asked = rest(q.asked)
		q.n--
		return j
	}
	i := slices.IndexFunc(q.turns, func(party string) bool { return party == "" || q.running[party] < maxParty })
	if i < 0 {
		return nil
	}
	q.n--
	party := q.turns[i]
	q.turns = slices.Delete(q.turns, i, i+1)
	q.running[party]++
	list := q.parties[party]
	j := list[0]
	if list = rest(list); list == nil {
		delete(q.parties, party)
	} else {
		q.parties[party] = list
		q.turns = append(q.turns, party)
	}
	return j
}

// ended is told of the end of one that next gave.
func (q *line) ended(j *job) {
	if j.answer != nil {
		return
	}
	party := j.party()
	if q.running[party]--; q.running[party] == 0 {
		delete(q.running, party)
	}
}

func rest(list []*job) []*job {
	list[0] = nil
	if list = list[1:]; len(list) == 0 {
		return nil
	}
	return list
}

// of counts the deliveries of a party.
func (q *line) of(party string) int { return len(q.parties[party]) }
