package group

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/apply"
	"github.com/bowline-csi/bowline/controllers/checkpoint"
	"github.com/bowline-csi/bowline/controllers/fixture"
	"github.com/bowline-csi/bowline/test/apiserver"
)

func TestMain(m *testing.M) { apiserver.Main(m) }

// A group of three claims, and nodes that do what they are told.
type group struct {
	*fixture.Fixture
	nodes *nodes
}

func newGroup(t *testing.T) *group {
	t.Helper()
	// The clock stands still: a machine with much else to do must not be what
	// makes a group too slow.
	start := time.Now()
	now := func() time.Time { return start }
	f := fixture.New(t, func(ctx context.Context, m ctrl.Manager, _ func() time.Time, log *slog.Logger) error {
		events := &checkpoint.Events{Client: m.GetClient(), Instance: "test", Log: log}
		checkpoints := &checkpoint.Reconciler{Client: m.GetClient(), Live: m.GetAPIReader(), Events: events, Now: now, Log: log}
		if err := checkpoints.SetUp(ctx, m); err != nil {
			return err
		}
		r := &Reconciler{Client: m.GetClient(), Live: m.GetAPIReader(), Events: events, Now: now, Log: log}
		return r.SetUp(m)
	})
	return &group{f, &nodes{Fixture: f, refuse: make(map[string]v1alpha1.Step)}}
}

// create makes the group.
func (g *group) create(policy v1alpha1.CheckpointPolicy) {
	g.Helper()
	g.Create(&v1alpha1.VolumeCheckpointGroup{
		ObjectMeta: metav1.ObjectMeta{Name: "all"},
		Spec: v1alpha1.VolumeCheckpointGroupSpec{
			Selector:         metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
			CheckpointPolicy: policy,
		},
	})
}

var claims = []string{"data-0", "data-1", "log-0"}

// claims makes the claims, bound to volumes of one node.
func (g *group) claims() {
	g.Helper()
	node := g.Node()
	for _, name := range claims {
		c := g.Claim(name)
		c.Labels = map[string]string{"app": "db"}
		g.Bind(c, v1alpha1.DriverName, node.Name)
	}
	g.Claim("unrelated")
}

func (g *group) get() *v1alpha1.VolumeCheckpointGroup {
	g.Helper()
	var found v1alpha1.VolumeCheckpointGroup
	if err := g.Client.Get(g.Context(), types.NamespacedName{Namespace: g.Namespace, Name: "all"}, &found); err != nil {
		g.Fatal(err)
	}
	return &found
}

func (g *group) wait(what string, holds func(*v1alpha1.VolumeCheckpointGroup) bool) *v1alpha1.VolumeCheckpointGroup {
	g.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		found := g.get()
		if holds(found) {
			return found
		}
		if time.Now().After(deadline) {
			g.Fatalf("the group never %s; status %+v", what, found.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *group) waitPhase(p v1alpha1.Phase) *v1alpha1.VolumeCheckpointGroup {
	g.Helper()
	return g.wait("was "+string(p), func(found *v1alpha1.VolumeCheckpointGroup) bool { return found.Status.Phase == p })
}

func (g *group) want(state v1alpha1.DesiredState) {
	g.Helper()
	found := g.get()
	before := found.DeepCopy()
	found.Spec.DesiredState = state
	if err := g.Client.Patch(g.Context(), found, client.MergeFrom(before)); err != nil {
		g.Fatal(err)
	}
}

// nodes do what members' checkpoints ask for.
type nodes struct {
	*fixture.Fixture
	mu      sync.Mutex
	refuse  map[string]v1alpha1.Step // by claim, what fails
	history []string                 // CLAIM PHASE
}

// run works until the test ends.
func (n *nodes) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			var list v1alpha1.VolumeCheckpointList
			if err := n.Client.List(ctx, &list, client.InNamespace(n.Namespace)); err == nil {
				for i := range list.Items {
					n.obey(ctx, &list.Items[i])
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
}

func (n *nodes) obey(ctx context.Context, c *v1alpha1.VolumeCheckpoint) {
	claim, now := c.Spec.PersistentVolumeClaimName, metav1.Now()
	s := v1alpha1.VolumeCheckpointStatus{Phase: c.Status.Phase, CheckpointTime: c.Status.CheckpointTime}
	open := meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionCheckpointed)
	n.mu.Lock()
	refused := n.refuse[claim] == c.Status.Step
	n.mu.Unlock()
	become := func(p v1alpha1.Phase, condition, reason string) {
		s.Phase = p
		if condition != "" {
			cond := fixture.Is(condition, reason)
			cond.LastTransitionTime = now
			s.Conditions = append(s.Conditions, cond)
		}
	}
	switch step := c.Status.Step; {
	case c.Finished() || step == "":
		return
	case step == v1alpha1.StepAbort:
		become(v1alpha1.PhaseFailed, v1alpha1.ConditionFailed, v1alpha1.ReasonAborted)
	case c.EffectiveState() == v1alpha1.Committed:
		become(v1alpha1.PhaseCommitted, v1alpha1.ConditionCommitted, v1alpha1.ReasonCommitted)
	case c.EffectiveState() == v1alpha1.RolledBack && open:
		become(v1alpha1.PhaseRolledBack, v1alpha1.ConditionRolledBack, v1alpha1.ReasonRolledBack)
	case refused:
		become(v1alpha1.PhaseFailed, v1alpha1.ConditionFailed, v1alpha1.ReasonFreezeExpired)
	case step == v1alpha1.StepPrepare && c.Status.Phase != v1alpha1.PhasePrepared:
		become(v1alpha1.PhasePrepared, "", "")
	case step == v1alpha1.StepFreeze && c.Status.Phase != v1alpha1.PhaseFrozen:
		become(v1alpha1.PhaseFrozen, "", "")
	case step == v1alpha1.StepSwitch && !open:
		s.CheckpointTime = &now
		become(v1alpha1.PhaseCheckpointed, v1alpha1.ConditionCheckpointed, v1alpha1.ReasonOpen)
	default:
		return
	}
	n.mu.Lock()
	n.history = append(n.history, fmt.Sprint(claim, " ", s.Phase))
	n.mu.Unlock()
	c.ResourceVersion = ""
	_ = apply.Status(ctx, n.Client, c, &s, v1alpha1.FieldManagerNode) // again, if it failed
}

// first returns where in the history the first claim came to that phase.
func (n *nodes) first(p v1alpha1.Phase) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.IndexFunc(n.history, func(h string) bool { return h[len(h)-len(p):] == string(p) })
}

// frozenBefore is how many claims were frozen before entry i of the history.
func (n *nodes) frozenBefore(i int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := make(map[string]bool)
	for _, h := range n.history[:i] {
		if p := string(v1alpha1.PhaseFrozen); h[max(0, len(h)-len(p)):] == p {
			seen[h] = true
		}
	}
	return len(seen)
}

func TestTogether(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end   func(g *group)
		phase v1alpha1.Phase
		gone  bool
	}{
		"commit":    {end: func(g *group) { g.want(v1alpha1.Committed) }, phase: v1alpha1.PhaseCommitted},
		"roll back": {end: func(g *group) { g.want(v1alpha1.RolledBack) }, phase: v1alpha1.PhaseRolledBack},
		"delete":    {end: func(g *group) { g.Delete(g.get()) }, gone: true},
		"one deleted": {end: func(g *group) {
			g.Delete(g.Get(checkpointName("all", claims[1])))
		}, phase: v1alpha1.PhaseCommitted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGroup(t)
			g.claims()
			g.nodes.run()
			g.create(v1alpha1.CheckpointPolicy{})
			found := g.wait("was open", func(found *v1alpha1.VolumeCheckpointGroup) bool {
				return meta.IsStatusConditionTrue(found.Status.Conditions, v1alpha1.ConditionCheckpointed)
			})
			if found.Status.Phase != v1alpha1.PhaseCheckpointed || found.Status.Claims != 3 || found.Status.CheckpointTime == nil {
				t.Errorf("open: %+v", found.Status)
			}
			if i := g.nodes.first(v1alpha1.PhaseCheckpointed); g.nodes.frozenBefore(i) != 3 {
				t.Errorf("a checkpoint was opened before all were frozen: %v", g.nodes.history)
			}
			g.WantEvents("all", v1alpha1.EventCheckpointOpened)
			test.end(g)
			if test.gone {
				g.waitGone()
			} else {
				found = g.waitPhase(test.phase)
				if found.Status.CompletionTime == nil {
					t.Error("no completion time")
				}
			}
			for _, m := range found.Status.Members {
				if test.phase != "" && m.Phase != test.phase {
					t.Errorf("claim %s: %s", m.Claim, m.Phase)
				}
			}
		})
	}
}

// If one cannot, none does.
func TestNone(t *testing.T) {
	t.Parallel()
	for _, step := range []v1alpha1.Step{v1alpha1.StepPrepare, v1alpha1.StepFreeze, v1alpha1.StepSwitch} {
		t.Run(string(step), func(t *testing.T) {
			t.Parallel()
			g := newGroup(t)
			g.nodes.refuse[claims[1]] = step
			g.claims()
			g.nodes.run()
			g.create(v1alpha1.CheckpointPolicy{})
			found := g.waitPhase(v1alpha1.PhaseFailed)
			f := meta.FindStatusCondition(found.Status.Conditions, v1alpha1.ConditionFailed)
			if f == nil || f.Reason != v1alpha1.ReasonMemberFailed {
				t.Errorf("conditions %+v", found.Status.Conditions)
			}
			g.WantEvents("all", v1alpha1.EventCheckpointFailed)
			for _, m := range found.Status.Members {
				if c := g.Get(m.Checkpoint); c.OnVolume() {
					t.Errorf("claim %s has a checkpoint: %+v", m.Claim, c.Status)
				}
			}
			g.Delete(found)
			g.waitGone()
		})
	}
}

// Claims that are not bound keep a group waiting; deletion then has nothing to
// wait for.
func TestWaits(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	g.create(v1alpha1.CheckpointPolicy{})
	g.wait("waited for claims", func(found *v1alpha1.VolumeCheckpointGroup) bool {
		a := meta.FindStatusCondition(found.Status.Conditions, v1alpha1.ConditionAccepted)
		return a != nil && a.Reason == v1alpha1.ReasonNoClaims
	})
	g.label(g.Claim("data-0").Name)
	g.wait("waited for the binding", func(found *v1alpha1.VolumeCheckpointGroup) bool {
		a := meta.FindStatusCondition(found.Status.Conditions, v1alpha1.ConditionAccepted)
		return a != nil && a.Reason == v1alpha1.ReasonClaimNotBound
	})
	g.Delete(g.get())
	g.waitGone()
}

func (g *group) label(claim string) {
	g.Helper()
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: claim}}
	if err := g.Client.Patch(g.Context(), c, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"db"}}}`))); err != nil {
		g.Fatal(err)
	}
}

func (g *group) waitGone() {
	g.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var found v1alpha1.VolumeCheckpointGroup
		err := g.Client.Get(g.Context(), types.NamespacedName{Namespace: g.Namespace, Name: "all"}, &found)
		if client.IgnoreNotFound(err) != nil {
			g.Fatal(err)
		}
		if err != nil {
			return
		}
		if time.Now().After(deadline) {
			g.Fatalf("the group never went: %+v", found.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
