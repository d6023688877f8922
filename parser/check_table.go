package parser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"smtpd/internal/config"
	"smtpd/table"
)

// Bounds of tables, ours but for the first.
const (
	maxTableName = 1023
	maxTableFile = 1 << 30
)

// tableInfo is a declared or inline table and what the checks know of it.
type tableInfo struct {
	cfg     *config.Table
	pos     pos
	inline  *valueList
	path    string // of a file
	entries []entry
	users   []entry // of a passwd file: accounts, while entries are hashes
	used    bool
	checked []string // services its values were checked for
	id      uint32   // even: inline, odd: declared
}

// entry is one line of a table file.
type entry struct {
	key, value string
	line       int
}

// use is a place where a table may stand.
type use struct {
	what       string // in the message
	list, hash bool
	service    string // how its values are checked; empty: not
}

// tableStmt declares a table.
func (c *checker) tableStmt(st *stmt, n *tableStmt) {
	name := n.name.text
	switch {
	case len(name) > maxTableName:
		c.errorf(n.name.pos, "table name too long, at most %d characters", maxTableName)
		return
	case strings.HasPrefix(name, "<"):
		c.errorf(n.name.pos, "table %q: names that begin with < are internal", name)
		return
	case name == "":
		c.errorf(n.name.pos, "a table needs a name")
		return
	case c.tables[name] != nil:
		c.errorf(n.name.pos, "table %q already defined in line %d", name, c.tables[name].pos.line)
		return
	}
	t := &tableInfo{
		cfg: &config.Table{Pos: c.at(st.pos), Name: name},
		pos: n.name.pos, id: uint32(2*len(c.tables) + 1),
	}
	ok := true
	if n.values != nil {
		t.inline = n.values
		fillStatic(t.cfg, n.values)
	} else {
		ok = c.backend(t, n.backend)
	}
	if !ok {
		c.unknown["table "+name] = true
		return
	}
	c.tables[name] = t
	c.cfg.Tables[name] = t.cfg
}

// fillStatic takes over the values that the configuration itself holds.
func fillStatic(t *config.Table, v *valueList) {
	t.Backend, t.Type = "static", config.TableList
	if v.values == nil {
		t.List = make([]string, len(v.keys))
		for i, k := range v.keys {
			t.List[i] = k.text
		}
		return
	}
	t.Type = config.TableMapping
	t.Pairs = make([][2]string, len(v.keys))
	for i, k := range v.keys {
		t.Pairs[i] = [2]string{strings.ToLower(k.text), v.values[i].text}
	}
}

// backend looks at what stands behind the name: file, db or program.
func (c *checker) backend(t *tableInfo, spec *token) bool {
	kind, param, _ := strings.Cut(spec.text, ":")
	if strings.HasPrefix(spec.text, "/") {
		kind, param = "file", spec.text
	}
	t.cfg.Backend, t.cfg.Param, t.cfg.Type = kind, param, config.TableDynamic
	bad := func() bool {
		c.errorf(spec.pos, "invalid backend parameter for table: %s, found %q, expected an absolute path",
			t.cfg.Name, param)
		return false
	}
	absolute := strings.HasPrefix(param, "/")
	switch kind {
	case "file", "static":
		t.cfg.Backend = "file"
		return absolute && c.tableFile(t, spec) || !absolute && bad()
	case "db":
		return absolute && c.dbFile(spec, param) || !absolute && bad()
	case "passwd":
		return absolute && c.passwdFile(t, spec) || !absolute && bad()
	case "getpwnam":
		return param == "" || absolute || bad()
	case "socketmap":
		if strings.HasPrefix(param, "unix:/") || strings.HasPrefix(param, "inet:") {
			return true
		}
		return absolute || bad()
	}
	if param != "" && !absolute {
		return bad()
	}
	return c.program(spec, kind)
}

// program finds the program table-NAME.
func (c *checker) program(spec *token, kind string) bool {
	dirs := c.libexecDirs()
	if kind != "" && !strings.ContainsAny(kind, "/\x00") {
		for _, d := range dirs {
			fi, err := c.o.System.Stat(path.Join(d, "table-"+kind))
			if err == nil && fi.Mode.IsRegular() && fi.Mode.Perm()&0o111 != 0 {
				return true
			}
		}
	}
	known := []string{"file", "static", "db", "getpwnam", "passwd", "socketmap"}
	c.errorf(spec.pos, "backend %q does not exist%s; no table-%s in %s", kind,
		suggestion(kind, known), kind, strings.Join(dirs, ", "))
	return false
}

// libexecDirs are the folders with programs for tables and filters.
func (c *checker) libexecDirs() []string {
	dirs := []string{c.o.Libexec}
	for _, d := range []string{"/usr/local/libexec/smtpd", "/usr/local/libexec/opensmtpd",
		"/usr/libexec/smtpd", "/usr/libexec/opensmtpd"} {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// passwdFile reads a file in the form of passwd(5), as package table does.
// Accounts without a password have no entry, for nobody can log in by them.
func (c *checker) passwdFile(t *tableInfo, spec *token) bool {
	data, err := c.o.System.ReadFile(t.cfg.Param, maxTableFile)
	if err != nil {
		c.errorf(spec.pos, "cannot read table %s: %v", t.cfg.Param, cause(err))
		return false
	}
	t.path = t.cfg.Param
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, ":")
		if len(f) < 6 || f[0] == "" || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			c.errorf(spec.pos, "table %q: %s:%d: invalid entry, expected user:hash:uid:gid:gecos:home:shell", t.cfg.Name, t.path, n)
			return false
		}
		if h := f[1]; h != "" && h != "x" && h[0] != '*' && h[0] != '!' {
			t.entries = append(t.entries, entry{f[0], h, n})
		}
		t.users = append(t.users, entry{f[0], f[2] + ":" + f[3] + ":" + f[5], n})
	}
	return true
}

// mapEntries are the entries of a map, for a check alone: a daemon reads it soon
// enough. A map that cannot be read to its end is reported.
func (c *checker) mapEntries(t *tableInfo, at pos) []entry {
	if t.cfg.Backend != "db" || !c.o.CheckOnly || c.o.MapsToCome {
		return nil
	}
	var all []entry
	err := table.DumpMap(t.cfg.Param, func(k, v string) error {
		all = append(all, entry{key: k, value: v})
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.errorf(at, "table %q: %v, run makemap again", t.cfg.Name, err)
	}
	t.path = t.cfg.Param
	return all
}

// tableFile reads a table of text; a map made by makemap is taken for one.
func (c *checker) tableFile(t *tableInfo, spec *token) bool {
	f := c.tableText(t.cfg.Param)
	switch {
	case f.unread != nil:
		c.errorf(spec.pos, "cannot read table %s: %v", t.cfg.Param, cause(f.unread))
		return false
	case f.isMap:
		c.warnf(spec.pos, "%s is a map made by makemap, opened as db:%s", t.cfg.Param, t.cfg.Param)
		t.cfg.Backend = "db"
		return c.dbFile(spec, t.cfg.Param)
	case f.err != nil:
		c.errorf(spec.pos, "table %q: %s:%v", t.cfg.Name, t.cfg.Param, f.err)
		return false
	}
	t.path, t.cfg.Type, t.entries = t.cfg.Param, f.kind, f.entries
	return true
}

// tableText is a file of a table, read once for all tables that name it.
type tableText struct {
	kind    config.TableType
	entries []entry
	isMap   bool
	unread  error // cannot be read
	err     error // is wrong
}

func (c *checker) tableText(path string) *tableText {
	f := c.files[path]
	if f != nil {
		return f
	}
	f = &tableText{}
	if c.files == nil {
		c.files = map[string]*tableText{}
	}
	c.files[path] = f
	var data []byte
	if data, f.unread = c.o.System.ReadFile(path, maxTableFile); f.unread != nil {
		return f
	}
	if f.isMap = mapKind(data) != ""; !f.isMap {
		f.kind, f.entries, f.err = readTable(string(data))
	}
	return f
}

// readTable reads a table of text. Its first entry settles whether it is a
// list or a mapping; `# @list` before it makes it a list. An error begins with
// the line.
func readTable(text string) (config.TableType, []entry, error) {
	kind, settled, forced := config.TableMapping, false, false
	var out []entry
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if line[0] == '#' {
			if !settled && strings.TrimSpace(line[1:]) == "@list" {
				kind, settled, forced = config.TableList, true, true
			}
			continue
		}
		key, value, err := line, "", error(nil)
		if !forced {
			key, value, err = table.SplitEntry(line, settled && kind == config.TableMapping)
		}
		if !settled {
			settled = true
			if value == "" {
				kind = config.TableList
			}
		}
		switch {
		case err != nil:
			return "", nil, fmt.Errorf("%d: %w", n, err)
		case kind == config.TableMapping && value == "":
			return "", nil, fmt.Errorf("%d: invalid map entry: %q has no value", n, key)
		case kind == config.TableList && value != "":
			return "", nil, fmt.Errorf("%d: invalid map entry: a value in a list; \"# @list\" above it takes lines whole", n)
		case len(key) > table.MaxKey || len(value) > table.MaxValue:
			return "", nil, fmt.Errorf("%d: the entry is too long", n)
		}
		out = append(out, entry{key, value, n})
	}
	return kind, out, nil
}

// mapKind tells a file that a makemap wrote: "bbolt", "bdb", "bdb185", or
// nothing.
func mapKind(head []byte) string {
	const bolt, hash, btree = 0xED0CDAED, 0x061561, 0x053162
	word := func(off int, order binary.ByteOrder) uint32 {
		if len(head) < off+4 {
			return 0
		}
		return order.Uint32(head[off:])
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch {
		case word(16, order) == bolt:
			return "bbolt"
		case word(12, order) == hash, word(12, order) == btree:
			return "bdb"
		case word(0, order) == hash, word(0, order) == btree:
			return "bdb185"
		}
	}
	return ""
}

// dbFile looks at the head of a map.
func (c *checker) dbFile(spec *token, name string) bool {
	if c.o.MapsToCome {
		return true
	}
	data, err := c.o.System.ReadFile(name, maxTableFile)
	if err != nil {
		hint := ""
		if src, ok := strings.CutSuffix(name, ".db"); ok && errors.Is(err, fs.ErrNotExist) {
			if _, serr := c.o.System.Stat(src); serr == nil {
				hint = ", run makemap " + src
				if path.Base(src) == "aliases" {
					hint += " (or newaliases)"
				}
			}
		}
		c.errorf(spec.pos, "cannot open map %s: %v%s", name, cause(err), hint)
		return false
	}
	switch mapKind(data) {
	case "bbolt":
	case "bdb":
		c.warnf(spec.pos, "%s was made by another makemap, run makemap again to be rid of this warning", name)
	case "bdb185":
		c.errorf(spec.pos, "%s was made by another makemap, run makemap again", name)
		return false
	default:
		c.errorf(spec.pos, "%s is not a map made by makemap", name)
		return false
	}
	return true
}

// table resolves a table where it is used, and gives its name; empty when it
// cannot be used there, which has then been reported.
func (c *checker) table(e *tableExpr, u use) string {
	var t *tableInfo
	at := e.pos
	if e.ref != nil {
		if t = c.tables[e.ref.text]; t == nil {
			c.noSuch("table", e.ref, "no such table: %s", near(c.tables))
			return ""
		}
		if t.used = true; t.inline != nil && u.wantsAddrs() && hasLocalhost(t.inline) {
			t = c.inline(&tableExpr{pos: e.pos, values: t.inline}, u)
		}
	} else {
		t = c.inline(e, u)
	}
	ok := t.cfg.Type == config.TableDynamic || t.cfg.Type == config.TableList && u.list ||
		t.cfg.Type == config.TableMapping && u.hash
	if !ok {
		c.misused(at, t, u)
		return ""
	}
	c.checkValues(t, u, e)
	return t.cfg.Name
}

func (c *checker) misused(at pos, t *tableInfo, u use) {
	need := "key = value pairs"
	if u.list {
		need = "single values"
	}
	format := "table %q may not be used for %s lookups: it has %s, expected %s"
	if strings.ToUpper(u.what) == u.what {
		format = "invalid use of table %q as %s parameter: it has %s, expected %s"
	}
	have := "single values"
	if t.cfg.Type == config.TableMapping {
		have = "key = value pairs"
	}
	c.errorf(at, format, t.cfg.Name, u.what, have, need)
}

// inline gives an unnamed table; one with the same contents is used again.
func (c *checker) inline(e *tableExpr, u use) *tableInfo {
	v := e.values
	if v == nil {
		if t := c.single[e.one.text]; t != nil && !strings.EqualFold(e.one.text, "localhost") {
			return t
		}
		v = newValues(e.one)
	}
	if u.wantsAddrs() && hasLocalhost(v) {
		v = c.loopback(v)
	}
	if len(v.keys) == 1 && v.values == nil {
		t := c.single[v.keys[0].text]
		if t == nil {
			t = c.newInline(e.pos, v)
			c.single[v.keys[0].text] = t
		}
		return t
	}
	var b strings.Builder
	for i, k := range v.keys {
		b.WriteString(k.text)
		b.WriteByte(0) // in no text
		if v.values != nil {
			b.WriteByte('=')
			b.WriteString(v.values[i].text)
			b.WriteByte(0)
		}
	}
	t := c.dynamic[b.String()]
	if t == nil {
		t = c.newInline(e.pos, v)
		c.dynamic[b.String()] = t
	}
	return t
}

const inlinePrefix = "<dynamic:"

func (c *checker) newInline(at pos, v *valueList) *tableInfo {
	t := &struct {
		tableInfo
		table config.Table
	}{}
	t.table = config.Table{Pos: c.at(at), Name: inlinePrefix + strconv.Itoa(len(c.inlined)) + ">"}
	t.tableInfo = tableInfo{cfg: &t.table, pos: at, inline: v, used: true, id: uint32(2 * len(c.inlined))}
	fillStatic(t.cfg, v)
	c.inlined = append(c.inlined, &t.tableInfo)
	c.cfg.Tables[t.table.Name] = t.cfg
	return &t.tableInfo
}

// tableNamed finds a table of the configuration, an inline one too; nil: none.
func (c *checker) tableNamed(name string) *tableInfo {
	number, inline := strings.CutPrefix(name, inlinePrefix)
	if !inline {
		return c.tables[name]
	}
	n, err := strconv.Atoi(strings.TrimSuffix(number, ">"))
	if err != nil || n >= len(c.inlined) {
		return nil
	}
	return c.inlined[n]
}

func (u use) wantsAddrs() bool { return u.service == "netaddr" || u.service == "source" }

func hasLocalhost(v *valueList) bool {
	return v.values == nil && slices.ContainsFunc(v.keys, func(k *token) bool {
		return strings.EqualFold(k.text, "localhost")
	})
}

// loopback puts the loopback addresses in place of the word localhost.
func (c *checker) loopback(v *valueList) *valueList {
	out := &valueList{}
	for _, k := range v.keys {
		if !strings.EqualFold(k.text, "localhost") {
			out.keys = append(out.keys, k)
			continue
		}
		c.warnf(k.pos, "localhost is no address, it is taken as 127.0.0.1 and ::1")
		for _, a := range []string{"127.0.0.1", "::1"} {
			out.keys = append(out.keys, &token{text: a, pos: k.pos, kind: tokString})
		}
	}
	return out
}
