package imsg

import (
	"time"

	"smtpd/internal/accounts"
	"smtpd/internal/mail"
)

// Configure hands a child its part of the configuration: JSON of config.Config
// in parts, in order. parent -> child, first of all and again at each reload:
// then with Stage, which has it got ready and not yet used. The child answers
// with Prepared, and waits for Apply.
type Configure struct {
	Generation uint64
	Data       []byte
	Last       bool
	Stage      bool
}

// Fields implements Msg.
func (m *Configure) Fields(c *Codec) {
	Uint(c, &m.Generation)
	c.Bytes(&m.Data, MaxData)
	c.Bool(&m.Last)
	c.Bool(&m.Stage)
}

// Prepared says whether a child can work by a configuration that was staged.
// child -> parent.
type Prepared struct {
	Generation uint64
	Error      string // why not; empty: it can
}

// Fields implements Msg.
func (m *Prepared) Fields(c *Codec) { Uint(c, &m.Generation); c.Text(&m.Error) }

// Apply ends the wait of a staged configuration: it is used from here on and
// answered with Applied, or forgotten. parent -> child.
type Apply struct {
	Generation uint64
	Commit     bool
}

// Fields implements Msg.
func (m *Apply) Fields(c *Codec) { Uint(c, &m.Generation); c.Bool(&m.Commit) }

// Applied says that a child works by a configuration. child -> parent.
type Applied struct{ Generation uint64 }

// Fields implements Msg.
func (m *Applied) Fields(c *Codec) { Uint(c, &m.Generation) }

// TableOpen asks for a table file that only the parent may read. The parent
// opens what tables of the configuration name, and nothing else. lookup ->
// parent; answered by TableOpened.
type TableOpen struct{ Path string }

// Fields implements Msg.
func (m *TableOpen) Fields(c *Codec) { c.Text(&m.Path) }

// TableOpened answers TableOpen: with the descriptor of a regular file that can
// be read, or an error.
type TableOpened struct{ Error string }

// Fields implements Msg.
func (m *TableOpened) Fields(c *Codec) { line(c, &m.Error, MaxText) }

// PeerLink hands a child its end of a fresh channel to a neighbour; an earlier
// one is dead. parent -> child, with a descriptor.
type PeerLink struct{ Peer Role }

// Fields implements Msg.
func (m *PeerLink) Fields(c *Codec) { Uint(c, &m.Peer) }

// ListenSocket hands smtp a listening socket, or control the control socket
// (Addr empty). parent -> child, with a descriptor, but for the one that only
// says that there are none.
type ListenSocket struct {
	Addr string // "127.0.0.1:25", as config.Listener.Addr prints
	Last bool   // no more sockets follow for this configuration
}

// Fields implements Msg.
func (m *ListenSocket) Fields(c *Codec) { c.Name(&m.Addr); c.Bool(&m.Last) }

// Switches are what an operator can switch at run time; all of them, at start
// and after each change. parent -> child.
type Switches struct {
	Verbose                       bool
	Trace                         []string
	PauseMTA, PauseMDA, PauseSMTP bool
	ProfileIMSG, ProfileQueue     bool
	Started                       time.Time // of the daemon: no switch, but who shows the others shows it
}

// Fields implements Msg.
func (m *Switches) Fields(c *Codec) {
	c.Bool(&m.Verbose)
	List(c, &m.Trace, 64, func(c *Codec, s *string) { c.Name(s) })
	c.Bool(&m.PauseMTA)
	c.Bool(&m.PauseMDA)
	c.Bool(&m.PauseSMTP)
	c.Bool(&m.ProfileIMSG)
	c.Bool(&m.ProfileQueue)
	c.Time(&m.Started)
}

// Shutdown asks a child to finish what it holds and end. parent -> child.
type Shutdown struct{}

// Fields implements Msg.
func (m *Shutdown) Fields(*Codec) {}

// Ready says that a child is confined, configured and works. child -> parent.
type Ready struct{}

// Fields implements Msg.
func (m *Ready) Fields(*Codec) {}

// Fatal says why a child cannot work at all, in one line for the operator; at
// start the parent prints it and ends. child -> parent, its last imsg.
type Fatal struct{ Text string }

// Fields implements Msg.
func (m *Fatal) Fields(c *Codec) { c.Text(&m.Text) }

// Violation reports a neighbour that broke the protocol; the parent kills and
// replaces it. child -> parent.
type Violation struct {
	Peer Role
	Text string
}

// Fields implements Msg.
func (m *Violation) Fields(c *Codec) { Uint(c, &m.Peer); c.Text(&m.Text) }

// UserQuery asks for an account of the system. lookup, mda -> parent; answered
// by UserInfo. mda and smtp ask lookup with UserbaseQuery instead when a table
// decides.
type UserQuery struct{ Name string }

// Fields implements Msg.
func (m *UserQuery) Fields(c *Codec) { c.Name(&m.Name) }

// UserInfo is an account, of the system or of a userbase table.
type UserInfo struct {
	Found     bool
	Temporary bool // the answer could not be had; Found is false
	Name      string
	UID, GID  uint32
	Home      string
	Gecos     string
}

// Fields implements Msg.
func (m *UserInfo) Fields(c *Codec) {
	c.Bool(&m.Found)
	c.Bool(&m.Temporary)
	c.Name(&m.Name)
	Uint(c, &m.UID)
	Uint(c, &m.GID)
	c.Text(&m.Home)
	c.Text(&m.Gecos)
}

// ForwardOpen asks for ~/.forward of a user, opened with every check of the
// specification. lookup -> parent; answered by ForwardFile.
type ForwardOpen struct {
	User string
	UID  uint32
	GID  uint32
	Home string
}

// Fields implements Msg.
func (m *ForwardOpen) Fields(c *Codec) {
	c.Name(&m.User)
	Uint(c, &m.UID)
	Uint(c, &m.GID)
	c.Text(&m.Home)
}

// ForwardFile answers ForwardOpen: Present with the file's octets, or a Status
// that the recipient gets, or neither: there is none.
type ForwardFile struct {
	Present bool
	Data    []byte // at most MaxForward octets
	Status  mail.Status
	Reason  string // for the log, when Status is set
}

// MaxForward is the size of a .forward file, in octets.
const MaxForward = accounts.MaxForward

// Fields implements Msg.
func (m *ForwardFile) Fields(c *Codec) {
	c.Bool(&m.Present)
	c.Bytes(&m.Data, MaxForward)
	status(c, &m.Status)
	c.Text(&m.Reason)
}

// SystemAuth checks the password of an account of the system. lookup ->
// parent; answered by AuthResult.
type SystemAuth struct {
	User     string
	Password string
}

// Fields implements Msg.
func (m *SystemAuth) Fields(c *Codec) { c.Name(&m.User); c.Name(&m.Password) }

// AuthResult answers SystemAuth and AuthCheck.
type AuthResult struct {
	OK        bool
	Temporary bool // could not be decided
}

// Fields implements Msg.
func (m *AuthResult) Fields(c *Codec) { c.Bool(&m.OK); c.Bool(&m.Temporary) }

// DeliverStart asks for a delivery worker that runs as a user. mda -> parent;
// answered by DeliverStarted with a descriptor: mda's end of the channel to the
// worker. The parent refuses uid 0.
type DeliverStart struct {
	User string
	UID  uint32
	GID  uint32
	Home string
	Mbox bool // it only writes the system mailbox: may have the group that owns the spool

	Store bool // it only talks to a store over TCP: may start nothing
}

// Fields implements Msg.
func (m *DeliverStart) Fields(c *Codec) {
	c.Name(&m.User)
	Uint(c, &m.UID)
	Uint(c, &m.GID)
	c.Text(&m.Home)
	c.Bool(&m.Mbox)
	c.Bool(&m.Store)
}

// DeliverStarted answers DeliverStart; Error is set when there is no worker.
type DeliverStarted struct{ Error string }

// Fields implements Msg.
func (m *DeliverStarted) Fields(c *Codec) { c.Text(&m.Error) }

// Reload asks for the configuration to be read again. control -> parent;
// answered by Done, whose Text holds the errors.
type Reload struct{}

// Fields implements Msg.
func (m *Reload) Fields(*Codec) {}

// Switch changes one switch. control -> parent; answered by Done, not OK when
// nothing changed or the name is unknown.
type Switch struct {
	Name string // "verbose", "mta", "mda", "smtp", "trace KEY", "profile imsg|queue"
	On   bool
}

// Fields implements Msg.
func (m *Switch) Fields(c *Codec) { c.Name(&m.Name); c.Bool(&m.On) }

// StatusGet asks for the switches. control -> parent; answered by Switches.
type StatusGet struct{}

// Fields implements Msg.
func (m *StatusGet) Fields(*Codec) {}

// Done answers what has no answer but success or failure.
type Done struct {
	OK   bool
	Text string // the reason, for the operator
}

// Fields implements Msg.
func (m *Done) Fields(c *Codec) { c.Bool(&m.OK); String(c, &m.Text, MaxData) }
