// Package apply writes the fields of a status that one program owns, by
// server-side apply.
package apply

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Status makes the set fields of status, a pointer to the status type of
// object, those that manager owns of object's status. What manager owned before
// and is not set now is removed, or left to others that own it as well. A field
// that somebody else owns is taken over.
//
// The API server refuses with a conflict if object has changed since it was
// read and the resource version is set in it; without one, what is written does
// not depend on what was read. A condition whose transition time is not set
// gets the wrong one: [meta.SetStatusCondition] on the conditions as read sets
// it.
//
// [meta.SetStatusCondition]: https://pkg.go.dev/k8s.io/apimachinery/pkg/api/meta#SetStatusCondition
func Status(ctx context.Context, c client.Client, object client.Object, status any, manager string) error {
	kind, err := apiutil.GVKForObject(object, c.Scheme())
	if err != nil {
		return err
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(status)
	if err != nil {
		return fmt.Errorf("encoding the status of %s %s: %w", kind.Kind, client.ObjectKeyFromObject(object), err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": fields}}
	u.SetGroupVersionKind(kind)
	u.SetNamespace(object.GetNamespace())
	u.SetName(object.GetName())
	u.SetUID(object.GetUID()) // never that of a successor with the same name
	u.SetResourceVersion(object.GetResourceVersion())
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(manager), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("writing the status of %s %s: %w", kind.Kind, client.ObjectKeyFromObject(object), err)
	}
	return nil
}
