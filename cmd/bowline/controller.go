package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/checkpoint"
	"github.com/bowline-csi/bowline/controllers/expansion"
	"github.com/bowline-csi/bowline/controllers/group"
	"github.com/bowline-csi/bowline/controllers/lifetime"
	"github.com/bowline-csi/bowline/driver/csi"
)

// controllerOptions are the flags of `bowline controller`.
type controllerOptions struct {
	namespace   string
	leaderElect bool
	csiEndpoint string
	httpAddress string
	log         logFlags
}

func newControllerCommand() *cobra.Command {
	o := &controllerOptions{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Match checkpoints to volumes and decide how they end",
		Long: `Match checkpoints to volumes and decide how they end.

It finds the node of a VolumeCheckpoint's claim, refuses what cannot work, and
acts on deadlines, rollouts and deletions. It touches no volume: the nodes do. Of
several, one leads. The rights that it needs are listed in package
controllers/access.

It finds the API server in the cluster that it runs in, or by the file that the
environment variable KUBECONFIG names.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.namespace, "namespace", os.Getenv("NAMESPACE"), "namespace of the lease of the leader (environment: NAMESPACE)")
	f.BoolVar(&o.leaderElect, "leader-elect", true, "wait to be elected; without it there must be no other")
	f.StringVar(&o.csiEndpoint, "csi-endpoint", "", "unix socket to answer external-resizer at; empty: none")
	f.StringVar(&o.httpAddress, "http-address", ":8080", "host:port of /metrics, /healthz and /readyz; empty: none")
	o.log.add(cmd)
	return cmd
}

// run works until ctx is done.
func (o *controllerOptions) run(ctx context.Context) error {
	log, err := o.log.logger(os.Stderr)
	if err != nil {
		return err
	}
	if o.leaderElect && o.namespace == "" {
		return usageError{errors.New("--namespace or the environment variable NAMESPACE must say where the lease of the leader is")}
	}
	socket, err := socketPath(o.csiEndpoint, "")
	if err != nil {
		return err
	}
	logTo(log)
	m, err := o.manager(ctx, log)
	if err != nil {
		return err
	}
	var synced atomic.Bool
	ready := func(context.Context) error {
		if !synced.Load() {
			return errors.New("the checkpoints of the cluster have not been read yet")
		}
		return nil
	}
	observed := observation{metrics: metrics.Registry, ready: ready}
	log.Info("starting", "version", version, "namespace", o.namespace, "socket", socket)
	// Every replica answers external-resizer: each has one beside it, with
	// elections of its own.
	var server *grpc.Server
	if socket != "" {
		if server, err = csi.NewServer(log, metrics.Registry); err != nil {
			return err
		}
		csi.NewIdentity(version, ready).Register(server)
		expansion.New(m.GetCache()).Register(server)
	}
	running, ctx := errgroup.WithContext(ctx)
	running.Go(func() error { return lifetime.Run(ctx, m, managerPatience) })
	running.Go(func() error {
		synced.Store(m.GetCache().WaitForCacheSync(ctx))
		return nil
	})
	running.Go(func() error { return observed.serve(ctx, o.httpAddress) })
	if server != nil {
		running.Go(func() error { return serveCSI(ctx, server, socket, log) })
	}
	err = running.Wait()
	log.Info("stopped", "error", err)
	return err
}

// managerPatience is how long reconciliations may take to end; they are repeated.
const managerPatience = 5 * time.Second

// logTo makes the libraries for Kubernetes log to log. They count what others
// call information as several levels of detail, which are all debug here. They have
// one logger for the process, which must not be changed while they run: the first
// one stays.
func logTo(log *slog.Logger) {
	libraryLog.Do(func() {
		l := logr.FromSlogHandler(log.Handler())
		ctrl.SetLogger(l)
		klog.SetLogger(l)
	})
}

var libraryLog sync.Once

// manager returns a manager with the reconcilers in it.
func (o *controllerOptions) manager(ctx context.Context, log *slog.Logger) (ctrl.Manager, error) {
	api, err := clusterAPI()
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w", err)
	}
	// Five thousand nodes report; what is written in answer is little, but
	// comes in bursts.
	api.QPS, api.Burst = 100, 200
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	m, err := ctrl.NewManager(api, ctrl.Options{
		Scheme: scheme,
		Logger: logr.FromSlogHandler(log.Handler()),
		// Of claims and nodes there may be very many.
		Cache:                         cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
		Metrics:                       metricsserver.Options{BindAddress: "0"}, // served with the rest
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              "bowline-controller",
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true,
	})
	if err != nil {
		return nil, fmt.Errorf("talking to the API server: %w", err)
	}
	instance := os.Getenv("POD_NAME")
	if instance == "" {
		if instance, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	events := &checkpoint.Events{Client: m.GetClient(), Instance: instance, Log: log}
	checkpoints := &checkpoint.Reconciler{Client: m.GetClient(), Live: m.GetAPIReader(), Events: events, Now: time.Now, Log: log}
	if err := checkpoints.SetUp(ctx, m); err != nil {
		return nil, fmt.Errorf("setting up the controller of checkpoints: %w", err)
	}
	groups := &group.Reconciler{Client: m.GetClient(), Live: m.GetAPIReader(), Events: events, Now: time.Now, Log: log}
	if err := groups.SetUp(m); err != nil {
		return nil, fmt.Errorf("setting up the controller of groups: %w", err)
	}
	return m, nil
}
