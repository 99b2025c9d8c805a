package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// page is a Markdown file.
type page struct {
	path    string // from the checkout
	prose   string // what is not in blocks
	blocks  []block
	anchors map[string]bool
}

// block is a fenced block.
type block struct {
	page    *page
	line    int // of the fence
	lang    string
	text    string
	comment string // the HTML comment in the line before it
}

// file is the name that the first line of a block gives it: "# file: NAME".
func (b *block) file() string {
	first, _, _ := strings.Cut(b.text, "\n")
	name, ok := strings.CutPrefix(first, "# file: ")
	if !ok {
		return ""
	}
	return name
}

// pages returns all pages of the documentation.
func pages(t *testing.T) []*page {
	t.Helper()
	paths := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "charts/bowline/README.md"}
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".md") {
			relative, _ := filepath.Rel(root, path)
			paths = append(paths, relative)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*page
	for _, path := range paths {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, parse(t, path, string(b)))
	}
	return all
}

func parse(t *testing.T, path, text string) *page {
	t.Helper()
	p := &page{path: path, anchors: map[string]bool{}}
	var prose strings.Builder
	var open *block
	indent, before := "", ""
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case open == nil && strings.HasPrefix(trimmed, "```"):
			indent = line[:len(line)-len(trimmed)]
			open = &block{page: p, line: i + 1, lang: strings.TrimPrefix(trimmed, "```")}
			if c, ok := strings.CutPrefix(before, "<!-- "); ok {
				open.comment = strings.TrimSuffix(c, " -->")
			}
		case open != nil && trimmed == "```":
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		default:
			if heading := strings.TrimLeft(line, "#"); heading != line && strings.HasPrefix(heading, " ") {
				p.anchors[anchor(strings.TrimSpace(heading))] = true
			}
			prose.WriteString(line + "\n")
		}
		before = line
	}
	if open != nil {
		t.Errorf("%s:%d: this block has no end", path, open.line)
	}
	p.prose = prose.String()
	return p
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchor is the name that a heading gets on a forge.
func anchor(heading string) string {
	return strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

var (
	link = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	code = regexp.MustCompile("`[^`\n]*`")
)

func TestLinks(t *testing.T) {
	all := map[string]*page{}
	for _, p := range pages(t) {
		all[p.path] = p
	}
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(p.prose, ""), -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			name, fragment, _ := strings.Cut(target, "#")
			to := p.path
			if name != "" {
				to = filepath.Join(filepath.Dir(p.path), name)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: link to %s: %v", p.path, target, err)
			} else if other := all[to]; fragment != "" && (other == nil || !other.anchors[fragment]) {
				t.Errorf("%s: link to %s: there is no such heading", p.path, target)
			}
		}
	}
}

// Every page is in the index.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		name, ok := strings.CutPrefix(p.path, "docs/")
		if ok && name != "README.md" && !strings.Contains(string(index), "("+name+")") {
			t.Errorf("docs/README.md does not lead to %s", p.path)
		}
	}
}

// What can be seen of a checkpoint is explained.
func TestTroubleshootingIsComplete(t *testing.T) {
	guide, err := os.ReadFile(filepath.Join(root, "docs/troubleshooting.md"))
	if err != nil {
		t.Fatal(err)
	}
	for path, pattern := range map[string]string{
		"api/v1alpha1/conditions.go":                              `(?m)^\t(?:Reason|Event)\w+\s+= "(\w+)"`,
		"charts/bowline/templates/monitoring/prometheusrule.yaml": `- alert: (\w+)`,
	} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Error(err)
			continue
		}
		found := regexp.MustCompile(pattern).FindAllStringSubmatch(string(b), -1)
		if len(found) == 0 {
			t.Errorf("%s: nothing found with %s", path, pattern)
		}
		for _, m := range found {
			if !strings.Contains(string(guide), "`"+m[1]+"`") {
				t.Errorf("docs/troubleshooting.md does not explain %s of %s", m[1], path)
			}
		}
	}
}

// Every package has its line in the architecture.
func TestArchitectureNamesPackages(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"api", "cmd", "controllers", "driver"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.IsDir() {
				return err
			}
			sources, err := filepath.Glob(filepath.Join(path, "*.go"))
			if err != nil || len(sources) == 0 {
				return err
			}
			name, err := filepath.Rel(root, path)
			if !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), "`"+filepath.Base(name)+"`") {
				t.Errorf("docs/architecture.md does not say what %s is for", name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
