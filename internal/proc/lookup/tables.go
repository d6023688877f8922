package lookup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"smtpd/internal/imsg"
	"smtpd/internal/ipc"
	"smtpd/internal/mail"
	"smtpd/table"
)

// matching are the services that are asked whether, not what.
const matching = table.Domain | table.Netaddr | table.Mailaddr | table.String | table.Regex | table.Auth

// tableQuery asks one table one question.
func (s *server) tableQuery(ctx context.Context, w *world, m *imsg.TableQuery) *imsg.TableAnswer {
	return s.tableAnswer(tableAsk(ctx, w, m))
}

func tableAsk(ctx context.Context, w *world, m *imsg.TableQuery) (value string, found bool, err error) {
	service, ok := table.ParseService(m.Service)
	switch {
	case !ok:
		return "", false, fmt.Errorf("table %s: unknown service %q", m.Table, mail.Clean(m.Service, 64))
	case m.Fetch:
		value, err = w.tables.Fetch(ctx, m.Table, service)
		return value, true, err
	case service&matching != 0:
		found, err = w.tables.Check(ctx, m.Table, service, m.Key)
		return "", found, err
	}
	value, err = w.tables.Lookup(ctx, m.Table, service, m.Key)
	return value, true, err
}

// tableProbe is tableQuery for the operator, who is told why there is no
// answer. A login is checked as that of a client would be, whether the table
// does so itself or holds the hash.
func (s *server) tableProbe(ctx context.Context, w *world, m *imsg.TableQuery) *imsg.TableAnswer {
	var value string
	var found bool
	var err error
	if m.Service == table.Auth.String() && !m.Fetch {
		user, password, _ := strings.Cut(m.Key, ":")
		found, err = s.checkPassword(ctx, w, &imsg.AuthCheck{Table: m.Table, User: user, Password: password})
	} else {
		value, found, err = tableAsk(ctx, w, m)
	}
	a := s.tableAnswer(value, found, err)
	if err != nil && !errors.Is(err, table.ErrNotFound) {
		a.Reason = mail.Clean(err.Error(), imsg.MaxText)
	}
	return a
}

// tableAnswer is the answer that an end of a lookup makes. A key that no table
// can hold is not found.
func (s *server) tableAnswer(value string, found bool, err error) *imsg.TableAnswer {
	switch {
	case err == nil:
		return &imsg.TableAnswer{Found: found, Value: value}
	case errors.Is(err, table.ErrNotFound), errors.Is(err, table.ErrKey):
		return &imsg.TableAnswer{}
	}
	s.env.Log.Warn("warn: " + mail.Clean(err.Error(), mail.MaxStatusText))
	return &imsg.TableAnswer{Temporary: true}
}

// userbaseQuery finds a user to deliver as. The user of the daemon itself, as
// whom commands of aliases run, is the system's whatever the userbase; but where
// that is an ordinary user, it may well have a mailbox in the userbase.
func (s *server) userbaseQuery(ctx context.Context, w *world, m *imsg.UserbaseQuery) *imsg.UserInfo {
	daemon := m.User == s.daemon.Name
	if m.Table != "" && (!daemon || s.env.Unprivileged) {
		v, err := w.tables.Lookup(ctx, m.Table, table.Userinfo, m.User)
		var a table.Account
		if err == nil {
			a, err = table.ParseAccount(v)
		}
		if !daemon || !errors.Is(err, table.ErrNotFound) {
			return s.userInfo(m.User, a, err)
		}
	}
	u, err := s.system.User(ctx, m.User)
	return s.userInfo(m.User, table.Account{UID: u.UID, GID: u.GID, Home: u.Home}, err)
}

func (s *server) userInfo(name string, a table.Account, err error) *imsg.UserInfo {
	switch {
	case err == nil:
		return &imsg.UserInfo{Found: true, Name: name, UID: a.UID, GID: a.GID, Home: a.Home}
	case errors.Is(err, table.ErrNotFound):
		return &imsg.UserInfo{Name: name}
	}
	s.env.Log.Warn("warn: " + mail.Clean(err.Error(), mail.MaxStatusText))
	return &imsg.UserInfo{Name: name, Temporary: true}
}

// tableUpdate reads a table again.
func (s *server) tableUpdate(ctx context.Context, w *world, m *imsg.TableUpdate) *imsg.Done {
	t := w.tables.Table(m.Table)
	if t == nil {
		return &imsg.Done{Text: "no such table: " + mail.Clean(m.Table, 256)}
	}
	if err := s.update(ctx, t); err != nil {
		return &imsg.Done{Text: mail.Clean(err.Error(), mail.MaxStatusText)}
	}
	if next := s.worlds.nextTable(m.Table); next != nil && next != t {
		// One that was read for a reload under way, maybe just before the change.
		// Its error would be the same, and was not there a moment ago.
		_ = next.Update(ctx)
		s.tellStale(ctx, m.Table)
	}
	return &imsg.Done{OK: true}
}

// dnsQuery asks the name system.
func (s *server) dnsQuery(ctx context.Context, m *imsg.DNSQuery) *imsg.DNSAnswer {
	a := s.resolver.Lookup(ctx, m.Name, m.QType)
	answer := &imsg.DNSAnswer{Result: uint8(a.Result), AD: a.AD}
	for _, r := range a.Records {
		answer.Records = append(answer.Records, imsg.DNSRecord{Pref: r.Pref, TTL: r.TTL, Data: r.Data})
	}
	return answer
}

// show prints lines for smtpctl: "tables" and "filters".
func (s *server) show(ctx context.Context, w *world, m *imsg.Show) *imsg.Lines {
	switch m.What {
	case "tables":
		if m.Skip == 0 {
			s.tally(ctx, w)
		}
	case "filters":
		return page(showFilters(w), m.Skip)
	default:
		return &imsg.Lines{}
	}
	var lines []string
	for _, t := range w.tables.All() {
		st := t.Stats()
		entries := "-"
		if st.Entries >= 0 {
			entries = fmt.Sprint(st.Entries)
		}
		lines = append(lines, fmt.Sprintf("%s|%s|entries=%s|lookups=%d|misses=%d|errors=%d|loaded=%d|%s\n", st.Name, st.Backend,
			entries, st.Lookups, st.Misses, st.Errors, st.Loaded.Unix(), mail.Clean(st.LastError, 256)))
	}
	return page(lines, m.Skip)
}

// tallyTime is how long smtp may take to say what it counted. Ours: it does so at
// once, or is not there.
const tallyTime = time.Second

// tally books what smtp answered from copies of the tables of w.
func (s *server) tally(ctx context.Context, w *world) {
	ctx, cancel := context.WithTimeout(ctx, tallyTime)
	defer cancel()
	for s.peers.SMTP.Up() {
		a, err := ipc.Ask[*imsg.TableTallies](ctx, s.peers.SMTP, &imsg.TableTally{})
		if err != nil {
			s.env.Log.Warn("warn: show tables: smtp does not say what it looked up: " + mail.Clean(err.Error(), 256))
			return
		}
		for _, c := range a.Tables {
			if t := w.tables.Table(c.Table); t != nil && c.Generation == w.conf.Generation {
				t.Book(int64(c.Lookups), int64(c.Misses), int64(c.Errors))
			}
		}
		if len(a.Tables) < imsg.MaxTallies {
			return
		}
	}
}

// page is the lines that fit one answer, after those already had.
func page(lines []string, skip int) *imsg.Lines {
	var b strings.Builder
	for i := min(skip, len(lines)); i < len(lines); i++ {
		if b.Len()+len(lines[i]) > imsg.MaxData {
			return &imsg.Lines{Text: []byte(b.String()), More: true}
		}
		b.WriteString(lines[i])
	}
	return &imsg.Lines{Text: []byte(b.String())}
}
