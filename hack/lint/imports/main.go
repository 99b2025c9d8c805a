// Command imports checks who imports whom in this module against the table
// allowed.txt beside it, and exits with status 1 if something is not allowed.
// It is run from the root of the module.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"strings"
)

//go:embed allowed.txt
var allowed string

func main() {
	problems, err := lint(".", allowed)
	if err != nil {
		fmt.Fprintln(os.Stderr, "imports:", err)
		os.Exit(2)
	}
	for _, p := range problems {
		fmt.Println(p)
	}
	if len(problems) > 0 {
		fmt.Printf("%d imports or packages are not allowed by hack/lint/imports/allowed.txt\n", len(problems))
		os.Exit(1)
	}
}

// lint checks the module at root against table and returns what is wrong with
// it, one line each.
func lint(root, table string) ([]string, error) {
	r, err := parseRules(strings.NewReader(table))
	if err != nil {
		return nil, err
	}
	imports, err := readModule(root)
	if err != nil {
		return nil, err
	}
	return r.check(imports), nil
}
