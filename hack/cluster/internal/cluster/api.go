package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
	"github.com/bowline-csi/bowline/hack/cluster/internal/pki"
)

// api asks the API server the few things that Up and Status want to know,
// through the port on the host, as a user would.
type api struct {
	client *http.Client
	server string
}

// admin is the user of the exported kubeconfig.
var admin = pki.Request{Name: "admin", Organizations: []string{"system:masters"}}

func serverURL(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }

// api returns a client for the cluster whose API server is at port.
func (c *Cluster) api(port int) (*api, error) {
	dir := filepath.Join(c.machineDir(controlPlane), "config")
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(filepath.Join(c.dir, "admin.crt"), filepath.Join(c.dir, "admin.key"))
	if err != nil {
		return nil, err
	}
	return &api{
		server: serverURL(port),
		client: &http.Client{
			Timeout: 10 * time.Second,
			// No proxy of the environment: the server is on this machine.
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}},
		},
	}, nil
}

// get reads path into to, or only whether it is there if to is nil.
func (a *api) get(ctx context.Context, path string, to any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, response.Status)
	}
	if to == nil {
		return nil
	}
	return json.Unmarshal(body, to)
}

// ready fails if the API server is not ready to serve.
func (a *api) ready(ctx context.Context) error { return a.get(ctx, "/readyz", nil) }

// nodeReady fails if the node is not there or not ready, and says why. What
// the node said in an earlier life does not count: the API server believes a
// dead node for a while.
func (a *api) nodeReady(ctx context.Context, m *machine.Spec) error {
	boot, err := m.BootID()
	if err != nil {
		return err
	}
	var node struct {
		Status struct {
			NodeInfo   struct{ BootID string }
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := a.get(ctx, "/api/v1/nodes/"+m.Name, &node); err != nil {
		return err
	}
	if node.Status.NodeInfo.BootID != boot {
		return fmt.Errorf("%s has not said anything since it was started", m.Name)
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" && c.Status != "True" {
			return fmt.Errorf("%s is not ready: %s", m.Name, c.Message)
		}
		if c.Type == "Ready" {
			return nil
		}
	}
	return fmt.Errorf("%s has not said yet whether it is ready", m.Name)
}

// defaultAccount fails if pods cannot be created in the default namespace yet.
func (a *api) defaultAccount(ctx context.Context) error {
	return a.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
}

// wait calls check until it succeeds, says ErrNotRunning, or limit is over.
func wait(ctx context.Context, limit time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := check(ctx)
		if err == nil || errors.Is(err, ErrNotRunning) {
			return err
		}
		if !errors.Is(err, context.DeadlineExceeded) || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not after %v: %w", limit, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
