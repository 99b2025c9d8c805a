package node

import (
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func TestPodNames(t *testing.T) {
	const (
		a       = "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a001"
		b       = "f1f6a3b8-13d1-44e5-a0f3-6be0c8d1a002"
		unknown = "9f1f6a3b-13d1-44e5-a0f3-6be0c8d1a003"
	)
	const ofUnknown = "/var/lib/kubelet/pods/" + unknown + "/volumes/kubernetes.io~csi/pvc-1/mount"
	got := podNames("shop", []string{
		"/var/lib/kubelet/pods/" + b + "/volumes/kubernetes.io~csi/pvc-1/mount",
		"/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/" + a,
		"/opt/pods/kubelet/pods/" + b + "/volumes/kubernetes.io~csi/pvc-1/mount/",
		"/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/pvc-1/mount",
		"/mnt/by-hand",
		ofUnknown,
		"",
	}, map[types.UID]string{a: "db-0", b: "db-1"})
	want := []string{"", "/mnt/by-hand", "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/pvc-1/mount", ofUnknown, "shop/db-0", "shop/db-1"}
	if !slices.Equal(got, want) {
		t.Errorf("users\n%q, want\n%q", got, want)
	}
}
