package kube

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/bowline-csi/bowline/hack/cluster/internal/machine"
	"github.com/bowline-csi/bowline/hack/cluster/internal/pki"
)

// WriteControlPlane writes to dir what the services of the control plane read.
func (k *Keys) WriteControlPlane(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var failed []error
	write := func(name string, pair pki.Pair, err error) {
		if err == nil {
			err = pair.Write(dir, name)
		}
		failed = append(failed, err)
	}
	sign := func(a *pki.Authority, name string, r pki.Request) {
		pair, err := a.Sign(r)
		write(name, pair, err)
	}
	ca, err := k.CA.Pair()
	write("ca", ca, err)
	frontProxyCA, err := k.FrontProxy.Pair()
	write("front-proxy-ca", frontProxyCA, err)
	sign(k.CA, "apiserver", pki.Request{Name: "kube-apiserver", Hosts: []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", ControlPlaneAddress, serviceAddress,
	}})
	sign(k.CA, "kubelet-client", pki.Request{Name: "kube-apiserver-kubelet-client", Organizations: []string{"system:masters"}})
	sign(k.FrontProxy, "front-proxy-client", pki.Request{Name: "front-proxy-client"})
	// A certificate only as the envelope of the public key.
	sign(k.CA, "service-account", pki.Request{Name: "service-account"})
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		file := filepath.Join(dir, name+".kubeconfig")
		failed = append(failed, k.WriteKubeconfig(file, "https://"+APIAddress, pki.Request{Name: "system:" + name}))
	}
	return errors.Join(failed...)
}

// ControlPlaneServices are the services of the control plane.
func ControlPlaneServices() []machine.Service {
	const config = ConfigDir + "/"
	return []machine.Service{
		{Name: "etcd", Args: []string{
			"etcd",
			"--data-dir=/var/lib/etcd",
			// The cluster does not outlive the host's kernel, so nothing is
			// won by waiting for the disk.
			"--unsafe-no-fsync",
			"--logger=zap", "--log-level=warn",
		}},
		{Name: "kube-apiserver", Args: []string{
			"kube-apiserver",
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + ControlPlaneAddress,
			"--secure-port=6443",
			"--service-cluster-ip-range=" + serviceNetwork,
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--client-ca-file=" + config + "ca.crt",
			"--tls-cert-file=" + config + "apiserver.crt",
			"--tls-private-key-file=" + config + "apiserver.key",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + config + "service-account.crt",
			"--service-account-signing-key-file=" + config + "service-account.key",
			"--kubelet-certificate-authority=" + config + "ca.crt",
			"--kubelet-client-certificate=" + config + "kubelet-client.crt",
			"--kubelet-client-key=" + config + "kubelet-client.key",
			// Names of nodes do not resolve here.
			"--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + config + "front-proxy-ca.crt",
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file=" + config + "front-proxy-client.crt",
			"--proxy-client-key-file=" + config + "front-proxy-client.key",
			// Webhooks are reached at their pods: there is no kube-proxy on
			// this machine that would make service addresses work.
			"--enable-aggregator-routing=true",
		}},
		{Name: "kube-controller-manager", Args: []string{
			"kube-controller-manager",
			"--kubeconfig=" + config + "kube-controller-manager.kubeconfig",
			"--authentication-kubeconfig=" + config + "kube-controller-manager.kubeconfig",
			"--authorization-kubeconfig=" + config + "kube-controller-manager.kubeconfig",
			"--bind-address=127.0.0.1",
			"--leader-elect=false",
			"--use-service-account-credentials=true",
			"--root-ca-file=" + config + "ca.crt",
			"--service-account-private-key-file=" + config + "service-account.key",
			"--cluster-signing-cert-file=" + config + "ca.crt",
			"--cluster-signing-key-file=" + config + "ca.key",
			"--requestheader-client-ca-file=" + config + "front-proxy-ca.crt",
		}},
		{Name: "kube-scheduler", Args: []string{
			"kube-scheduler",
			"--kubeconfig=" + config + "kube-scheduler.kubeconfig",
			"--authentication-kubeconfig=" + config + "kube-scheduler.kubeconfig",
			"--authorization-kubeconfig=" + config + "kube-scheduler.kubeconfig",
			"--bind-address=127.0.0.1",
			"--leader-elect=false",
		}},
	}
}
