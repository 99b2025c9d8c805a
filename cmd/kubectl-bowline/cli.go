package main

import (
	"fmt"
	"io"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fieldOwner names the plugin among those who write fields of an object.
const fieldOwner = "kubectl-bowline"

// cli is what all commands share: where they write, and which cluster they mean.
type cli struct {
	out, errOut io.Writer
	now         func() time.Time

	kubeconfig string
	overrides  clientcmd.ConfigOverrides
}

func (c *cli) addFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig file (default $KUBECONFIG or ~/.kube/config)")
	flags.StringVar(&c.overrides.CurrentContext, "context", "", "context of the kubeconfig file (default its current one)")
	flags.StringVarP(&c.overrides.Context.Namespace, "namespace", "n", "", "namespace (default the one of the context)")
	must(root.RegisterFlagCompletionFunc("context", c.completeContexts))
	must(root.RegisterFlagCompletionFunc("namespace", c.completeNamespaces))
}

// must is for errors that only a mistake in this program makes.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (c *cli) config() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
}

// A session is a connection to the API server, and the namespace that is meant.
type session struct {
	*cli
	client.WithWatch
	namespace string
}

// connect returns a session with the cluster that the flags and the kubeconfig
// file mean.
func (c *cli) connect() (*session, error) {
	config := c.config()
	rest, err := config.ClientConfig()
	if err != nil {
		return nil, usagef("no cluster to talk to: %w; see --kubeconfig and --context", err)
	}
	namespace, _, err := config.Namespace()
	if err != nil {
		return nil, usagef("reading the namespace from the kubeconfig file: %w", err)
	}
	rest.UserAgent = "kubectl-bowline/" + version
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, policyv1.AddToScheme} {
		must(add(scheme))
	}
	w, err := client.NewWithWatch(rest, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", rest.Host, err)
	}
	return &session{cli: c, WithWatch: w, namespace: namespace}, nil
}
