// Package csi is the services of the Container Storage Interface, version 1.13:
// identity, controller and node. They check what a request says, call packages
// pool and volume, and give errors the codes of the specification. They keep
// nothing.
//
// The controller service runs on every node beside the node service and makes
// volumes of that node only: external-provisioner runs there too, with
// --node-deployment. A volume never leaves its node; the segment TopologyKey says
// which one that is.
//
// Expansion is done on the node alone, so external-resizer has nothing to do but
// to pass the new size on. What it asks for that is answered by package
// controllers/expansion.
package csi

import spec "github.com/container-storage-interface/spec/lib/go/csi"

// DriverName is the name of the driver in StorageClasses, PersistentVolumes and
// CSIDriver. It can never change: volumes are tied to it.
const DriverName = "csi.bowline.dev"

// TopologyKey is the label of nodes that says where a volume is. Its value is the
// name of the node.
const TopologyKey = "topology.bowline.dev/node"

// topology is where the volumes of a node can be used: there.
func topology(node string) *spec.Topology {
	return &spec.Topology{Segments: map[string]string{TopologyKey: node}}
}
