//go:build cluster

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// leftovers waits until nothing is there of the volumes of the tests, which have
// ended and deleted theirs, and says what is still there after some time.
func leftovers(ctx context.Context) error {
	for deadline := time.Now().Add(goneLimit); ; time.Sleep(time.Second) {
		if err := look(ctx); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func look(ctx context.Context) error {
	var found []error
	var volumes corev1.PersistentVolumeList
	if err := api.List(ctx, &volumes); err != nil {
		return err
	}
	for _, v := range volumes.Items {
		if v.Spec.CSI != nil && v.Spec.CSI.Driver == v1alpha1.DriverName {
			found = append(found, fmt.Errorf("volume %s is left", v.Name))
		}
	}
	for _, node := range []string{"node-1", "node-2"} {
		for _, place := range []struct{ what, script string }{
			{"in the pool", "ls /var/lib/bowline/pool"},
			{"mounted", "grep -e csi.bowline.dev -e /run/bowline/ /proc/mounts || true"},
		} {
			output, err := cluster.run(ctx, "exec", node, "bash", "-c", place.script)
			if err != nil {
				found = append(found, err)
			}
			if output = strings.TrimSpace(output); output != "" {
				found = append(found, fmt.Errorf("%s: %s after all tests: %s", node, place.what, output))
			}
		}
	}
	// Loop devices are the whole machine's, so only names tell whose they are.
	output, err := cluster.run(ctx, "exec", "node-1", "losetup", "--noheadings", "--list", "--output", "NAME,BACK-FILE")
	if err != nil {
		found = append(found, err)
	}
	for line := range strings.Lines(output) {
		_, handle, _ := strings.Cut(strings.TrimSpace(line), "bowline:")
		if _, ours := handles.Load(handle); ours {
			found = append(found, fmt.Errorf("a loop device after all tests: %s", strings.TrimSpace(line)))
		}
	}
	return errors.Join(found...)
}
