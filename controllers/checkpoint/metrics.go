package checkpoint

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// Metrics of the policies, besides those that controller-runtime has of
// reconciliations.
var (
	decisions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bowline_checkpoint_decisions_total",
		Help: "Decisions of the controller on how a checkpoint ends, by reason and by the state decided on.",
	}, []string{"reason", "state"})
	evictions = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bowline_rollback_evictions_total",
		Help: "Evictions of pods for rollbacks, by result: accepted, blocked by a disruption budget, failed.",
	}, []string{"result"})
)

func init() { metrics.Registry.MustRegister(decisions, evictions) }
