package main

import (
	"bufio"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// readme is the README but for its tables, which take the place of valuesMark.
//
//go:embed README.tmpl.md
var readme string

const valuesMark = "<!-- values -->"

// writeReadme writes the README of the chart.
func writeReadme(chart string) error {
	file := filepath.Join(chart, "values.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	tables, err := valuesTables(b)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	before, after, found := strings.Cut(readme, valuesMark)
	if !found {
		return fmt.Errorf("README.tmpl.md does not contain %s", valuesMark)
	}
	return os.WriteFile(filepath.Join(chart, "README.md"), []byte(before+tables+after), 0o644)
}

// A value is one that values.yaml describes.
type value struct {
	path        []string
	description string
}

// valuesTables returns a table for each section of values.yaml.
//
// A section begins with a comment "# == Title ==". A comment that begins with
// "# --" describes the key below it, with the comments up to there. Everything
// else is ignored, so a key that is to be in the README has such a comment.
func valuesTables(values []byte) (string, error) {
	var all map[string]any
	if err := yaml.UnmarshalStrict(values, &all); err != nil {
		return "", err
	}
	var out strings.Builder
	var description []string // of the key that comes next
	describing := false
	var path []string // keys above and at the line
	var indents []int // of these keys
	lines := bufio.NewScanner(bytes.NewReader(values))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		indent := len(lines.Text()) - len(strings.TrimLeft(lines.Text(), " "))
		switch title, comment := strings.CutPrefix(line, "#"); {
		case comment && strings.HasPrefix(title, " == "):
			fmt.Fprintf(&out, "### %s\n\n| value | default | what it is |\n|---|---|---|\n", strings.Trim(title, " ="))
		case comment && strings.HasPrefix(title, " -- "):
			describing, description = true, []string{strings.TrimPrefix(title, " -- ")}
		case comment && describing:
			description = append(description, strings.TrimSpace(title))
		case comment || line == "" || strings.HasPrefix(line, "- "):
		default:
			key, _, isKey := strings.Cut(line, ":")
			if !isKey {
				return "", fmt.Errorf("line %d: want a key", number)
			}
			for len(indents) > 0 && indents[len(indents)-1] >= indent {
				path, indents = path[:len(path)-1], indents[:len(indents)-1]
			}
			path, indents = append(path, key), append(indents, indent)
			if !describing {
				continue
			}
			if err := row(&out, all, value{path, strings.Join(description, " ")}); err != nil {
				return "", fmt.Errorf("line %d: %w", number, err)
			}
			describing, description = false, nil
		}
	}
	if describing {
		return "", fmt.Errorf("the last description, %q, has no key", strings.Join(description, " "))
	}
	return spaced(out.String()), nil
}

// spaced puts an empty line before each heading but the first.
func spaced(s string) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.ReplaceAll(s, "### ", "\n### "), "\n"), "\n")
}

// row writes the line of a value, whose default is looked up in all.
func row(out *strings.Builder, all map[string]any, v value) error {
	var at any = all
	for _, key := range v.path {
		m, ok := at.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is not found", strings.Join(v.path, "."))
		}
		if at, ok = m[key]; !ok {
			return fmt.Errorf("%s is not found", strings.Join(v.path, "."))
		}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(at); err != nil {
		return err
	}
	escape := strings.NewReplacer("|", `\|`).Replace
	fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", strings.Join(v.path, "."), escape(strings.TrimSpace(b.String())), escape(v.description))
	return nil
}
