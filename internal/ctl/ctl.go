// Package ctl is the protocol of the control socket, shared by the control
// process and smtpctl: bounded frames of text fields, requests and their
// answers, descriptors, the identity of who asks, and the forms in which the
// queue is shown. It owns nothing but the connections it is given. It must
// never allocate for a peer before a bound was checked, and never import ipc or
// imsg: smtpctl is no part of the daemon.
package ctl

import "errors"

// Protocol is what both ends say first. It changes whenever a frame, a request
// or a row does: tool and daemon come from one build.
const Protocol = "smtpd control 1"

// Bounds of one frame, in octets and fields. Ours.
const (
	MaxRequest = 16 << 10  // what a client may send in one frame
	MaxFrame   = 512 << 10 // what the daemon may send: a part of a listing, with room
	MaxFields  = 64
	MaxData    = 256 << 10 // a part of a text or a message
)

// MaxConnPerUID is how many connections one user may have open at a time, as
// OpenSMTPD bounds them.
const MaxConnPerUID = 32

// ErrFrame is a frame that breaks the protocol.
var ErrFrame = errors.New("control: malformed frame")

// Errors of Dial and Do that callers tell apart.
var (
	ErrNotRunning   = errors.New("smtpd doesn't seem to be running")
	ErrIncompatible = errors.New("incompatible smtpctl and smtpd")
)

// Reasons of a Failure that a client tells apart.
const (
	ReasonBusy    = "server too busy"
	ReasonRefused = "server disallowed submission request"
	ReasonMissing = "no such envelope or message"
)

// Failure is the daemon's answer that a request was not carried out.
type Failure struct{ Reason string } // for the operator; may be empty, may have several lines

// Error is the reason.
func (f *Failure) Error() string {
	if f.Reason == "" {
		return "command failed"
	}
	return f.Reason
}

// The requests: the first field of a KindRequest frame. Arguments follow; what
// comes back before OK or Fail is said beside each.
const (
	ReqSubmit   = "submit"   // -> a descriptor: a session with the local listener; OK: server name
	ReqQueue    = "queue"    // [msgid | Where condition ...] -> rows, each an Entry
	ReqEnvelope = "envelope" // evpid -> data
	ReqMessage  = "message"  // msgid -> data
	ReqStats    = "stats"    // -> rows of name, value
	ReqStatus   = "status"   // -> rows of name, "running" or "paused"
	ReqShow     = "show"     // what -> data
	ReqSchedule = "schedule" // evpid, msgid, "all", or Where, DryRun or "", condition ...; OK: number
	ReqRemove   = "remove"   // the same
	ReqPause    = "pause"    // the same
	ReqResume   = "resume"   // the same
	ReqRelease  = "release"  // pattern of domains, seconds that it lasts or 0; OK: number of envelopes that leave now
	ReqDiscover = "discover" // evpid, msgid or "all"; OK: number
	ReqSwitch   = "switch"   // name as imsg.Switch has it, "on" or "off"
	ReqBlock    = "block"    // source address, domain
	ReqUnblock  = "unblock"  // source address, domain
	ReqRoute    = "route"    // id: resume it
	ReqUpdate   = "update"   // table
	ReqReload   = "reload"   // OK, or Fail with the errors, a line each
	ReqLookup   = "lookup"   // table, service[, key] -> row: result, value, microseconds, reason
	ReqExplain  = "explain"  // "text" or "json", then facts -> row: exit status, text
)

// Where stands before the conditions of a Selection in a request, DryRun has
// only counted what it selects.
const (
	Where  = "where"
	DryRun = "dry-run"
)
