package policy

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

func pods(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: image}}}}
}

func TestDeploymentRollout(t *testing.T) {
	stuck := []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Reason: "ProgressDeadlineExceeded", Message: "too slow"}}
	for name, test := range map[string]struct {
		replicas int32
		status   appsv1.DeploymentStatus
		want     State
		message  string
	}{
		"not seen":         {2, appsv1.DeploymentStatus{ObservedGeneration: 6, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, Progressing, "has not seen the change"},
		"not seen, failed": {2, appsv1.DeploymentStatus{ObservedGeneration: 6, Conditions: stuck}, Progressing, "has not seen"},
		"none updated":     {2, appsv1.DeploymentStatus{ObservedGeneration: 7, Replicas: 2, AvailableReplicas: 2}, Progressing, "0 of 2 replicas are updated"},
		"old ones remain":  {2, appsv1.DeploymentStatus{ObservedGeneration: 7, Replicas: 3, UpdatedReplicas: 2, AvailableReplicas: 3}, Progressing, "1 replicas of the version before"},
		"not available":    {2, appsv1.DeploymentStatus{ObservedGeneration: 7, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}, Progressing, "1 of 2 replicas are available"},
		"complete":         {2, appsv1.DeploymentStatus{ObservedGeneration: 7, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}, Complete, ""},
		"failed":           {2, appsv1.DeploymentStatus{ObservedGeneration: 7, Replicas: 2, UpdatedReplicas: 1, Conditions: stuck}, Failed, "too slow"},
		"scaled to zero":   {0, appsv1.DeploymentStatus{ObservedGeneration: 7}, Progressing, "scaled to zero"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 7}, Spec: appsv1.DeploymentSpec{Replicas: &test.replicas}, Status: test.status}
			expect(t, DeploymentRollout(d).Progress, test.want, test.message)
		})
	}
}

func TestStatefulSetRollout(t *testing.T) {
	one, three := int32(1), int32(3)
	for name, test := range map[string]struct {
		partition *int32
		status    appsv1.StatefulSetStatus
		want      State
		message   string
	}{
		"not seen":      {nil, appsv1.StatefulSetStatus{ObservedGeneration: 6, UpdatedReplicas: 3, AvailableReplicas: 3}, Progressing, "has not seen"},
		"some updated":  {nil, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "a", UpdateRevision: "b", UpdatedReplicas: 2, AvailableReplicas: 3}, Progressing, "2 of 3 replicas are updated"},
		"not available": {nil, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "a", UpdateRevision: "b", UpdatedReplicas: 3, AvailableReplicas: 2}, Progressing, "2 of 3 replicas are available"},
		"complete":      {nil, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "b", UpdateRevision: "b", AvailableReplicas: 3}, Complete, ""},
		"updated":       {nil, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "a", UpdateRevision: "b", UpdatedReplicas: 3, AvailableReplicas: 3}, Complete, ""},
		"partition":     {&one, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "a", UpdateRevision: "b", UpdatedReplicas: 2, AvailableReplicas: 3}, Complete, "2 of 3"},
		"all of it":     {&three, appsv1.StatefulSetStatus{ObservedGeneration: 7, CurrentRevision: "a", UpdateRevision: "b", AvailableReplicas: 3}, Progressing, "partition"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Generation: 7}, Status: test.status}
			s.Spec.Replicas = &three
			if test.partition != nil {
				s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: test.partition}
			}
			expect(t, StatefulSetRollout(s).Progress, test.want, test.message)
		})
	}
}

func expect(t *testing.T, got Progress, want State, message string) {
	t.Helper()
	if got.State != want || !strings.Contains(got.Message, message) || got.Message == "" {
		t.Errorf("got %+v; want state %v, message with %q", got, want, message)
	}
}

// A story of a checkpoint with verification, step by step.
func TestVerify(t *testing.T) {
	timeout := metav1.Duration{Duration: 10 * time.Minute}
	spec := v1alpha1.Verify{WorkloadRef: v1alpha1.WorkloadRef{Kind: v1alpha1.WorkloadDeployment, Name: "db"}, Timeout: &timeout}
	at := func(image string, state State) *Rollout {
		d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: pods(image)}}
		d.UID = "u"
		r := DeploymentRollout(d)
		r.Progress = Progress{state, "as in the test"}
		return r
	}
	type step struct {
		minute  int
		rollout *Rollout
		want    string // reason of the decision
		running bool   // the timeout runs
	}
	for name, test := range map[string]struct {
		baseline *Rollout
		steps    []step
	}{
		"healthy, unchanged": {at("1", Complete), []step{{0, at("1", Complete), "", false}, {1000, at("1", Complete), "", false}}},
		"failed, unchanged":  {at("1", Failed), []step{{0, at("1", Failed), "", false}}},
		"upgrade works":      {at("1", Complete), []step{{5, at("2", Progressing), "", true}, {9, at("2", Complete), v1alpha1.ReasonVerified, false}}},
		"upgrade fails":      {at("1", Complete), []step{{5, at("2", Progressing), "", true}, {9, at("2", Failed), v1alpha1.ReasonRolloutFailed, false}}},
		"upgrade is late":    {at("1", Complete), []step{{5, at("2", Progressing), "", true}, {14, at("2", Progressing), "", true}, {15, at("2", Progressing), v1alpha1.ReasonVerifyTimeout, false}}},
		"late, yet complete": {at("1", Complete), []step{{5, at("2", Progressing), "", true}, {60, at("2", Complete), v1alpha1.ReasonVerified, false}}},
		"taken back": {at("1", Complete), []step{
			{5, at("2", Progressing), "", true}, {6, at("1", Complete), "", false}, {60, at("1", Complete), "", false},
			{70, at("3", Progressing), "", true}, {79, at("3", Complete), v1alpha1.ReasonVerified, false},
		}},
		"superseded": {at("1", Complete), []step{{5, at("2", Progressing), "", true}, {8, at("3", Progressing), "", true}, {15, at("3", Progressing), v1alpha1.ReasonVerifyTimeout, false}}},
		"deleted":    {at("1", Complete), []step{{5, nil, "", false}, {8, at("2", Progressing), "", true}, {9, nil, "", true}, {18, nil, v1alpha1.ReasonVerifyTimeout, false}}},
		"made later": {nil, []step{{5, nil, "", false}, {60, at("1", Progressing), "", true}, {61, at("1", Complete), v1alpha1.ReasonVerified, false}}},
	} {
		t.Run(name, func(t *testing.T) {
			known := Baseline(test.baseline)
			for i, s := range test.steps {
				before := *known
				next, decision, wait := Verify(spec, *known, s.rollout, noon.Add(time.Duration(s.minute)*time.Minute))
				if *known != before {
					t.Fatalf("step %d changed what it was given", i)
				}
				reason := ""
				if decision != nil {
					reason = decision.Reason
				}
				if reason != s.want || (wait > 0) != s.running {
					t.Fatalf("step %d: decision %+v, wait %v; want %q, running %t", i, decision, wait, s.want, s.running)
				}
				known = next
				if failed := decision != nil && decision.DesiredState == v1alpha1.RolledBack && s.rollout != nil; failed != StillFailed(known, s.rollout) {
					t.Fatalf("step %d: failed %t, but still failed %t", i, failed, !failed)
				}
				if StillFailed(known, nil) || StillFailed(known, at("another", Progressing)) {
					t.Fatalf("step %d: still failed with another template", i)
				}
			}
		})
	}
}

// Scaling is no change, and a new workload of the same name is one.
func TestRevision(t *testing.T) {
	one, two := int32(1), int32(2)
	a := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &one, Template: pods("1")}}
	b := a.DeepCopy()
	b.Spec.Replicas = &two
	if DeploymentRollout(a).Revision != DeploymentRollout(b).Revision {
		t.Error("scaling changes the revision")
	}
	b.Spec.Template = pods("2")
	if DeploymentRollout(a).Revision == DeploymentRollout(b).Revision {
		t.Error("another image does not change the revision")
	}
	w := DeploymentRollout(a)
	w.UID = "successor"
	if known, _, wait := Verify(v1alpha1.Verify{}, *Baseline(DeploymentRollout(a)), w, noon); known.StartTime == nil || wait != defaultTimeout {
		t.Error("a new workload is no change")
	}
}
