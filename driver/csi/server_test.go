package csi_test

import (
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
)

func TestLogAndMetrics(t *testing.T) {
	d := start(t)
	_, err := d.create(t, "pvc-1", func(r *spec.CreateVolumeRequest) {
		r.Parameters = map[string]string{"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "shop"}
		r.Secrets = map[string]string{"key": "sesame"}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/t", "relative"} {
		_, _ = d.node.NodePublishVolume(t.Context(), &spec.NodePublishVolumeRequest{
			VolumeId: "a", StagingTargetPath: "/s", TargetPath: path, VolumeCapability: mountCap("", "password=sesame"),
			VolumeContext: map[string]string{"csi.storage.k8s.io/pod.name": "p", "csi.storage.k8s.io/pod.namespace": "shop"},
			Secrets:       map[string]string{"key": "sesame"},
		})
	}
	if _, err := d.node.NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(d.log.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines:\n%s", len(lines), d.log)
	}
	for i, want := range [][]string{
		{"level=INFO", "request=CreateVolume", "volume=pvc-1.", "name=pvc-1", "claim=shop/data", "duration="},
		{"level=INFO", "request=NodePublishVolume", "volume=a", "pod=shop/p", "staging=/s", "target=/t"},
		{"level=WARN", "request=NodePublishVolume", "volume=a", "code=InvalidArgument", "error="},
		{"level=DEBUG", "request=NodeGetInfo"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("no %s in: %s", w, lines[i])
			}
		}
	}
	if strings.Contains(d.log.String(), "sesame") {
		t.Errorf("secrets in the log:\n%s", d.log)
	}

	families, err := d.metrics.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "csi_plugin_operations_seconds" {
		t.Fatalf("%v, %v", families, err)
	}
	// One series for each method and code: three of volumes and NodeGetInfo.
	if n := len(families[0].GetMetric()); n != 4 {
		t.Errorf("%d series", n)
	}
	text := families[0].String()
	for _, want := range []string{"csi.bowline.dev", "/csi.v1.Node/NodePublishVolume", "InvalidArgument", "driver_name", "method_name", "grpc_status_code"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
}
