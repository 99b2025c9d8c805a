package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// SchemeGroupVersion is the group and version of this package's types.
var SchemeGroupVersion = schema.GroupVersion{Group: "bowline.dev", Version: "v1alpha1"}

// The kinds of this package, as they stand in owner references.
const (
	KindVolumeCheckpoint      = "VolumeCheckpoint"
	KindVolumeCheckpointGroup = "VolumeCheckpointGroup"
)

// AddToScheme registers this package's types.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(SchemeGroupVersion,
		&VolumeCheckpoint{}, &VolumeCheckpointList{},
		&VolumeCheckpointGroup{}, &VolumeCheckpointGroupList{},
	)
	metav1.AddToGroupVersion(scheme, SchemeGroupVersion)
	return nil
}
