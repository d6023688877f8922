// Package imsg is the vocabulary of the channels between processes: one Go
// type per imsg, one file per pair of processes that talk, and the law of who
// may send what (edges.go). It is data only: ipc moves it. Every field has a
// bound that holds before anything is allocated.
package imsg

// Role names a process.
type Role uint8

// The processes. The numbers are written nowhere, but kept.
const (
	Parent Role = iota + 1
	Keys
	Control
	Lookup
	SMTP
	Queue
	Scheduler
	MTA
	MDA
	Deliver // the worker that delivers as a user; many at a time
)

// Children are the roles that the parent keeps running, in the order of start.
var Children = []Role{Queue, Scheduler, Keys, Lookup, Control, MTA, MDA, SMTP}

var roleNames = [...]string{Parent: "parent", Keys: "keys", Control: "control", Lookup: "lookup",
	SMTP: "smtp", Queue: "queue", Scheduler: "scheduler", MTA: "mta", MDA: "mda", Deliver: "deliver"}

// String is the role as ps and the log show it.
func (r Role) String() string {
	if int(r) < len(roleNames) && roleNames[r] != "" {
		return roleNames[r]
	}
	return "?"
}

// ParseRole is the inverse of String.
func ParseRole(s string) (Role, bool) {
	for i, n := range roleNames {
		if n != "" && n == s {
			return Role(i), true
		}
	}
	return 0, false
}

// Msg is one imsg. Fields reads or writes it, see Codec.
type Msg interface {
	Type() Type
	Fields(*Codec)
}
