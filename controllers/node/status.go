package node

import (
	"context"
	"log/slog"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// worthWriting tells whether the node's part of the status of c is to be
// replaced by status: at once if anything but an amount differs, and after an
// interval if an amount differs by enough to matter. The last error of a device that
// fails is like an amount: each has another place on the disk.
func worthWriting(c *v1alpha1.VolumeCheckpoint, status *v1alpha1.VolumeCheckpointStatus, last, now time.Time) bool {
	before := nodePart(&c.Status)
	if !equality.Semantic.DeepEqual(withoutAmounts(&before), withoutAmounts(status)) {
		return true
	}
	if p, q := before.Rollback, status.Rollback; p != nil && q != nil && status.Phase == v1alpha1.PhaseRollingBack {
		return now.Sub(last) >= progressInterval && !equality.Semantic.DeepEqual(p, q)
	}
	// A little less, so that what is due every interval is not put off to the next.
	if now.Sub(last) < factsInterval*8/10 {
		return false
	}
	return differs(before.FreeForBackups, status.FreeForBackups) || differs(before.BackedUp, status.BackedUp) ||
		differs(before.Changed, status.Changed) || !equality.Semantic.DeepEqual(before.Conditions, status.Conditions)
}

// differs tells whether an amount differs by more than a hundredth.
func differs(a, b *resource.Quantity) bool {
	if a == nil || b == nil {
		return a != b
	}
	x, y := a.Value(), b.Value()
	return max(x-y, y-x)*100 > max(x, y)
}

// withoutAmounts returns a copy of the status that has only what is worth a
// write at once.
func withoutAmounts(s *v1alpha1.VolumeCheckpointStatus) *v1alpha1.VolumeCheckpointStatus {
	t := s.DeepCopy()
	if !t.Phase.Final() {
		t.FreeForBackups, t.BackedUp, t.Changed, t.MovedBackups = nil, nil, nil, nil
	}
	if t.Rollback != nil && !t.Phase.Final() {
		t.Rollback.BytesDone = nil
	}
	if failing := meta.FindStatusCondition(t.Conditions, v1alpha1.ConditionDeviceFailing); failing != nil {
		failing.Message = ""
	}
	return t
}

// write applies the node's part of the status of c. It fails if there is another
// object in the place of c. Otherwise it is done even if c has changed: facts do
// not depend on what was read, and by force: phase and Failed were the
// controller's until the node had something to say, see package v1alpha1.
func (r *reconciler) write(ctx context.Context, c *v1alpha1.VolumeCheckpoint, status v1alpha1.VolumeCheckpointStatus) error {
	object := &v1alpha1.VolumeCheckpoint{ObjectMeta: metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Name, UID: c.UID}}
	return apply.Status(ctx, r.client, object, &status, v1alpha1.FieldManagerNode)
}

// wrote notes that status was written in the place of that of c.
func (r *reconciler) wrote(log *slog.Logger, c *v1alpha1.VolumeCheckpoint, status *v1alpha1.VolumeCheckpointStatus, now time.Time) {
	r.change(client.ObjectKeyFromObject(c), func(m *memory) {
		m.written = now
		if reported(&v1alpha1.VolumeCheckpoint{Status: *status}) {
			m.opened = c.UID
		}
		if status.Over() {
			m.ended = c.UID
		}
	})
	if c.Status.Phase == status.Phase {
		return
	}
	log.Info("checkpoint is in another phase", "phase", string(status.Phase), "before", string(c.Status.Phase))
	switch {
	case status.Phase == v1alpha1.PhaseRolledBack:
		r.metrics.rollbacks.WithLabelValues(rollbackSuccess).Inc()
	case status.Phase == v1alpha1.PhaseFailed && status.Rollback != nil:
		r.metrics.rollbacks.WithLabelValues(rollbackFailed).Inc()
	}
}

// observe keeps what metrics tell of c.
func (r *reconciler) observe(key types.NamespacedName, c *v1alpha1.VolumeCheckpoint, f Facts) {
	switch {
	case ours(c, f.Open):
		r.metrics.observe(key, c.Spec.PersistentVolumeClaimName, f.Open)
		if f.Open.State == RollingBack && r.remember(key).restoring.IsZero() {
			r.change(key, func(m *memory) { m.restoring = r.now() })
		}
	case ended(c, f):
		r.metrics.observe(key, "", nil)
		if began := r.remember(key).restoring; !began.IsZero() && f.Last.Outcome == RolledBack {
			r.metrics.operation(string(doRollback), began, nil)
			r.change(key, func(m *memory) { m.restoring = time.Time{} })
		}
	}
}
