package parent

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/log"
	"smtpd/internal/privsep"
)

// Restart policy. A child that dies is back after minDelay. One that has died
// manyDeaths times within deathWindow is reported, and from then on each wait is a
// third longer than the last, up to maxDelay, until it has lived through a
// deathWindow. So slowly, because an operator, or a test, that kills it again
// and again must not keep clients waiting for longer than a second.
const (
	deathWindow = 10 * time.Second
	manyDeaths  = 5
	minDelay    = 50 * time.Millisecond
	maxDelay    = 10 * time.Second
)

// maxReports is how many breaches of protocol a child may report of others
// within a deathWindow before it is taken for the culprit.
const maxReports = 5

// child is one supervised process, and its successors.
type child struct {
	role    imsg.Role
	cmd     *exec.Cmd
	link    *ipc.Link
	running bool
	ready   bool
	deaths  []time.Time // within the last deathWindow
	delay   time.Duration
	reports []time.Time   // of violations it reported, within the last deathWindow
	fatal   string        // what it said with imsg.Fatal
	logged  chan struct{} // closed when all it wrote has been logged
}

// start brings up a process of that role and gives it all it needs: the
// configuration, the switches, its sockets, and a channel to each neighbour
// that lives.
func (p *parent) start(role imsg.Role) error {
	c := p.children[role]
	if c == nil {
		c = &child{role: role}
		p.children[role] = c
	}
	stderr, logged, err := p.childOutput(role)
	if err != nil {
		return err
	}
	cmd, near, err := privsep.Spawn(role, p.asBoot(role), nil, stderr.w)
	stderr.close()
	if err != nil {
		return err
	}
	conn, err := ipc.Conn(near)
	if err != nil {
		// Without a channel the process ends by itself.
		return err
	}
	c.cmd, c.running, c.ready, c.fatal, c.logged = cmd, true, false, "", logged
	stderr.pid.set(cmd.Process.Pid)
	link := ipc.NewLink(imsg.Parent, role)
	link.Violation = func(err error) { p.do(func() { p.kill(c, cmd, err.Error()) }) }
	c.link = link
	link.Serve(func(r *ipc.Request) { p.fromChild(c, cmd, r) }, nil, nil)
	link.Attach(conn)
	go func() {
		err := cmd.Wait() // ends with the process
		<-logged
		p.do(func() { p.died(c, cmd, err) })
	}()
	p.configure(c)
	for _, n := range imsg.Neighbours(role) {
		if nc := p.children[n]; nc != nil && nc.running {
			if err := p.connect(c, nc); err != nil {
				return err
			}
		}
	}
	return nil
}

// output is where a child writes: a pipe that is read line by line, or the
// daemon's own standard error.
type output struct {
	w   *os.File
	own bool
	pid *pidBox
}

func (o output) close() {
	if o.own {
		o.w.Close()
	}
}

func (p *parent) childOutput(role imsg.Role) (output, chan struct{}, error) {
	logged := make(chan struct{})
	box := &pidBox{}
	if p.o.Lines == nil {
		close(logged)
		return output{w: os.Stderr, pid: box}, logged, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return output{}, nil, fmt.Errorf("log pipe of %s: %w", role, err)
	}
	go func() { // ends when the child, and what it started, have closed the pipe
		defer close(logged)
		defer r.Close()
		log.Forward(r, func(lines []byte) { p.o.Lines(box.get(), lines) })
	}()
	return output{w: w, own: true, pid: box}, logged, nil
}

// connect gives two living neighbours a fresh channel.
func (p *parent) connect(a, b *child) error {
	fa, fb, err := ipc.Socketpair()
	if err != nil {
		return err
	}
	// One of them may be dying; its successor gets another channel.
	_ = a.link.Send(&imsg.PeerLink{Peer: b.role}, fa)
	_ = b.link.Send(&imsg.PeerLink{Peer: a.role}, fb)
	return nil
}

// configure sends a child what it works by.
func (p *parent) configure(c *child) {
	p.sendConfig(c, p.conf, false)
	s := p.switches
	_ = c.link.Send(&s, nil)
	p.sockets.send(c, p.conf)
}

// sendConfig sends a child a configuration, to use or to get ready for.
func (p *parent) sendConfig(c *child, conf *config.Config, stage bool) {
	data, err := json.Marshal(project(conf, c.role))
	if err != nil {
		panic("configuration cannot be encoded: " + err.Error()) // plain data: it always can
	}
	for {
		n := min(len(data), imsg.MaxData)
		m := &imsg.Configure{Generation: conf.Generation, Data: data[:n], Last: n == len(data), Stage: stage}
		_ = c.link.Send(m, nil) // a child that is gone is told again when it is back
		if data = data[n:]; m.Last {
			break
		}
	}
}

// project is the configuration as a role may see it: secrets only for whom
// they concern.
func project(full *config.Config, role imsg.Role) *config.Config {
	conf := *full
	conf.PKI = map[string]*config.PKI{}
	for name, pki := range full.PKI {
		copied := *pki
		if role != imsg.Keys {
			copied.Key = ""
		}
		conf.PKI[name] = &copied
	}
	if role != imsg.Queue {
		conf.Queue.EncryptionKey = ""
	}
	if role != imsg.Lookup && role != imsg.MTA {
		conf.SRS.Key, conf.SRS.Backup = "", ""
	}
	if role != imsg.Lookup && role != imsg.MTA && role != imsg.SMTP {
		conf.Tables = nil
	}
	return &conf
}

// died notes the end of a process and plans its successor.
func (p *parent) died(c *child, cmd *exec.Cmd, err error) {
	if c.cmd != cmd {
		return
	}
	c.running = false
	c.link.Close()
	if p.stopping {
		return
	}
	p.lostInChange(c, cmd)
	why := "exit status 0"
	if err != nil {
		why = err.Error()
	}
	if !p.started {
		if c.fatal == "" {
			c.fatal = fmt.Sprintf("%s ended while starting: %s", c.role, why)
		}
		p.fail(c.fatal)
		return
	}
	now := p.o.Now()
	c.deaths = append(recent(c.deaths, now), now)
	c.delay = backoff(len(c.deaths), c.delay)
	p.log.Warn(fmt.Sprintf("warn: %s (pid %d) ended: %s; starting again", c.role, cmd.Process.Pid, why))
	if len(c.deaths) >= manyDeaths {
		p.log.Warn(fmt.Sprintf("warn: %s died %d times in %s; next try in %s", c.role, len(c.deaths), deathWindow, c.delay))
	}
	time.AfterFunc(c.delay, func() { p.do(func() { p.restart(c) }) })
}

// backoff is the wait before the next start after n recent deaths, the last
// wait having been last.
func backoff(n int, last time.Duration) time.Duration {
	switch {
	case last > minDelay && n > 1: // still in trouble: the waits alone thin out the deaths
	case n < manyDeaths:
		return minDelay
	}
	return min(last*4/3, maxDelay)
}

func recent(times []time.Time, now time.Time) []time.Time {
	for len(times) > 0 && now.Sub(times[0]) > deathWindow {
		times = times[1:]
	}
	return times
}

func (p *parent) restart(c *child) {
	if p.stopping || c.running {
		return
	}
	if err := p.start(c.role); err != nil {
		p.log.Warn("warn: " + err.Error())
		c.delay = backoff(manyDeaths, c.delay)
		time.AfterFunc(c.delay, func() { p.do(func() { p.restart(c) }) })
	}
}

// kill ends a process that broke the rules; its successor follows.
func (p *parent) kill(c *child, cmd *exec.Cmd, why string) {
	if c.cmd != cmd || !c.running {
		return
	}
	p.log.Warn(fmt.Sprintf("warn: %s (pid %d) is killed: %s", c.role, cmd.Process.Pid, why))
	_ = cmd.Process.Kill() // it may have ended by itself
}

// reported handles c's word that a neighbour broke the protocol. The sender of
// what is not allowed is replaced, and nobody else; but who accuses too often
// is replaced as well.
func (p *parent) reported(c *child, cmd *exec.Cmd, m *imsg.Violation) {
	now := p.o.Now()
	c.reports = append(recent(c.reports, now), now)
	if len(c.reports) > maxReports {
		p.kill(c, cmd, "it reports too many violations")
		return
	}
	if peer := p.children[m.Peer]; peer != nil && peer.cmd != nil && imsg.Connected(c.role, m.Peer) {
		p.kill(peer, peer.cmd, fmt.Sprintf("%s reports: %s", c.role, m.Text))
	}
}

// fail gives up a start; the first reason counts.
func (p *parent) fail(why string) {
	if p.failed == nil {
		p.failed = fmt.Errorf("%s", why)
	}
}

// killAll ends what still runs and waits for it.
func (p *parent) killAll() {
	p.stopping = true
	p.workers.killAll()
	p.programs.killAll()
	for _, c := range p.children {
		if c.running {
			_ = c.cmd.Process.Kill()
		}
	}
	limit := time.NewTimer(time.Second) // what SIGKILL does not end, nothing ends
	defer limit.Stop()
	for p.anyRunning(imsg.Children) {
		select {
		case act := <-p.actions:
			act()
		case <-limit.C:
			return
		}
	}
}
