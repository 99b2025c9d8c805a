package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func newStatusCommand(c *cli) *cobra.Command {
	var o output
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [CLAIM|CHECKPOINT]",
		Short: "Show how a checkpoint stands, or which ones are open",
		Long: `Show how the checkpoint of a claim stands: the open one, or else the latest.
Without an argument, list the checkpoints of the namespace that have not ended.

--watch shows what changes until the checkpoint has ended.`,
		Args:              usageArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: c.completeCheckpoints(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if len(args) == 0 {
				if watch {
					return usagef("--watch needs the claim or checkpoint to watch; 'kubectl get vckpt --watch' watches all")
				}
				return c.runList(cmd.Context(), &o, false, func(v *v1alpha1.VolumeCheckpoint) bool { return unfinished(v) })
			}
			return c.runStatus(cmd.Context(), args[0], &o, watch)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show what changes until the checkpoint has ended")
	o.addFlag(cmd)
	return cmd
}

func (c *cli) runStatus(ctx context.Context, arg string, o *output, watch bool) error {
	s, err := c.connect()
	if err != nil {
		return err
	}
	v, err := s.find(ctx, arg, true)
	if err != nil {
		return err
	}
	if watch {
		if v, err = s.watchStatus(ctx, client.ObjectKeyFromObject(v), o); err != nil {
			return err
		}
		if o.format != "" {
			return nil // written already
		}
	}
	if o.format != "" {
		return s.print(o, v)
	}
	return s.describe(s.out, v)
}

// watchStatus shows what becomes of a checkpoint until it has ended.
func (s *session) watchStatus(ctx context.Context, key client.ObjectKey, o *output) (*v1alpha1.VolumeCheckpoint, error) {
	p := newProgress(s.errOut)
	defer p.end()
	return s.follow(ctx, key, func(v *v1alpha1.VolumeCheckpoint) (bool, error) {
		if o.format != "" {
			if err := s.print(o, v.DeepCopy()); err != nil {
				return false, err
			}
		} else if !showRollback(p, v, s.now()) {
			text := fmt.Sprintf("%s: %s: %s", v.Name, phase(v), story(v))
			if v.Status.Phase == v1alpha1.PhaseCheckpointed {
				text = fmt.Sprintf("%s: %s: %s free for backups, %s backed up, %s changed", v.Name, phaseColumn(v),
					quantity(v.Status.FreeForBackups), quantity(v.Status.BackedUp), quantity(v.Status.Changed))
			}
			p.say(text)
		}
		return !unfinished(v), nil
	})
}

func newListCommand(c *cli) *cobra.Command {
	var o output
	var all bool
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List checkpoints, those that have ended as well",
		Args:              usageArgs(cobra.NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return c.runList(cmd.Context(), &o, all, func(*v1alpha1.VolumeCheckpoint) bool { return true })
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	o.addFlag(cmd)
	return cmd
}

func (c *cli) runList(ctx context.Context, o *output, all bool, include func(*v1alpha1.VolumeCheckpoint) bool) error {
	s, err := c.connect()
	if err != nil {
		return err
	}
	where := []client.ListOption{client.InNamespace(s.namespace)}
	if all {
		where = nil
	}
	var list v1alpha1.VolumeCheckpointList
	if err := s.List(ctx, &list, where...); err != nil {
		return fmt.Errorf("listing checkpoints: %w", err)
	}
	list.Items = slices.DeleteFunc(list.Items, func(v v1alpha1.VolumeCheckpoint) bool { return !include(&v) })
	slices.SortFunc(list.Items, func(a, b v1alpha1.VolumeCheckpoint) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Spec.PersistentVolumeClaimName, b.Spec.PersistentVolumeClaimName), latestFirst(&b, &a))
	})
	switch {
	case o.format != "":
		return s.printList(o, &list)
	case len(list.Items) == 0 && all:
		s.sayf("no checkpoints in any namespace")
		return nil
	case len(list.Items) == 0:
		s.sayf("no checkpoints in namespace %s", s.namespace)
		return nil
	}
	return s.table(s.out, list.Items, all)
}
