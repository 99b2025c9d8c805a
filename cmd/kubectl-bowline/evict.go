package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// evictionInterval is how often evictions that were refused are tried again.
const evictionInterval = 5 * time.Second

// eviction evicts the pods that a rollback waits for.
type eviction struct{ *session }

// try asks for the eviction of the pods that use the claim of v, whose rollback is
// marked on its volume. The result says who is left whose eviction was refused
// for now, "" if nobody is.
func (e eviction) try(ctx context.Context, v *v1alpha1.VolumeCheckpoint) (left string, err error) {
	var pods corev1.PodList
	if err := e.List(ctx, &pods, client.InNamespace(v.Namespace)); err != nil {
		return "", fmt.Errorf("listing the pods of namespace %s: %w", v.Namespace, err)
	}
	var refused []string
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !inTheWay(pod, v) {
			continue
		}
		// The same pod, not its successor with the same name.
		same := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}
		err := e.SubResource("eviction").Create(ctx, pod, &policyv1.Eviction{DeleteOptions: same})
		switch {
		case err == nil:
			e.sayf("pod %s/%s is evicted", pod.Namespace, pod.Name)
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone
		case apierrors.IsTooManyRequests(err):
			refused = append(refused, fmt.Sprintf("%s (%v)", pod.Name, err))
		default:
			return "", fmt.Errorf("evicting pod %s/%s: %w; the rollback is marked on the volume and happens when the pod is gone", pod.Namespace, pod.Name, err)
		}
	}
	if len(refused) == 0 {
		return "", nil
	}
	return "a disruption budget protects pods; trying again: " + strings.Join(refused, ", "), nil
}

// inTheWay tells whether a pod keeps a rollback of v from beginning. Pods that were
// made after it was marked on the volume do not get the volume before it is done,
// so they are not in the way, and evicting them would go on for ever.
func inTheWay(pod *corev1.Pod, v *v1alpha1.VolumeCheckpoint) bool {
	over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if over || pod.DeletionTimestamp != nil || pod.Spec.NodeName != v.Status.NodeName || !uses(pod, v.Spec.PersistentVolumeClaimName) {
		return false
	}
	r := v.Status.Rollback
	return r == nil || r.StartTime == nil || !pod.CreationTimestamp.After(r.StartTime.Time)
}

// uses tells whether a pod uses a claim of its namespace.
func uses(pod *corev1.Pod, claim string) bool {
	for _, volume := range pod.Spec.Volumes {
		switch {
		case volume.PersistentVolumeClaim != nil && volume.PersistentVolumeClaim.ClaimName == claim,
			volume.Ephemeral != nil && pod.Name+"-"+volume.Name == claim:
			return true
		}
	}
	return false
}
