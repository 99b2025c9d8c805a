package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// phase is the phase of a checkpoint that nobody may have looked at yet.
func phase(c *v1alpha1.VolumeCheckpoint) string {
	return string(cmp.Or(c.Status.Phase, v1alpha1.PhasePending))
}

// story says in one sentence how a checkpoint stands: the message of the
// condition that matters most now.
func story(c *v1alpha1.VolumeCheckpoint) string {
	if c.Status.Phase == v1alpha1.PhaseUnknown {
		return fmt.Sprintf("node %s has gone from the cluster; if it comes back, the checkpoint goes on where it was", c.Status.NodeName)
	}
	for _, candidate := range []struct {
		condition string
		status    metav1.ConditionStatus
	}{
		{v1alpha1.ConditionFailed, metav1.ConditionTrue},
		{v1alpha1.ConditionRolledBack, metav1.ConditionTrue},
		{v1alpha1.ConditionCommitted, metav1.ConditionTrue},
		{v1alpha1.ConditionAccepted, metav1.ConditionFalse},
		{v1alpha1.ConditionRolledBack, metav1.ConditionFalse},
		{v1alpha1.ConditionCommitted, metav1.ConditionFalse},
		{v1alpha1.ConditionDeviceFailing, metav1.ConditionTrue},
		{v1alpha1.ConditionSpaceLow, metav1.ConditionTrue},
		{v1alpha1.ConditionCheckpointed, metav1.ConditionTrue},
		{v1alpha1.ConditionCheckpointed, metav1.ConditionFalse},
	} {
		if got := c.Condition(candidate.condition); got != nil && got.Status == candidate.status && got.Message != "" {
			return got.Message
		}
	}
	if c.Status.Step == "" {
		return "Bowline's controller has not looked at it yet."
	}
	return fmt.Sprintf("Node %s has not looked at it yet.", c.Status.NodeName)
}

// amounts says in a few words how much space there is.
func amounts(c *v1alpha1.VolumeCheckpoint) string {
	var parts []string
	if d := c.Status.FreezeDuration; d != nil {
		parts = append(parts, fmt.Sprintf("writes stood still for %s", d.Duration.Round(time.Millisecond)))
	}
	if q := c.Status.FreeForBackups; q != nil {
		parts = append(parts, quantity(q)+" free for backups")
	}
	if len(parts) == 0 {
		return "its volume is not in use"
	}
	return strings.Join(parts, ", ")
}

func quantity(q *resource.Quantity) string {
	if q == nil {
		return "-"
	}
	return bytes(q.Value())
}

func (c *cli) ago(t *metav1.Time) string {
	if t.IsZero() {
		return "-"
	}
	return duration.HumanDuration(c.now().Sub(t.Time))
}

// describe writes all that a person wants to know of a checkpoint.
func (c *cli) describe(w io.Writer, v *v1alpha1.VolumeCheckpoint) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s:\t%s\n", name, fmt.Sprintf(format, args...))
	}
	s := &v.Status
	line("Checkpoint", "%s/%s", v.Namespace, v.Name)
	line("Claim", "%s", v.Spec.PersistentVolumeClaimName)
	if group := groupOf(v); group != "" {
		line("Group", "%s", group)
	}
	if s.VolumeName != "" {
		line("Volume", "%s on node %s", s.VolumeName, s.NodeName)
	}
	line("Phase", "%s", phase(v))
	if want := v.EffectiveState(); want != v1alpha1.Checkpointed || v.DeletionTimestamp != nil {
		why := ""
		if d := s.Decision; d != nil {
			why = fmt.Sprintf(" (%s: %s)", d.Reason, d.Message)
		}
		line("Wanted", "%s%s", want, why)
	}
	if s.CheckpointTime != nil {
		frozen := ""
		if s.FreezeDuration != nil {
			frozen = fmt.Sprintf("; writes stood still for %s", s.FreezeDuration.Duration.Round(time.Millisecond))
		}
		line("Opened", "%s ago, %s%s", c.ago(s.CheckpointTime), s.CheckpointTime.Local().Format(time.DateTime), frozen)
	}
	if s.CompletionTime != nil {
		line("Ended", "%s ago, %s", c.ago(s.CompletionTime), s.CompletionTime.Local().Format(time.DateTime))
	}
	if s.FreeForBackups != nil {
		line("Free for backups", "%s", quantity(s.FreeForBackups))
	}
	if s.BackedUp != nil {
		line("Backed up", "%s, of %s changed", quantity(s.BackedUp), quantity(s.Changed))
	}
	if v.EffectiveState() == v1alpha1.Checkpointed && unfinished(v) {
		c.describePolicy(line, v)
	}
	if r := s.Rollback; r != nil {
		if len(r.WaitingFor) > 0 {
			line("Waiting for", "%s", strings.Join(r.WaitingFor, ", "))
		}
		if r.BytesTotal != nil && r.BytesDone != nil {
			line("Put back", "%s of %s", bytes(*r.BytesDone), bytes(*r.BytesTotal))
		}
	}
	line("Status", "%s", story(v))
	if low := v.Condition(v1alpha1.ConditionPodsReleased); low != nil && low.Status == metav1.ConditionFalse {
		line("Pods", "%s", low.Message)
	}
	return t.Flush()
}

// describePolicy writes what will happen to an open checkpoint by itself.
func (c *cli) describePolicy(line func(string, string, ...any), v *v1alpha1.VolumeCheckpoint) {
	if v.Spec.OutOfSpacePolicy == v1alpha1.OutOfSpaceCommit {
		line("If space ends", "the checkpoint is dropped")
	} else {
		line("If space ends", "writes fail")
	}
	if d := v.Spec.Deadline; d != nil {
		action := "rolled back"
		if d.Action == v1alpha1.DeadlineCommit {
			action = "committed"
		}
		when := "after " + d.After.Duration.String()
		if at := v.Status.CheckpointTime; at != nil {
			when = "in " + duration.HumanDuration(max(at.Add(d.After.Duration).Sub(c.now()), 0))
		}
		line("Deadline", "%s %s", action, when)
	}
	if verify := v.Spec.Verify; verify != nil {
		message := ""
		if v.Status.Verification != nil && v.Status.Verification.Message != "" {
			message = ": " + v.Status.Verification.Message
		}
		line("Decided by", "the rollout of %s %s%s", strings.ToLower(string(verify.WorkloadRef.Kind)), verify.WorkloadRef.Name, message)
	}
}

// table writes one line for each checkpoint.
func (c *cli) table(w io.Writer, list []v1alpha1.VolumeCheckpoint, namespaces bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(namespace string, columns ...string) {
		if namespaces {
			columns = append([]string{namespace}, columns...)
		}
		fmt.Fprintln(t, strings.Join(columns, "\t"))
	}
	row("NAMESPACE", "NAME", "CLAIM", "NODE", "PHASE", "FREE", "BACKED UP", "CHANGED", "AGE")
	for i := range list {
		v := &list[i]
		row(v.Namespace, v.Name, v.Spec.PersistentVolumeClaimName, cmp.Or(v.Status.NodeName, "-"), phaseColumn(v),
			quantity(v.Status.FreeForBackups), quantity(v.Status.BackedUp), quantity(v.Status.Changed), c.ago(&v.CreationTimestamp))
	}
	return t.Flush()
}

// phaseColumn is the phase with what stands out.
func phaseColumn(v *v1alpha1.VolumeCheckpoint) string {
	p := phase(v)
	if r := v.Status.Rollback; v.Status.Phase == v1alpha1.PhaseRollingBack && r != nil && r.BytesDone != nil && r.BytesTotal != nil && *r.BytesTotal > 0 {
		return fmt.Sprintf("%s %d%%", p, int(float64(*r.BytesDone)/float64(*r.BytesTotal)*100))
	}
	for _, warning := range []string{v1alpha1.ConditionDeviceFailing, v1alpha1.ConditionSpaceLow} {
		if meta.IsStatusConditionTrue(v.Status.Conditions, warning) {
			p += "," + warning
		}
	}
	if failed := v.Condition(v1alpha1.ConditionFailed); failed != nil && v.Status.Phase == v1alpha1.PhaseFailed {
		return p + "," + failed.Reason
	}
	return p
}
