//go:build cluster

package e2e

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func quantity(s string) *resource.Quantity {
	q := resource.MustParse(s)
	return &q
}

// newStatefulSet creates a StatefulSet of at most one pod a node, each with a
// claim data of 512 MiB with XFS, and waits until all are ready. The first volume
// of the pods is that of the claim.
func (n *tenant) newStatefulSet(name string, replicas int32, spec corev1.PodSpec) *appsv1.StatefulSet {
	n.Helper()
	labels := map[string]string{"app": name}
	class := xfs
	spec.Volumes = nil
	spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: labels}, TopologyKey: corev1.LabelHostname,
		}},
	}}
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas:            &replicas,
			ServiceName:         name,
			PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector:            &metav1.LabelSelector{MatchLabels: labels},
			Template:            corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data", Labels: labels},
				Spec: corev1.PersistentVolumeClaimSpec{
					StorageClassName: &class,
					AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources: corev1.VolumeResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("512Mi")},
					},
				},
			}},
		},
	}
	n.create(s)
	for i := range int(replicas) {
		n.podOf(s, i)
	}
	return s
}

// podOf waits until a pod of a StatefulSet is ready, and returns it.
func (n *tenant) podOf(s *appsv1.StatefulSet, i int) *corev1.Pod {
	n.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: n.namespace, Name: fmt.Sprintf("%s-%d", s.Name, i)}}
	n.until(podLimit, func() error {
		if err := api.Get(n.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		return notReady(p)
	})
	return p
}

// scale sets the number of replicas.
func (n *tenant) scale(s *appsv1.StatefulSet, replicas int32) {
	n.Helper()
	n.change(s, func() { s.Spec.Replicas = &replicas })
}

// newDeployment creates a Deployment of one pod with the claim and waits until it
// is available. A new version replaces the old one.
func (n *tenant) newDeployment(name, claim string, progressSeconds int32) *appsv1.Deployment {
	n.Helper()
	labels := map[string]string{"app": name}
	one := int32(1)
	spec := podSpec(claim, idle)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas:                &one,
			ProgressDeadlineSeconds: &progressSeconds,
			Strategy:                appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
			Selector:                &metav1.LabelSelector{MatchLabels: labels},
			Template:                corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}
	n.create(d)
	n.podWith(name)
	return d
}

// podWith waits until the only pod of an application is ready, and returns it.
func (n *tenant) podWith(app string) *corev1.Pod {
	n.Helper()
	var found *corev1.Pod
	n.until(podLimit, func() error {
		var pods corev1.PodList
		if err := api.List(n.Context(), &pods, client.InNamespace(n.namespace), client.MatchingLabels{"app": app}); err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods of %s", len(pods.Items), app)
		}
		found = &pods.Items[0]
		return notReady(found)
	})
	return found
}

// scaleDeployment sets the number of replicas.
func (n *tenant) scaleDeployment(d *appsv1.Deployment, replicas int32) {
	n.Helper()
	n.change(d, func() { d.Spec.Replicas = &replicas })
}
