// Package kube says what runs on the machines of a cluster and how it is
// configured: the control plane on a machine of its own, so that every node
// can be killed, and on each node a container runtime, kubelet and kube-proxy.
package kube

import (
	"bytes"
	"embed"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"text/template"

	"github.com/bowline-csi/bowline/hack/cluster/internal/pki"
)

// Places in a machine.
const (
	// ConfigDir is where a machine sees what WriteControlPlane and WriteNode
	// wrote.
	ConfigDir = "/etc/kubernetes"
	// ProgramDir has a directory for each module of programs.
	ProgramDir = "/opt/cluster"
)

// PauseImage holds the namespaces of each pod.
const PauseImage = "bowline.dev/cluster/pause:1"

//go:embed config
var configs embed.FS

// render fills in the template config/name and writes the result to file.
func render(file, name string, mode os.FileMode, values any) error {
	t, err := template.New(name).Option("missingkey=error").ParseFS(configs, "config/"+name)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, values); err != nil {
		return fmt.Errorf("filling in %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), mode)
}

// WriteKubeconfig makes a client certificate and writes it to file, with what
// else a client needs to talk to the API server at the URL server.
func (k *Keys) WriteKubeconfig(file, server string, r pki.Request) error {
	pair, err := k.CA.Sign(r)
	if err != nil {
		return err
	}
	ca, err := k.CA.Pair()
	if err != nil {
		return err
	}
	return render(file, "kubeconfig.yaml", 0o600, map[string]string{
		"User":      r.Name,
		"Server":    server,
		"Authority": base64.StdEncoding.EncodeToString(ca.Cert),
		"Cert":      base64.StdEncoding.EncodeToString(pair.Cert),
		"Key":       base64.StdEncoding.EncodeToString(pair.Key),
	})
}

// Keys are the authorities of one cluster.
type Keys struct {
	CA         *pki.Authority // of all servers and users
	FrontProxy *pki.Authority // of the API server as a proxy for other API servers
}

// NewKeys makes the authorities of a new cluster.
func NewKeys() (*Keys, error) {
	ca, err := pki.NewAuthority("bowline-cluster")
	if err != nil {
		return nil, err
	}
	frontProxy, err := pki.NewAuthority("bowline-cluster-front-proxy")
	if err != nil {
		return nil, err
	}
	return &Keys{CA: ca, FrontProxy: frontProxy}, nil
}
