// Package policy makes the controller's decisions: whether a checkpoint can be
// opened on a claim, and what a deadline or a rollout means for one that is
// open. Everything here is a pure function of what was observed and of the time
// that it is given.
package policy

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

// Deadline says what a deadline makes of a checkpoint that was opened at that
// time and is open. Without a decision, wait is how long until there is one, 0 if
// there never will be.
func Deadline(d *v1alpha1.Deadline, opened *metav1.Time, now time.Time) (decision *v1alpha1.Decision, wait time.Duration) {
	if d == nil || opened == nil {
		return nil, 0
	}
	if wait = opened.Add(d.After.Duration).Sub(now); wait > 0 {
		return nil, wait
	}
	state := v1alpha1.RolledBack
	if d.Action == v1alpha1.DeadlineCommit {
		state = v1alpha1.Committed
	}
	return Decide(state, v1alpha1.ReasonDeadline,
		"nobody had decided "+d.After.Duration.String()+" after the checkpoint was opened", now), 0
}

// Decide is a decision of now.
func Decide(state v1alpha1.DesiredState, reason, message string, now time.Time) *v1alpha1.Decision {
	return &v1alpha1.Decision{DesiredState: state, Reason: reason, Message: message, Time: metav1.NewTime(now).Rfc3339Copy()}
}

// HadFailed says whether a checkpoint that is still on its volume had failed at that
// time, so that whoever did something to it then knew. Both times are in seconds.
func HadFailed(c *v1alpha1.VolumeCheckpoint, at metav1.Time) bool {
	failed := c.Condition(v1alpha1.ConditionFailed)
	return c.Status.Phase == v1alpha1.PhaseFailed && failed != nil && !failed.LastTransitionTime.After(at.Time)
}

// Backoff is how long to wait before something is tried again that has been
// tried since that time: as long as it has gone on for, but from 1 second to a
// minute.
func Backoff(since, now time.Time) time.Duration {
	return min(max(now.Sub(since), time.Second), time.Minute)
}
