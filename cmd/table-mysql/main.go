// Command table-mysql answers the tables of smtpd.conf from a MySQL or MariaDB
// server.
package main

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"smtpd/table/query"
)

// connectTime is how long a server may take to accept a connection. Ours.
const connectTime = 5 * time.Second

// sockets are where Debian, MySQL and the BSDs put the socket of a server on
// this host.
var sockets = []string{"/run/mysqld/mysqld.sock", "/tmp/mysql.sock", "/var/run/mysql/mysql.sock"}

func main() {
	os.Exit(query.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, open))
}

// open is query.Open.
func open(s *query.Settings) (query.Engine, []query.Query, error) {
	conf := mysql.NewConfig()
	conf.User, conf.Passwd, conf.DBName = s.Text("username", ""), s.Text("password", ""), s.Text("database", "")
	conf.Net, conf.Addr = address(s.Text("host", "localhost"))
	conf.Timeout = connectTime
	conf.Logger = &mysql.NopLogger{} // errors are returned as well
	c, err := mysql.NewConnector(conf)
	if err != nil {
		return nil, nil, s.Mistake("host", err)
	}
	return query.NewSQL(s, c, query.Dialect{Backslash: true, Answer: answer})
}

// address is where host is: the path of a socket, a host, or host:port; as with
// the programs of MySQL, localhost is a socket when there is one.
func address(host string) (network, addr string) {
	if strings.HasPrefix(host, "/") {
		return "unix", host
	}
	if host == "localhost" {
		for _, path := range sockets {
			if _, err := os.Stat(path); err == nil {
				return "unix", path
			}
		}
	}
	if _, _, err := net.SplitHostPort(host); err == nil {
		return "tcp", host
	}
	return "tcp", net.JoinHostPort(strings.Trim(host, "[]"), "3306")
}

// outages are errors of the server that say nothing about a query: it is full,
// does not know us (yet), is being stopped, or gave up.
var outages = map[uint16]bool{
	1037: true, 1038: true, 1040: true, 1041: true, 1042: true, 1043: true, 1044: true, 1045: true, 1049: true,
	1053: true, 1077: true, 1203: true, 1205: true, 1213: true, 1226: true, 1290: true, 1317: true, 1927: true,
}

// answer reports an error that is about a query.
func answer(err error) bool {
	e, ok := errors.AsType[*mysql.MySQLError](err)
	return ok && !outages[e.Number]
}
