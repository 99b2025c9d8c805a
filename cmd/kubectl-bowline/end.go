package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func newCommitCommand(c *cli) *cobra.Command {
	var w waiting
	var o output
	cmd := &cobra.Command{
		Use:   "commit CLAIM|CHECKPOINT",
		Short: "Drop a checkpoint and keep the volume as it is now",
		Long: `Drop the checkpoint of a claim and keep the volume as it is now. The pods that
use it notice nothing. It cannot be rolled back to any more.`,
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeCheckpoints(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runEnd(cmd.Context(), args[0], v1alpha1.Committed, false, &w, &o)
		},
	}
	w.addFlags(cmd, "it is committed")
	o.addFlag(cmd)
	return cmd
}

func newRollbackCommand(c *cli) *cobra.Command {
	var w waiting
	var o output
	var evict bool
	cmd := &cobra.Command{
		Use:   "rollback CLAIM|CHECKPOINT",
		Short: "Give a volume the content of its checkpoint again",
		Long: `Give the volume of a claim the content again that it had when the checkpoint was
opened. What was written since is lost.

It happens as soon as no pod uses the claim; until it is done, pods that want
the claim wait. Remove the pods by scaling their workload down, say, or have
them evicted (--evict), which respects disruption budgets. A workload that makes
new ones at once, as a StatefulSet does, gets them on the old content.

Once asked for, a rollback cannot be taken back.`,
		Example: `  kubectl bowline rollback data-postgres-0 --evict --wait`,
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runEnd(cmd.Context(), args[0], v1alpha1.RolledBack, evict, &w, &o)
		},
		ValidArgsFunction: c.completeCheckpoints(false),
	}
	cmd.Flags().BoolVar(&evict, "evict", false, "evict the pods that use the claim, and wait until that is accepted")
	w.addFlags(cmd, "it is rolled back")
	o.addFlag(cmd)
	return cmd
}

// runEnd makes want the desired state of a checkpoint.
func (c *cli) runEnd(ctx context.Context, arg string, want v1alpha1.DesiredState, evict bool, w *waiting, o *output) error {
	if err := o.check(); err != nil {
		return err
	}
	s, err := c.connect()
	if err != nil {
		return err
	}
	v, err := s.findToEnd(ctx, arg, want)
	if err != nil {
		return err
	}
	if v.EffectiveState() != want {
		if err := s.desire(ctx, v, want); err != nil {
			return err
		}
	}
	if !evict && !w.wait {
		s.sayf("checkpoint %s of claim %s is to be %s; 'kubectl bowline status vckpt/%s --watch' shows it",
			v.Name, v.Spec.PersistentVolumeClaimName, ended(want), v.Name)
		return s.print(o, v)
	}
	ctx, cancel := w.context(ctx)
	defer cancel()
	v, err = s.awaitEnd(ctx, client.ObjectKeyFromObject(v), want, evict, w.wait)
	if err != nil {
		return err
	}
	if !w.wait && unfinished(v) {
		s.sayf("checkpoint %s is rolled back as soon as the pods that use claim %s have ended", v.Name, v.Spec.PersistentVolumeClaimName)
	} else {
		s.sayf("checkpoint %s of claim %s is %s: %s", v.Name, v.Spec.PersistentVolumeClaimName, ended(want), story(v))
	}
	return s.print(o, v)
}

func ended(want v1alpha1.DesiredState) string {
	if want == v1alpha1.RolledBack {
		return "rolled back"
	}
	return "committed"
}

// findToEnd returns the checkpoint that arg means, if it can come to the end
// that is wanted. One that has come to it is fine: asking twice is no mistake.
func (s *session) findToEnd(ctx context.Context, arg string, want v1alpha1.DesiredState) (*v1alpha1.VolumeCheckpoint, error) {
	v, err := s.find(ctx, arg, true)
	if err != nil {
		return nil, err
	}
	if unfinished(v) {
		if now := v.EffectiveState(); now != v1alpha1.Checkpointed && now != want {
			return nil, statef("checkpoint %q is to be %s, which is final: %s", v.Name, ended(now), story(v))
		}
		if group := groupOf(v); group != "" && v.EffectiveState() != want {
			return nil, statef("checkpoint %[1]q belongs to group %[2]q, whose checkpoints end together: kubectl patch volumecheckpointgroup %[2]s -n %[3]s --type merge -p '{\"spec\":{\"desiredState\":\"%[4]s\"}}'",
				v.Name, group, v.Namespace, want)
		}
		return v, nil
	}
	wanted := v1alpha1.PhaseCommitted
	if want == v1alpha1.RolledBack {
		wanted = v1alpha1.PhaseRolledBack
	}
	if v.Status.Phase == wanted && v.EffectiveState() == want {
		return v, nil
	}
	return nil, statef("claim %q has no open checkpoint: the latest, %q, is %s: %s", v.Spec.PersistentVolumeClaimName, v.Name, phase(v), story(v))
}

// desire sets spec.desiredState.
func (s *session) desire(ctx context.Context, v *v1alpha1.VolumeCheckpoint, want v1alpha1.DesiredState) error {
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"desiredState":%q}}`, v.UID, want)
	err := s.Patch(ctx, v, client.RawPatch("application/merge-patch+json", patch), client.FieldOwner(fieldOwner))
	if err != nil {
		return fmt.Errorf("asking for checkpoint %s/%s to be %s: %w", v.Namespace, v.Name, ended(want), err)
	}
	return nil
}

// awaitEnd waits until a checkpoint has come to the end that is wanted or, if
// wait is not set, until the pods have been evicted.
func (s *session) awaitEnd(ctx context.Context, key client.ObjectKey, want v1alpha1.DesiredState, evict, wait bool) (*v1alpha1.VolumeCheckpoint, error) {
	p := newProgress(s.errOut)
	defer p.end()
	e := eviction{session: s}
	see := func(v *v1alpha1.VolumeCheckpoint) (bool, error) {
		if !unfinished(v) {
			if want == v1alpha1.RolledBack != (v.Status.Phase == v1alpha1.PhaseRolledBack) || v.Status.Phase == v1alpha1.PhaseFailed {
				return false, statef("checkpoint %q was not %s, it is %s: %s", v.Name, ended(want), phase(v), story(v))
			}
			return true, nil
		}
		if v.Status.Phase == v1alpha1.PhaseFailed && want == v1alpha1.RolledBack {
			return false, statef("checkpoint %q was not %s: %s", v.Name, ended(want), story(v))
		}
		if evict && v.Status.Phase == v1alpha1.PhaseRollbackPending {
			left, err := e.try(ctx, v)
			if err != nil {
				return false, err
			}
			if left != "" {
				p.say(left)
				return false, nil
			}
			if !wait {
				return true, nil
			}
		}
		if evict && !wait && v.Status.Phase == v1alpha1.PhaseRollingBack {
			return true, nil // nobody was left to evict
		}
		if !showRollback(p, v, s.now()) {
			p.say(fmt.Sprintf("%s: %s", v.Name, story(v)))
		}
		return false, nil
	}
	return s.followEvicting(ctx, key, evict, see)
}

// followEvicting is follow that calls see every few seconds as well if there may
// be evictions to try again.
func (s *session) followEvicting(ctx context.Context, key client.ObjectKey, evict bool, see func(*v1alpha1.VolumeCheckpoint) (bool, error)) (*v1alpha1.VolumeCheckpoint, error) {
	if !evict {
		return s.follow(ctx, key, see)
	}
	for {
		turn, cancel := context.WithTimeout(ctx, evictionInterval)
		v, err := s.follow(turn, key, see)
		due := turn.Err() != nil && ctx.Err() == nil
		cancel()
		if !due || err == nil || exitCode(err) != exitTimeout {
			return v, err
		}
	}
}

// showRollback shows how far a rollback has come, if it has begun.
func showRollback(p *progress, v *v1alpha1.VolumeCheckpoint, now time.Time) bool {
	r := v.Status.Rollback
	if r == nil {
		return false
	}
	switch v.Status.Phase {
	case v1alpha1.PhaseRollingBack:
		if r.BytesDone == nil || r.BytesTotal == nil {
			return false
		}
		p.bar(v.Name+": rolling back", *r.BytesDone, *r.BytesTotal, now)
	case v1alpha1.PhaseRollbackPending:
		if len(r.WaitingFor) == 0 {
			return false
		}
		p.say(fmt.Sprintf("%s: waiting until nobody uses the volume any more: %s", v.Name, strings.Join(r.WaitingFor, ", ")))
	default:
		return false
	}
	return true
}
