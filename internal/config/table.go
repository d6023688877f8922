package config

import (
	"fmt"
	"slices"
	"strings"
)

// TableType is the shape of a table's entries.
type TableType string

// The shapes: what an inline or file table was found to be, or Dynamic when
// only asking can tell.
const (
	TableList    TableType = "list"
	TableMapping TableType = "mapping"
	TableDynamic TableType = "dynamic"
)

// Table is one declared or inline table.
type Table struct {
	Pos     Pos
	Name    string // inline ones are named <dynamic:N>
	Backend string // "static" (inline), "file", "db", "getpwnam", "passwd", "socketmap", or a program's
	Param   string // path, or what the backend wants
	Type    TableType
	List    []string    // static lists
	Pairs   [][2]string // static mappings, keys lower-case
}

// maxShown bounds the values of a table that are shown with a rule. Ours.
const maxShown = 8

// TableText is a table as a rule names it: <name>, or the first values of one
// that is written in the rule, without those of pairs, which can be secrets.
func (c *Config) TableText(name string) string {
	t := c.Tables[name]
	if t == nil || !strings.HasPrefix(name, "<") {
		return "<" + name + ">"
	}
	items := slices.Clone(t.List[:min(len(t.List), maxShown)])
	for _, p := range t.Pairs[:min(len(t.Pairs), maxShown)] {
		items = append(items, p[0])
	}
	if n := len(t.List) + len(t.Pairs); n > len(items) {
		items = append(items, fmt.Sprintf("... %d more", n-len(items)))
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8("{ "+strings.Join(items, ", ")+" }", "?"))
}

// InFile reports a table whose entries are in the file Param.
func (t *Table) InFile() bool {
	switch t.Backend {
	case "file", "db", "passwd":
		return true
	case "static", "":
		return t.Param != ""
	}
	return false
}
