package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// occurrence is a place of the source where an event is made.
type occurrence struct {
	reason, kind, told, note string
}

func writeEvents(root string, out *bytes.Buffer) error {
	fmt.Fprint(out, `# Events

The controller writes all of them, with the reporting controller `+"`bowline.dev/controller`"+`, also those about what a node
has done. An event about a claim or a pod has the VolumeCheckpoint as its related object. What to do about each is told in
[troubleshooting](../troubleshooting.md#events).

| reason | type | on | says |
|---|---|---|---|
`)
	api, err := parsePackage(filepath.Join(root, "api/v1alpha1"))
	if err != nil {
		return err
	}
	found := map[string][]occurrence{}
	packages, err := packagesBelow(filepath.Join(root, "controllers"))
	if err != nil {
		return err
	}
	for _, p := range packages {
		for _, o := range p.occurrences() {
			if !slices.Contains(found[o.reason], o) {
				found[o.reason] = append(found[o.reason], o)
			}
		}
	}
	for _, c := range api.constants("Event") {
		if len(found[c.name]) == 0 {
			return fmt.Errorf("event %s is made nowhere", c.name)
		}
		for _, o := range found[c.name] {
			fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", c.value, o.kind, o.told, sentence(o.note))
		}
	}
	return nil
}

// occurrences finds the lists of arguments, or of values of a struct, that have a
// constant Event… of the API in them: after the type, and before an action and the
// text.
func (p *source) occurrences() []occurrence {
	var list []occurrence
	for _, f := range p.files {
		var stack []ast.Node
		ast.Inspect(f, func(n ast.Node) bool {
			if n == nil {
				stack = stack[:len(stack)-1]
				return true
			}
			stack = append(stack, n)
			var values []ast.Expr
			switch n := n.(type) {
			case *ast.CallExpr:
				values = n.Args
			case *ast.CompositeLit:
				values = n.Elts
			}
			for i, v := range values {
				sel, ok := v.(*ast.SelectorExpr)
				if !ok || !strings.HasPrefix(sel.Sel.Name, "Event") || !isName(sel.X, "v1alpha1") || i+2 >= len(values) {
					continue
				}
				o := occurrence{reason: sel.Sel.Name, told: p.told(n, stack), note: p.note(values[i+2])}
				for _, before := range values[:i] {
					switch strings.ToLower(strings.TrimPrefix(nameOf(before), "EventType")) {
					case "normal":
						o.kind = "Normal"
					case "warning":
						o.kind = "Warning"
					}
				}
				list = append(list, o)
			}
			return true
		})
	}
	return list
}

// told says which objects an event is written for.
func (p *source) told(n ast.Node, stack []ast.Node) string {
	if call, ok := n.(*ast.CallExpr); ok && strings.Contains(nameOf(call.Fun), "Pod") {
		return "the pod"
	}
	for _, n := range slices.Backward(stack) {
		c, ok := n.(*ast.CallExpr)
		if !ok || !isName(c.Fun, "append") {
			continue
		}
		if isName(c.Args[0], "everyone") {
			return "the checkpoint, its claim, up to ten pods that use it"
		}
		return "the checkpoint"
	}
	return "the " + filepath.Base(p.dir)
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z]`)

// note is the text of an event with … for what is put in.
func (p *source) note(e ast.Expr) string {
	if call, ok := e.(*ast.CallExpr); ok && isName(call.Fun, "Sprintf") {
		if s, ok := p.text(call.Args[0], nil); ok {
			return verb.ReplaceAllString(s, "…")
		}
	}
	if s, ok := p.text(e, nil); ok && s != "" {
		return s
	}
	return "the message of the condition"
}
