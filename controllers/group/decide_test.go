package group

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bowline-csi/bowline/api/v1alpha1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// members makes a group at that step, entered at noon, with a member in each of
// the phases.
func members(step v1alpha1.Step, phases ...v1alpha1.Phase) observation {
	at := metav1.NewMicroTime(noon)
	g := &v1alpha1.VolumeCheckpointGroup{}
	g.Name, g.Status.Step, g.Status.StepTime, g.Status.Phase = "all", step, &at, v1alpha1.PhasePending
	o := observation{group: g, now: noon.Add(time.Second), checkpoints: make(map[string]*v1alpha1.VolumeCheckpoint)}
	for i, p := range phases {
		claim := fmt.Sprint("data-", i)
		g.Status.Members = append(g.Status.Members, v1alpha1.GroupMember{Claim: claim, Checkpoint: "c-" + claim})
		c := &v1alpha1.VolumeCheckpoint{}
		c.Status.Phase, c.Status.Step = p, step
		c.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue}}
		if p == v1alpha1.PhaseCheckpointed {
			opened := metav1.NewTime(noon)
			c.Status.CheckpointTime = &opened
			c.Status.Conditions = append(c.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionCheckpointed, Status: metav1.ConditionTrue})
		}
		o.checkpoints[claim] = c
	}
	return o
}

func TestSteps(t *testing.T) {
	const (
		pending, prepared, frozen, open = v1alpha1.PhasePending, v1alpha1.PhasePrepared, v1alpha1.PhaseFrozen, v1alpha1.PhaseCheckpointed
		failed, committed, unknown      = v1alpha1.PhaseFailed, v1alpha1.PhaseCommitted, v1alpha1.PhaseUnknown
	)
	for name, test := range map[string]struct {
		o      observation
		change func(*observation)
		want   v1alpha1.Step
		reason string // of condition Failed
	}{
		"all accepted":        {o: members("", pending, pending), want: v1alpha1.StepPrepare},
		"one not accepted":    {o: members("", pending, pending), change: func(o *observation) { o.checkpoints["data-1"].Status.Conditions = nil }, want: ""},
		"one missing":         {o: members("", pending, pending), change: func(o *observation) { delete(o.checkpoints, "data-1") }, want: ""},
		"name taken":          {o: members("", pending, pending), change: func(o *observation) { o.taken = []string{"c-data-1"} }, want: v1alpha1.StepAbort, reason: v1alpha1.ReasonNameTaken},
		"one refused":         {o: members("", pending, failed), want: v1alpha1.StepAbort, reason: v1alpha1.ReasonMemberFailed},
		"one prepared":        {o: members(v1alpha1.StepPrepare, prepared, pending), want: v1alpha1.StepPrepare},
		"all prepared":        {o: members(v1alpha1.StepPrepare, prepared, prepared), want: v1alpha1.StepFreeze},
		"preparing takes":     {o: members(v1alpha1.StepPrepare, prepared, pending), change: later(time.Hour), want: v1alpha1.StepPrepare},
		"one frozen":          {o: members(v1alpha1.StepFreeze, frozen, prepared), want: v1alpha1.StepFreeze},
		"all frozen":          {o: members(v1alpha1.StepFreeze, frozen, frozen), want: v1alpha1.StepSwitch},
		"one frozen too late": {o: members(v1alpha1.StepFreeze, frozen, prepared), change: later(freezeTime), want: v1alpha1.StepAbort, reason: v1alpha1.ReasonTooSlow},
		"all at the last":     {o: members(v1alpha1.StepFreeze, frozen, frozen), change: later(freezeTime), want: v1alpha1.StepSwitch},
		"node gone":           {o: members(v1alpha1.StepFreeze, frozen, unknown), change: later(freezeTime), want: v1alpha1.StepAbort, reason: v1alpha1.ReasonTooSlow},
		"one open":            {o: members(v1alpha1.StepSwitch, open, frozen), want: v1alpha1.StepSwitch},
		"one open too late":   {o: members(v1alpha1.StepSwitch, open, frozen), change: later(switchTime), want: v1alpha1.StepAbort, reason: v1alpha1.ReasonTooSlow},
		"one did not open":    {o: members(v1alpha1.StepSwitch, open, failed), want: v1alpha1.StepAbort, reason: v1alpha1.ReasonMemberFailed},
		"one was deleted":     {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) { delete(o.checkpoints, "data-1") }, want: v1alpha1.StepAbort, reason: v1alpha1.ReasonMemberFailed},
		"all open":            {o: members(v1alpha1.StepSwitch, open, open), want: v1alpha1.StepSwitch},
		"decided too early":   {o: members(v1alpha1.StepFreeze, frozen, frozen), change: func(o *observation) { o.group.Spec.DesiredState = v1alpha1.Committed }, want: v1alpha1.StepAbort, reason: v1alpha1.ReasonNeverOpened},
		"deleted too early":   {o: members(v1alpha1.StepPrepare, prepared, pending), change: func(o *observation) { o.group.DeletionTimestamp = &metav1.Time{Time: noon} }, want: v1alpha1.StepAbort, reason: v1alpha1.ReasonNeverOpened},
		"committed when open": {o: members(v1alpha1.StepSwitch, committed, open), change: isOpen, want: v1alpha1.StepSwitch},
	} {
		t.Run(name, func(t *testing.T) {
			if test.change != nil {
				test.change(&test.o)
			}
			out := decide(test.o)
			reason := ""
			for _, c := range out.status.Conditions {
				if c.Type == v1alpha1.ConditionFailed {
					reason = c.Reason
				}
			}
			if out.status.Step != test.want || reason != test.reason {
				t.Errorf("step %q, failed %q; want %q, %q", out.status.Step, reason, test.want, test.reason)
			}
			if test.want == v1alpha1.StepFreeze && out.again == 0 {
				t.Error("nobody looks when the time is over")
			}
		})
	}
}

func later(d time.Duration) func(*observation) {
	return func(o *observation) { o.now = noon.Add(d) }
}

// isOpen makes it a group whose checkpoints had all been opened.
func isOpen(o *observation) {
	opened := metav1.NewTime(noon)
	o.group.Status.CheckpointTime, o.group.Status.Phase = &opened, v1alpha1.PhaseCheckpointed
}

func TestDecisions(t *testing.T) {
	const open = v1alpha1.PhaseCheckpointed
	hour := &v1alpha1.Deadline{After: metav1.Duration{Duration: time.Hour}, Action: v1alpha1.DeadlineRollBack}
	for name, test := range map[string]struct {
		o      observation
		change func(*observation)
		want   string
	}{
		"open":      {o: members(v1alpha1.StepSwitch, open, open)},
		"deadline":  {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) { o.group.Spec.Deadline = hour; o.now = noon.Add(time.Hour) }, want: v1alpha1.ReasonDeadline},
		"too early": {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) { o.group.Spec.Deadline = hour; o.now = noon.Add(time.Hour - 1) }},
		"a person": {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) {
			o.group.Spec.Deadline = hour
			o.group.Spec.DesiredState = v1alpha1.Committed
			o.now = noon.Add(time.Hour)
		}},
		"deletion":    {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) { o.group.DeletionTimestamp = &metav1.Time{Time: noon} }, want: v1alpha1.ReasonDeleted},
		"one is lost": {o: members(v1alpha1.StepSwitch, open, v1alpha1.PhaseFailed), want: v1alpha1.ReasonMemberFinished},
		"one is damaged, past the deadline": {o: members(v1alpha1.StepSwitch, open, open), change: func(o *observation) {
			o.checkpoints["data-1"].Status.Phase = v1alpha1.PhaseFailed
			o.group.Spec.Deadline = hour
			o.now = noon.Add(time.Hour)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			isOpen(&test.o)
			if test.change != nil {
				test.change(&test.o)
			}
			out := decide(test.o)
			got := ""
			if out.status.Decision != nil {
				got = out.status.Decision.Reason
			}
			if got != test.want || out.decided != (got != "") {
				t.Errorf("decided %q; want %q", got, test.want)
			}
		})
	}
}

// TestDeletedWithDamage: a group that is deleted does not wait for a member that is
// damaged, which is deleted with it; but for one that was to be rolled back and failed
// only then.
func TestDeletedWithDamage(t *testing.T) {
	type status = v1alpha1.VolumeCheckpointStatus
	fails := func(s *status, at time.Time) {
		s.Phase = v1alpha1.PhaseFailed
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: v1alpha1.ConditionFailed, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDamaged, LastTransitionTime: metav1.NewTime(at)})
	}
	before, after := noon.Add(-time.Second), noon.Add(time.Second)
	toRollBack := &v1alpha1.Decision{DesiredState: v1alpha1.RolledBack, Reason: v1alpha1.ReasonGroup}
	for name, test := range map[string]struct {
		member func(*status)
		waits  bool
	}{
		"open":                           {func(*status) {}, true},
		"damaged":                        {func(s *status) { fails(s, after) }, false},
		"damaged, to be rolled back":     {func(s *status) { fails(s, before); s.Decision = toRollBack }, false},
		"damaged, was to be rolled back": {func(s *status) { fails(s, after); s.Decision = toRollBack }, true},
		"being rolled back":              {func(s *status) { s.Phase = v1alpha1.PhaseRollingBack; s.Decision = toRollBack }, true},
		"its node has gone":              {func(s *status) { s.Phase = v1alpha1.PhaseUnknown }, false},
		"not open, on a damaged volume":  {func(s *status) { notOpen(s, v1alpha1.ReasonDamaged) }, false},
		"not open yet":                   {func(s *status) { notOpen(s, v1alpha1.ReasonPending) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			o := members(v1alpha1.StepSwitch, v1alpha1.PhaseCheckpointed, v1alpha1.PhaseRolledBack)
			isOpen(&o)
			test.member(&o.checkpoints["data-0"].Status)
			if !decide(o).finalizer {
				t.Error("the finalizer goes before it is deleted")
			}
			o.group.DeletionTimestamp = &metav1.Time{Time: noon}
			if got := decide(o).finalizer; got != test.waits {
				t.Errorf("the finalizer is there: %v", got)
			}
		})
	}
}

func notOpen(s *v1alpha1.VolumeCheckpointStatus, reason string) {
	s.Phase, s.CheckpointTime = v1alpha1.PhasePending, nil
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: v1alpha1.ConditionCheckpointed, Status: metav1.ConditionFalse, Reason: reason})
}

// TestDamagePasses: a group whose only member was damaged is not at its end.
func TestDamagePasses(t *testing.T) {
	o := members(v1alpha1.StepSwitch, v1alpha1.PhaseCheckpointed)
	isOpen(&o)
	c := o.checkpoints["data-0"]
	for _, phase := range []v1alpha1.Phase{v1alpha1.PhaseFailed, v1alpha1.PhaseCheckpointed} {
		c.Status.Phase = phase
		o.group.Status = decide(o).status
		s := &o.group.Status
		failed := meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionFailed)
		if s.Phase != phase || s.Decision != nil || failed != phase.Final() || (s.CompletionTime != nil) != phase.Final() {
			t.Errorf("member %s: %+v", phase, s)
		}
	}
}

func TestPhaseOf(t *testing.T) {
	for _, test := range []struct {
		phases  string
		state   v1alpha1.DesiredState
		aborted bool
		want    v1alpha1.Phase
	}{
		{"Pending ", v1alpha1.Checkpointed, false, v1alpha1.PhasePending},
		{"Prepared Pending", v1alpha1.Checkpointed, false, v1alpha1.PhasePending},
		{"Frozen Prepared", v1alpha1.Checkpointed, false, v1alpha1.PhasePrepared},
		{"Checkpointed Checkpointed", v1alpha1.Checkpointed, false, v1alpha1.PhaseCheckpointed},
		{"Checkpointed Unknown", v1alpha1.Checkpointed, false, v1alpha1.PhaseUnknown},
		{"Failed Checkpointed", v1alpha1.Checkpointed, true, v1alpha1.PhaseCheckpointed},
		{"Failed Failed", v1alpha1.Checkpointed, true, v1alpha1.PhaseFailed},
		{"Committed Checkpointed", v1alpha1.Committed, false, v1alpha1.PhaseCheckpointed},
		{"Committed Committed", v1alpha1.Committed, false, v1alpha1.PhaseCommitted},
		{"Committed Failed", v1alpha1.Committed, false, v1alpha1.PhaseFailed},
		{"RollbackPending Checkpointed", v1alpha1.RolledBack, false, v1alpha1.PhaseCheckpointed},
		{"RollbackPending RolledBack", v1alpha1.RolledBack, false, v1alpha1.PhaseRollingBack},
		{"RollbackPending RollbackPending", v1alpha1.RolledBack, false, v1alpha1.PhaseRollbackPending},
		{"RolledBack RolledBack", v1alpha1.RolledBack, false, v1alpha1.PhaseRolledBack},
		{"RolledBack Failed", v1alpha1.RolledBack, false, v1alpha1.PhaseFailed},
		{"RolledBack Committed", v1alpha1.RolledBack, false, v1alpha1.PhaseFailed},
	} {
		var m []v1alpha1.GroupMember
		for _, p := range strings.Split(test.phases, " ") {
			m = append(m, v1alpha1.GroupMember{Phase: v1alpha1.Phase(p)})
		}
		if got := phaseOf(m, test.state, test.aborted); got != test.want {
			t.Errorf("%s on the way to %s: %s; want %s", test.phases, test.state, got, test.want)
		}
	}
}

// TestWarnings: what is true of one member's volume is true of the group, and says of
// which; it is false when it is true of none any more, and not there before.
func TestWarnings(t *testing.T) {
	for _, test := range []struct{ condition, bad, good string }{
		{v1alpha1.ConditionSpaceLow, v1alpha1.ReasonBelowMinimum, v1alpha1.ReasonEnoughSpace},
		{v1alpha1.ConditionDeviceFailing, v1alpha1.ReasonDeviceErrors, v1alpha1.ReasonNoDeviceErrors},
	} {
		o := members(v1alpha1.StepSwitch, v1alpha1.PhaseCheckpointed, v1alpha1.PhaseCheckpointed, v1alpha1.PhaseCheckpointed)
		isOpen(&o)
		summary := func() *metav1.Condition {
			o.group.Status = decide(o).status
			return meta.FindStatusCondition(o.group.Status.Conditions, test.condition)
		}
		if c := summary(); c != nil {
			t.Errorf("nothing has happened: %+v", c)
		}
		member := o.checkpoints["data-1"]
		warned := append(slices.Clone(member.Status.Conditions), metav1.Condition{Type: test.condition, Status: metav1.ConditionTrue})
		calm := member.Status.Conditions
		member.Status.Conditions = warned
		if c := summary(); c == nil || c.Status != metav1.ConditionTrue || c.Reason != test.bad || !strings.HasSuffix(c.Message, ": data-1") {
			t.Errorf("%s of one member: %+v", test.condition, c)
		}
		member.Status.Conditions = calm
		if c := summary(); c == nil || c.Status != metav1.ConditionFalse || c.Reason != test.good {
			t.Errorf("%s of no member any more: %+v", test.condition, c)
		}
	}
}

func TestCheckpointName(t *testing.T) {
	if a, b := checkpointName("a-b", "c"), checkpointName("a", "b-c"); a == b {
		t.Errorf("%q for both", a)
	}
	long := checkpointName(strings.Repeat("g", 253), strings.Repeat("c", 253))
	if len(long) > 253 {
		t.Errorf("%d characters", len(long))
	}
	if short := checkpointName("before", "data-0"); !strings.HasPrefix(short, "before-data-0-") {
		t.Errorf("%q", short)
	}
}
