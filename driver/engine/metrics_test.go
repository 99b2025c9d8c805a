package engine_test

import (
	"testing"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/prometheus/client_golang/prometheus"
)

// TestMetrics looks at the metrics of a volume with and without a checkpoint.
func TestMetrics(t *testing.T) {
	s := engine.NewServer()
	c := startServer(t, s)
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(s); err != nil {
		t.Fatal(err)
	}
	gather := func() map[string]int {
		t.Helper()
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, f := range families {
			n[f.GetName()] = len(f.Metric)
		}
		return n
	}
	if n := gather(); len(n) != 0 {
		t.Errorf("without a volume: %v", n)
	}
	v := attachFree(t, c, image(t))
	if n := gather(); n["bowline_engine_state"] != 3 || n["bowline_engine_size_bytes"] != 1 ||
		n["bowline_engine_device_errors_total"] != 1 || n["bowline_engine_free_bytes"] != 0 {
		t.Errorf("without a checkpoint: %v", n)
	}
	if _, err := c.Checkpoint(t.Context(), &enginepb.CheckpointRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := write(t, v.Device, 0, 1<<20, 'x'); err != nil {
		t.Fatal(err)
	}
	if n := gather(); n["bowline_engine_free_bytes"] != 1 || n["bowline_engine_request_seconds"] == 0 {
		t.Errorf("with a checkpoint: %v", n)
	}
}
