package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// definition is what is shown of a CustomResourceDefinition.
type definition struct {
	Spec struct {
		Names struct {
			Kind       string   `json:"kind"`
			Plural     string   `json:"plural"`
			ShortNames []string `json:"shortNames"`
			Categories []string `json:"categories"`
		} `json:"names"`
		Scope    string `json:"scope"`
		Versions []struct {
			Name    string `json:"name"`
			Columns []struct {
				Name     string `json:"name"`
				JSONPath string `json:"jsonPath"`
				Priority int    `json:"priority"`
			} `json:"additionalPrinterColumns"`
			Schema struct {
				OpenAPIV3Schema schema `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

type schema struct {
	Type        string            `json:"type"`
	Format      string            `json:"format"`
	Description string            `json:"description"`
	Default     any               `json:"default"`
	Enum        []string          `json:"enum"`
	Required    []string          `json:"required"`
	Properties  map[string]schema `json:"properties"`
	Items       *schema           `json:"items"`
	IntOrString bool              `json:"x-kubernetes-int-or-string"`
	MapKeys     []string          `json:"x-kubernetes-list-map-keys"`
	Validations []struct {
		Message string `json:"message"`
	} `json:"x-kubernetes-validations"`
}

func writeAPI(root string, out *bytes.Buffer) error {
	fmt.Fprint(out, `# API

Group `+"`bowline.dev`, version `v1alpha1`"+`. Who writes which field is told in
[architecture](../architecture.md#who-writes-what-of-a-volumecheckpoint); what the conditions
ask of you in [troubleshooting](../troubleshooting.md).
`)
	files, err := filepath.Glob(filepath.Join(root, "crds/*.yaml"))
	if err != nil {
		return err
	}
	// The single checkpoint before the group.
	slices.SortFunc(files, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var d definition
		if err := yaml.Unmarshal(b, &d); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := d.write(out); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return writeConditions(root, out)
}

func (d *definition) write(out *bytes.Buffer) error {
	if len(d.Spec.Versions) != 1 {
		return fmt.Errorf("%d versions; want one", len(d.Spec.Versions))
	}
	n, v := d.Spec.Names, d.Spec.Versions[0]
	top := v.Schema.OpenAPIV3Schema
	fmt.Fprintf(out, "\n## %s\n\n%s\n\n", n.Kind, paragraphs(top.Description))
	fmt.Fprintf(out, "%s. For kubectl: `%s`", d.Spec.Scope, n.Plural)
	for _, s := range append(slices.Clone(n.ShortNames), n.Categories...) {
		fmt.Fprintf(out, ", `%s`", s)
	}
	fmt.Fprint(out, ".\n\n| column | field |\n|---|---|\n")
	for _, c := range v.Columns {
		wide := ""
		if c.Priority > 0 {
			wide = " (with `-o wide`)"
		}
		fmt.Fprintf(out, "| %s%s | `%s` |\n", c.Name, wide, strings.TrimPrefix(c.JSONPath, "."))
	}
	for _, part := range []string{"spec", "status"} {
		s := top.Properties[part]
		fmt.Fprintf(out, "\n### %s of a %s\n\n%s\n\n| field | type | |\n|---|---|---|\n", part, n.Kind, paragraphs(s.Description))
		s.writeFields(out, part)
	}
	var refused []string
	top.refusals(&refused)
	if len(refused) > 0 {
		fmt.Fprint(out, "\nThe API server refuses with one of these messages what breaks a rule:\n\n")
		for _, m := range refused {
			fmt.Fprintf(out, "- %s\n", m)
		}
	}
	return nil
}

// writeFields writes a row for each field below s, whose path is given.
func (s schema) writeFields(out *bytes.Buffer, path string) {
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		f := s.Properties[name]
		full := path + "." + name
		text := []string{sentence(f.Description)}
		if len(f.Enum) > 0 {
			text = append(text, "One of "+code(f.Enum)+".")
		}
		if f.Default != nil {
			text = append(text, fmt.Sprintf("Default: `%v`.", f.Default))
		}
		if slices.Contains(s.Required, name) {
			text = append(text, "Required.")
		}
		fmt.Fprintf(out, "| `%s` | %s | %s |\n", full, f.kind(), strings.TrimSpace(strings.Join(text, " ")))
		switch {
		case name == "conditions" || name == "selector": // as everywhere in Kubernetes
		case f.Items != nil:
			f.Items.writeFields(out, full+"[]")
		default:
			f.writeFields(out, full)
		}
	}
}

func (s schema) kind() string {
	switch {
	case s.IntOrString:
		return "quantity"
	case s.Type == "array":
		return "list of " + s.Items.kind()
	case s.Format == "date-time":
		return "time"
	case len(s.Properties) == 0 && s.Type == "object":
		return "map"
	}
	return s.Type
}

func (s schema) refusals(list *[]string) {
	for _, v := range s.Validations {
		if !slices.Contains(*list, v.Message) {
			*list = append(*list, v.Message)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		s.Properties[name].refusals(list)
	}
}

// paragraphs keeps the empty lines of a description and nothing else of its lines.
func paragraphs(s string) string {
	var all []string
	for p := range strings.SplitSeq(s, "\n\n") {
		all = append(all, strings.Join(strings.Fields(p), " "))
	}
	return strings.Join(all, "\n\n")
}

// sentence is a description in one cell of a table.
func sentence(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
}

func code(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = "`" + v + "`"
	}
	return strings.Join(quoted, ", ")
}

// writeConditions writes what api/v1alpha1 says of conditions and reasons.
func writeConditions(root string, out *bytes.Buffer) error {
	p, err := parsePackage(filepath.Join(root, "api/v1alpha1"))
	if err != nil {
		return err
	}
	fmt.Fprint(out, "\n## Conditions\n\n| type | |\n|---|---|\n")
	for _, c := range p.constants("Condition") {
		_, text, _ := strings.Cut(c.comment, ": ")
		fmt.Fprintf(out, "| `%s` | %s |\n", c.value, sentence(text))
	}
	fmt.Fprint(out, "\nA group has those of its members: `Checkpointed`, `Committed` and `RolledBack` if they hold for all of them, "+
		"`SpaceLow`, `DeviceFailing` and `Failed` if they hold for any.\n\n## Phases\n\n| phase | |\n|---|---|\n")
	for _, c := range p.constants("Phase") {
		_, text, _ := strings.Cut(c.comment, ": ")
		fmt.Fprintf(out, "| `%s` | %s |\n", c.value, sentence(text))
	}
	fmt.Fprint(out, "\n## Reasons\n\n| reason | |\n|---|---|\n")
	for _, c := range p.constants("Reason") {
		text := c.comment
		if waits, ok := strings.CutPrefix(text, "(waits) "); ok {
			text = waits + "; it stays Pending and is opened when it can be"
		}
		fmt.Fprintf(out, "| `%s` | %s |\n", c.value, sentence(text))
	}
	return nil
}
