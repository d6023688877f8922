package ctl

// Build settings. They are variables only because the linker can set nothing
// else (-ldflags "-X smtpd/internal/ctl.Socket=..."); no code assigns them, and
// internal/arch exempts this file for that reason.
var (
	Socket     = "/run/smtpd.sock"  // the control socket
	Spool      = "/var/spool/smtpd" // the folder of the queue and of offline mails
	QueueUser  = "_smtpq"           // owner of the spool; its group is that of setgid smtpctl
	DaemonUser = "_smtpd"           // every process but queue and parent runs as this user
	ConfDirs   = "/etc/mail,/etc"   // where smtpd.conf and mailname are looked for, in this order
)

// Names in the environment that override Socket and Spool for a program that
// was given no privileges by its file mode.
const (
	SocketVar = "SMTPD_SOCKET"
	SpoolVar  = "SMTPD_SPOOL"
)
