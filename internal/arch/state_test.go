package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"strings"
)

// variables are the package-level variables of a package, with the file that
// declares them.
func variables(files []*source) map[string]*ast.ValueSpec {
	vars := map[string]*ast.ValueSpec{}
	for _, f := range files {
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, s := range g.Specs {
				s := s.(*ast.ValueSpec)
				if s.Doc == nil {
					s.Doc = g.Doc
				}
				for _, n := range s.Names {
					vars[n.Name] = s
				}
			}
		}
	}
	return vars
}

// packageState refuses package-level variables that change: assigned anywhere
// but where they are declared, by tests too, or of a kind that is there to be
// changed. Variables of tests are their own business.
func packageState(t *tree) []string {
	var found []string
	packages := t.packages()
	for _, dir := range sorted(packages) {
		byName := map[string][]*source{} // a folder may have a package for outside tests
		for _, f := range packages[dir] {
			if !f.generated {
				byName[f.ast.Name.Name] = append(byName[f.ast.Name.Name], f)
			}
		}
		for _, name := range sorted(byName) {
			files := byName[name]
			var code []*source
			for _, f := range files {
				if !f.test {
					code = append(code, f)
				}
			}
			vars := variables(code)
			found = append(found, holders(t, code)...)
			for _, f := range files {
				found = append(found, changes(t, f, vars)...)
			}
		}
	}
	return found
}

// changing are types whose only use is to change.
var changing = []string{"sync.Mutex", "sync.RWMutex", "sync.Map", "sync.WaitGroup", "sync.Once", "atomic."}

// holders finds variables that are made to be changed.
func holders(t *tree, files []*source) []string {
	var found []string
	for _, f := range files {
		for name, spec := range variables([]*source{f}) {
			exprs := append([]ast.Expr{spec.Type}, spec.Values...)
			for _, e := range exprs {
				if why := holds(e); why != "" {
					found = append(found, fmt.Sprintf("%s: package variable %s is %s", t.at(spec), name, why))
				}
			}
			if len(spec.Values) == 0 && name != "_" && !settable(spec) && holds(spec.Type) == "" {
				found = append(found, fmt.Sprintf("%s: package variable %s has no value", t.at(spec), name))
			}
		}
	}
	return found
}

// settable reports what the linker or the compiler fills: a string for a build
// setting, or an embedded file.
func settable(spec *ast.ValueSpec) bool {
	if spec.Doc != nil && strings.HasPrefix(spec.Doc.List[len(spec.Doc.List)-1].Text, "//go:embed ") {
		return true
	}
	id, ok := spec.Type.(*ast.Ident)
	return ok && id.Name == "string"
}

// holds says what kind of state an expression makes.
func holds(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.ChanType:
		return "a channel"
	case *ast.StarExpr:
		return holds(e.X)
	case *ast.UnaryExpr:
		return holds(e.X)
	case *ast.CompositeLit:
		return holds(e.Type)
	case *ast.IndexExpr:
		return holds(e.X)
	case *ast.CallExpr:
		if id, ok := e.Fun.(*ast.Ident); ok && (id.Name == "make" || id.Name == "new") && len(e.Args) > 0 {
			return "made empty, to be filled"
		}
	case *ast.SelectorExpr:
		if x, ok := e.X.(*ast.Ident); ok {
			for _, c := range changing {
				if name := x.Name + "." + e.Sel.Name; name == c || (strings.HasSuffix(c, ".") && strings.HasPrefix(name, c)) {
					return "a " + name
				}
			}
		}
	}
	return ""
}

// changes finds where a file changes a package-level variable.
func changes(t *tree, f *source, vars map[string]*ast.ValueSpec) []string {
	var found []string
	report := func(at ast.Node, e ast.Expr) {
		id := root(e)
		if id == nil || id.Name == "_" || vars[id.Name] == nil {
			return
		}
		// Resolved within the file: it must be the declaration itself. Not resolved:
		// it is declared in another file of the package.
		if id.Obj != nil && id.Obj.Decl != any(vars[id.Name]) {
			return
		}
		found = append(found, fmt.Sprintf("%s: package variable %s is changed", t.at(at), id.Name))
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					report(n, e)
				}
			}
		case *ast.IncDecStmt:
			report(n, n.X)
		case *ast.RangeStmt:
			if n.Tok == token.ASSIGN {
				report(n, n.Key)
				report(n, n.Value)
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear" || id.Name == "copy") && len(n.Args) > 0 {
				report(n, n.Args[0])
			}
		}
		return true
	})
	return found
}

// root is the variable that an expression is a part of; nil: it is none, or
// one that is reached through a call.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

const badState = `
== a/a.go
package a
import ("sync"; "sync/atomic")
var mu sync.Mutex
var count atomic.Int64
var cache = make(map[string]int)
var p *int
var c chan int
var rates = map[string]int{"a": 1}
var limit = 5
var list = []int{1}
var on = &atomic.Bool{}
func f() { rates["b"] = 2; limit++; list[0] = 3 }
func g(*int) { delete(rates, "a") }
== a/b.go
package a
func h() { limit = 6; for list[0] = range rates["a"] {} }
== a/a_test.go
package a
var own int
func k() { limit = 7; own = 8 }
`

const goodState = `
== a/a.go
package a
import ("errors"; "regexp"; "sync")
var errX = errors.New("x")
var re = regexp.MustCompile("x")
var words = map[string]int{"a": 1}
var pool = sync.Pool{}
var spool string
var _ error = nil
//go:embed x
var embedded []byte
func f() int {
	limit := 1
	limit++
	words := map[string]int{}
	words["a"] = 1
	return limit
}
== a/b.go
package a
func g(re []int) { re[0] = 1 }
`

// noInit refuses func init.
func noInit(t *tree) []string {
	var found []string
	for _, f := range t.files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				found = append(found, t.at(fn)+": func init")
			}
		}
	}
	return found
}
