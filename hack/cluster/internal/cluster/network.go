package cluster

import (
	"context"
	"fmt"
	"strings"

	"github.com/bowline-csi/bowline/hack/cluster/internal/kube"
	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
)

// The control plane's machine holds a bridge, which is the switch of the
// cluster: each node is at the end of a pair of virtual cables into it. A pod
// has an address of its node's range; every machine knows which range is
// behind which node. There is no way out of the cluster.
const bridge = "switch"

// connectControlPlane sets up the network of the control plane's machine.
func connectControlPlane(ctx context.Context, m *machine.Spec, nodes int) error {
	lines := []string{
		"link set lo up",
		"link add " + bridge + " type bridge",
		fmt.Sprintf("addr add %s/%d dev %s", kube.ControlPlaneAddress, kube.PrefixLength, bridge),
		"link set " + bridge + " up",
	}
	return ip(ctx, m, append(lines, podRoutes(0, nodes)...))
}

// connectNode sets up the network of the i-th node's machine and plugs it into
// the switch.
func connectNode(ctx context.Context, m, controlPlane *machine.Spec, i, nodes int) error {
	err := ip(ctx, controlPlane, []string{
		// A cable of the node's last life is gone with its namespace.
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", m.Name, m.PID()),
		fmt.Sprintf("link set %s master %s", m.Name, bridge),
		fmt.Sprintf("link set %s up", m.Name),
	})
	if err != nil {
		return err
	}
	lines := []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev eth0", kube.NodeAddress(i), kube.PrefixLength),
		"link set eth0 up",
		// Not that anything is there: service addresses are translated only
		// when a packet to them finds a way at all.
		"route add default via " + kube.ControlPlaneAddress,
	}
	return ip(ctx, m, append(lines, podRoutes(i, nodes)...))
}

// podRoutes lead to the pods of all nodes but the i-th.
func podRoutes(i, nodes int) []string {
	var lines []string
	for other := 1; other <= nodes; other++ {
		if other != i {
			lines = append(lines, fmt.Sprintf("route add %s via %s", kube.PodRange(other), kube.NodeAddress(other)))
		}
	}
	return lines
}

// ip runs commands of ip(8) in the network of a machine.
func ip(ctx context.Context, m *machine.Spec, lines []string) error {
	cmd := m.NetCommand(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("setting up the network of %s: %w\n%s", m.Name, err, output)
	}
	return nil
}
