// Command table-redis answers the tables of smtpd.conf from a Redis server.
package main

import (
	"context"
	"os"

	"smtpd/table/query"
)

func main() {
	os.Exit(query.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, open))
}
