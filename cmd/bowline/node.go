package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bowline-csi/bowline/driver/csi"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/pool"
	"github.com/bowline-csi/bowline/driver/registration"
	"github.com/bowline-csi/bowline/driver/volume"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// nodeOptions are the flags of `bowline node`.
type nodeOptions struct {
	node         string
	csiEndpoint  string
	kubeletDir   string
	stateDir     string
	engineSocket string
	httpAddress  string
	log          logFlags
}

func newNodeCommand() *cobra.Command {
	o := &nodeOptions{}
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Serve the volumes of this node to the kubelet and to the provisioner beside it",
		Long: `Serve the volumes of this node to the kubelet and to the provisioner beside it.

It needs the engine of this node for whatever touches the content of a volume,
and can be restarted at any time without I/O noticing.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.node, "node-name", os.Getenv("NODE_NAME"), "name of this node in the cluster (environment: NODE_NAME)")
	f.StringVar(&o.kubeletDir, "kubelet-dir", "/var/lib/kubelet", "directory of the kubelet; the same inside the container and outside. In plugins/"+csi.DriverName+" is remembered which pool is this node's")
	f.StringVar(&o.csiEndpoint, "csi-endpoint", "", "unix socket of the CSI services (default: plugins/"+csi.DriverName+"/csi.sock in the directory of the kubelet)")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/bowline", "directory of the pool and of what is to be remembered of volumes; it has to survive reboots")
	f.StringVar(&o.engineSocket, "engine-socket", "/run/bowline/engine.sock", "unix socket of the engine")
	f.StringVar(&o.httpAddress, "http-address", ":9808", "host:port of /metrics, /healthz and /readyz; empty: none")
	o.log.add(cmd)
	return cmd
}

// csiSocket returns the path of the CSI socket.
func (o *nodeOptions) csiSocket() (string, error) {
	return socketPath(o.csiEndpoint, filepath.Join(o.kubeletDir, "plugins", csi.DriverName, "csi.sock"))
}

// socketPath returns the path of the unix socket that --csi-endpoint names, or
// fallback if it is empty.
func socketPath(endpoint, fallback string) (string, error) {
	path := cmp.Or(strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//"), fallback)
	if path != "" && !filepath.IsAbs(path) {
		return "", usageError{fmt.Errorf("--csi-endpoint is %q, want the absolute path of a unix socket, with or without unix:// before it", endpoint)}
	}
	return path, nil
}

// registrationSocket returns the path of the socket that the kubelet looks for.
func (o *nodeOptions) registrationSocket() string {
	return filepath.Join(o.kubeletDir, "plugins_registry", csi.DriverName+"-reg.sock")
}

// poolMemory returns the path of the file in which the node remembers its pool. It is
// not in the state directory, because that may be on the disk whose absence is to be
// noticed.
func (o *nodeOptions) poolMemory() string {
	return filepath.Join(o.kubeletDir, "plugins", csi.DriverName, "pool-id")
}

// poolMetric tells whether the pool is there; available returns nil then.
func poolMetric(available func() error) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "bowline_pool_available",
		Help: "1 if the pool of the node can be used, 0 if its disk is not mounted or is another one.",
	}, func() float64 {
		if available() != nil {
			return 0
		}
		return 1
	})
}

// run serves until ctx is done.
func (o *nodeOptions) run(ctx context.Context) (err error) {
	log, err := o.log.logger(os.Stderr)
	if err != nil {
		return err
	}
	if o.node == "" {
		return usageError{errors.New("--node-name or the environment variable NODE_NAME must say which node this is")}
	}
	csiSocket, err := o.csiSocket()
	if err != nil {
		return err
	}
	logTo(log)
	// Whatever is opened is closed in the opposite order.
	closing := func(close func() error) { err = errors.Join(err, close()) }

	images, err := pool.Open(filepath.Join(o.stateDir, "pool"), o.node, o.poolMemory())
	if err != nil {
		return err
	}
	defer closing(images.Close)
	engineClient, conn, err := engine.Dial(o.engineSocket)
	if err != nil {
		return err
	}
	defer closing(conn.Close)
	volumes, err := volume.New(volume.Config{Pool: images, Engine: engineClient, StateDir: o.stateDir, Log: log})
	if err != nil {
		return err
	}
	defer volumes.Close()

	metrics := newRegistry()
	metrics.MustRegister(poolMetric(images.Available))
	server, err := csi.NewServer(log, metrics)
	if err != nil {
		return err
	}
	engineAnswers := func(ctx context.Context) error {
		if _, err := engineClient.List(ctx, &enginepb.ListRequest{}); err != nil {
			return fmt.Errorf("the engine does not answer at %s: %w", o.engineSocket, err)
		}
		return nil
	}
	csi.NewIdentity(version, engineAnswers).Register(server)
	controller := csi.NewController(o.node, images, volumes)
	defer controller.Close()
	controller.Register(server)
	csi.NewNode(o.node, volumes, engineAnswers).Register(server)

	registrar := registration.New(csi.DriverName, csiSocket, o.registrationSocket(), log)
	observed := observation{
		metrics: metrics,
		live:    func(context.Context) error { return registrar.Check() },
		ready: func(ctx context.Context) error {
			return cmp.Or(registrar.Registered(), engineAnswers(ctx), images.Available())
		},
	}
	log.Info("starting", "version", version, "node", o.node, "socket", csiSocket)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveCSI(ctx, server, csiSocket, log) })
	group.Go(func() error { return registrar.Serve(ctx) })
	group.Go(func() error { return observed.serve(ctx, o.httpAddress) })
	group.Go(func() error { return watchCheckpoints(ctx, o.node, volumes, metrics, log) })
	err = group.Wait()
	log.Info("stopped", "error", err)
	return err
}

// drainTime is how long requests under way may take to end when the process is
// told to. It is less than the grace period of a pod.
const drainTime = 20 * time.Second

// serveCSI answers at the unix socket until ctx is done. Then requests under way
// end before it returns; those that do not in time are cancelled.
func serveCSI(ctx context.Context, server *grpc.Server, socket string, log *slog.Logger) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return err
	}
	l, err := engine.Listen(socket)
	if err != nil {
		return err
	}
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		late := time.AfterFunc(drainTime, func() {
			log.Warn("requests are cancelled that did not end in time")
			server.Stop()
		})
		defer late.Stop()
		server.GracefulStop()
	})
	err = server.Serve(l)
	if !stop() {
		<-drained
		return nil
	}
	return err
}
