package privsep

import "os"

// Socket is a listening socket that the parent opened.
type Socket struct {
	Addr string   // as config.Listener.Addr prints; empty: the control socket
	File *os.File // nil: there are no sockets, Last is all it says
	Last bool     // all sockets of the present configuration have been delivered
}
