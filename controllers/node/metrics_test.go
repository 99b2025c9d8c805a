package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// gathered returns the gauges and counters of a registry and the numbers of
// observations of its histograms, without those that are 0, in order.
func gathered(t *testing.T, r *prometheus.Registry) []string {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, family := range families {
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetValue())
			}
			value := m.Gauge.GetValue() + m.Counter.GetValue() + float64(m.Histogram.GetSampleCount())
			if value != 0 {
				all = append(all, fmt.Sprintf("%s{%s} %v", strings.TrimPrefix(family.GetName(), "bowline_"), strings.Join(labels, " "), value))
			}
		}
	}
	slices.Sort(all)
	return all
}

func TestMetrics(t *testing.T) {
	now := opened
	r := prometheus.NewPedanticRegistry()
	m, err := newMetrics(r, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	want := func(what string, want ...string) {
		t.Helper()
		if got := gathered(t, r); !slices.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	want("nothing")

	key := types.NamespacedName{Namespace: "shop", Name: "before"}
	open := &Checkpoint{State: Open, Opened: opened, Measured: true, Free: 1000, BackedUp: 10}
	m.observe(key, "data", open)
	now = now.Add(10 * time.Second)
	open.Free, open.BackedUp = 900, 110
	m.observe(key, "data", open)
	want("open",
		"checkpoint_age_seconds{before data shop} 10", // labels are in the order of their names
		"checkpoint_free_bytes{before data shop} 900",
		"checkpoint_full_seconds{before data shop} 90",
		"checkpoint_saved_bytes{before data shop} 110",
		"checkpoint_state{before data shop Open} 1")

	// Not in use: what was known of its space stays.
	m.observe(key, "data", &Checkpoint{State: RollbackRequested, Opened: opened})
	m.operation("commit", now.Add(-time.Second), nil)
	m.operation("commit", now.Add(-time.Second), errors.New("no"))
	want("not in use",
		"checkpoint_age_seconds{before data shop} 10",
		"checkpoint_free_bytes{before data shop} 900",
		"checkpoint_full_seconds{before data shop} 90",
		"checkpoint_operation_seconds{commit error} 1",
		"checkpoint_operation_seconds{commit ok} 1",
		"checkpoint_saved_bytes{before data shop} 110",
		"checkpoint_state{before data shop RollbackRequested} 1")

	m.observe(key, "data", nil)
	want("over", "checkpoint_operation_seconds{commit error} 1", "checkpoint_operation_seconds{commit ok} 1")
	if _, err := newMetrics(r, time.Now); err == nil {
		t.Error("metrics were registered twice")
	}
}
