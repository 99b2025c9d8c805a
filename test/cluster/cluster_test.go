//go:build cluster

package cluster

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// upLimit is how long a start may take when everything is built.
const upLimit = time.Minute

// TestCluster starts a cluster with two nodes, tries out what drivers need of
// it, and ends it. The parts do not depend on each other.
func TestCluster(t *testing.T) {
	c := cli{build(t), stateDir}
	c.run(t, "down") // what a killed run left
	before := inventory(t)
	c.run(t, "up", "--nodes=2")
	ended := false
	t.Cleanup(func() {
		if t.Failed() {
			c.dump(t)
		}
		if !ended {
			if _, err := c.tryNoContext(t, "down"); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("Status", func(t *testing.T) {
		status := c.run(t, "status")
		for _, want := range []string{"control-plane", "node-1", "node-2", "KUBECONFIG="} {
			if !strings.Contains(status, want) {
				t.Errorf("the status does not mention %s:\n%s", want, status)
			}
		}
		c.run(t, "up", "--nodes=2") // once more does nothing
		if _, err := c.try(t, "up", "--nodes=1"); err == nil {
			t.Error("'up' with another number of nodes did not fail")
		}
	})
	t.Run("Logs", func(t *testing.T) {
		if files := c.run(t, "logs"); !strings.Contains(files, "node-2/log/services/kubelet.log\n") {
			t.Errorf("the kubelet's log is not listed:\n%s", files)
		}
		if log := c.run(t, "logs", "node-1", "kubelet"); !strings.Contains(log, "Kubelet version") {
			t.Error("the kubelet's log does not contain its version")
		}
	})
	t.Run("Helm", func(t *testing.T) { c.run(t, "helm", "list", "--all-namespaces") })
	t.Run("Postgres", func(t *testing.T) {
		c.run(t, "load-postgres")
		c.apply(t, "postgres.yaml")
		equal(t, "a query", c.kubectl(t, "exec", "postgres", "--", "psql", "-Atc", "select 6*7"), "42\n")
	})
	t.Run("Propagation", func(t *testing.T) { testPropagation(t, c) })
	t.Run("Service", func(t *testing.T) { testService(t, c) })
	t.Run("Topology", func(t *testing.T) { testTopology(t, c) })
	t.Run("Authorization", func(t *testing.T) { testAuthorization(t, c) })
	t.Run("BuildImage", func(t *testing.T) { testBuildImage(t, c) })
	t.Run("KillNode", func(t *testing.T) { testKillNode(t, c) })
	t.Run("Down", func(t *testing.T) {
		// Something to leave behind: a mounted loop device.
		c.run(t, "exec", "node-1", "sh", "-c", mountLoop)
		processes := machinePIDs(t, c)
		began := time.Now()
		c.run(t, "down")
		ended = true
		if took := time.Since(began); took > upLimit {
			t.Errorf("'down' took %v", took)
		}
		t.Logf("'down' took %v", time.Since(began).Round(10*time.Millisecond))
		for name, pid := range processes {
			if runs(pid) {
				t.Errorf("process %d of %s runs still", pid, name)
			}
		}
		before.compare(t, inventory(t))
		c.run(t, "down") // once more does nothing
	})
}

// TestCrash kills a cluster from the outside, and starts another one in its
// place while a third runs beside it.
func TestCrash(t *testing.T) {
	program := build(t)
	c := cli{program, stateDir}
	other := cli{program, stateDir + "-other"}
	c.run(t, "down")
	other.run(t, "down")
	before := inventory(t)
	t.Cleanup(func() {
		for _, c := range []cli{c, other} {
			if t.Failed() {
				c.dump(t)
			}
			if _, err := c.tryNoContext(t, "down"); err != nil {
				t.Error(err)
			}
		}
		before.compare(t, inventory(t))
		if err := os.RemoveAll(other.state); err != nil {
			t.Error(err)
		}
	})
	other.run(t, "up")
	c.run(t, "up")
	for name, pid := range machinePIDs(t, c) {
		// Numbers of the clusters' own processes, read this moment.
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatalf("killing %s: %v", name, err)
		}
	}
	c.until(t, 20*time.Second, func() error {
		if _, err := c.try(t, "status"); err == nil {
			return errors.New("'status' says that a dead cluster runs")
		}
		return nil
	})
	// What a crash of the whole machine may do to files just written.
	for _, name := range glob(stateDir + "/*/machines/*/*.json") {
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	c.run(t, "up")
	if took := time.Since(began); took > upLimit {
		t.Errorf("'up' took %v; with everything built it may take %v", took, upLimit)
	}
	c.run(t, "status")
	other.run(t, "status") // it did not notice
}

func testPropagation(t *testing.T, c cli) {
	c.apply(t, "propagation.yaml")
	node := c.kubectl(t, "get", "pod", "propagation", "-o", "jsonpath={.spec.nodeName}")
	equal(t, "a file that the pod mounted, on the node", c.run(t, "exec", node, "cat", "/var/lib/propagation/mounted/file"), "content\n")
	equal(t, "the logs", c.kubectl(t, "logs", "propagation"), "has mounted\n")
	equal(t, "exec", c.kubectl(t, "exec", "propagation", "--", "cat", "/node/mounted/file"), "content\n")
	if _, err := c.try(t, "kubectl", "--namespace="+namespace(t), "exec", "propagation", "--", "sh", "-c", "exit 7"); !strings.Contains(fmt.Sprint(err), "exit status 7") {
		t.Errorf("the exit code of a command in a pod does not come through: %v", err)
	}
	c.run(t, "exec", node, "umount", "/var/lib/propagation/mounted")
}

func testService(t *testing.T, c cli) {
	c.apply(t, "service.yaml")
	address := c.kubectl(t, "get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")
	request := "exec 3<>/dev/tcp/" + address + "/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; tail -n 1 <&3"
	// From the other node, and from the server to itself.
	for _, pod := range []string{"client", "server"} {
		c.until(t, 30*time.Second, func() error {
			got, err := c.try(t, "kubectl", "--namespace="+namespace(t), "exec", pod, "--", "timeout", "5", "bash", "-c", request)
			if err == nil && got != "served\n" {
				err = fmt.Errorf("the service answered %q", got)
			}
			return err
		})
	}
	// From the control plane, as it calls webhooks.
	equal(t, "the service through the API server", c.kubectl(t, "get", "--raw", "/api/v1/namespaces/"+namespace(t)+"/services/server:80/proxy/"), "served\n")
}

func testTopology(t *testing.T, c cli) {
	c.run(t, "exec", "node-2", "mkdir", "-p", "/var/lib/on-node-2")
	c.apply(t, "topology.yaml")
	equal(t, "the node of a pod whose volume is on node-2",
		c.kubectl(t, "get", "pod", "follows", "-o", "jsonpath={.spec.nodeName}"), "node-2")
	equal(t, "the zones", c.run(t, "kubectl", "get", "nodes", "-o", `jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}`), "zone-1 zone-2")
}

func testAuthorization(t *testing.T, c cli) {
	can := func(verb, what string, args ...string) bool {
		command := []string{"exec", "node-1", "kubectl", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig", "auth", "can-i", verb, what}
		output, _ := c.try(t, append(command, args...)...) // "no" is an exit code, too
		return strings.HasPrefix(output, "yes")
	}
	if !can("get", "nodes/node-1") {
		t.Error("a kubelet may not read its node")
	}
	if can("list", "secrets", "--all-namespaces") {
		t.Error("a kubelet may read all secrets")
	}
	if output, err := c.try(t, "exec", "node-1", "kubectl", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig", "label", "node", "node-2", "a=b"); err == nil {
		t.Errorf("a kubelet may change another node: %s", output)
	}
}

func testBuildImage(t *testing.T, c cli) {
	const name = "localhost/built:test"
	c.run(t, "build-image", "--tag", name, "testdata/image")
	c.kubectlDefault(t, "run", "built", "--image="+name, "--restart=Never", "--image-pull-policy=Never")
	t.Cleanup(func() {
		if _, err := c.tryNoContext(t, "kubectl", "delete", "pod", "built", "--grace-period=1"); err != nil {
			t.Error(err)
		}
	})
	c.kubectlDefault(t, "wait", "pod/built", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	equal(t, "what the built image prints", c.kubectlDefault(t, "logs", "built"), "built here\n")
}

func (c cli) kubectlDefault(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{"kubectl"}, args...)...)
}

// mountLoop is a script that makes a file system on a loop device and mounts
// it.
const mountLoop = `
set -e
mkdir -p /var/lib/loop/mounted
truncate -s 64M /var/lib/loop/image
mkfs.ext4 -q -F /var/lib/loop/image
mount -o loop /var/lib/loop/image /var/lib/loop/mounted
`

func testKillNode(t *testing.T, c cli) {
	c.apply(t, "survivor.yaml")
	c.run(t, "exec", "node-2", "sh", "-c", mountLoop)
	if len(inventory(t).loops) == 0 {
		t.Fatal("the test does not see the loop device that it made")
	}
	pid := machinePIDs(t, c)["node-2"]
	c.run(t, "kill-node", "node-2")
	if runs(pid) {
		t.Errorf("process %d of the killed node runs still", pid)
	}
	for name := range inventory(t).loops {
		t.Errorf("the killed node's loop device is attached still: %s", name)
	}
	if output, err := c.try(t, "status"); err == nil {
		t.Errorf("'status' says that all is well:\n%s", output)
	}
	if _, err := c.try(t, "kill-node", "node-2"); err == nil {
		t.Error("a dead node can be killed")
	}
	c.run(t, "kubectl", "wait", "node/node-2", "--for=condition=Ready=Unknown", "--timeout=120s")

	c.run(t, "start-node", "node-2")
	c.run(t, "status")
	// Once more, faster than the API server can notice.
	c.run(t, "kill-node", "node-2")
	c.run(t, "start-node", "node-2")
	c.run(t, "exec", "node-2", "true")
	// The same pod, in a new container, with the same disk.
	c.until(t, time.Minute, func() error {
		starts := strings.Count(c.run(t, "exec", "node-2", "cat", "/var/lib/survivor/starts"), "start\n")
		if starts < 2 {
			return fmt.Errorf("the pod's file says that it started %d times", starts)
		}
		return nil
	})
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/survivor", "--timeout=60s")
	if mounts := c.run(t, "exec", "node-2", "cat", "/proc/mounts"); strings.Contains(mounts, "/loop/mounted") {
		t.Error("a mount survived the power cut")
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
