package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"smtpd/table"
	"smtpd/table/query"
)

// Bounds. Ours.
const (
	connectTime = 3 * time.Second
	commandTime = 5 * time.Second
	connections = 8
)

// engine is a query.Engine. Keys become words of commands: none can become a
// second word, let alone a second command.
type engine struct {
	servers  []*redis.Client     // the master, then the slave
	commands map[string][]string // words, by the query's name
}

// open is query.Open. As in opensmtpd-extras a service without a query has the
// command GET service:%s, but for mailaddrmap.
func open(s *query.Settings) (query.Engine, []query.Query, error) {
	defaults := []table.Service{table.Alias, table.Domain, table.Credentials, table.Netaddr, table.Userinfo,
		table.Source, table.Mailaddr, table.Addrname}
	for _, v := range defaults {
		s.Default("query_"+v.String(), "GET "+v.String()+":%s")
	}
	queries, err := query.Queries(s)
	if err != nil {
		return nil, nil, err
	}
	e := &engine{commands: map[string][]string{}}
	var errs []error
	for i := range queries {
		q := &queries[i]
		words, err := words(q)
		if err != nil {
			errs = append(errs, s.Mistake(q.Name, err))
		}
		e.commands[q.Name] = words
	}
	database, err := s.Number("database", 0, 256)
	errs = append(errs, err)
	for _, role := range []struct{ key, host, port string }{{"master", "127.0.0.1", "6379"}, {"slave", "", "6380"}} {
		host := s.Text(role.key, role.host)
		port := s.Text(role.key+"_port", role.port)
		if host == "" {
			continue
		}
		o := &redis.Options{Password: s.Text("password", ""), DB: database, Protocol: 2, DisableIdentity: true,
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			DialTimeout:              connectTime, ReadTimeout: commandTime, WriteTimeout: commandTime,
			ContextTimeoutEnabled: true, MaxRetries: -1, PoolSize: connections, DialerRetries: 1}
		if path, ok := strings.CutPrefix(host, "unix:"); ok {
			o.Network, o.Addr = "unix", path
		} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			errs = append(errs, s.Mistake(role.key+"_port", fmt.Errorf("%q is not a port", port)))
		} else {
			o.Network, o.Addr = "tcp", net.JoinHostPort(strings.Trim(host, "[]"), port)
		}
		e.servers = append(e.servers, redis.NewClient(o))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, errors.Join(err, e.Close())
	}
	return e, queries, nil
}

// words takes a command apart. %s stands for the key, in whole words or parts
// of them, and %% for a percent sign.
func words(q *query.Query) ([]string, error) {
	list := strings.Fields(q.Text)
	keys := 0
	for _, w := range list {
		w = strings.ReplaceAll(w, "%%", "")
		keys += strings.Count(w, "%s")
		if strings.Contains(strings.ReplaceAll(w, "%s", ""), "%") {
			return nil, fmt.Errorf("%q: there is only %%s", w)
		}
		if strings.ContainsAny(w, `'"`) {
			return nil, fmt.Errorf("%s: words have no quotes", w)
		}
	}
	switch {
	case strings.Contains(list[0], "%"):
		return nil, errors.New("the command itself is a placeholder")
	case q.Fetch && keys > 0:
		return nil, errors.New("a placeholder, where there is no key")
	case !q.Fetch && keys == 0:
		return nil, errors.New("no placeholder %s for the key")
	}
	return list, nil
}

// command is a query with its key.
func (e *engine) command(q *query.Query, key string) []any {
	r := strings.NewReplacer("%%", "%", "%s", key)
	args := make([]any, len(e.commands[q.Name]))
	for i, w := range e.commands[q.Name] {
		args[i] = r.Replace(w)
	}
	return args
}

// Rows implements query.Engine. The slave is asked when the master is away.
func (e *engine) Rows(ctx context.Context, q *query.Query, key string) ([][]string, error) {
	var err error
	for _, server := range e.servers {
		var answer any
		answer, err = server.Do(ctx, e.command(q, key)...).Result()
		if errors.Is(err, redis.Nil) {
			return nil, nil
		}
		if err == nil {
			return rows(q, answer)
		}
		if refused(err) {
			return nil, fmt.Errorf("%w: %w", query.ErrRefused, err)
		}
	}
	return nil, err
}

// refused reports an answer that is about the command rather than about the
// state of the server.
func refused(err error) bool {
	if _, ok := errors.AsType[redis.Error](err); !ok {
		return false
	}
	for _, word := range []string{"LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOAUTH", "WRONGPASS", "OOM", "TRYAGAIN", "READONLY"} {
		if strings.HasPrefix(err.Error(), word) {
			return false
		}
	}
	return true
}

// rows takes an answer apart: an array is a row for services of several values
// and a list for those of one; 0 is no.
func rows(q *query.Query, answer any) ([][]string, error) {
	switch v := answer.(type) {
	case int64:
		if v == 0 {
			return nil, nil
		}
		return [][]string{{strconv.FormatInt(v, 10)}}, nil
	case string:
		return [][]string{{v}}, nil
	case []any:
		return array(q, v)
	}
	return nil, fmt.Errorf("%w: an answer of type %T", query.ErrRefused, answer)
}

func array(q *query.Query, list []any) ([][]string, error) {
	if len(list) > query.MaxRows {
		return nil, fmt.Errorf("%w: more than %d values", query.ErrRefused, query.MaxRows)
	}
	var row []string
	for _, x := range list {
		switch x := x.(type) {
		case nil:
		case string:
			row = append(row, x)
		case int64:
			row = append(row, strconv.FormatInt(x, 10))
		default:
			return nil, fmt.Errorf("%w: an array with a %T", query.ErrRefused, x)
		}
	}
	switch {
	case len(row) == 0:
		return nil, nil
	case q.Columns == 1:
		one := make([][]string, len(row))
		for i, v := range row {
			one[i] = []string{v}
		}
		return one, nil
	case len(row) != q.Columns:
		return nil, fmt.Errorf("%w: %d values instead of %d", query.ErrRefused, len(row), q.Columns)
	}
	return [][]string{row}, nil
}

// Verify implements query.Engine.
func (e *engine) Verify(ctx context.Context) error {
	var err error
	for _, server := range e.servers {
		if err = server.Ping(ctx).Err(); err == nil {
			return nil
		}
	}
	return err
}

// Close implements query.Engine.
func (e *engine) Close() error {
	var errs []error
	for _, s := range e.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
