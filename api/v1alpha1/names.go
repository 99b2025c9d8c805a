package v1alpha1

// Names that other objects carry for Bowline.
const (
	// DriverName is the name of the CSI driver.
	DriverName = "csi.bowline.dev"

	// TopologyKey is the label of a node, and the key in the node affinity of
	// a volume, whose value is the name of the node that has the volume.
	TopologyKey = "topology.bowline.dev/node"

	// LabelNode is the label of a VolumeCheckpoint whose value is the name of
	// the node that has the volume. The controller sets it; nodes watch with it.
	LabelNode = "bowline.dev/node"

	// LabelGroup is the label of a VolumeCheckpoint that a VolumeCheckpointGroup
	// made. Its value is the UID of the group: names may be too long for labels.
	LabelGroup = "bowline.dev/group"

	// Finalizer keeps a VolumeCheckpoint, and a VolumeCheckpointGroup, until no
	// checkpoint of it is open any more.
	Finalizer = "bowline.dev/checkpoint-protection"

	// FieldManagerController and FieldManagerNode own the fields of status; the
	// package comment says which.
	FieldManagerController = "bowline-controller"
	FieldManagerNode       = "bowline-node"
)
