package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// rules is the table of allowed imports. Its form is described in allowed.txt.
type rules struct {
	restricted []string
	never      []neverRule
	packages   map[string]packageRule
}

type packageRule struct {
	code, test []string
}

type neverRule struct {
	from, to string
}

func parseRules(table io.Reader) (*rules, error) {
	r := &rules{packages: map[string]packageRule{}}
	s := bufio.NewScanner(table)
	for n := 1; s.Scan(); n++ {
		text, _, _ := strings.Cut(s.Text(), "#")
		if strings.TrimSpace(text) == "" {
			continue
		}
		if err := r.parseLine(text); err != nil {
			return nil, fmt.Errorf("table of imports, line %d: %w", n, err)
		}
	}
	return r, s.Err()
}

func (r *rules) parseLine(text string) error {
	fields := strings.Fields(text)
	switch {
	case fields[0] == "restrict" && len(fields) == 2:
		r.restricted = append(r.restricted, fields[1])
		return nil
	case fields[0] == "never" && len(fields) == 3:
		r.never = append(r.never, neverRule{fields[1], fields[2]})
		return nil
	}
	name, list, ok := strings.Cut(text, ":")
	if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("%q is none of PACKAGE: IMPORT..., restrict PREFIX, never PACKAGE IMPORT", text)
	}
	if _, twice := r.packages[name]; twice {
		return fmt.Errorf("%s stands here a second time", name)
	}
	code, test, _ := strings.Cut(list, "|")
	rule := packageRule{code: strings.Fields(code), test: strings.Fields(test)}
	for _, to := range rule.code {
		if _, above := r.packages[to]; !above && !r.isRestricted(to) {
			return fmt.Errorf("%s may not import %s, which does not stand above it", name, to)
		}
	}
	r.packages[name] = rule
	return nil
}

func (r *rules) isRestricted(importPath string) bool {
	return slices.ContainsFunc(r.restricted, func(prefix string) bool { return atOrBelow(importPath, prefix) })
}

func atOrBelow(importPath, prefix string) bool {
	return strings.HasPrefix(importPath+"/", prefix+"/")
}

// check returns one line for each import that is not allowed, each package
// that is not in the table, and each chain that is forbidden.
func (r *rules) check(edges []edge) []string {
	var problems []string
	unlisted := map[string]bool{}
	for _, e := range edges {
		rule, ok := r.packages[e.from]
		switch {
		case !ok && !unlisted[e.from]:
			unlisted[e.from] = true
			problems = append(problems, fmt.Sprintf("%s: package %s is not in the table", e.pos, e.from))
		case ok && !r.allows(rule, e):
			problems = append(problems, fmt.Sprintf("%s: %s may not import %s", e.pos, e.from, e.to))
		}
	}
	for _, n := range r.never {
		if chain := findChain(edges, n.from, n.to); chain != nil {
			problems = append(problems, fmt.Sprintf("%s may never import %s: %s", n.from, n.to, strings.Join(chain, " -> ")))
		}
	}
	return problems
}

func (r *rules) allows(rule packageRule, e edge) bool {
	if !e.own && !r.isRestricted(e.to) {
		return true
	}
	allowed := func(entry string) bool {
		return entry == e.to || !e.own && atOrBelow(e.to, entry)
	}
	return slices.ContainsFunc(rule.code, allowed) || e.test && slices.ContainsFunc(rule.test, allowed)
}

// findChain returns the packages on a shortest way from one package to another
// through imports that are not in tests, or nil if there is none.
func findChain(edges []edge, from, to string) []string {
	importer := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, e := range edges {
			if e.from != queue[0] || !e.own || e.test {
				continue
			}
			if _, seen := importer[e.to]; seen {
				continue
			}
			importer[e.to] = e.from
			if e.to != to {
				queue = append(queue, e.to)
				continue
			}
			var chain []string
			for p := to; p != ""; p = importer[p] {
				chain = append(chain, p)
			}
			slices.Reverse(chain)
			return chain
		}
	}
	return nil
}
