package chart

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// A mistake in the values is found before anything is installed.
func TestSchemaRejects(t *testing.T) {
	for name, values := range map[string]string{
		"unknown value":             "nodes: {}",
		"unknown value below":       "node: {kubletDir: /var/lib/kubelet}",
		"relative directory":        "node: {kubeletDir: var/lib/kubelet}",
		"directory with a slash":    "stateDir: /var/lib/bowline/",
		"root directory":            "stateDir: /",
		"log level":                 "logLevel: trace",
		"log format":                "logFormat: yaml",
		"digest":                    "image: {digest: latest}",
		"pull policy":               "image: {pullPolicy: Sometimes}",
		"replicas":                  "controller: {replicas: two}",
		"no node may be away":       "node: {maxUnavailable: 0}",
		"none of a hundred":         "node: {maxUnavailable: 0%}",
		"resources":                 "engine: {resources: {request: {memory: 1Gi}}}",
		"toleration":                "node: {tolerations: [{operator: Always}]}",
		"class without a name":      "storageClasses: [{fsType: ext4}]",
		"file system":               "storageClasses: [{name: a, fsType: btrfs}]",
		"thin in quotes":            `storageClasses: [{name: a, thin: "true"}]`,
		"binding mode":              "storageClasses: [{name: a, volumeBindingMode: Immediate}]",
		"share above one":           "prometheusRule: {freeBelow: 10}",
		"annotation with a number":  "node: {podAnnotations: {a: 1}}",
		"argument without a hyphen": "node: {extraArgs: [log-level=debug]}",
		"switch":                    `crds: {install: "no"}`,
	} {
		_, err := template(t, values)
		if err == nil {
			t.Errorf("%s: %s is taken", name, values)
		} else if !strings.Contains(err.Error(), "values don't meet the specifications of the schema") {
			t.Errorf("%s: another error: %v", name, err)
		}
	}
}

// A schema is what is used here of JSON's.
type schema struct {
	Ref                  string            `json:"$ref"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties any               `json:"additionalProperties"`
	Defs                 map[string]schema `json:"$defs"`
}

// Every value is in the schema, and everything in the schema is a value that
// values.yaml tells of.
func TestSchemaIsComplete(t *testing.T) {
	var s schema
	read(t, "values.schema.json", &s, json.Unmarshal)
	var values map[string]any
	read(t, "values.yaml", &values, func(b []byte, to any) error { return yaml.UnmarshalStrict(b, to) })
	delete(s.Properties, "global") // Helm's own
	compare(t, s.Defs, s, values, "")
}

func compare(t *testing.T, defs map[string]schema, s schema, values map[string]any, path string) {
	for name, value := range values {
		below, ok := s.Properties[name]
		if def, found := strings.CutPrefix(below.Ref, "#/$defs/"); found {
			below = defs[def]
		}
		if !ok {
			t.Errorf("%s%s is not in the schema", path, name)
		} else if m, ok := value.(map[string]any); ok && len(below.Properties) > 0 && below.Properties["limits"].Ref == "" {
			compare(t, defs, below, m, path+name+".")
		}
	}
	if s.AdditionalProperties != false {
		t.Errorf("%s may have any properties", path)
	}
	for name := range s.Properties {
		if _, ok := values[name]; !ok {
			t.Errorf("%s%s is in the schema and not in values.yaml", path, name)
		}
	}
}

func read(t *testing.T, name string, to any, decode func([]byte, any) error) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, chartDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(b, to); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
