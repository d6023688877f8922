package arch

import (
	"fmt"
	"go/ast"
	"go/token"
	"regexp"
	"strings"
)

// packageComments wants exactly one for each package, in the form that go doc
// reads.
func packageComments(t *tree) []string {
	var found []string
	packages := t.packages()
	for _, dir := range sorted(packages) {
		var with []string
		code := false
		for _, f := range packages[dir] {
			if f.test || f.generated {
				continue
			}
			code = true
			if f.ast.Doc == nil {
				continue
			}
			with = append(with, f.path)
			want := "Package " + f.ast.Name.Name + " "
			if s := f.ast.Doc.Text(); f.ast.Name.Name != "main" && !strings.HasPrefix(s, want) {
				found = append(found, fmt.Sprintf("%s: the package comment does not begin with %q", f.path, want))
			}
		}
		if code && len(with) != 1 {
			found = append(found, fmt.Sprintf("%s: %d package comments %v; want one", dir, len(with), with))
		}
	}
	return found
}

const badPackageComments = `
== a/a.go
package a
== b/a.go
// Package b is.
package b
== b/b.go
// Package b is, too.
package b
== c/a.go
// This is c.
package c
`

// documented wants a comment on every exported name.
func documented(t *tree) []string {
	var found []string
	for _, f := range t.files {
		if f.test || f.generated {
			continue
		}
		for _, d := range f.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && receiverExported(d) && d.Doc == nil {
					found = append(found, fmt.Sprintf("%s: %s has no comment", t.at(d), d.Name.Name))
				}
			case *ast.GenDecl:
				for _, n := range bare(d) {
					found = append(found, fmt.Sprintf("%s: %s has no comment", t.at(n), n.Name))
				}
			}
		}
	}
	return found
}

// receiverExported reports whether a function can be called from outside: a
// method of an exported type, or no method.
func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

// bare are the exported names of a declaration without a comment of theirs or
// of their group.
func bare(d *ast.GenDecl) []*ast.Ident {
	var names []*ast.Ident
	group := d.Doc != nil && d.Tok != token.TYPE
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) && s.Comment == nil {
				names = append(names, s.Name)
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && !group && s.Doc == nil && s.Comment == nil {
					names = append(names, n)
				}
			}
		}
	}
	return names
}

const badDocumented = `
== a/a.go
package a
func F() {}
type T struct{}
func (T) M() {}
type L[K any] struct{}
func (*L[K]) M() {}
const C = 1
var (
	V = 1
	w = 2
)
`

const goodDocumented = `
== a/a.go
package a
// F is.
func F() {}
// T is.
type T struct{}
// M does.
func (T) M() {}
// The constants.
const (
	A = 1
	B = 2
)
const (
	D = 1 // is four
)
type t struct{}
func (t) M() {}
func f() {}
`

var (
	reToDo  = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	reIssue = regexp.MustCompile(`\bTODO\b.*(#|issue )[0-9]+`)
)

// toDo wants the number of an issue with each TODO, and no synonyms.
func toDo(t *tree) []string {
	var found []string
	for _, f := range t.files {
		for _, g := range f.ast.Comments {
			for _, c := range g.List {
				if f.dir != "internal/arch" && !f.generated && reToDo.MatchString(c.Text) && !reIssue.MatchString(c.Text) {
					found = append(found, fmt.Sprintf("%s: %s: without the number of an issue", t.at(c), c.Text))
				}
			}
		}
	}
	return found
}
