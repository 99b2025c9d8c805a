package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// source is a Go package, without its tests, as text.
type source struct {
	dir   string
	files []*ast.File
	// values are the initial values of its constants and variables, and funcs
	// its functions.
	values map[string]ast.Expr
	funcs  map[string]*ast.FuncDecl
}

func parsePackage(dir string) (*source, error) {
	p := &source{dir: dir, values: map[string]ast.Expr{}, funcs: map[string]*ast.FuncDecl{}}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, f)
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					p.funcs[d.Name.Name] = d
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					v, ok := s.(*ast.ValueSpec)
					if !ok || len(v.Values) != len(v.Names) {
						continue
					}
					for i, n := range v.Names {
						p.values[n.Name] = v.Values[i]
					}
				}
			}
		}
	}
	if len(p.files) == 0 {
		return nil, fmt.Errorf("no Go files in %s", dir)
	}
	return p, nil
}

// packagesBelow parses all packages at and below a directory.
func packagesBelow(dir string) ([]*source, error) {
	dirs := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			dirs[filepath.Dir(path)] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var all []*source
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		p, err := parsePackage(d)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// constant is a string constant and the comment above it or behind it.
type constant struct{ name, value, comment string }

// constants returns the string constants whose names begin so, as they stand.
func (p *source) constants(prefix string) []constant {
	var list []constant
	for _, f := range p.files {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				if len(v.Names) != 1 || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, prefix) {
					continue
				}
				value, ok := p.text(v.Values[0], nil)
				if !ok {
					continue
				}
				comment := v.Doc.Text()
				if comment == "" {
					comment = v.Comment.Text()
				}
				list = append(list, constant{v.Names[0].Name, value, strings.TrimSpace(comment)})
			}
		}
	}
	return list
}

// text evaluates a string expression, as far as it follows from the source.
func (p *source) text(e ast.Expr, scope map[string]ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.BinaryExpr:
		a, ok := p.text(e.X, scope)
		b, also := p.text(e.Y, scope)
		return a + b, ok && also && e.Op == token.ADD
	case *ast.Ident:
		if v, ok := scope[e.Name]; ok {
			return p.text(v, nil)
		}
		if v, ok := p.values[e.Name]; ok {
			return p.text(v, nil)
		}
	}
	return "", false
}

// list evaluates a list of strings.
func (p *source) list(e ast.Expr, scope map[string]ast.Expr) []string {
	var all []string
	switch e := e.(type) {
	case *ast.CompositeLit:
		for _, x := range e.Elts {
			if s, ok := p.text(x, scope); ok {
				all = append(all, s)
			}
		}
	case *ast.SliceExpr:
		return p.list(e.X, scope)
	case *ast.Ident:
		if v, ok := scope[e.Name]; ok {
			return p.list(v, nil)
		}
		if v, ok := p.values[e.Name]; ok {
			return p.list(v, nil)
		}
	case *ast.CallExpr: // append
		if !isName(e.Fun, "append") {
			return nil
		}
		all = p.list(e.Args[0], scope)
		for _, x := range e.Args[1:] {
			if s, ok := p.text(x, scope); ok {
				all = append(all, s)
			} else {
				all = append(all, p.list(x, scope)...)
			}
		}
	}
	return all
}

// isName tells whether e is the identifier or the selected name of another package.
func isName(e ast.Expr, name string) bool { return nameOf(e) == name }

func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
