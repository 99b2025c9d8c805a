package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// A Rollout is how far a workload has come with its present pod template.
type Rollout struct {
	UID      string // of the workload
	Revision string // differs if the pod template does
	Progress Progress
}

// Progress of a rollout.
type Progress struct {
	State   State
	Message string
}

// State of a rollout.
type State int

// The states of a rollout. A workload without replicas stays in Progressing:
// nothing has run that could show whether the template is any good.
const (
	Progressing State = iota
	Complete
	Failed
)

// DeploymentRollout returns the rollout of a Deployment.
func DeploymentRollout(d *appsv1.Deployment) *Rollout {
	return &Rollout{UID: string(d.UID), Revision: revision(&d.Spec.Template), Progress: deploymentProgress(d)}
}

// StatefulSetRollout returns the rollout of a StatefulSet. Pods below the
// partition of its update strategy are not expected to be updated.
func StatefulSetRollout(s *appsv1.StatefulSet) *Rollout {
	return &Rollout{UID: string(s.UID), Revision: revision(&s.Spec.Template), Progress: statefulSetProgress(s)}
}

// revision is a digest of what pods are made from. Generations would not do,
// they change with the number of replicas, nor would the revisions that the
// workload's own controller counts: they tell a version that came back from the
// one before it.
func revision(template *corev1.PodTemplateSpec) string {
	b, err := json.Marshal(template)
	if err != nil {
		// The types of the API can all be encoded.
		panic(fmt.Sprintf("encoding a pod template: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

func deploymentProgress(d *appsv1.Deployment) Progress {
	want := replicas(d.Spec.Replicas)
	s := d.Status
	if p, done := preliminary(s.ObservedGeneration, d.Generation, want); done {
		return p
	}
	for _, c := range s.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded" {
			return Progress{Failed, cmp.Or(c.Message, "it exceeded its progress deadline")}
		}
	}
	switch {
	case s.UpdatedReplicas < want:
		return counted("updated", s.UpdatedReplicas, want)
	case s.Replicas > s.UpdatedReplicas:
		return Progress{Progressing, fmt.Sprintf("%d replicas of the version before still run", s.Replicas-s.UpdatedReplicas)}
	case s.AvailableReplicas < want:
		return counted("available", s.AvailableReplicas, want)
	}
	return Progress{Complete, fmt.Sprintf("%d of %d replicas are updated and available", want, want)}
}

func statefulSetProgress(set *appsv1.StatefulSet) Progress {
	want := replicas(set.Spec.Replicas)
	s := set.Status
	if p, done := preliminary(s.ObservedGeneration, set.Generation, want); done {
		return p
	}
	updated := want
	if u := set.Spec.UpdateStrategy.RollingUpdate; u != nil && u.Partition != nil {
		updated = max(want-*u.Partition, 0)
	}
	switch {
	case updated == 0:
		return Progress{Progressing, "its partition leaves no replica to update"}
	case s.CurrentRevision != s.UpdateRevision && s.UpdatedReplicas < updated:
		return counted("updated", s.UpdatedReplicas, updated)
	case s.AvailableReplicas < want:
		return counted("available", s.AvailableReplicas, want)
	}
	return Progress{Complete, fmt.Sprintf("%d of %d replicas are updated, all are available", updated, want)}
}

// preliminary is what makes looking at the numbers of replicas pointless.
func preliminary(observed, generation int64, want int32) (Progress, bool) {
	switch {
	case observed < generation:
		return Progress{Progressing, "its controller has not seen the change yet"}, true
	case want == 0:
		return Progress{Progressing, "it is scaled to zero"}, true
	}
	return Progress{}, false
}

func counted(what string, n, of int32) Progress {
	return Progress{Progressing, fmt.Sprintf("%d of %d replicas are %s", n, of, what)}
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}
