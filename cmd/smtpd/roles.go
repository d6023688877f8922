package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/privsep"
	"smtpd/internal/proc/control"
	"smtpd/internal/proc/deliver"
	"smtpd/internal/proc/keys"
	"smtpd/internal/proc/lookup"
	"smtpd/internal/proc/mda"
	"smtpd/internal/proc/mta"
	"smtpd/internal/proc/queue"
	"smtpd/internal/proc/scheduler"
	"smtpd/internal/proc/smtp"
)

// links gives a process its channel to a neighbour.
type links = func(imsg.Role) *ipc.Link

// runRole is the life of a child process.
func runRole(role imsg.Role) int {
	privsep.SetTitle()
	b, err := privsep.ReadBoot()
	if err != nil {
		fmt.Fprintf(os.Stderr, "smtpd: %v\n", err)
		return 1
	}
	if role == imsg.Deliver { // started as the user, in the common root folder
		return privsep.Worker(b, deliver.Run)
	}
	// What Go loads when it is first needed must be there before the root folder
	// changes: the time zone, and for mta the roots of trust.
	_ = time.Now().Local().String()
	if role == imsg.MTA {
		if err := mta.Preload(); err != nil { // verified relays will say so as well
			fmt.Fprintf(os.Stderr, "warn: mta: %v\n", err)
		}
		debug.FreeOSMemory() // reading the roots takes twice what they take
	}
	return privsep.Main(role, b, func(ctx context.Context, env *privsep.Env, l links) error {
		return dispatch(ctx, role, b, env, l)
	})
}

// dispatch leads from the name of a process to its code.
func dispatch(ctx context.Context, role imsg.Role, b privsep.Boot, env *privsep.Env, l links) error {
	switch role {
	case imsg.Keys:
		return keys.Run(ctx, env, keys.Peers{SMTP: l(imsg.SMTP), MTA: l(imsg.MTA), Lookup: l(imsg.Lookup), Control: l(imsg.Control)})
	case imsg.Control:
		return control.Run(ctx, env, control.Peers{Keys: l(imsg.Keys), Lookup: l(imsg.Lookup), SMTP: l(imsg.SMTP),
			Queue: l(imsg.Queue), Scheduler: l(imsg.Scheduler), MTA: l(imsg.MTA), MDA: l(imsg.MDA)})
	case imsg.Lookup:
		return lookup.Run(ctx, env, lookup.Peers{SMTP: l(imsg.SMTP), MTA: l(imsg.MTA), MDA: l(imsg.MDA),
			Control: l(imsg.Control), Keys: l(imsg.Keys)})
	case imsg.SMTP:
		return smtp.Run(ctx, env, smtp.Peers{Lookup: l(imsg.Lookup), Queue: l(imsg.Queue), Keys: l(imsg.Keys), Control: l(imsg.Control)})
	case imsg.Queue:
		return queue.Run(ctx, env, queue.Peers{SMTP: l(imsg.SMTP), Scheduler: l(imsg.Scheduler), MTA: l(imsg.MTA),
			MDA: l(imsg.MDA), Control: l(imsg.Control)}, b.Dir)
	case imsg.Scheduler:
		return scheduler.Run(ctx, env, scheduler.Peers{Queue: l(imsg.Queue), Control: l(imsg.Control)})
	case imsg.MTA:
		return mta.Run(ctx, env, mta.Peers{Queue: l(imsg.Queue), Lookup: l(imsg.Lookup), Keys: l(imsg.Keys), Control: l(imsg.Control)})
	case imsg.MDA:
		return mda.Run(ctx, env, mda.Peers{Queue: l(imsg.Queue), Lookup: l(imsg.Lookup), Control: l(imsg.Control)})
	}
	return fmt.Errorf("%s is not a process of its own", role)
}
