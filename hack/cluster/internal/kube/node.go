package kube

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
	"github.com/bowline-csi/bowline/hack/cluster/internal/pki"
)

// WriteNode writes to dir what the services of the i-th node read. The
// container runtime finds the network plugins in pluginDir, and the kubelet
// puts pods below the group pods.
func (k *Keys) WriteNode(dir string, i int, pluginDir string, pods machine.Cgroup) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	name := NodeName(i)
	ca, err := k.CA.Pair()
	if err != nil {
		return err
	}
	// Only the certificate: who has the key of the authority is everybody.
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca.Cert, 0o644); err != nil {
		return err
	}
	serving, err := k.CA.Sign(pki.Request{Name: "system:node:" + name, Organizations: []string{"system:nodes"}, Hosts: []string{name, NodeAddress(i)}})
	if err != nil {
		return err
	}
	if err := serving.Write(dir, "kubelet"); err != nil {
		return err
	}
	for program, user := range map[string]pki.Request{
		"kubelet":    {Name: "system:node:" + name, Organizations: []string{"system:nodes"}},
		"kube-proxy": {Name: "system:kube-proxy"},
	} {
		if err := k.WriteKubeconfig(filepath.Join(dir, program+".kubeconfig"), "https://"+APIAddress, user); err != nil {
			return err
		}
	}
	values := map[string]string{
		"Name":       name,
		"Config":     ConfigDir,
		"Pods":       podNetwork,
		"PodRange":   PodRange(i),
		"PodsCgroup": string(pods),
		"PauseImage": PauseImage,
		"PluginDirs": fmt.Sprintf("%q", pluginDir),
	}
	for file, config := range map[string]string{
		"kubelet.yaml":      "kubelet.yaml",
		"kube-proxy.yaml":   "kube-proxy.yaml",
		"containerd.toml":   "containerd.toml",
		"cni/pods.conflist": "cni.conflist",
	} {
		if err := render(filepath.Join(dir, file), config, 0o644, values); err != nil {
			return err
		}
	}
	return nil
}

// NodeServices are the services of the i-th node. Each node is a zone of its
// own, so that topology can be tested with several.
func NodeServices(i int) []machine.Service {
	return []machine.Service{
		{Name: "containerd", Args: []string{"containerd", "--config=" + ConfigDir + "/containerd.toml", "--log-level=warn"}},
		{Name: "kubelet", Args: []string{
			"kubelet",
			"--config=" + ConfigDir + "/kubelet.yaml",
			"--kubeconfig=" + ConfigDir + "/kubelet.kubeconfig",
			"--hostname-override=" + NodeName(i),
			"--node-ip=" + NodeAddress(i),
			fmt.Sprintf("--node-labels=topology.kubernetes.io/zone=zone-%d", i),
		}},
		{Name: "kube-proxy", Args: []string{"kube-proxy", "--config=" + ConfigDir + "/kube-proxy.yaml"}},
	}
}
