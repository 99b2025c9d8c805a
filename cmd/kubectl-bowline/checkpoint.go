package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// checkpointOptions are the flags of `kubectl bowline checkpoint`.
type checkpointOptions struct {
	name           string
	outOfSpace     string
	minimumFree    string
	podPolicy      string
	deadline       time.Duration
	deadlineAction string
	verify         string
	verifyTimeout  time.Duration
	waiting        waiting
	output         output
}

func newCheckpointCommand(c *cli) *cobra.Command {
	o := &checkpointOptions{}
	cmd := &cobra.Command{
		Use:   "checkpoint CLAIM",
		Short: "Open a checkpoint on the volume of a claim",
		Long: `Open a checkpoint on the volume of a claim, in use or not. From then on the
volume can be rolled back to what it is now, until the checkpoint is committed.

What is overwritten is kept in the free space of the volume itself. When there
is none left, --out-of-space says what gives way: writes fail (fail-writes), or
the checkpoint is dropped and writes go on (commit).`,
		Example: `  kubectl bowline checkpoint data-postgres-0 --name before-17 --wait
  # rolled back by itself unless the rollout succeeds within 15 minutes
  kubectl bowline checkpoint data-postgres-0 --verify statefulset/postgres --verify-timeout 15m --pod-policy evict
  # committed by itself after a day
  kubectl bowline checkpoint data-postgres-0 --deadline 24h --deadline-action commit`,
		Args:              usageArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: c.completeClaims,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.runCheckpoint(cmd.Context(), args[0], o)
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *checkpointOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "name of the checkpoint (default: the claim's with a random end)")
	f.StringVar(&o.outOfSpace, "out-of-space", "fail-writes", "what gives way when there is no free space left: fail-writes or commit")
	f.StringVar(&o.minimumFree, "minimum-free", "", "free space that there must be, and below which a warning is given, such as 2Gi")
	f.StringVar(&o.podPolicy, "pod-policy", "wait", "what a rollback does about pods that use the claim: wait until they are gone, or evict them")
	f.DurationVar(&o.deadline, "deadline", 0, "time after which the checkpoint is ended by itself, such as 2h; goes with --deadline-action")
	f.StringVar(&o.deadlineAction, "deadline-action", "", "what the deadline does: commit or roll-back")
	f.StringVar(&o.verify, "verify", "", "workload whose next rollout decides, deployment/NAME or statefulset/NAME: complete commits, failed rolls back")
	f.DurationVar(&o.verifyTimeout, "verify-timeout", 0, "time that the rollout may take (default 10m)")
	o.waiting.addFlags(cmd, "the checkpoint is open")
	o.output.addFlag(cmd)
	for flag, values := range map[string][]string{
		"out-of-space": {"fail-writes", "commit"}, "pod-policy": {"wait", "evict"}, "deadline-action": {"commit", "roll-back"},
		"verify": {"deployment/", "statefulset/"},
	} {
		must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)))
	}
}

// policy returns what the flags say.
func (o *checkpointOptions) policy() (p v1alpha1.CheckpointPolicy, err error) {
	if p.OutOfSpacePolicy, err = oneOf("out-of-space", o.outOfSpace, map[string]v1alpha1.OutOfSpacePolicy{
		"fail-writes": v1alpha1.OutOfSpaceFailWrites, "commit": v1alpha1.OutOfSpaceCommit}); err != nil {
		return p, err
	}
	pods, err := oneOf("pod-policy", o.podPolicy, map[string]v1alpha1.PodPolicy{"wait": v1alpha1.PodPolicyWait, "evict": v1alpha1.PodPolicyEvict})
	if err != nil {
		return p, err
	}
	if pods != v1alpha1.PodPolicyWait {
		p.Rollback = &v1alpha1.RollbackPolicy{PodPolicy: pods}
	}
	if o.minimumFree != "" {
		quantity, err := resource.ParseQuantity(o.minimumFree)
		if err != nil || quantity.Sign() <= 0 {
			return p, usagef("--minimum-free is %q, want an amount above zero such as 512Mi or 2Gi", o.minimumFree)
		}
		p.MinimumFree = &quantity
	}
	switch {
	case o.deadline < 0:
		return p, usagef("--deadline is %v, want a time above zero such as 30m or 24h", o.deadline)
	case (o.deadline > 0) != (o.deadlineAction != ""):
		return p, usagef("--deadline and --deadline-action go together: after how long, and whether to commit or to roll back then")
	case o.deadline > 0:
		action, err := oneOf("deadline-action", o.deadlineAction, map[string]v1alpha1.DeadlineAction{"commit": v1alpha1.DeadlineCommit, "roll-back": v1alpha1.DeadlineRollBack})
		if err != nil {
			return p, err
		}
		p.Deadline = &v1alpha1.Deadline{After: metav1.Duration{Duration: o.deadline}, Action: action}
	}
	if o.verify == "" {
		if o.verifyTimeout != 0 {
			return p, usagef("--verify-timeout goes with --verify")
		}
		return p, nil
	}
	kind, name, _ := strings.Cut(o.verify, "/")
	ref := v1alpha1.WorkloadRef{Name: name}
	switch strings.ToLower(kind) {
	case "deployment", "deployments", "deploy", "deployment.apps":
		ref.Kind = v1alpha1.WorkloadDeployment
	case "statefulset", "statefulsets", "sts", "statefulset.apps":
		ref.Kind = v1alpha1.WorkloadStatefulSet
	}
	if ref.Kind == "" || name == "" || o.verifyTimeout < 0 {
		return p, usagef("--verify is %q with --verify-timeout %v, want deployment/NAME or statefulset/NAME and a time above zero", o.verify, o.verifyTimeout)
	}
	p.Verify = &v1alpha1.Verify{WorkloadRef: ref}
	if o.verifyTimeout > 0 {
		p.Verify.Timeout = &metav1.Duration{Duration: o.verifyTimeout}
	}
	return p, nil
}

func oneOf[V any](flag, value string, values map[string]V) (V, error) {
	v, ok := values[value]
	if !ok {
		var known []string
		for k := range values {
			known = append(known, k)
		}
		return v, usagef("--%s is %q, want one of: %s", flag, value, strings.Join(sorted(known), ", "))
	}
	return v, nil
}

func (c *cli) runCheckpoint(ctx context.Context, arg string, o *checkpointOptions) error {
	policy, err := o.policy()
	if err != nil {
		return err
	}
	if err := o.output.check(); err != nil {
		return err
	}
	t, err := parseTarget(arg)
	if err != nil {
		return err
	}
	if !t.claim {
		return usagef("%q: a checkpoint is opened on a claim; --name gives it a name", arg)
	}
	s, err := c.connect()
	if err != nil {
		return err
	}
	if err := s.refuseSecond(ctx, t.name); err != nil {
		return err
	}
	created := &v1alpha1.VolumeCheckpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: o.name},
		Spec:       v1alpha1.VolumeCheckpointSpec{PersistentVolumeClaimName: t.name, CheckpointPolicy: policy},
	}
	if o.name == "" {
		// What the API server appends, and room for it.
		created.GenerateName = t.name[:min(len(t.name), 240)] + "-"
	}
	err = s.Create(ctx, created, client.FieldOwner(fieldOwner))
	if apierrors.IsAlreadyExists(err) {
		return statef("there is a checkpoint %q in namespace %q already; give this one another --name, or delete that one if it has ended", o.name, s.namespace)
	}
	if err != nil {
		return fmt.Errorf("creating a checkpoint of claim %s/%s: %w", s.namespace, t.name, err)
	}
	if !o.waiting.wait {
		s.sayf("checkpoint %s of claim %s is requested; 'kubectl bowline status vckpt/%s --watch' shows it", created.Name, t.name, created.Name)
		return s.print(&o.output, created)
	}
	ctx, cancel := o.waiting.context(ctx)
	defer cancel()
	now, err := s.awaitOpen(ctx, client.ObjectKeyFromObject(created))
	if err != nil {
		return err
	}
	s.sayf("checkpoint %s of claim %s is open: %s", now.Name, t.name, amounts(now))
	return s.print(&o.output, now)
}

// refuseSecond fails if the claim does not exist or has a checkpoint that has not
// ended: the controller would refuse another one, but later.
func (s *session) refuseSecond(ctx context.Context, claim string) error {
	if _, err := s.claim(ctx, claim); err != nil {
		return err
	}
	var list v1alpha1.VolumeCheckpointList
	if err := s.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return fmt.Errorf("listing the checkpoints of namespace %s: %w", s.namespace, err)
	}
	open, err := choose(list.Items, target{name: claim, claim: true}, false)
	if err != nil || open == nil {
		return err
	}
	if open.EffectiveState() != v1alpha1.Checkpointed {
		return nil // about to end, which the controller waits for
	}
	return statef("claim %q has checkpoint %q, which is %s, and a claim has one at a time; 'kubectl bowline commit %s' or 'kubectl bowline rollback %s' ends it",
		claim, open.Name, phase(open), claim, claim)
}

// awaitOpen waits until a checkpoint is open.
func (s *session) awaitOpen(ctx context.Context, key client.ObjectKey) (*v1alpha1.VolumeCheckpoint, error) {
	p := newProgress(s.errOut)
	defer p.end()
	return s.follow(ctx, key, func(c *v1alpha1.VolumeCheckpoint) (bool, error) {
		switch {
		case c.Status.Phase == v1alpha1.PhaseCheckpointed:
			return true, nil
		case c.Finished() || c.EffectiveState() != v1alpha1.Checkpointed:
			return false, statef("checkpoint %q was not opened, or not for long; it is %s: %s", c.Name, phase(c), story(c))
		}
		p.say(fmt.Sprintf("%s: %s", c.Name, story(c)))
		return false, nil
	})
}
