package expand

import (
	"errors"
	"io/fs"
	"strings"

	"smtpd/internal/config"
	"smtpd/internal/mail"
	"smtpd/table"
)

// virtual looks an address up in the virtual table of its action.
func (e *expansion) virtual(p *place, depth int) error {
	addr := p.addr
	bare, tag := addr.SplitTag(e.Config.SMTP.SubAddrDelim)
	keys := make([]string, 0, 6)
	if tag != "" {
		keys = append(keys, addr.String())
	}
	keys = append(keys, bare+"@"+addr.Domain)
	if tag != "" {
		keys = append(keys, addr.User)
	}
	keys = append(keys, bare, "@"+addr.Domain, "@")
	value, key, err := e.aliases(p.action.Virtual, keys)
	switch {
	case errors.Is(err, table.ErrNotFound):
		return e.unknown("not in the virtual table")
	case err != nil:
		return err
	}
	e.say("virtual " + key + ": " + value)
	return e.list(value, node{place: p, depth: depth + 1, parent: key})
}

// aliases is the value of the first key that the table has.
func (e *expansion) aliases(name string, keys []string) (value, key string, err error) {
	for _, k := range keys {
		v, err := e.Tables.Lookup(e.ctx, name, table.Alias, k)
		switch {
		case err == nil:
			return v, k, nil
		case errors.Is(err, table.ErrKey): // no alias can have such a name
		case !errors.Is(err, table.ErrNotFound):
			e.note(true, "warn: "+mail.Clean(err.Error(), mail.MaxStatusText))
			return "", "", e.trouble("lookup of " + k + " failed")
		}
	}
	return "", "", table.ErrNotFound
}

// list follows the items of an alias.
func (e *expansion) list(value string, n node) error {
	items, err := table.ParseItems(value)
	if err != nil {
		e.note(true, "warn: aliases: "+n.parent+": "+err.Error())
		return e.trouble("its value is not a list")
	}
	return e.items(items, n)
}

// items follows each item; the first that fails fails the recipient.
func (e *expansion) items(items []table.Item, n node) error {
	for _, it := range items {
		if err := e.item(it, n); err != nil {
			return err
		}
	}
	return nil
}

func (e *expansion) item(it table.Item, n node) error {
	if it.Kind == table.ItemAddress {
		return e.address(it.Addr, n.depth+1, true)
	}
	switch it.Kind {
	case table.ItemUser:
		if n.place.visit(it.Text, it.Text == n.parent) {
			n.depth++
			return e.username(it.Text, n)
		}
	case table.ItemInclude:
		if n.place.visit(it.Text, false) {
			return e.include(it.Text, n)
		}
	case table.ItemError:
		return e.refuse(it, n)
	default:
		return e.external(it, n)
	}
	return nil
}

// visit reports whether a name or path comes up for the first time below its
// address. A name among its own items is another node than the name itself.
func (p *place) visit(text string, same bool) bool {
	key := text
	if same {
		key = "=" + text
	}
	if p.seen[key] {
		return false
	}
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	p.seen[key] = true
	return true
}

// refuse ends the expansion with the reply that an item asks for.
func (e *expansion) refuse(it table.Item, n node) error {
	if err := e.enter(n.depth + 1); err != nil {
		return err
	}
	e.say("error: " + it.Text)
	if n.action.Method == config.MethodForwardOnly {
		return e.trouble("a forward-only action takes addresses alone")
	}
	st, ok := mail.ParseStatus(it.Text)
	if !ok {
		return e.trouble("not a reply")
	}
	st.Text = mail.Clean(st.Text+": <"+e.q.Envelope.Rcpt.String()+">", mail.MaxStatusText)
	return st
}

// include follows the lines of a file that an alias names. A file that is not
// there, or closed to the daemon, gives nothing.
func (e *expansion) include(path string, n node) error {
	if n.forwarded {
		e.say("include in a .forward file: left out")
		return nil
	}
	if err := e.enter(n.depth + 1); err != nil {
		return err
	}
	text, err := e.System.Include(e.ctx, path)
	if err != nil {
		e.note(true, "warn: include: "+mail.Clean(err.Error(), mail.MaxStatusText))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return e.trouble("include " + path + " cannot be read now")
	}
	e.say("include " + path)
	n.depth++
	for line := range strings.Lines(text) {
		items, err := table.ParseItems(strings.TrimRight(line, "\r\n"))
		if err != nil {
			e.note(true, "warn: include: "+path+": "+err.Error())
			return e.trouble("a line of it is not a list")
		}
		for _, it := range items {
			if it.Kind == table.ItemInclude {
				continue // one level only
			}
			if err := e.item(it, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// external ends a branch in a file or a command.
func (e *expansion) external(it table.Item, n node) error {
	if err := e.enter(n.depth + 1); err != nil {
		return err
	}
	if n.action.Method == config.MethodForwardOnly {
		return e.trouble("a forward-only action takes addresses alone")
	}
	exec, user := it.Text, e.Daemon
	if it.Kind == table.ItemCommand {
		exec = "|" + exec
	}
	switch {
	case n.user != nil:
		if user = *n.user; user.UID < MinUID && !e.Unprivileged {
			e.note(true, "warn: .forward of "+user.Name+": a system account runs no commands and writes no files")
			return e.trouble("a system account runs no commands and writes no files")
		}
	case n.action.User != "": // as all that the action delivers
		user.Name = n.action.User
	case it.Kind == table.ItemCommand:
		e.note(false, "commands executed from aliases run with "+user.Name+" privileges")
	}
	if err := e.identity(user, user.Name, n.action); err != nil {
		return err
	}
	e.say(it.Kind.String() + " " + it.Text + " as " + user.Name)
	return e.submit(&n, mail.KindMDA, user.Name, exec)
}

// username follows a local name: aliases, account, .forward, delivery.
func (e *expansion) username(name string, n node) error {
	if err := e.enter(n.depth); err != nil {
		return err
	}
	a := n.action
	bare, sub, tagged := strings.Cut(name, e.Config.SMTP.SubAddrDelim)
	if e.Config.SMTP.SubAddrDelim == "" {
		bare, sub, tagged = name, "", false
	}
	// A name among its own items is not looked up again. The name of the address
	// itself is not in the virtual table, or the address would not be here.
	names, source := a.Alias, "alias "
	if a.Virtual != "" {
		names, source = a.Virtual, "virtual "
	}
	if names != "" && name != n.parent {
		keys := []string{name, bare}
		if !tagged {
			keys = keys[:1]
		}
		value, key, err := e.aliases(names, keys)
		if err == nil {
			e.say(source + key + ": " + value)
			n.parent, n.forwarded, n.user = key, false, nil
			return e.list(value, n)
		}
		if !errors.Is(err, table.ErrNotFound) {
			return err
		}
	}
	if n.sub = ""; n.parent != "" { // that of the address itself is in the envelope already
		n.sub = sub
	}
	u, err := e.account(a, bare)
	switch {
	case errors.Is(err, table.ErrNotFound):
		return e.unknown("no user " + bare)
	case err != nil:
		return err
	}
	return e.deliver(u, n)
}

// account finds a user in the userbase of the action.
func (e *expansion) account(a *config.Action, name string) (User, error) {
	if name == "" {
		return User{}, table.ErrNotFound
	}
	if a.Userbase == "" {
		return e.System.User(e.ctx, name)
	}
	v, err := e.Tables.Lookup(e.ctx, a.Userbase, table.Userinfo, name)
	if errors.Is(err, table.ErrKey) {
		return User{}, table.ErrNotFound
	}
	if err != nil {
		return User{}, err
	}
	acc, err := table.ParseAccount(v)
	return User{Name: name, UID: acc.UID, GID: acc.GID, Home: acc.Home}, err
}

// deliver ends at a user: by way of .forward, if it has one that counts here.
func (e *expansion) deliver(u User, n node) error {
	a := n.action
	again := n.forwarded && u.Name == n.user.Name     // it names itself in its own file
	others := e.Unprivileged && u.UID != e.Daemon.UID // whose files cannot be read
	if !again && !others && (a.User == "" || a.User == u.Name) {
		done, err := e.forward(u, n)
		if done || err != nil {
			return err
		}
	}
	switch a.Method {
	case config.MethodExpandOnly:
		return e.dead("an expand-only action delivers to nobody")
	case config.MethodForwardOnly:
		return e.trouble("a forward-only action needs a .forward file")
	}
	as := u.Name
	if a.User != "" {
		as = a.User
	}
	if a.Method != config.MethodLMTP { // which needs no identity
		if err := e.identity(u, as, a); err != nil {
			return err
		}
	}
	e.say("deliver to " + as + " by action " + a.Name + " (" + string(a.Method) + ")")
	return e.submit(&n, mail.KindMDA, as, "")
}

// identity refuses, when the daemon runs unprivileged, a delivery as anyone
// else; the user of an action is looked up, u is known.
func (e *expansion) identity(u User, as string, a *config.Action) error {
	if !e.Unprivileged {
		return nil
	}
	var err error
	if as == a.User {
		u, err = e.System.User(e.ctx, as)
	}
	if err != nil && !errors.Is(err, table.ErrNotFound) {
		return err
	}
	if err != nil || u.UID != e.Daemon.UID {
		return e.unknown("running unprivileged: cannot deliver as " + as)
	}
	return nil
}

// forward follows ~/.forward of a user; done: there was one with items.
func (e *expansion) forward(u User, n node) (done bool, err error) {
	f, err := e.System.Forward(e.ctx, u)
	if err != nil {
		return false, err
	}
	if f.Reason != "" {
		e.note(true, "warn: smtpd: "+mail.Clean(f.Reason, mail.MaxStatusText))
	}
	switch {
	case f.Refuse != nil:
		return false, e.status(f.Refuse.Code, f.Refuse.Enh, f.Refuse.Text)
	case !f.Present:
		return false, nil
	case len(f.Data) == 0:
		e.note(false, "info: forward file is empty")
		return false, nil
	}
	items, err := ParseForward(f.Data)
	switch {
	case err != nil: // what it holds is the user's alone
		e.note(false, "info: parse error in forward file")
		return false, e.trouble("parse error in the .forward file of " + u.Name)
	case len(items) > MaxForward:
		return false, e.trouble("too many items in the .forward file of " + u.Name)
	case len(items) == 0:
		return false, nil
	}
	e.say(".forward of " + u.Name)
	n.parent, n.forwarded, n.user = u.Name, true, &u
	return true, e.items(items, n)
}

// ParseForward reads a .forward file: lists of items, one a line, comments from
// '#'. An error does not repeat what the file holds.
func ParseForward(data []byte) ([]table.Item, error) {
	var items []table.Item
	for line := range strings.Lines(string(data)) {
		list, err := table.ParseItems(strings.TrimRight(line, "\r\n"))
		if err != nil {
			return nil, errForward
		}
		if items = append(items, list...); len(items) > MaxForward {
			break // the caller refuses it
		}
	}
	return items, nil
}

var errForward = errors.New("parse error in forward file")
