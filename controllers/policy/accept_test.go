package policy

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func checkpoint(name string, age time.Duration) v1alpha1.VolumeCheckpoint {
	return v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name),
			CreationTimestamp: metav1.NewTime(noon.Add(-age)),
		},
		Spec: v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: "data"},
	}
}

func surroundings() Surroundings {
	return Surroundings{
		Claim: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "data", UID: "claim"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv"},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		},
		Volume: &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv"},
			Spec: corev1.PersistentVolumeSpec{
				ClaimRef: &corev1.ObjectReference{UID: "claim"},
				PersistentVolumeSource: corev1.PersistentVolumeSource{
					CSI: &corev1.CSIPersistentVolumeSource{Driver: v1alpha1.DriverName, VolumeHandle: "pv.12345678"},
				},
				NodeAffinity: onNode("n1"),
			},
		},
		NodeExists: func(name string) bool { return name == "n1" },
	}
}

func onNode(values ...string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: "kubernetes.io/arch", Operator: corev1.NodeSelectorOpIn, Values: []string{"amd64", "arm64"}},
			{Key: v1alpha1.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: values},
		},
	}}}}
}

func TestAccept(t *testing.T) {
	other := func(age time.Duration, change func(*v1alpha1.VolumeCheckpoint)) func(*Surroundings) {
		return func(s *Surroundings) {
			o := checkpoint("other", age)
			if change != nil {
				change(&o)
			}
			s.Others = []v1alpha1.VolumeCheckpoint{o, checkpoint("mine", time.Hour)}
		}
	}
	block := corev1.PersistentVolumeBlock
	for name, test := range map[string]struct {
		change  func(*Surroundings)
		reason  string
		final   bool
		message string
	}{
		"all is well":         {reason: v1alpha1.ReasonAccepted},
		"raw block":           {change: func(s *Surroundings) { s.Volume.Spec.VolumeMode = &block }, reason: v1alpha1.ReasonAccepted, message: "what its user discards is free for backups, and it cannot be frozen"},
		"no claim":            {change: func(s *Surroundings) { s.Claim = nil }, reason: v1alpha1.ReasonClaimNotFound, message: `no claim "data"`},
		"claim being deleted": {change: func(s *Surroundings) { s.Claim.DeletionTimestamp = &metav1.Time{Time: noon} }, reason: v1alpha1.ReasonClaimDeleted},
		"claim not bound":     {change: func(s *Surroundings) { s.Claim.Status.Phase = corev1.ClaimPending }, reason: v1alpha1.ReasonClaimNotBound, message: "it is Pending"},
		"claim just made":     {change: func(s *Surroundings) { s.Claim.Status.Phase = "" }, reason: v1alpha1.ReasonClaimNotBound, message: "it is Pending"},
		"claim lost":          {change: func(s *Surroundings) { s.Claim.Status.Phase = corev1.ClaimLost }, reason: v1alpha1.ReasonClaimNotBound, message: "it is Lost"},
		"no volume":           {change: func(s *Surroundings) { s.Volume = nil }, reason: v1alpha1.ReasonVolumeNotFound},
		"volume of another":   {change: func(s *Surroundings) { s.Volume.Spec.ClaimRef.UID = "another" }, reason: v1alpha1.ReasonVolumeNotFound},
		"another driver":      {change: func(s *Surroundings) { s.Volume.Spec.CSI.Driver = "ebs" }, reason: v1alpha1.ReasonOtherDriver, final: true, message: "is from ebs; only those of csi.bowline.dev"},
		"no driver":           {change: func(s *Surroundings) { s.Volume.Spec.CSI = nil }, reason: v1alpha1.ReasonOtherDriver, final: true, message: "no CSI driver"},
		"no node":             {change: func(s *Surroundings) { s.Volume.Spec.NodeAffinity = nil }, reason: v1alpha1.ReasonVolumeUnusable, final: true},
		"two nodes":           {change: func(s *Surroundings) { s.Volume.Spec.NodeAffinity = onNode("n1", "n2") }, reason: v1alpha1.ReasonVolumeUnusable, final: true},
		"node gone":           {change: func(s *Surroundings) { s.Volume.Spec.NodeAffinity = onNode("n2") }, reason: v1alpha1.ReasonNodeNotFound, message: `"n2"`},

		"an older one":          {change: other(2*time.Hour, nil), reason: v1alpha1.ReasonAnotherCheckpoint, final: true, message: `this one has "other"; commit it or roll it back`},
		"a newer one":           {change: other(time.Minute, nil), reason: v1alpha1.ReasonAccepted},
		"of the same second":    {change: other(time.Hour, nil), reason: v1alpha1.ReasonAccepted}, // "mine" < "other"
		"an older one is over":  {change: other(2*time.Hour, func(o *v1alpha1.VolumeCheckpoint) { o.Status.Phase = v1alpha1.PhaseCommitted }), reason: v1alpha1.ReasonAccepted},
		"an older one ends":     {change: other(2*time.Hour, func(o *v1alpha1.VolumeCheckpoint) { o.Spec.DesiredState = v1alpha1.Committed }), reason: v1alpha1.ReasonCheckpointEnding},
		"an older one goes":     {change: other(2*time.Hour, func(o *v1alpha1.VolumeCheckpoint) { o.DeletionTimestamp = &metav1.Time{Time: noon} }), reason: v1alpha1.ReasonCheckpointEnding},
		"a newer one was first": {change: other(time.Minute, func(o *v1alpha1.VolumeCheckpoint) { o.Status.Step = v1alpha1.StepSwitch }), reason: v1alpha1.ReasonAnotherCheckpoint, final: true},
		"damaged, still there": {change: other(2*time.Hour, func(o *v1alpha1.VolumeCheckpoint) {
			o.Status = v1alpha1.VolumeCheckpointStatus{Step: v1alpha1.StepSwitch, Phase: v1alpha1.PhaseFailed, Conditions: []metav1.Condition{{Type: v1alpha1.ConditionCheckpointed, Status: metav1.ConditionTrue}}}
		}), reason: v1alpha1.ReasonAnotherCheckpoint, final: true},
		"in another namespace": {change: other(2*time.Hour, func(o *v1alpha1.VolumeCheckpoint) { o.Namespace = "bank" }), reason: v1alpha1.ReasonAnotherCheckpoint, final: true, message: `"bank/other"`},
	} {
		t.Run(name, func(t *testing.T) {
			c, s := checkpoint("mine", time.Hour), surroundings()
			if test.change != nil {
				test.change(&s)
			}
			v := Accept(&c, s)
			if v.Reason != test.reason || v.Final != test.final || !strings.Contains(v.Message, test.message) {
				t.Errorf("got %+v; want reason %s, final %t, message with %q", v, test.reason, test.final, test.message)
			}
			if v.Accepted() && (v.Node != "n1" || v.Volume != "pv" || v.Handle != "pv.12345678") {
				t.Errorf("matched to %+v", v)
			}
		})
	}
}

// Whatever the order in which they are looked at, exactly one of several is
// accepted.
func TestAcceptOne(t *testing.T) {
	all := []v1alpha1.VolumeCheckpoint{checkpoint("c", time.Hour), checkpoint("a", time.Hour), checkpoint("b", time.Minute)}
	var accepted []string
	for i := range all {
		s := surroundings()
		s.Others = all
		if Accept(&all[i], s).Accepted() {
			accepted = append(accepted, all[i].Name)
		}
	}
	if len(accepted) != 1 || accepted[0] != "a" {
		t.Errorf("accepted %v; want [a]", accepted)
	}
}

func TestDeadline(t *testing.T) {
	opened := metav1.NewTime(noon)
	d := &v1alpha1.Deadline{After: metav1.Duration{Duration: time.Hour}, Action: v1alpha1.DeadlineCommit}
	if decision, wait := Deadline(nil, &opened, noon); decision != nil || wait != 0 {
		t.Error("decided without a deadline")
	}
	if decision, wait := Deadline(d, nil, noon); decision != nil || wait != 0 {
		t.Error("decided before the checkpoint was opened")
	}
	if decision, wait := Deadline(d, &opened, noon.Add(59*time.Minute)); decision != nil || wait != time.Minute {
		t.Errorf("a minute before: %+v, wait %v", decision, wait)
	}
	if decision, _ := Deadline(d, &opened, noon.Add(time.Hour)); decision == nil || decision.DesiredState != v1alpha1.Committed || decision.Reason != v1alpha1.ReasonDeadline {
		t.Errorf("at the deadline: %+v", decision)
	}
	d.Action = v1alpha1.DeadlineRollBack
	if decision, _ := Deadline(d, &opened, noon.Add(48*time.Hour)); decision == nil || decision.DesiredState != v1alpha1.RolledBack {
		t.Errorf("long after: %+v", decision)
	}
}

func TestBackoff(t *testing.T) {
	for elapsed, want := range map[time.Duration]time.Duration{
		-time.Hour: time.Second, 0: time.Second, 7 * time.Second: 7 * time.Second, time.Hour: time.Minute,
	} {
		if got := Backoff(noon, noon.Add(elapsed)); got != want {
			t.Errorf("after %v: %v; want %v", elapsed, got, want)
		}
	}
}
