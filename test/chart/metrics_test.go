package chart

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Alerts and the dashboard ask for metrics that the programs have: a name that is
// misspelt shows nothing, which looks like nothing being wrong.
func TestMetricsExist(t *testing.T) {
	o := render(t, "{prometheusRule: {enabled: true}}")
	rules, err := yaml.Marshal(get[unstructured.Unstructured](t, o, "PrometheusRule/bowline").Object)
	if err != nil {
		t.Fatal(err)
	}
	dashboard, err := os.ReadFile(filepath.Join(root, chartDir, "dashboards/bowline.json"))
	if err != nil {
		t.Fatal(err)
	}
	source := goSource(t)
	for from, text := range map[string][]byte{"alert": rules, "dashboard": dashboard} {
		names := regexp.MustCompile(`\b(bowline|csi_plugin)_[a-z_]+`).FindAllString(string(text), -1)
		if len(names) == 0 {
			t.Errorf("the %s has no metrics", from)
		}
		for _, name := range names {
			name = strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
			// The engine's are made with their last words.
			short := strings.TrimPrefix(name, "bowline_engine_")
			if !strings.Contains(source, `"`+name+`"`) && !(short != name && strings.Contains(source, `desc("`+short+`"`)) {
				t.Errorf("no program has the metric %s of the %s", name, from)
			}
		}
	}
}

// goSource is all source that is not of tests.
func goSource(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{"cmd", "controllers", "driver"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			b, err := os.ReadFile(name)
			all.Write(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
