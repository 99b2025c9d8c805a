package main

import (
	"context"
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// completionLimit is how long a shell waits for names.
const completionLimit = 3 * time.Second

// completion asks the cluster for what a shell may complete. What goes wrong
// completes nothing.
func (c *cli) completion(cmd *cobra.Command, ask func(context.Context, *session) ([]cobra.Completion, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
	defer cancel()
	s, err := c.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	found, err := ask(ctx, s)
	if err != nil {
		cobra.CompErrorln(err.Error())
		return nil, cobra.ShellCompDirectiveError
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeClaims completes claims that are bound.
func (c *cli) completeClaims(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completion(cmd, func(ctx context.Context, s *session) (found []cobra.Completion, err error) {
		var list corev1.PersistentVolumeClaimList
		if err := s.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
			return nil, fmt.Errorf("listing the claims of namespace %s: %w", s.namespace, err)
		}
		for _, claim := range list.Items {
			if claim.Status.Phase == corev1.ClaimBound {
				found = append(found, claim.Name)
			}
		}
		return found, nil
	})
}

// completeCheckpoints completes checkpoints, and the claims that have them; those
// that have ended only where they will do.
func (c *cli) completeCheckpoints(endedToo bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.completion(cmd, func(ctx context.Context, s *session) (found []cobra.Completion, err error) {
			var list v1alpha1.VolumeCheckpointList
			if err := s.List(ctx, &list, client.InNamespace(s.namespace)); err != nil {
				return nil, fmt.Errorf("listing the checkpoints of namespace %s: %w", s.namespace, err)
			}
			claims := map[string]bool{}
			for i := range list.Items {
				v := &list.Items[i]
				if !endedToo && !unfinished(v) {
					continue
				}
				claim := v.Spec.PersistentVolumeClaimName
				if !claims[claim] {
					claims[claim] = true
					found = append(found, cobra.CompletionWithDesc(claim, "claim"))
				}
				found = append(found, cobra.CompletionWithDesc(v.Name, phase(v)+" checkpoint of "+claim))
			}
			return found, nil
		})
	}
}

func (c *cli) completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return c.completion(cmd, func(ctx context.Context, s *session) (found []cobra.Completion, err error) {
		var list corev1.NamespaceList
		if err := s.List(ctx, &list); err != nil {
			return nil, fmt.Errorf("listing namespaces: %w", err)
		}
		for _, namespace := range list.Items {
			found = append(found, namespace.Name)
		}
		return found, nil
	})
}

func (c *cli) completeContexts(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	config, err := c.config().RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var found []cobra.Completion
	for name := range config.Contexts {
		found = append(found, name)
	}
	return sorted(found), cobra.ShellCompDirectiveNoFileComp
}
