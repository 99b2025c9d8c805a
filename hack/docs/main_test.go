package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// parseSource parses a package with one file.
func parseSource(t *testing.T, text string) *source {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.go"), []byte("package x\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := parsePackage(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMetrics(t *testing.T) {
	got := parseSource(t, `
const prefix = "a_"
var labels = []string{"namespace", "claim"}
var (
	age  = prometheus.NewDesc(prefix+"age", "Time since "+"then.", append(labels[:2:2], "state"), nil)
	took = desc("took", "How long.", "op")
	list = []thing{{desc("errors_total", "Errors."), prometheus.CounterValue}}
	ends = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ends", Help: "Ends."}, []string{"result"})
)
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("b_"+name, help, append([]string{"volume"}, labels...), nil)
}
func collect() { prometheus.MustNewConstHistogram(took, 1) }
func register() { prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "h", Help: "H."}, labels) }
`).metrics()
	want := []metric{
		{"a_age", "gauge", "Time since then.", []string{"namespace", "claim", "state"}},
		{"b_took", "histogram", "How long.", []string{"volume", "op"}},
		{"b_errors_total", "counter", "Errors.", []string{"volume"}},
		{"ends", "counter", "Ends.", []string{"result"}},
		{"h", "histogram", "H.", []string{"namespace", "claim"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEvents(t *testing.T) {
	got := parseSource(t, `
func news() {
	everyone = append(everyone, about(t, normal, v1alpha1.EventOpened, "Open", fmt.Sprintf("claim %q has %d", a, b)))
	own = append(own, about(t, warning, v1alpha1.EventFailed, "Fail", note))
	tell(aboutPod(c, p, corev1.EventTypeNormal, v1alpha1.EventEvicted, "Evict", "evicted"))
}
`).occurrences()
	want := []occurrence{
		{"EventOpened", "Normal", "the checkpoint, its claim, up to ten pods that use it", "claim … has …"},
		{"EventFailed", "Warning", "the checkpoint", "the message of the condition"},
		{"EventEvicted", "Normal", "the pod", "evicted"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestConstants(t *testing.T) {
	got := parseSource(t, `
const (
	ReasonA = "A" // why a
	// ReasonB: why b,
	// and more.
	ReasonB = "B"
	Other = "C"
)
`).constants("Reason")
	want := []constant{{"ReasonA", "A", "why a"}, {"ReasonB", "B", "ReasonB: why b,\nand more."}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Nothing that the API defines is left out.
func TestAPIPage(t *testing.T) {
	var out bytes.Buffer
	if err := writeAPI("../..", &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## VolumeCheckpoint\n", "## VolumeCheckpointGroup\n", "| `spec.deadline.action` | string |", "One of `Commit`, `RollBack`. Required.",
		"| `status.members[].claim` |", "minimumFree must be a quantity above zero", "| `Checkpointed` |", "| `ClaimNotFound` |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page has no %q", want)
		}
	}
}
