package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestValuesTables(t *testing.T) {
	got, err := valuesTables([]byte(`# Not for the README.

# == One ==

a:
  # -- First, with a | in it,
  # on two lines.
  b: x
  # Not described.
  c: 1
  d:
    # -- Deep.
    e: [1, "<2>"]
# == Two ==

# -- A list.
f:
  - g: true
# -- After a list.
h: {}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := "### One\n\n| value | default | what it is |\n|---|---|---|\n" +
		"| `a.b` | `\"x\"` | First, with a \\| in it, on two lines. |\n" +
		"| `a.d.e` | `[1,\"<2>\"]` | Deep. |\n" +
		"\n### Two\n\n| value | default | what it is |\n|---|---|---|\n" +
		"| `f` | `[{\"g\":true}]` | A list. |\n" +
		"| `h` | `{}` | After a list. |"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for name, values := range map[string]string{
		"no key below":   "a: 1\n# -- Lost.\n",
		"the same twice": "a: 1\na: 2\n",
		"not YAML":       "a: [\n",
	} {
		if _, err := valuesTables([]byte(values)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCRDTemplate(t *testing.T) {
	got, err := crdTemplate([]byte("---\nkind: X\nmetadata:\n  annotations:\n    a: b\n  name: n\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"helm.sh/resource-policy: keep\n    a: b\n", "{{- if .Values.crds.install }}"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("the template has no %q:\n%s", want, got)
		}
	}
	for name, definition := range map[string]string{
		"no annotations": "metadata:\n  name: n\n",
		"a template":     "\nmetadata:\n  annotations:\n    a: '{{ b }}'\n",
	} {
		if _, err := crdTemplate([]byte(definition)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The files in the checkout are those that would be written now.
func TestGeneratedIsCurrent(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{crdDir, filepath.Join(chartDir, "values.yaml")} {
		target := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		source, err := filepath.Abs(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(source, target); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(root); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{"README.md", "templates/crds/*.yaml"} {
		names := map[string]bool{}
		for _, top := range []string{root, "../.."} {
			files, err := filepath.Glob(filepath.Join(top, chartDir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				rel, err := filepath.Rel(filepath.Join(top, chartDir), file)
				if err != nil {
					t.Fatal(err)
				}
				names[rel] = true
			}
		}
		if len(names) == 0 {
			t.Errorf("there is no %s", pattern)
		}
		for name := range names {
			want, err := os.ReadFile(filepath.Join(root, chartDir, name))
			if err != nil {
				t.Errorf("%s would not be written: %v", name, err)
				continue
			}
			if got, err := os.ReadFile(filepath.Join("../..", chartDir, name)); err != nil || string(got) != string(want) {
				t.Errorf("charts/bowline/%s is not current: run 'make generate' (%v)", name, err)
			}
		}
	}
}
