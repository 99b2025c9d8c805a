package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"path/filepath"
	"slices"
	"strings"
)

// metric is one of Prometheus.
type metric struct {
	name, kind, help string
	labels           []string
}

// Programs, and the packages whose metrics they serve.
var exporters = []struct {
	title, intro string
	packages     []string
}{
	{"Node plugin", "`bowline node`, port 9808.", []string{"cmd/bowline", "controllers/node", "driver/csi"}},
	{"Data plane", "`bowline engine`, port 9809. The label `volume` is the volume's handle.", []string{"driver/engine"}},
	{"Controller", "`bowline controller`, port 8080; besides these what controller-runtime has of its work queues and reconciliations. CSI operations are the questions of external-resizer.",
		[]string{"controllers/checkpoint", "controllers/group", "controllers/expansion", "driver/csi"}},
}

func writeMetrics(root string, out *bytes.Buffer) error {
	fmt.Fprint(out, `# Metrics

Each program of Bowline answers `+"`/metrics`"+` with these, and with those of its Go process (`+"`go_*`, `process_*`"+`).
Metrics of a checkpoint are there while it is open. The chart makes Services for them, and on demand a ServiceMonitor, alerts
and a dashboard: see its [values](../../charts/bowline/README.md#monitoring).
`)
	for _, e := range exporters {
		fmt.Fprintf(out, "\n## %s\n\n%s\n\n| metric | type | labels | |\n|---|---|---|---|\n", e.title, e.intro)
		for _, dir := range e.packages {
			p, err := parsePackage(filepath.Join(root, dir))
			if err != nil {
				// Not every package that may have some exists.
				continue
			}
			for _, m := range p.metrics() {
				fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", m.name, m.kind, code(m.labels), sentence(m.help))
			}
		}
	}
	return nil
}

// metrics returns the metrics that the package defines, in the order of the source:
// descriptions made with NewDesc, by way of a function of the package or not, and
// the options of metrics that keep their own values.
func (p *source) metrics() []metric {
	var list []metric
	histograms := p.histograms()
	wrapper := p.wrapper()
	names := map[ast.Expr]string{}
	for name, e := range p.values {
		names[e] = name
	}
	add := func(m metric, ok bool) {
		if !ok {
			return
		}
		if m.kind == "" {
			m.kind = "gauge"
			if strings.HasSuffix(m.name, "_total") {
				m.kind = "counter"
			}
		}
		list = append(list, m)
	}
	for _, f := range p.files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && wrapper != nil && fn == wrapper {
				continue
			}
			ast.Inspect(d, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				switch name := nameOf(call.Fun); {
				case name == "NewDesc":
					m, ok := p.description(call, nil)
					if histograms[names[call]] {
						m.kind = "histogram"
					}
					add(m, ok)
				case wrapper != nil && name == wrapper.Name.Name:
					m, ok := p.wrapped(wrapper, call)
					if histograms[names[call]] {
						m.kind = "histogram"
					}
					add(m, ok)
				case strings.HasPrefix(name, "New") && strings.HasSuffix(name, "Vec"), name == "NewCounter", name == "NewGauge", name == "NewGaugeFunc", name == "NewHistogram":
					add(p.options(call))
				}
				return true
			})
		}
	}
	return list
}

// description reads NewDesc(name, help, labels, …).
func (p *source) description(call *ast.CallExpr, scope map[string]ast.Expr) (m metric, ok bool) {
	if len(call.Args) < 3 {
		return m, false
	}
	var known bool
	m.name, ok = p.text(call.Args[0], scope)
	m.help, known = p.text(call.Args[1], scope)
	m.labels = p.list(call.Args[2], scope)
	return m, ok && known
}

// wrapper returns the function of the package that only calls NewDesc, nil if there
// is none.
func (p *source) wrapper() *ast.FuncDecl {
	for _, f := range p.funcs {
		if f.Body != nil && returned(f) != nil {
			return f
		}
	}
	return nil
}

// returned is the call of NewDesc that is all that a function does.
func returned(f *ast.FuncDecl) *ast.CallExpr {
	if len(f.Body.List) != 1 {
		return nil
	}
	r, ok := f.Body.List[0].(*ast.ReturnStmt)
	if !ok || len(r.Results) != 1 {
		return nil
	}
	call, ok := r.Results[0].(*ast.CallExpr)
	if !ok || nameOf(call.Fun) != "NewDesc" {
		return nil
	}
	return call
}

// wrapped reads a call of the package's wrapper.
func (p *source) wrapped(f *ast.FuncDecl, call *ast.CallExpr) (metric, bool) {
	scope := map[string]ast.Expr{}
	args := call.Args
	for _, field := range f.Type.Params.List {
		_, variadic := field.Type.(*ast.Ellipsis)
		for _, n := range field.Names {
			switch {
			case variadic:
				scope[n.Name] = &ast.CompositeLit{Elts: args}
			case len(args) > 0:
				scope[n.Name], args = args[0], args[1:]
			}
		}
	}
	return p.description(returned(f), scope)
}

// histograms are the names of descriptions that histograms are made of.
func (p *source) histograms() map[string]bool {
	found := map[string]bool{}
	for _, f := range p.files {
		ast.Inspect(f, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && nameOf(call.Fun) == "MustNewConstHistogram" {
				found[nameOf(call.Args[0])] = true
			}
			return true
		})
	}
	return found
}

// options reads NewCounterVec(CounterOpts{…}, labels) and the like.
func (p *source) options(call *ast.CallExpr) (m metric, ok bool) {
	if len(call.Args) == 0 {
		return m, false
	}
	o, ok := call.Args[0].(*ast.CompositeLit)
	if !ok || !strings.HasSuffix(nameOf(o.Type), "Opts") {
		return m, false
	}
	m.kind = strings.ToLower(strings.TrimSuffix(nameOf(o.Type), "Opts"))
	for _, e := range o.Elts {
		kv, isField := e.(*ast.KeyValueExpr)
		if !isField {
			continue
		}
		switch nameOf(kv.Key) {
		case "Name":
			m.name, _ = p.text(kv.Value, nil)
		case "Help":
			m.help, _ = p.text(kv.Value, nil)
		}
	}
	if len(call.Args) > 1 {
		m.labels = p.list(call.Args[1], nil)
	}
	return m, m.name != "" && slices.Contains([]string{"counter", "gauge", "histogram", "summary"}, m.kind)
}
