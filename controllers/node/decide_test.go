package node

import (
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	testUID  = "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a001"
	otherUID = "f1f6a3b8-13d1-44e5-a0f3-6be0c8d1a002"
	gib      = 1 << 30
)

var opened = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// checkpoint returns an object that the controller has accepted for a node, with
// what change makes of it.
func checkpoint(change ...func(*v1alpha1.VolumeCheckpoint)) *v1alpha1.VolumeCheckpoint {
	c := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "before-upgrade", UID: types.UID(testUID), Generation: 1},
		Spec: v1alpha1.VolumeCheckpointSpec{
			PersistentVolumeClaimName: "data-db-0",
			CheckpointPolicy:          v1alpha1.CheckpointPolicy{DesiredState: v1alpha1.Checkpointed, OutOfSpacePolicy: v1alpha1.OutOfSpaceFailWrites},
		},
		Status: v1alpha1.VolumeCheckpointStatus{
			Phase: v1alpha1.PhasePending, NodeName: "node-1", VolumeName: "pvc-1", VolumeHandle: "pvc-1.0badcafe", Step: v1alpha1.StepSwitch,
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

type change = func(*v1alpha1.VolumeCheckpoint)

func desired(s v1alpha1.DesiredState) change {
	return func(c *v1alpha1.VolumeCheckpoint) { c.Spec.DesiredState = s }
}

func decided(s v1alpha1.DesiredState) change {
	return func(c *v1alpha1.VolumeCheckpoint) {
		c.Status.Decision = &v1alpha1.Decision{DesiredState: s, Reason: v1alpha1.ReasonDeadline}
	}
}

func inStep(s v1alpha1.Step) change {
	return func(c *v1alpha1.VolumeCheckpoint) { c.Status.Step = s }
}

func inPhase(p v1alpha1.Phase) change {
	return func(c *v1alpha1.VolumeCheckpoint) { c.Status.Phase = p }
}

// wasTrue gives c a condition that has been true since the checkpoint was opened.
func wasTrue(c *v1alpha1.VolumeCheckpoint, conditionType, reason string) {
	c.Status.Conditions = append(c.Status.Conditions, metav1.Condition{Type: conditionType,
		Status: metav1.ConditionTrue, Reason: reason, LastTransitionTime: metav1.Time{Time: opened}})
}

func wasOpened(c *v1alpha1.VolumeCheckpoint) {
	c.Status.Phase = v1alpha1.PhaseCheckpointed
	c.Status.CheckpointTime = &metav1.Time{Time: opened}
	wasTrue(c, v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen)
}

func ofGroup(c *v1alpha1.VolumeCheckpoint) {
	c.Labels = map[string]string{v1alpha1.LabelGroup: otherUID}
}

func deleted(c *v1alpha1.VolumeCheckpoint) { c.DeletionTimestamp = &metav1.Time{Time: opened} }

func minimumFree(bytes int64) change {
	return func(c *v1alpha1.VolumeCheckpoint) {
		c.Spec.MinimumFree = resource.NewQuantity(bytes, resource.BinarySI)
	}
}

// inState are the facts of a volume with a checkpoint.
func inState(id string, s State) Facts {
	return Facts{Staged: true, Open: &Checkpoint{ID: id, State: s, Opened: opened, Measured: true, Free: 8 * gib, BackedUp: gib, Changed: gib}}
}

func endedAs(o Outcome) Facts {
	return Facts{Staged: true, Last: &Ended{ID: testUID, Outcome: o, At: opened.Add(time.Hour)}}
}

func TestDecide(t *testing.T) {
	unused := Facts{Staged: true}
	for _, test := range []struct {
		name    string
		changes []change
		facts   Facts
		want    action
	}{
		{"new", nil, unused, doCheckpoint},
		{"not accepted", []change{inStep("")}, unused, doNothing},
		{"after another that ended", nil, Facts{Staged: true, Last: &Ended{ID: otherUID, Outcome: Committed}}, doCheckpoint},
		{"another one is open", nil, inState(otherUID, Open), doNothing},
		{"one of nobody is open", nil, inState("", Open), doNothing},
		{"open", []change{wasOpened}, inState(testUID, Open), doNothing},
		{"open, not reported", nil, inState(testUID, Open), doNothing},
		{"enough space", []change{minimumFree(8 * gib)}, inState(testUID, Open), doNothing},
		{"too little space", []change{minimumFree(8*gib + 1)}, inState(testUID, Open), doCommit},
		{"space not known", []change{minimumFree(8*gib + 1)}, with(inState(testUID, Open), notMeasured), doNothing},
		{"less space later", []change{wasOpened, minimumFree(8*gib + 1)}, inState(testUID, Open), doNothing},

		{"commit", []change{wasOpened, desired(v1alpha1.Committed)}, inState(testUID, Open), doCommit},
		{"commit decided", []change{wasOpened, decided(v1alpha1.Committed)}, inState(testUID, Open), doCommit},
		{"commit, not reported", []change{wasOpened, desired(v1alpha1.Committed)}, endedAs(Committed), doNothing},
		{"deleted", []change{wasOpened, deleted}, inState(testUID, Open), doCommit},
		{"deleted before it was opened", []change{deleted}, unused, doNothing},
		{"commit before it was opened", []change{desired(v1alpha1.Committed)}, unused, doNothing},
		{"commit, vanished", []change{wasOpened, desired(v1alpha1.Committed)}, unused, doNothing},
		{"commit, another's", []change{wasOpened, desired(v1alpha1.Committed)}, inState(otherUID, Open), doNothing},

		{"roll back", []change{wasOpened, desired(v1alpha1.RolledBack)}, inState(testUID, Open), doRollback},
		{"roll back decided", []change{wasOpened, decided(v1alpha1.RolledBack)}, inState(testUID, Open), doRollback},
		{"decided goes before desired", []change{wasOpened, desired(v1alpha1.Committed), decided(v1alpha1.RolledBack)}, inState(testUID, Open), doRollback},
		{"marked", []change{wasOpened, desired(v1alpha1.RolledBack)}, inState(testUID, RollbackRequested), doNothing},
		{"restoring", []change{wasOpened, desired(v1alpha1.RolledBack)}, inState(testUID, RollingBack), doNothing},
		{"rolled back", []change{wasOpened, desired(v1alpha1.RolledBack)}, endedAs(RolledBack), doNothing},
		{"roll back before it was opened", []change{desired(v1alpha1.RolledBack)}, unused, doNothing},
		{"roll back, deleted", []change{wasOpened, desired(v1alpha1.RolledBack), deleted}, inState(testUID, Open), doRollback},
		{"deleted when marked", []change{wasOpened, desired(v1alpha1.RolledBack), deleted}, inState(testUID, RollbackRequested), doNothing},
		{"commit when marked", []change{wasOpened, desired(v1alpha1.Committed)}, inState(testUID, RollbackRequested), doNothing},

		{"vanished", []change{wasOpened}, unused, doNothing},
		{"out of space", []change{wasOpened}, endedAs(OutOfSpace), doNothing},
		{"out of space, not reported", nil, endedAs(OutOfSpace), doNothing},
		{"damaged, roll back", []change{wasOpened, desired(v1alpha1.RolledBack)}, restoring(0, 0, ErrDamaged), doNothing},
		{"damaged, deleted", []change{wasOpened, deleted, inPhase(v1alpha1.PhaseFailed)}, inState(testUID, Open), doCommit},
		{"could not be rolled back, deleted before", []change{wasOpened, desired(v1alpha1.RolledBack), deleted, inPhase(v1alpha1.PhaseFailed)},
			restoring(0, 0, ErrDamaged), doNothing},
		{"could not be rolled back, deleted", []change{wasOpened, decided(v1alpha1.Committed), deleted, inPhase(v1alpha1.PhaseFailed)},
			restoring(0, 0, ErrDamaged), doCommit},

		{"group, prepare", []change{ofGroup, inStep(v1alpha1.StepPrepare)}, unused, doPrepare},
		{"group, prepared", []change{ofGroup, inStep(v1alpha1.StepPrepare), inPhase(v1alpha1.PhasePrepared)}, unused, doNothing},
		{"group, freeze", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhasePrepared)}, unused, doFreeze},
		{"group, freeze unprepared", []change{ofGroup, inStep(v1alpha1.StepFreeze)}, unused, doFreeze},
		{"group, frozen", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhaseFrozen)}, unused, doNothing},
		{"group, switch", []change{ofGroup, inPhase(v1alpha1.PhaseFrozen)}, unused, doSwitch},
		{"group, switch never frozen", []change{ofGroup}, unused, doSwitch},
		{"group, switched", []change{ofGroup, inPhase(v1alpha1.PhaseFrozen)}, inState(testUID, Open), doNothing},
		{"group, commit while frozen", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhaseFrozen), decided(v1alpha1.Committed)}, unused, doThaw},
		{"group, abort", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, unused, doThaw},
		{"group, abort before freeze", []change{ofGroup, inStep(v1alpha1.StepAbort)}, unused, doThaw},
		{"group, abort when switched", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, inState(testUID, Open), doCommit},
		{"group, abort when open", []change{ofGroup, inStep(v1alpha1.StepAbort), wasOpened}, inState(testUID, Open), doCommit},
		{"group, aborted", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, endedAs(Committed), doNothing},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := checkpoint(test.changes...)
			if got := decide(c, test.facts); got != test.want {
				t.Errorf("decided on %q, want %q", got, test.want)
			}
		})
	}
}

func TestIdle(t *testing.T) {
	for _, test := range []struct {
		name    string
		changes []change
		want    bool
	}{
		{"not accepted", []change{inStep("")}, true},
		{"new", nil, false},
		{"open", []change{wasOpened}, false},
		{"committed", []change{inPhase(v1alpha1.PhaseCommitted)}, true},
		{"rolled back", []change{inPhase(v1alpha1.PhaseRolledBack)}, true},
		{"failed", []change{inPhase(v1alpha1.PhaseFailed)}, true},
		{"failed, but on the volume", []change{wasOpened, inPhase(v1alpha1.PhaseFailed)}, false},
	} {
		if got := !checkpoint(test.changes...).OnVolume(); got != test.want {
			t.Errorf("%s: idle is %v", test.name, got)
		}
	}
}
