package lookup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/table"
)

// rootTime bounds the look for root's alias. Ours: a table that hangs then must
// not keep the process from following its configuration.
const rootTime = 5 * time.Second

// warnRoot says for which actions mail for root has nowhere to go: nothing is
// delivered as root, so root needs an alias. A table that cannot answer now is
// not spoken of.
func (s *server) warnRoot(ctx context.Context, w *world) {
	if s.env.Unprivileged {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, rootTime)
	defer cancel()
	used := map[string]bool{}
	for _, r := range w.conf.Rules {
		used[r.Action] = true
	}
	var lost []string
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if a := w.conf.Actions[name]; a != nil && a.User == "" && a.Virtual == "" && a.Userbase == "" && deliversToUsers(a) &&
			s.refusesRoot(ctx, w, a) {
			lost = append(lost, fmt.Sprintf("%q", name))
		}
	}
	if len(lost) > 0 {
		s.env.Log.Warn("warn: root has no alias: mail for root is refused by action " +
			mail.Clean(strings.Join(lost, ", "), mail.MaxStatusText) + " (write `root: user` into the file of its alias table)")
	}
}

func deliversToUsers(a *config.Action) bool {
	switch a.Method {
	case config.MethodMbox, config.MethodMaildir, config.MethodLMTP, config.MethodMDA:
		return true
	}
	return false
}

// refusesRoot reports that an action has no alias for root, nor root a .forward
// file.
func (s *server) refusesRoot(ctx context.Context, w *world, a *config.Action) bool {
	const root = "root"
	if a.Alias != "" {
		if _, err := w.tables.Lookup(ctx, a.Alias, table.Alias, root); !errors.Is(err, table.ErrNotFound) {
			return false
		}
	}
	u, err := s.system.User(ctx, root)
	if err != nil || u.UID != 0 {
		return false
	}
	f, err := s.system.Forward(ctx, u)
	return err == nil && !f.Present
}
