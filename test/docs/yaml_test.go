package docs

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/bowline-csi/bowline/test/apiserver"
)

var separator = regexp.MustCompile(`(?m)^---$`)

// Every object in a block marked yaml is one that the API server takes; values of
// the chart are in its schema.
func TestYAMLBlocks(t *testing.T) {
	config := apiserver.Config(t)
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang != "yaml" {
				continue
			}
			where := fmt.Sprintf("%s:%d", p.path, b.line)
			for _, text := range separator.Split(b.text, -1) {
				var o unstructured.Unstructured
				if err := yaml.UnmarshalStrict([]byte(text), &o.Object); err != nil {
					t.Errorf("%s: %v", where, err)
					continue
				}
				switch {
				case o.GetKind() != "":
					tried++
					if err := try(t.Context(), kinds, objects, &o); err != nil {
						t.Errorf("%s: %s: %v", where, o.GetKind(), err)
					}
				case strings.HasPrefix(b.text, "# values.yaml\n"):
					if err := inSchema(o.Object); err != nil {
						t.Errorf("%s: %v", where, err)
					}
				}
			}
		}
	}
	if tried < 5 {
		t.Errorf("%d objects: so few cannot be all", tried)
	}
}

// try creates an object without doing it, if the server knows its kind.
func try(ctx context.Context, kinds discovery.DiscoveryInterface, objects dynamic.Interface, o *unstructured.Unstructured) error {
	list, err := kinds.ServerResourcesForGroupVersion(o.GetAPIVersion())
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list.APIResources, func(r metav1.APIResource) bool {
		return r.Kind == o.GetKind() && !strings.Contains(r.Name, "/")
	})
	if i < 0 {
		return fmt.Errorf("no such kind in %s", o.GetAPIVersion())
	}
	gv, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil {
		return err
	}
	client := objects.Resource(gv.WithResource(list.APIResources[i].Name))
	options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
	if list.APIResources[i].Namespaced {
		_, err = client.Namespace(metav1.NamespaceDefault).Create(ctx, o, options)
	} else {
		_, err = client.Create(ctx, o, options)
	}
	return err
}

// inSchema says which of the values the chart does not have.
func inSchema(values map[string]any) error {
	b, err := os.ReadFile(filepath.Join(root, "charts/bowline/values.schema.json"))
	if err != nil {
		return err
	}
	var s map[string]any
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	return fits("", values, s)
}

// fits looks for keys that a schema does not have. Types and limits are left to
// Helm.
func fits(path string, v any, s map[string]any) error {
	properties, _ := s["properties"].(map[string]any)
	items, _ := s["items"].(map[string]any)
	switch v := v.(type) {
	case map[string]any:
		if len(properties) == 0 {
			return nil
		}
		for k, below := range v {
			known, ok := properties[k].(map[string]any)
			if !ok {
				return fmt.Errorf("the chart has no value %s.%s", path, k)
			}
			if err := fits(path+"."+k, below, known); err != nil {
				return err
			}
		}
	case []any:
		for _, below := range v {
			if err := fits(path+"[]", below, items); err != nil {
				return err
			}
		}
	}
	return nil
}
