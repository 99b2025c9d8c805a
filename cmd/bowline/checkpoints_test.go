package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/bowline-csi/bowline/controllers/node"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/volume"
)

func TestFactsOf(t *testing.T) {
	const uid = "0c5ad37a-6a2a-4a37-9f65-2f7ee9b9a001"
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	open := volume.OpenCheckpoint{UID: "0C5AD37A6A2A4A379F652F7EE9B9A001", Opened: at, Free: 10, BackedUp: 20, Changed: 30, Moved: 2}
	last := func(o volume.Outcome, reason string) volume.Status {
		return volume.Status{Last: &volume.LastCheckpoint{UID: uid, Outcome: o, Reason: reason, At: at}}
	}
	ended := func(o node.Outcome, reason string) node.Facts {
		return node.Facts{Last: &node.Ended{ID: uid, Outcome: o, Reason: reason, At: at}}
	}
	for _, test := range []struct {
		name   string
		status volume.Status
		want   node.Facts
	}{
		{"nothing", volume.Status{Staged: true, Publishers: []string{"/a"}}, node.Facts{Staged: true, Publishers: []string{"/a"}}},
		{"open", volume.Status{Attached: true, Open: &open, Last: &volume.LastCheckpoint{UID: uid, Outcome: volume.Open, Frozen: time.Second}},
			node.Facts{Open: &node.Checkpoint{ID: uid, State: node.Open, Opened: at, Frozen: time.Second, Measured: true, Free: 10, BackedUp: 20, Changed: 30, Moved: 2}}},
		{"not attached", volume.Status{Open: &volume.OpenCheckpoint{UID: uid}}, node.Facts{Open: &node.Checkpoint{ID: uid, State: node.Open}}},
		{"marked", volume.Status{Open: &volume.OpenCheckpoint{UID: uid, RollbackRequested: true}, Rollback: &volume.RollbackStatus{WaitingFor: []string{"/a"}}},
			node.Facts{Open: &node.Checkpoint{ID: uid, State: node.RollbackRequested}, Rollback: &node.Rollback{WaitingFor: []string{"/a"}}}},
		{"restoring", volume.Status{Open: &volume.OpenCheckpoint{UID: uid, RollbackRequested: true}, Rollback: &volume.RollbackStatus{Running: true, Done: 1, Total: 2}},
			node.Facts{Open: &node.Checkpoint{ID: uid, State: node.RollingBack}, Rollback: &node.Rollback{Done: 1, Total: 2}}},
		{"verifying", volume.Status{Open: &volume.OpenCheckpoint{UID: uid, RollbackRequested: true}, Rollback: &volume.RollbackStatus{Running: true, Verifying: true, Done: 1, Total: 2}},
			node.Facts{Open: &node.Checkpoint{ID: uid, State: node.RollingBack}, Rollback: &node.Rollback{Done: 0, Total: 2}}},
		{"device fails", volume.Status{Failures: volume.Failures{Count: 3, Last: "input/output error", At: time.Now()}}, node.Facts{DeviceError: "input/output error"}},
		{"device has failed", volume.Status{Failures: volume.Failures{Count: 3, Last: "input/output error", At: time.Now().Add(-time.Hour)}}, node.Facts{}},
		{"committed", last(volume.Committed, ""), ended(node.Committed, "")},
		{"rolled back", last(volume.RolledBack, ""), ended(node.RolledBack, "")},
		{"out of space", last(volume.Committed, volume.ReasonOutOfSpace), ended(node.OutOfSpace, "")},
		{"outside", last(volume.Committed, volume.ReasonOutside), ended(node.Lost, "It was ended by other means, by 'bowline device' for instance.")},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := factsOf(test.status); !reflect.DeepEqual(got, test.want) {
				t.Errorf("facts %+v %+v %+v, want %+v %+v %+v", got, got.Open, got.Last, test.want, test.want.Open, test.want.Last)
			}
		})
	}
}

func TestForNode(t *testing.T) {
	for from, to := range map[error]error{
		volume.ErrEngineDown: node.ErrEngineDown, volume.ErrDamaged: node.ErrDamaged, pool.ErrNotFound: node.ErrNotFound,
		pool.ErrForeign: node.ErrNotFound, volume.ErrNotFrozen: node.ErrNotFrozen, volume.ErrCheckpointOpen: node.ErrCheckpointOpen,
		volume.ErrRollbackPending: node.ErrRollbackPending, volume.ErrNoSpace: node.ErrNoSpace, volume.ErrInUse: node.ErrBusy,
		context.DeadlineExceeded: node.ErrBusy,
	} {
		err := forNode(fmt.Errorf("volume x: %w", from))
		if !errors.Is(err, to) || !errors.Is(err, from) {
			t.Errorf("%v became %v, want also %v", from, err, to)
		}
	}
	if err := forNode(nil); err != nil {
		t.Errorf("nothing became %v", err)
	}
	other := errors.New("other")
	if err := forNode(other); err != other {
		t.Errorf("another error became %v", err)
	}
}
