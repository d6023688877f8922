package arch

import (
	"fmt"
	"go/ast"
)

// Bounds of section 3 of the style.
const (
	maxFunction = 100 // lines
	maxFile     = 900
)

// long are the functions that may be longer, "path name", with the reason.
var long = map[string]string{
	"mta/relay_test.go TestRoutes":    "a table of cases",
	"parser/check_test.go TestErrors": "a table of cases",
}

// functions refuses long ones; generated code aside.
func functions(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if f.generated {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			n := t.fset.Position(fn.End()).Line - t.fset.Position(fn.Pos()).Line + 1
			if n > maxFunction && long[f.path+" "+fn.Name.Name] == "" {
				found = append(found, fmt.Sprintf("%s: %s has %d lines; %d at most", t.at(fn), fn.Name.Name, n, maxFunction))
			}
		}
	}
	return found
}

// fileLengths refuses long files; generated ones aside.
func fileLengths(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if f.lines > maxFile && !f.generated {
			found = append(found, fmt.Sprintf("%s: %d lines; %d at most", f.path, f.lines, maxFile))
		}
	}
	return found
}
