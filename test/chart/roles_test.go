package chart

import (
	"maps"
	"slices"
	"testing"

	"github.com/bowline-csi/bowline/controllers/access"
	"github.com/bowline-csi/bowline/controllers/node"
	rbacv1 "k8s.io/api/rbac/v1"
)

// The rights of each part are those that its program says it needs, and those of
// the sidecar beside it.
func TestRoles(t *testing.T) {
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	o := render(t, "")
	for role, want := range map[string][]rbacv1.PolicyRule{
		"bowline-node": append(node.Access(),
			rule("", "persistentvolumes", "get", "list", "watch", "create", "patch", "delete"),
			rule("", "persistentvolumeclaims", "get", "list", "watch", "update"),
			rule("storage.k8s.io", "storageclasses", "get", "list", "watch"),
			rule("", "events", "create", "patch")),
		"bowline-controller": append(access.Controller(),
			rule("", "persistentvolumes", "list", "watch", "patch"),
			rule("", "persistentvolumeclaims/status", "patch"),
			rule("", "events", "create", "patch")),
	} {
		equalRights(t, role, get[rbacv1.ClusterRole](t, o, "ClusterRole/"+role).Rules, want)
	}
	equalRights(t, "bowline-node in its namespace", get[rbacv1.Role](t, o, "Role/bowline-node").Rules, []rbacv1.PolicyRule{
		rule("storage.k8s.io", "csistoragecapacities", "get", "list", "watch", "create", "update", "delete"),
		rule("", "pods", "get"),
	})
	equalRights(t, "bowline-controller in its namespace", get[rbacv1.Role](t, o, "Role/bowline-controller").Rules, []rbacv1.PolicyRule{
		rule("coordination.k8s.io", "leases", "get", "create", "update"),
	})
}

func equalRights(t *testing.T, who string, got, want []rbacv1.PolicyRule) {
	t.Helper()
	rights := func(rules []rbacv1.PolicyRule) map[string]bool {
		all := map[string]bool{}
		for _, r := range rules {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					for _, verb := range r.Verbs {
						all[verb+" "+group+"/"+resource] = true
					}
				}
			}
		}
		return all
	}
	has, needs := rights(got), rights(want)
	for _, right := range slices.Sorted(maps.Keys(has)) {
		if !needs[right] {
			t.Errorf("%s may %s and does not need it", who, right)
		}
	}
	for _, right := range slices.Sorted(maps.Keys(needs)) {
		if !has[right] {
			t.Errorf("%s may not %s", who, right)
		}
	}
}
