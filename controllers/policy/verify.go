package policy

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// defaultTimeout is that of the API's definition, for objects that were made
// without it.
const defaultTimeout = 10 * time.Minute

// Baseline is what is remembered of a workload, nil if there is none, when a
// checkpoint is accepted: what its rollouts are compared with.
func Baseline(w *Rollout) *v1alpha1.Verification {
	if w == nil {
		return &v1alpha1.Verification{Message: "the workload does not exist yet"}
	}
	return &v1alpha1.Verification{WorkloadUID: w.UID, Revision: w.Revision, Message: "the workload has not changed yet"}
}

// Verify says what the rollout of a workload, nil if there is none now, makes of
// an open checkpoint, given what is known of it, which is not changed. It returns
// what is known now. Without a decision, wait is how long until the timeout
// decides, 0 if no rollout runs.
func Verify(v v1alpha1.Verify, known v1alpha1.Verification, w *Rollout, now time.Time) (
	knownNow *v1alpha1.Verification, decision *v1alpha1.Decision, wait time.Duration) {
	name := fmt.Sprintf("%s %q", v.WorkloadRef.Kind, v.WorkloadRef.Name)
	if w != nil && w.UID == known.WorkloadUID && w.Revision == known.Revision {
		if known.StartTime != nil {
			// The old version became ready again. That says nothing
			// about the new one, which may have changed the data.
			known.StartTime = nil
			known.Message = "the change of the workload was taken back"
		}
		return &known, nil, 0
	}
	if known.StartTime == nil {
		if w == nil {
			return &known, nil, 0
		}
		start := metav1.NewTime(now).Rfc3339Copy()
		known.StartTime = &start
	}
	timeout := defaultTimeout
	if v.Timeout != nil {
		timeout = v.Timeout.Duration
	}
	progress := Progress{Message: "the workload does not exist any more"}
	if w != nil {
		progress = w.Progress
	}
	known.Message = progress.Message
	switch wait = known.StartTime.Add(timeout).Sub(now); {
	case progress.State == Complete:
		return &known, Decide(v1alpha1.Committed, v1alpha1.ReasonVerified, "the rollout of "+name+" is complete", now), 0
	case progress.State == Failed:
		decision = Decide(v1alpha1.RolledBack, v1alpha1.ReasonRolloutFailed, "the rollout of "+name+" has failed: "+progress.Message, now)
	case wait <= 0:
		decision = Decide(v1alpha1.RolledBack, v1alpha1.ReasonVerifyTimeout,
			fmt.Sprintf("the rollout of %s was not complete after %v: %s", name, timeout, progress.Message), now)
	}
	if decision != nil {
		if w != nil {
			known.WorkloadUID, known.FailedRevision = w.UID, w.Revision
		}
		return &known, decision, 0
	}
	return &known, nil, wait
}

// StillFailed says whether a workload, nil if there is none now, would make its
// pods anew from the template whose rollout failed.
func StillFailed(known *v1alpha1.Verification, w *Rollout) bool {
	return known != nil && known.FailedRevision != "" && w != nil && w.UID == known.WorkloadUID && w.Revision == known.FailedRevision
}
