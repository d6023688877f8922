package config

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
