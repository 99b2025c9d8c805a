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

// occurrences finds the calls that have a constant Event… of the API among their
// arguments.
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
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			for i, a := range call.Args {
				sel, ok := a.(*ast.SelectorExpr)
				if !ok || !strings.HasPrefix(sel.Sel.Name, "Event") || !isName(sel.X, "v1alpha1") {
					continue
				}
				o := occurrence{reason: sel.Sel.Name, told: told(call, stack)}
				for _, before := range call.Args[:i] {
					switch strings.ToLower(strings.TrimPrefix(nameOf(before), "EventType")) {
					case "normal":
						o.kind = "Normal"
					case "warning":
						o.kind = "Warning"
					}
				}
				o.note = p.note(call.Args[len(call.Args)-1])
				list = append(list, o)
			}
			return true
		})
	}
	return list
}

// told says which objects an event is written for.
func told(call *ast.CallExpr, stack []ast.Node) string {
	if strings.Contains(nameOf(call.Fun), "Pod") {
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
	return "the object"
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z]`)

// note is the text of an event with … for what is put in.
func (p *source) note(e ast.Expr) string {
	if call, ok := e.(*ast.CallExpr); ok && isName(call.Fun, "Sprintf") {
		if s, ok := p.text(call.Args[0], nil); ok {
			return verb.ReplaceAllString(s, "…")
		}
	}
	if s, ok := p.text(e, nil); ok {
		return s
	}
	return "the message of the condition"
}
