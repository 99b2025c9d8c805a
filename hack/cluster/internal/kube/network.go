package kube

import "fmt"

// The addresses of a cluster. They mean something only in the machines'
// network namespaces, so every cluster has the same.
const (
	// ControlPlaneAddress is the machine of the control plane, where also the
	// switch is that joins all machines.
	ControlPlaneAddress = "10.250.0.1"
	// PrefixLength is that of the network of the machines.
	PrefixLength = 24
	// APIPort is where the API server listens on that machine.
	APIPort = 6443

	podNetwork     = "10.244.0.0/16"
	serviceNetwork = "10.96.0.0/16"
	serviceAddress = "10.96.0.1" // of the API server, for pods
)

// MaxNodes is how many nodes the addresses are laid out for.
const MaxNodes = 9

// APIAddress is where machines and pods reach the API server.
var APIAddress = fmt.Sprintf("%s:%d", ControlPlaneAddress, APIPort)

// NodeName is the name of the i-th node, counted from 1.
func NodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// NodeAddress is the address of the i-th node.
func NodeAddress(i int) string { return fmt.Sprintf("10.250.0.%d", 10+i) }

// PodRange is the range of the addresses of the pods on the i-th node.
func PodRange(i int) string { return fmt.Sprintf("10.244.%d.0/24", i) }
