package filter

import (
	"fmt"
	"net"
	"os"
)

// Socket is one end of a socketpair as a connection: the dialogue with a program,
// or the lines of a message. It closes f; the caller closes the connection.
func Socket(f *os.File) (net.Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("filter socket: %w", err)
	}
	return c, nil
}
