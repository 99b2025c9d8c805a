package main

import (
	"bufio"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// An edge is one import as it stands in a source file.
type edge struct {
	from string // directory of the importing package, relative to the module
	to   string // the same for a package of the module, else an import path
	own  bool   // to is a package of the module
	test bool   // the importing file is a test
	pos  string // file:line
}

// readModule reads the imports of every Go file below root, whatever its build
// constraints, except in testdata, hidden directories and nested modules. A
// package without imports is there with an edge to "".
func readModule(root string) ([]edge, error) {
	module, err := modulePath(filepath.Join(root, "go.mod"))
	if err != nil {
		return nil, err
	}
	var edges []edge
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != root && skipDir(name) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		file, err := readFile(module, name, filepath.ToSlash(rel))
		edges = append(edges, file...)
		return err
	})
	return edges, err
}

func skipDir(name string) bool {
	base := filepath.Base(name)
	if base == "testdata" || base[0] == '.' || base[0] == '_' {
		return true
	}
	_, err := os.Stat(filepath.Join(name, "go.mod"))
	return err == nil
}

func readFile(module, name, rel string) ([]edge, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	from := path.Dir(rel)
	test := strings.HasSuffix(rel, "_test.go")
	edges := []edge{{from: from, test: test, pos: rel}}
	for _, spec := range f.Imports {
		to, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: import %s: %w", rel, spec.Path.Value, err)
		}
		own := strings.HasPrefix(to+"/", module+"/")
		if own {
			to = strings.TrimPrefix(strings.TrimPrefix(to, module), "/")
			if to == "" {
				to = "."
			}
		}
		if to == from {
			continue // an external test of its own package
		}
		line := fset.Position(spec.Pos()).Line
		edges = append(edges, edge{from: from, to: to, own: own, test: test, pos: fmt.Sprintf("%s:%d", rel, line)})
	}
	return edges, nil
}

func modulePath(gomod string) (string, error) {
	f, err := os.Open(gomod)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) == 2 && fields[0] == "module" {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("%s: no module line", gomod)
}
