package chart

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bowline-csi/bowline/test/apiserver"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

const (
	root      = "../.."
	chartDir  = "charts/bowline"
	release   = "bowline"
	namespace = "bowline-system"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// helm runs the Helm of hack/cluster, which needs no cluster for that, in the
// checkout and returns what it printed.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"run", "./hack/cluster", "helm"}, args...)...)
	cmd.Dir = root
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// valuesFile writes values, YAML, to a file for --values.
func valuesFile(t *testing.T, values string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte(values), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// objects are what the chart renders to.
type objects map[string]runtime.Object // by kind and name

// template renders the chart with some values.
func template(t *testing.T, values string) (objects, error) {
	t.Helper()
	output, err := helm(t, "template", release, chartDir, "--namespace="+namespace, "--kube-version=1.36.0", "--values="+valuesFile(t, values))
	if err != nil {
		return nil, err
	}
	found := objects{}
	for _, document := range strings.Split(output, "\n---\n") {
		if strings.TrimSpace(strings.TrimPrefix(document, "---")) == "" {
			continue
		}
		name, object, err := decode(document)
		if err != nil {
			return nil, fmt.Errorf("%w in:\n%s", err, document)
		}
		if _, ok := found[name]; ok {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		found[name] = object
	}
	return found, nil
}

// codecs refuse unknown and duplicate fields.
var codecs = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)

func decode(document string) (string, runtime.Object, error) {
	var u unstructured.Unstructured
	if err := yaml.UnmarshalStrict([]byte(document), &u.Object); err != nil {
		return "", nil, err
	}
	if u.GetName() == "" {
		return "", nil, errors.New("no name")
	}
	name := u.GetKind() + "/" + u.GetName()
	if !scheme.Scheme.Recognizes(u.GroupVersionKind()) {
		return name, &u, nil
	}
	object, _, err := codecs.UniversalDeserializer().Decode([]byte(document), nil, nil)
	return name, object, err
}

// render is template for what must work.
func render(t *testing.T, values string) objects {
	t.Helper()
	o, err := template(t, values)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// get returns the object with that kind and name.
func get[T any](t *testing.T, o objects, name string) *T {
	t.Helper()
	object, ok := o[name].(any).(*T)
	if !ok {
		t.Fatalf("%s is not rendered, or something else: %T", name, o[name])
	}
	return object
}
