package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reportTests says what is reported, conditions as "Type=Status/Reason".
var reportTests = []struct {
	name       string
	changes    []change
	outcome    outcome
	phase      v1alpha1.Phase
	conditions string
	message    string // in some condition's
}{
	{"open", nil, outcome{facts: inState(testUID, Open), did: doCheckpoint},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=False/EnoughSpace", ""},
	{"nearly full", []change{wasOpened}, outcome{facts: with(inState(testUID, Open), func(c *Checkpoint) { c.Free = gib / 16 })},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=True/BelowMinimum", "writes fail"},
	{"nearly full, will commit", []change{wasOpened, commitWhenFull}, outcome{facts: with(inState(testUID, Open), func(c *Checkpoint) { c.Free = gib / 16 })},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=True/BelowMinimum", "the checkpoint is dropped"},
	{"below minimum", []change{wasOpened, minimumFree(9 * gib)}, outcome{facts: inState(testUID, Open)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=True/BelowMinimum", "9Gi"},
	{"hardly enough again", []change{wasOpened, wasLow, minimumFree(7 * gib)}, outcome{facts: inState(testUID, Open)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=True/BelowMinimum", ""},
	{"enough again", []change{wasOpened, wasLow, minimumFree(6 * gib)}, outcome{facts: inState(testUID, Open)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=False/EnoughSpace", ""},
	{"full", []change{wasOpened}, outcome{facts: with(inState(testUID, Open), func(c *Checkpoint) { c.OutOfSpace = true })},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=True/OutOfSpace", "Delete files"},
	{"not in use", []change{wasOpened}, outcome{facts: with(inState(testUID, Open), notMeasured)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open", ""},
	{"the node was away", []change{wasOpened, inPhase(v1alpha1.PhaseUnknown)}, outcome{facts: inState(testUID, Open)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=False/EnoughSpace", ""},
	{"engine down while open", []change{wasOpened}, outcome{err: ErrEngineDown},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open", ""},

	{"device fails", []change{wasOpened}, outcome{facts: deviceFails(inState(testUID, Open))},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open DeviceFailing=True/DeviceErrors SpaceLow=False/EnoughSpace", "input/output error"},
	{"device fails no more", []change{wasOpened, wasFailing}, outcome{facts: inState(testUID, Open)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open DeviceFailing=False/NoDeviceErrors SpaceLow=False/EnoughSpace", ""},
	{"device failed, not in use any more", []change{wasOpened, wasFailing}, outcome{facts: with(inState(testUID, Open), notMeasured)},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open DeviceFailing=True/DeviceErrors", ""},
	{"device failed, engine down", []change{wasOpened, wasFailing}, outcome{err: ErrEngineDown},
		v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open DeviceFailing=True/DeviceErrors", ""},
	{"device fails, not open", nil, outcome{facts: deviceFails(Facts{Staged: true}), did: doCheckpoint, err: ErrBusy},
		v1alpha1.PhasePending, "Checkpointed=False/VolumeBusy", ""},

	{"not in use", nil, outcome{did: doCheckpoint, err: ErrNotStaged}, v1alpha1.PhasePending, "Checkpointed=False/VolumeNotInUse", "as soon as one does"},
	{"engine down", nil, outcome{err: ErrEngineDown}, v1alpha1.PhasePending, "Checkpointed=False/EngineDown", "bowline-engine"},
	{"busy", nil, outcome{did: doCheckpoint, err: ErrBusy}, v1alpha1.PhasePending, "Checkpointed=False/VolumeBusy", ""},
	{"rollback first", nil, outcome{did: doCheckpoint, err: ErrRollbackPending}, v1alpha1.PhasePending, "Checkpointed=False/VolumeBusy", ""},
	{"some error", nil, outcome{did: doCheckpoint, err: errors.New("the disk is on fire")}, v1alpha1.PhasePending, "Checkpointed=False/Error", "the disk is on fire"},
	{"no space", nil, outcome{did: doCheckpoint, err: ErrNoSpace}, v1alpha1.PhaseFailed, "Checkpointed=False/NoSpace Failed=True/NoSpace", "Delete files"},
	{"less than minimum", []change{minimumFree(9 * gib)}, outcome{facts: endedAs(Committed), did: doCommit},
		v1alpha1.PhaseFailed, "Checkpointed=False/NoSpace Failed=True/NoSpace", "9Gi"},
	{"no such volume", nil, outcome{err: ErrNotFound}, v1alpha1.PhasePending, "Checkpointed=False/VolumeNotInUse", "does not know the volume"},
	{"no such volume, deleted", []change{deleted}, outcome{err: ErrNotFound}, v1alpha1.PhaseCommitted, "Checkpointed=False/NeverOpened Committed=True/NeverOpened", ""},
	{"no such volume, aborted", []change{ofGroup, inStep(v1alpha1.StepAbort)}, outcome{err: ErrNotFound}, v1alpha1.PhaseFailed, "Checkpointed=False/Aborted Failed=True/Aborted", ""},
	{"another's", nil, outcome{facts: inState(otherUID, Open)}, v1alpha1.PhaseFailed, "Checkpointed=False/AnotherCheckpoint Failed=True/AnotherCheckpoint", "bowline device"},
	{"another's, found when opening", nil, outcome{did: doCheckpoint, err: ErrCheckpointOpen}, v1alpha1.PhaseFailed, "Checkpointed=False/AnotherCheckpoint Failed=True/AnotherCheckpoint", ""},
	{"damaged, perhaps open", nil, outcome{err: fmt.Errorf("block 0: %w", ErrDamaged)}, v1alpha1.PhasePending, "Checkpointed=False/Damaged", "block 0"},
	{"damaged, perhaps open, deleted", []change{deleted}, outcome{err: ErrDamaged}, v1alpha1.PhaseFailed, "Checkpointed=False/Damaged Failed=True/Damaged", "bowline device roll-forward"},
	{"damaged before it was opened", []change{ofGroup, inStep(v1alpha1.StepPrepare)}, outcome{err: ErrDamaged}, v1alpha1.PhaseFailed, "Checkpointed=False/Damaged Failed=True/Damaged", "bowline device roll-forward"},
	{"commit before it was opened", []change{desired(v1alpha1.Committed)}, outcome{facts: Facts{Staged: true}}, v1alpha1.PhaseCommitted, "Checkpointed=False/NeverOpened Committed=True/NeverOpened", ""},
	{"deleted before it was opened", []change{deleted}, outcome{facts: Facts{Staged: true}}, v1alpha1.PhaseCommitted, "Checkpointed=False/NeverOpened Committed=True/NeverOpened", ""},
	{"roll back before it was opened", []change{desired(v1alpha1.RolledBack)}, outcome{facts: Facts{Staged: true}}, v1alpha1.PhaseFailed, "Checkpointed=False/NeverOpened Failed=True/NeverOpened", "nothing to roll back to"},
	{"commit before it was opened, engine down", []change{desired(v1alpha1.Committed)}, outcome{err: ErrEngineDown}, v1alpha1.PhasePending, "Checkpointed=False/EngineDown", ""},

	{"committed", []change{wasOpened, desired(v1alpha1.Committed)}, outcome{facts: endedAs(Committed), did: doCommit}, v1alpha1.PhaseCommitted, "Checkpointed=False/Committed Committed=True/Committed", ""},
	{"committed, not reported as open", []change{desired(v1alpha1.Committed)}, outcome{facts: endedAs(Committed)}, v1alpha1.PhaseCommitted, "Checkpointed=False/Committed Committed=True/Committed", ""},
	{"commit fails", []change{wasOpened, desired(v1alpha1.Committed)}, outcome{facts: inState(testUID, Open), did: doCommit, err: ErrBusy}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open Committed=False/VolumeBusy SpaceLow=False/EnoughSpace", ""},
	{"out of space", []change{wasOpened, commitWhenFull}, outcome{facts: endedAs(OutOfSpace)}, v1alpha1.PhaseCommitted, "Checkpointed=False/OutOfSpace Committed=True/OutOfSpace", "outOfSpacePolicy"},
	{"out of space, not reported as open", []change{commitWhenFull}, outcome{facts: endedAs(OutOfSpace)}, v1alpha1.PhaseCommitted, "Checkpointed=False/OutOfSpace Committed=True/OutOfSpace", ""},
	{"out of space before the rollback", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: endedAs(OutOfSpace)}, v1alpha1.PhaseCommitted, "Checkpointed=False/OutOfSpace Committed=True/OutOfSpace", ""},

	{"marked", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: inState(testUID, RollbackRequested), did: doRollback}, v1alpha1.PhaseRollbackPending, "Checkpointed=True/Open RolledBack=False/Requested", ""},
	{"waiting", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: inState(testUID, RollbackRequested), waitingFor: []string{"shop/db-0"}}, v1alpha1.PhaseRollbackPending, "Checkpointed=True/Open RolledBack=False/WaitingForPods", "shop/db-0"},
	{"waiting, device fails", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: deviceFails(inState(testUID, RollbackRequested)), waitingFor: []string{"shop/db-0"}},
		v1alpha1.PhaseRollbackPending, "Checkpointed=True/Open DeviceFailing=True/DeviceErrors RolledBack=False/WaitingForPods", "input/output error"},
	{"restoring, device failed", []change{wasOpened, wasFailing, desired(v1alpha1.RolledBack)}, outcome{facts: with(restoring(gib/4, gib, nil), notMeasured)},
		v1alpha1.PhaseRollingBack, "Checkpointed=True/Open DeviceFailing=True/DeviceErrors RolledBack=False/Restoring", ""},
	{"rolled back, device failed", []change{wasOpened, wasFailing, desired(v1alpha1.RolledBack)}, outcome{facts: deviceFails(endedAs(RolledBack))},
		v1alpha1.PhaseRolledBack, "Checkpointed=False/RolledBack RolledBack=True/RolledBack", ""},
	{"restoring", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(gib/4, gib, nil)}, v1alpha1.PhaseRollingBack, "Checkpointed=True/Open RolledBack=False/Restoring", ""},
	{"restoring fails", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(0, 0, errors.New("I/O error"))}, v1alpha1.PhaseRollingBack, "Checkpointed=True/Open RolledBack=False/RestoreFailed", "I/O error"},
	{"restoring without engine", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(0, 0, ErrEngineDown)}, v1alpha1.PhaseRollingBack, "Checkpointed=True/Open RolledBack=False/EngineDown", ""},
	{"rolled back", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: endedAs(RolledBack)}, v1alpha1.PhaseRolledBack, "Checkpointed=False/RolledBack RolledBack=True/RolledBack", ""},
	{"rolled back, never reported", []change{desired(v1alpha1.RolledBack)}, outcome{facts: endedAs(RolledBack)}, v1alpha1.PhaseRolledBack, "Checkpointed=False/RolledBack RolledBack=True/RolledBack", ""},
	{"marking fails", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: inState(testUID, Open), did: doRollback, err: ErrEngineDown}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open RolledBack=False/EngineDown SpaceLow=False/EnoughSpace", ""},
	{"copies are damaged", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(0, 0, fmt.Errorf("copy 17: %w", ErrDamaged))}, v1alpha1.PhaseFailed, "Checkpointed=True/Damaged Failed=True/Damaged", "copy 17"},

	{"vanished", []change{wasOpened}, outcome{facts: Facts{Staged: true}}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", "not on the volume any more"},
	{"lost", []change{wasOpened}, outcome{facts: endedAs(Lost)}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", ""},
	{"another's in its place", []change{wasOpened}, outcome{facts: inState(otherUID, Open)}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", ""},
	{"volume deleted", []change{wasOpened}, outcome{err: ErrNotFound}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", "pvc-1.0badcafe"},
	{"device not there yet", []change{wasOpened}, outcome{err: ErrMissing}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open", ""},
	{"device not there yet, roll back", []change{wasOpened, desired(v1alpha1.RolledBack)}, outcome{err: ErrMissing}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open RolledBack=False/VolumeNotInUse", "is attached"},
	{"device not there, never opened, deleted", []change{deleted}, outcome{err: ErrMissing}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", "pvc-1.0badcafe"},
	{"device not there, deleted", []change{wasOpened, deleted}, outcome{err: ErrMissing}, v1alpha1.PhaseFailed, "Checkpointed=False/Lost Failed=True/Lost", "pvc-1.0badcafe"},
	{"damaged", []change{wasOpened}, outcome{facts: inState(testUID, Open), did: doCommit, err: fmt.Errorf("its log: %w", ErrDamaged)}, v1alpha1.PhaseFailed, "Checkpointed=True/Damaged Failed=True/Damaged", "its log"},
	{"damaged, nothing more is known", []change{wasOpened}, outcome{err: ErrDamaged}, v1alpha1.PhaseFailed, "Checkpointed=True/Damaged Failed=True/Damaged", "roll-forward"},
	{"damaged, device fails", []change{wasOpened, wasFailing}, outcome{facts: deviceFails(restoring(0, 0, ErrDamaged))}, v1alpha1.PhaseFailed, "Checkpointed=True/Damaged Failed=True/Damaged", ""},
	{"damaged no more", []change{wasOpened, wasDamaged}, outcome{facts: inState(testUID, Open)}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=False/EnoughSpace", ""},
	{"damaged no more, marked", []change{wasOpened, wasDamaged, desired(v1alpha1.RolledBack)}, outcome{facts: inState(testUID, RollbackRequested), did: doRollback}, v1alpha1.PhaseRollbackPending, "Checkpointed=True/Open RolledBack=False/Requested", ""},
	{"damaged no more, rolled back", []change{wasOpened, wasDamaged, desired(v1alpha1.RolledBack)}, outcome{facts: endedAs(RolledBack)}, v1alpha1.PhaseRolledBack, "Checkpointed=False/RolledBack RolledBack=True/RolledBack", ""},
	{"damaged, tried again", []change{wasOpened, wasDamaged, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(0, gib, nil)}, v1alpha1.PhaseFailed, "Checkpointed=True/Open Failed=True/Damaged", ""},
	{"damaged no more, restoring", []change{wasOpened, wasDamaged, desired(v1alpha1.RolledBack)}, outcome{facts: restoring(1, gib, nil)}, v1alpha1.PhaseRollingBack, "Checkpointed=True/Open RolledBack=False/Restoring", ""},
	{"damaged, dropped", []change{wasOpened, wasDamaged, deleted}, outcome{facts: endedAs(Committed), did: doCommit}, v1alpha1.PhaseCommitted, "Checkpointed=False/Committed Committed=True/Committed", ""},

	{"group, prepared", []change{ofGroup, inStep(v1alpha1.StepPrepare)}, outcome{did: doPrepare}, v1alpha1.PhasePrepared, "Checkpointed=False/Pending", ""},
	{"group, cannot prepare", []change{ofGroup, inStep(v1alpha1.StepPrepare)}, outcome{did: doPrepare, err: ErrNotStaged}, v1alpha1.PhasePending, "Checkpointed=False/VolumeNotInUse", ""},
	{"group, frozen", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhasePrepared)}, outcome{did: doFreeze}, v1alpha1.PhaseFrozen, "Checkpointed=False/Pending", ""},
	{"group, stays frozen", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhaseFrozen)}, outcome{}, v1alpha1.PhaseFrozen, "Checkpointed=False/Pending", ""},
	{"group, cannot freeze", []change{ofGroup, inStep(v1alpha1.StepFreeze), inPhase(v1alpha1.PhasePrepared)}, outcome{did: doFreeze, err: ErrBusy}, v1alpha1.PhasePrepared, "Checkpointed=False/VolumeBusy", ""},
	{"group, switched", []change{ofGroup, inPhase(v1alpha1.PhaseFrozen)}, outcome{facts: inState(testUID, Open), did: doSwitch}, v1alpha1.PhaseCheckpointed, "Checkpointed=True/Open SpaceLow=False/EnoughSpace", ""},
	{"group, too late", []change{ofGroup, inPhase(v1alpha1.PhaseFrozen)}, outcome{did: doSwitch, err: ErrNotFrozen}, v1alpha1.PhaseFailed, "Checkpointed=False/FreezeExpired Failed=True/FreezeExpired", ""},
	{"group, aborted", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, outcome{did: doThaw}, v1alpha1.PhaseFailed, "Checkpointed=False/Aborted Failed=True/Aborted", ""},
	{"group, aborted when open", []change{ofGroup, inStep(v1alpha1.StepAbort), wasOpened}, outcome{facts: endedAs(Committed), did: doCommit}, v1alpha1.PhaseFailed, "Checkpointed=False/Aborted Failed=True/Aborted", ""},
	{"group, aborted when open, not reported", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, outcome{facts: endedAs(Committed), did: doCommit}, v1alpha1.PhaseFailed, "Checkpointed=False/Aborted Failed=True/Aborted", ""},
	{"group, cannot thaw", []change{ofGroup, inStep(v1alpha1.StepAbort), inPhase(v1alpha1.PhaseFrozen)}, outcome{did: doThaw, err: ErrBusy}, v1alpha1.PhaseFrozen, "Checkpointed=False/VolumeBusy", ""},
}

func with(f Facts, change func(*Checkpoint)) Facts {
	change(f.Open)
	return f
}

func notMeasured(c *Checkpoint) { *c = Checkpoint{ID: c.ID, State: c.State, Opened: c.Opened} }

func deviceFails(f Facts) Facts {
	f.DeviceError = "/pool/image: reading 4096 bytes at offset 8192: input/output error"
	return f
}

func restoring(done, total int64, err error) Facts {
	f := inState(testUID, RollingBack)
	f.Rollback = &Rollback{Done: done, Total: total, Err: err}
	return f
}

func commitWhenFull(c *v1alpha1.VolumeCheckpoint) {
	c.Spec.OutOfSpacePolicy = v1alpha1.OutOfSpaceCommit
}

func wasLow(c *v1alpha1.VolumeCheckpoint) {
	wasTrue(c, v1alpha1.ConditionSpaceLow, v1alpha1.ReasonBelowMinimum)
}

func wasFailing(c *v1alpha1.VolumeCheckpoint) {
	wasTrue(c, v1alpha1.ConditionDeviceFailing, v1alpha1.ReasonDeviceErrors)
}

func wasDamaged(c *v1alpha1.VolumeCheckpoint) {
	c.Status.Phase = v1alpha1.PhaseFailed
	c.Status.CompletionTime = &metav1.Time{Time: opened}
	wasTrue(c, v1alpha1.ConditionFailed, v1alpha1.ReasonDamaged)
}

func TestReport(t *testing.T) {
	now := opened.Add(2 * time.Hour)
	for _, test := range reportTests {
		t.Run(test.name, func(t *testing.T) {
			c := checkpoint(test.changes...)
			before := c.DeepCopy()
			s := report(c, test.outcome, now)
			if !equality.Semantic.DeepEqual(before, c) {
				t.Error("the object was changed")
			}
			if s.Phase != test.phase {
				t.Errorf("phase %s, want %s", s.Phase, test.phase)
			}
			var conditions []string
			messages := ""
			for _, condition := range s.Conditions {
				conditions = append(conditions, fmt.Sprintf("%s=%s/%s", condition.Type, condition.Status, condition.Reason))
				messages += condition.Message + "\n"
			}
			slices.Sort(conditions)
			if got := strings.Join(conditions, " "); got != test.conditions {
				t.Errorf("conditions\n%s, want\n%s", got, test.conditions)
			}
			if !strings.Contains(messages, test.message) || strings.Contains(messages, "%!") {
				t.Errorf("%q is not in the messages, or they are broken:\n%s", test.message, messages)
			}
			if s.NodeName != "" || s.VolumeHandle != "" || s.Step != "" || s.Decision != nil {
				t.Errorf("reports what is the controller's: %+v", s)
			}
			if s.Phase.Final() != (s.CompletionTime != nil) {
				t.Errorf("phase %s, completed at %v", s.Phase, s.CompletionTime)
			}

			// Reporting the same again, a little later, changes nothing.
			c.Status = merged(c.Status, s)
			if again := report(c, outcome{facts: test.outcome.facts, err: test.outcome.err, waitingFor: test.outcome.waitingFor}, now.Add(time.Minute)); !equality.Semantic.DeepEqual(again, s) {
				t.Errorf("reported again it is\n%+v, was\n%+v", again, s)
			}
			if worthWriting(c, &s, now, now.Add(time.Hour)) {
				t.Error("what was just written is worth writing again")
			}
		})
	}
}

// merged is the status after the node's part of it was applied.
func merged(status, part v1alpha1.VolumeCheckpointStatus) v1alpha1.VolumeCheckpointStatus {
	part.NodeName, part.VolumeName, part.VolumeHandle = status.NodeName, status.VolumeName, status.VolumeHandle
	part.Step, part.Decision = status.Step, status.Decision
	return *part.DeepCopy()
}

func TestReportAmounts(t *testing.T) {
	f := inState(testUID, Open)
	f.Open.Free, f.Open.BackedUp, f.Open.Changed, f.Open.Moved = 3*mebibyte-1, 2*mebibyte+1, 0, 7
	f.Open.Frozen = 12345 * time.Microsecond
	s := report(checkpoint(), outcome{facts: f}, opened)
	got := fmt.Sprintf("free %v, backed up %v, changed %v, moved %d, frozen %v, opened %v",
		s.FreeForBackups, s.BackedUp, s.Changed, *s.MovedBackups, s.FreezeDuration.Duration, s.CheckpointTime.UTC().Format(time.RFC3339))
	const want = "free 2Mi, backed up 3Mi, changed 0, moved 7, frozen 12.3ms, opened 2030-01-02T03:04:05Z"
	if got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
}

func TestWorthWriting(t *testing.T) {
	now := opened.Add(time.Hour)
	c := checkpoint()
	c.Status = merged(c.Status, report(c, outcome{facts: inState(testUID, Open)}, opened))
	failing := checkpoint()
	failing.Status = merged(failing.Status, report(failing, outcome{facts: deviceFails(inState(testUID, Open))}, opened))
	another := deviceFails(inState(testUID, Open))
	another.DeviceError = "another error"
	rollingBack := checkpoint(desired(v1alpha1.RolledBack))
	rollingBack.Status = merged(rollingBack.Status, report(rollingBack, outcome{facts: restoring(1, 1000, nil)}, opened))
	for _, test := range []struct {
		name   string
		c      *v1alpha1.VolumeCheckpoint
		facts  Facts
		passed time.Duration
		want   bool
	}{
		{"nothing", c, inState(testUID, Open), time.Hour, false},
		{"amount, at once", c, with(inState(testUID, Open), func(c *Checkpoint) { c.BackedUp *= 2 }), time.Second, false},
		{"amount, later", c, with(inState(testUID, Open), func(c *Checkpoint) { c.BackedUp *= 2 }), factsInterval, true},
		{"hardly an amount", c, with(inState(testUID, Open), func(c *Checkpoint) { c.BackedUp += mebibyte }), time.Hour, false},
		{"condition", c, with(inState(testUID, Open), func(c *Checkpoint) { c.OutOfSpace = true }), 0, true},
		{"device fails", c, deviceFails(inState(testUID, Open)), 0, true},
		{"device fails with the same", failing, deviceFails(inState(testUID, Open)), time.Hour, false},
		{"device fails with another error, at once", failing, another, time.Second, false},
		{"device fails with another error", failing, another, factsInterval, true},
		{"device fails no more", failing, inState(testUID, Open), 0, true},
		{"phase", c, inState(testUID, RollbackRequested), 0, true},
		{"end", c, endedAs(Committed), 0, true},
		{"progress, at once", rollingBack, restoring(500, 1000, nil), time.Second, false},
		{"progress", rollingBack, restoring(500, 1000, nil), progressInterval, true},
		{"no progress", rollingBack, restoring(1, 1000, nil), time.Hour, false},
	} {
		s := report(test.c, outcome{facts: test.facts}, now)
		if got := worthWriting(test.c, &s, now.Add(-test.passed), now); got != test.want {
			t.Errorf("%s, %v after the last report: worth writing is %v", test.name, test.passed, got)
		}
	}
}
