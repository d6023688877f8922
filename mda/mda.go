// Package mda is the engine of local delivery: it puts one message into a
// Maildir, an mbox, an LMTP store or the standard input of a command, as the
// user that the process runs as. It owns the files and connections of the
// deliveries under way and a bounded number of open folders and idle
// connections between them. It must never follow a name that another user can
// swap, nor report a delivery before it is on disk.
package mda
