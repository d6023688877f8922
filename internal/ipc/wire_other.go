//go:build !linux || !(amd64 || arm64)

package ipc

import "net"

// quick reads and writes a socket, as package net does.
type quick struct{ conn *net.UnixConn }

func newQuick(conn *net.UnixConn) *quick { return &quick{conn} }

func (q *quick) read(b, oob []byte) (n, on int, flags int32, err error) {
	n, on, f, _, err := q.conn.ReadMsgUnix(b, oob)
	return n, on, int32(f), err
}

func (q *quick) write(b []byte) error {
	_, err := q.conn.Write(b)
	return err
}
