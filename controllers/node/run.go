// Package node is what `bowline node` does for VolumeCheckpoints: it opens,
// commits and rolls back the checkpoints of the volumes of its own node, as far as
// the controller lets it, and reports what is so. Package v1alpha1 has the rules
// between the two.
//
// For each checkpoint it looks at the volume, decides what is to be done (a
// function of the object and those facts), does it, looks again and writes the
// result. Nothing is kept: a checkpoint on a volume bears the UID of its object, so
// a node plugin that was killed between doing and writing finds out by looking. A
// rollback is marked on the volume, and goes on there if the API server or this
// package is away.
//
// # Load
//
// It watches with a label selector, so a node gets only its own checkpoints. It
// looks at one when the object or the volume changes, and at an open one every three
// seconds, which stays on the node. It writes at once what changes conditions or the
// phase; amounts every 30 seconds and only if one has changed by a hundredth; the
// progress of a rollback every two seconds. The metrics are exact.
//
// # What it may do
//
// The service account needs, in all namespaces, what [Access] returns:
//
//	bowline.dev  volumecheckpoints         list watch
//	bowline.dev  volumecheckpoints/status  patch
//	(core)       pods                      list    metadata, only while a rollback waits for
//	                                               pods; without it paths are shown
//
// An admission policy can hold the node to its own objects: the label
// bowline.dev/node and status.nodeName are the name of the node.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bowline-csi/bowline/api/v1alpha1"
	"github.com/bowline-csi/bowline/controllers/lifetime"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// parallel is how many checkpoints are worked on at the same time. The members of
// a group on one node must all get frozen at once.
const parallel = 16

// shutdownLimit is how long reconciliations may take to end when the process is
// told to. None has to: the next process finds out how far they came.
const shutdownLimit = 3 * time.Second

// Config is what Run needs.
type Config struct {
	// Node is the name of the node.
	Node string
	// API is how to reach the API server.
	API     *rest.Config
	Volumes Volumes
	// Metrics is where the metrics of checkpoints are registered.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// Run takes care of the node's checkpoints until ctx is done. That the API server
// cannot be reached, or does not know VolumeCheckpoints, is logged and tried again
// for ever: the node's volumes are in use all the same. An error means a mistake in
// the configuration.
func Run(ctx context.Context, c Config) error {
	m, err := newMetrics(c.Metrics, time.Now)
	if err != nil {
		return err
	}
	changed := newChanges()
	c.Volumes.Watch(changed.add)
	const retry = 10 * time.Second
	for {
		err := c.run(ctx, m, changed)
		if ctx.Err() != nil {
			return nil
		}
		c.Log.Error("cannot watch the checkpoints of this node; trying again", "error", err, "after", retry)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(jitter(retry)):
		}
	}
}

// run watches and reconciles until ctx is done or it cannot go on.
func (c Config) run(ctx context.Context, m *metrics, changed *changes) error {
	mgr, err := c.manager()
	if err != nil {
		return err
	}
	if err := c.add(ctx, mgr, m, changed, time.Now); err != nil {
		return err
	}
	err = lifetime.Run(ctx, mgr, shutdownLimit)
	if err == nil && ctx.Err() == nil {
		err = errors.New("stopped unasked")
	}
	return err
}

func (c Config) manager() (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	if c.Node == "" {
		return nil, errors.New("the name of the node is not known")
	}
	own, err := labels.ValidatedSelectorFromSet(labels.Set{v1alpha1.LabelNode: c.Node})
	if err != nil {
		return nil, fmt.Errorf("the name of the node: %w", err)
	}
	mgr, err := manager.New(c.API, manager.Options{
		Scheme:         scheme,
		MapperProvider: mapper,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject:         map[client.Object]cache.ByObject{&v1alpha1.VolumeCheckpoint{}: {Label: own}},
		},
		Logger:  logr.FromSlogHandler(c.Log.Handler()),
		Metrics: metricsserver.Options{BindAddress: "0"},
		// What waits for an API server that is away ends late or never.
		GracefulShutdownTimeout: new(shutdownLimit),
		HealthProbeBindAddress:  "0",
		Controller:              config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	return mgr, nil
}

// mapper knows the few kinds that are used, which spares the API server the
// discovery by every node.
func mapper(*rest.Config, *http.Client) (meta.RESTMapper, error) {
	m := meta.NewDefaultRESTMapper(nil)
	m.Add(v1alpha1.SchemeGroupVersion.WithKind(v1alpha1.KindVolumeCheckpoint), meta.RESTScopeNamespace)
	m.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	return m, nil
}

// add adds the reconciler to mgr.
func (c Config) add(ctx context.Context, mgr manager.Manager, m *metrics, changed *changes, now func() time.Time) error {
	if err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.VolumeCheckpoint{}, handleField, indexHandle); err != nil {
		return fmt.Errorf("indexing checkpoints by volume: %w", err)
	}
	r := &reconciler{
		client: mgr.GetClient(), pods: mgr.GetAPIReader(),
		volumes: c.Volumes, node: c.Node, log: c.Log, metrics: m, now: now,
	}
	r.mu.memory = make(map[types.NamespacedName]memory)
	pass := source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go changed.pass(ctx, mgr.GetCache(), c.Log, queue)
		return nil
	})
	return builder.ControllerManagedBy(mgr).
		Named("checkpoints").
		For(&v1alpha1.VolumeCheckpoint{}).
		WatchesRawSource(pass).
		WithOptions(controller.Options{
			MaxConcurrentReconciles: parallel,
			RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](100*time.Millisecond, time.Minute),
		}).
		Complete(r)
}
