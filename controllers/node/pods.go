package node

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// podUID is the form of what the kubelet uses as a directory name for a pod.
var podUID = regexp.MustCompile(`^[0-9A-Za-z][-0-9A-Za-z]{7,62}$`)

// podOf returns the pod that has a volume at a target path. The kubelet names the
// pod there: file systems are at
//
//	<kubelet>/pods/<pod>/volumes/kubernetes.io~csi/<volume>/mount
//
// and raw block volumes at
//
//	<kubelet>/plugins/kubernetes.io/csi/volumeDevices/publish/<volume>/<pod>
//
// The result is "" for a path of another form.
func podOf(target string) types.UID {
	parts := strings.Split(filepath.Clean(target), string(filepath.Separator))
	for i, part := range parts {
		var uid string
		switch {
		case part == "pods" && len(parts) == i+6 && parts[i+2] == "volumes" && parts[i+5] == "mount":
			uid = parts[i+1]
		case part == "volumeDevices" && len(parts) == i+4 && parts[i+1] == "publish":
			uid = parts[i+3]
		}
		if podUID.MatchString(uid) {
			return types.UID(uid)
		}
	}
	return ""
}

// podNames turns target paths into the names of the pods that have a volume
// there, namespace/name, in order and each once. A path whose pod is not known
// stands for itself: somebody holds the volume there, and a person who looks for
// the reason of a rollback that waits must see it.
func podNames(namespace string, targets []string, names map[types.UID]string) []string {
	users := make([]string, 0, len(targets))
	for _, target := range targets {
		if name := names[podOf(target)]; name != "" {
			users = append(users, namespace+"/"+name)
		} else {
			users = append(users, target)
		}
	}
	slices.Sort(users)
	return slices.Compact(users)
}

// podsOnNode returns the names of the pods of a namespace that are on a node. Pods
// of other namespaces cannot use a claim of this one.
func podsOnNode(ctx context.Context, r client.Reader, namespace, node string) (map[types.UID]string, error) {
	var list metav1.PartialObjectMetadataList
	list.APIVersion, list.Kind = "v1", "PodList"
	err := r.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{"spec.nodeName": node})
	if err != nil {
		return nil, fmt.Errorf("listing the pods of namespace %s on node %s: %w", namespace, node, err)
	}
	names := make(map[types.UID]string, len(list.Items))
	for i := range list.Items {
		names[list.Items[i].UID] = list.Items[i].Name
	}
	return names, nil
}
