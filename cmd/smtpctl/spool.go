package main

import "smtpd/internal/ctl"

// openSpool opens the queue below the spool folder for reading.
func openSpool(string) (spoolReader, error) { return nil, failed("%v", ctl.ErrNotRunning) }
