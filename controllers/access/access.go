// Package access lists what Bowline's controllers ask of the API server, for
// those who have to grant it. The tests of the controllers run with these rights
// and no others.
package access

import rbacv1 "k8s.io/api/rbac/v1"

// Controller returns the rights that `bowline controller` needs in the whole
// cluster. Besides, it needs to get, create and update leases of
// coordination.k8s.io in its own namespace, to be elected.
func Controller() []rbacv1.PolicyRule {
	rule := func(group string, resources []string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
	}
	return []rbacv1.PolicyRule{
		// Groups make checkpoints; label and finalizer are metadata.
		rule("bowline.dev", []string{"volumecheckpoints"}, "get", "list", "watch", "create", "patch"),
		rule("bowline.dev", []string{"volumecheckpointgroups"}, "get", "list", "watch", "patch"),
		rule("bowline.dev", []string{"volumecheckpoints/status", "volumecheckpointgroups/status"}, "patch"),
		// A checkpoint that a group made keeps the group from being deleted
		// before it, which some clusters ask this right for.
		rule("bowline.dev", []string{"volumecheckpointgroups/finalizers"}, "update"),
		// What a checkpoint is of. Of claims and nodes only metadata is
		// watched.
		rule("", []string{"persistentvolumeclaims"}, "get", "list", "watch"),
		rule("", []string{"persistentvolumes"}, "get"),
		rule("", []string{"nodes"}, "get", "list", "watch"),
		// Who uses it: for events, and for rollbacks with podPolicy Evict.
		rule("", []string{"pods"}, "list"),
		rule("", []string{"pods/eviction"}, "create"),
		// Verification of rollouts.
		rule("apps", []string{"deployments", "statefulsets"}, "get"),
		rule("events.k8s.io", []string{"events"}, "create"),
	}
}
