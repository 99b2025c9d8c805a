package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// target is what a person has named: a claim, a checkpoint, or either.
type target struct {
	name              string
	claim, checkpoint bool // which of them it may be
}

func parseTarget(arg string) (target, error) {
	kind, name, qualified := strings.Cut(arg, "/")
	if !qualified {
		return target{arg, true, true}, nil
	}
	switch strings.ToLower(kind) {
	case "pvc", "persistentvolumeclaim", "persistentvolumeclaims", "claim":
		return target{name, true, false}, nil
	case "vckpt", "volumecheckpoint", "volumecheckpoints", "volumecheckpoint.bowline.dev", "volumecheckpoints.bowline.dev", "checkpoint":
		return target{name, false, true}, nil
	}
	return target{}, usagef("%q: %q is neither a claim (pvc/NAME) nor a checkpoint (vckpt/NAME)", arg, kind)
}

// unfinished tells whether a checkpoint is open, or will be.
func unfinished(c *v1alpha1.VolumeCheckpoint) bool { return !c.Finished() || c.OnVolume() }

// find returns the checkpoint that arg means: the one with that name, or the
// one of that claim that has not ended or else, if ended ones will do, its latest.
func (s *session) find(ctx context.Context, arg string, endedToo bool) (*v1alpha1.VolumeCheckpoint, error) {
	t, err := parseTarget(arg)
	if err != nil {
		return nil, err
	}
	var list v1alpha1.VolumeCheckpointList
	if err := s.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return nil, fmt.Errorf("listing the checkpoints of namespace %s: %w", s.namespace, err)
	}
	c, err := choose(list.Items, t, endedToo)
	if c != nil || err != nil {
		return c, err
	}
	return nil, s.explainNone(ctx, t, list.Items)
}

// choose returns the checkpoint of list that t means, nil if there is none.
func choose(list []v1alpha1.VolumeCheckpoint, t target, endedToo bool) (*v1alpha1.VolumeCheckpoint, error) {
	var named *v1alpha1.VolumeCheckpoint
	var going, ended []*v1alpha1.VolumeCheckpoint
	for i := range list {
		c := &list[i]
		if t.checkpoint && c.Name == t.name {
			named = c
		}
		switch {
		case !t.claim || c.Spec.PersistentVolumeClaimName != t.name:
		case unfinished(c):
			going = append(going, c)
		default:
			ended = append(ended, c)
		}
	}
	slices.SortFunc(going, firstOnVolume)
	slices.SortFunc(ended, latestFirst)
	switch {
	case named != nil && named.Spec.PersistentVolumeClaimName != t.name && len(going) > 0:
		return nil, usagef("%[1]q is a checkpoint of claim %[2]q, and also a claim, which has checkpoint %[3]q: say vckpt/%[1]s or pvc/%[1]s", t.name, named.Spec.PersistentVolumeClaimName, going[0].Name)
	case named != nil && (endedToo || unfinished(named)):
		return named, nil
	case len(going) > 1 && !going[0].OnVolume():
		return nil, statef("claim %q has several checkpoints and none is open yet: %s; name one of them", t.name, names(going))
	case len(going) > 0:
		return going[0], nil
	case endedToo && len(ended) > 0:
		return ended[0], nil
	}
	return nil, nil
}

// explainNone returns why there is no checkpoint to be had for t.
func (s *session) explainNone(ctx context.Context, t target, list []v1alpha1.VolumeCheckpoint) error {
	ended := slices.DeleteFunc(slices.Clone(list), func(c v1alpha1.VolumeCheckpoint) bool {
		return !(t.checkpoint && c.Name == t.name) && !(t.claim && c.Spec.PersistentVolumeClaimName == t.name)
	})
	slices.SortFunc(ended, func(a, b v1alpha1.VolumeCheckpoint) int { return latestFirst(&a, &b) })
	if len(ended) > 0 {
		c := &ended[0]
		return statef("claim %q has no open checkpoint: the latest, %q, is %s; 'kubectl bowline checkpoint %s' opens another",
			c.Spec.PersistentVolumeClaimName, c.Name, c.Status.Phase, c.Spec.PersistentVolumeClaimName)
	}
	if !t.claim {
		return notFoundError{fmt.Errorf("there is no checkpoint %q in namespace %q; 'kubectl bowline list -n %s' lists them", t.name, s.namespace, s.namespace)}
	}
	if _, err := s.claim(ctx, t.name); err != nil {
		if !apierrors.IsNotFound(err) || !t.checkpoint {
			return err
		}
		return notFoundError{fmt.Errorf("there is no claim and no checkpoint %q in namespace %q; is it another namespace (-n)?", t.name, s.namespace)}
	}
	return statef("claim %q has no checkpoint; 'kubectl bowline checkpoint %s' opens one", t.name, t.name)
}

// claim returns a claim of the session's namespace.
func (s *session) claim(ctx context.Context, name string) (*corev1.PersistentVolumeClaim, error) {
	var claim corev1.PersistentVolumeClaim
	err := s.Get(ctx, types.NamespacedName{Namespace: s.namespace, Name: name}, &claim)
	if apierrors.IsNotFound(err) {
		return nil, notFoundError{fmt.Errorf("there is no claim %q in namespace %q: %w", name, s.namespace, err)}
	}
	if err != nil {
		return nil, fmt.Errorf("reading claim %s/%s: %w", s.namespace, name, err)
	}
	return &claim, nil
}

// groupOf returns the name of the group that made c, "" if none did.
func groupOf(c *v1alpha1.VolumeCheckpoint) string {
	if owner := metav1.GetControllerOf(c); owner != nil && owner.Kind == v1alpha1.KindVolumeCheckpointGroup {
		return owner.Name
	}
	return ""
}

func firstOnVolume(a, b *v1alpha1.VolumeCheckpoint) int {
	if a.OnVolume() != b.OnVolume() {
		if a.OnVolume() {
			return -1
		}
		return 1
	}
	return -latestFirst(a, b)
}

func latestFirst(a, b *v1alpha1.VolumeCheckpoint) int {
	return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(b.Name, a.Name))
}

func names(list []*v1alpha1.VolumeCheckpoint) string {
	var all []string
	for _, c := range list {
		all = append(all, c.Name)
	}
	return strings.Join(all, ", ")
}
