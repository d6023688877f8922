package ctl

import "strings"

// Build settings. They are variables only because the linker can set nothing
// else (-ldflags "-X smtpd/internal/ctl.Socket=..."); no code assigns them, and
// internal/arch exempts this file for that reason.
var (
	Version     = "1.0.0"            // of the product
	Socket      = "/run/smtpd.sock"  // the control socket
	Spool       = "/var/spool/smtpd" // the folder of the queue and of offline mails
	QueueUser   = "_smtpq"           // owner of the spool; its group is that of setgid smtpctl
	DaemonUser  = "_smtpd"           // every process but queue and parent runs as this user
	ConfDirList = "/etc/mail:/etc"   // see ConfDirs
)

// ConfDirs are the folders in which smtpd.conf and mailname are looked for, in
// this order; there is one at least.
func ConfDirs() []string { return strings.Split(ConfDirList, ":") }

// Names in the environment that override Socket and Spool for a program that
// was given no privileges by its file mode. Without SpoolVar, the folder
// "spool" beside an overriding socket is taken when there is one.
const (
	SocketVar = "SMTPD_SOCKET"
	SpoolVar  = "SMTPD_SPOOL"
)
