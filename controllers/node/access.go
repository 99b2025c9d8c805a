package node

import rbacv1 "k8s.io/api/rbac/v1"

// Access returns the rights that Run needs in the whole cluster. The tests run
// with these and no others.
func Access() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		{APIGroups: []string{"bowline.dev"}, Resources: []string{"volumecheckpoints"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{"bowline.dev"}, Resources: []string{"volumecheckpoints/status"}, Verbs: []string{"patch"}},
		// Metadata only, and only while a rollback waits for pods; without it
		// paths are shown in the place of their names.
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
	}
}
