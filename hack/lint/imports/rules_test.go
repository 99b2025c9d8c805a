package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const table = `
restrict example.org/heavy
never top bottom
bottom:
helper:            # for tests
middle: bottom example.org/heavy/ok | helper top
top: middle
`

// writeModule makes a module in a new directory: name of file -> the paths it
// imports.
func writeModule(t *testing.T, files map[string][]string) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example.org/m\n\ngo 1.26\n")
	for name, imports := range files {
		text := "package p\n"
		for _, i := range imports {
			text += "import _ \"" + i + "\"\n"
		}
		write(name, text)
	}
	return root
}

func TestLint(t *testing.T) {
	tests := []struct {
		name  string
		files map[string][]string
		want  []string
	}{{
		name: "all allowed",
		files: map[string][]string{
			"bottom/a.go":           {"os", "example.org/other"},
			"helper/a.go":           nil,
			"middle/a.go":           {"example.org/m/bottom", "example.org/heavy/ok/sub"},
			"middle/a_test.go":      {"example.org/m/helper", "example.org/m/middle"},
			"testdata/x/a.go":       {"example.org/m/bottom"},
			"middle/testdata/b.go":  {"example.org/m/top"},
			"_scratch/a.go":         {"example.org/m/top"},
			".hidden/a.go":          {"example.org/m/top"},
			"bottom/other_linux.go": nil,
		},
	}, {
		name:  "upwards",
		files: map[string][]string{"bottom/a.go": {"fmt", "example.org/m/top"}, "top/a.go": nil},
		want:  []string{"bottom/a.go:3: bottom may not import top"},
	}, {
		name:  "of a test in the code",
		files: map[string][]string{"middle/a.go": {"example.org/m/helper"}},
		want:  []string{"middle/a.go:2: middle may not import helper"},
	}, {
		name:  "of a test elsewhere",
		files: map[string][]string{"bottom/a_test.go": {"example.org/m/helper"}},
		want:  []string{"bottom/a_test.go:2: bottom may not import helper"},
	}, {
		name:  "restricted",
		files: map[string][]string{"bottom/a.go": {"example.org/heavy/ok"}, "middle/a.go": {"example.org/heavy/okay"}},
		want: []string{
			"bottom/a.go:2: bottom may not import example.org/heavy/ok",
			"middle/a.go:2: middle may not import example.org/heavy/okay",
		},
	}, {
		name:  "not in the table, told once",
		files: map[string][]string{"stray/a.go": {"fmt"}, "stray/b.go": nil},
		want:  []string{"stray/a.go: package stray is not in the table"},
	}, {
		name:  "never, through another package",
		files: map[string][]string{"top/a.go": {"example.org/m/middle"}, "middle/a.go": {"example.org/m/bottom"}},
		want:  []string{"top may never import bottom: top -> middle -> bottom"},
	}, {
		name:  "never does not look at tests",
		files: map[string][]string{"top/a.go": {"example.org/m/middle"}, "middle/a_test.go": {"example.org/m/bottom"}},
	}}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := lint(writeModule(t, test.files), table)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestLintSkipsNestedModules(t *testing.T) {
	root := writeModule(t, map[string][]string{"tools/a.go": {"example.org/m/top"}})
	if err := os.WriteFile(filepath.Join(root, "tools", "go.mod"), []byte("module example.org/m/tools\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := lint(root, table)
	if err != nil || len(got) > 0 {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	for _, text := range []string{
		"a b",
		"restrict",
		"never a",
		": a",
		"a:\na:",
		"a: b\nb:",
		"a: example.org/free",
	} {
		if _, err := parseRules(strings.NewReader(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestAllowedParses(t *testing.T) {
	if _, err := parseRules(strings.NewReader(allowed)); err != nil {
		t.Error(err)
	}
}
