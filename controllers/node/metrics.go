package node

import (
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// metrics are what the node tells Prometheus of its checkpoints. The ones of
// open checkpoints are computed when they are collected, from the last facts.
type metrics struct {
	operations *prometheus.HistogramVec
	rollbacks  *prometheus.CounterVec
	now        func() time.Time

	mu struct {
		sync.Mutex // no I/O under it
		open       map[types.NamespacedName]*sample
	}
}

// sample is the last that was seen of an open checkpoint.
type sample struct {
	claim       string
	state       State
	opened      time.Time
	measured    bool // what follows is known
	saved, free int64
	trend       trend
}

var (
	checkpointLabels = []string{"namespace", "checkpoint", "claim"}

	stateDesc = prometheus.NewDesc("bowline_checkpoint_state",
		"1 for the state in which an open checkpoint is: Open, RollbackRequested or RollingBack.", append(checkpointLabels[:3:3], "state"), nil)
	ageDesc = prometheus.NewDesc("bowline_checkpoint_age_seconds",
		"Time since the checkpoint was opened.", checkpointLabels, nil)
	savedDesc = prometheus.NewDesc("bowline_checkpoint_saved_bytes",
		"Old content that is kept for a rollback.", checkpointLabels, nil)
	freeDesc = prometheus.NewDesc("bowline_checkpoint_free_bytes",
		"Space that is left for backups.", checkpointLabels, nil)
	fullDesc = prometheus.NewDesc("bowline_checkpoint_full_seconds",
		"Forecast of the time until no space is left for backups, from how it shrank in the last minutes; +Inf if it does not shrink.", checkpointLabels, nil)
)

// newMetrics registers the metrics with r.
func newMetrics(r prometheus.Registerer, now func() time.Time) (*metrics, error) {
	m := &metrics{
		operations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "bowline_checkpoint_operation_seconds",
			Help:    "Time that operations on checkpoints took, by operation (checkpoint, freeze, switch, thaw, commit, rollback) and status (ok, error). A rollback counts from its start, not from when it was asked for.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}, []string{"operation", "status"}),
		rollbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "bowline_rollback_total",
			Help: "Rollbacks that ended, by result (success, failed).",
		}, []string{"result"}),
		now: now,
	}
	m.mu.open = make(map[types.NamespacedName]*sample)
	for _, result := range []string{rollbackSuccess, rollbackFailed} {
		m.rollbacks.WithLabelValues(result)
	}
	for _, c := range []prometheus.Collector{m.operations, m.rollbacks, m} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of checkpoints: %w", err)
		}
	}
	return m, nil
}

const (
	rollbackSuccess = "success"
	rollbackFailed  = "failed"
)

// operation notes that an operation that began at the given time ended with err.
func (m *metrics) operation(name string, began time.Time, err error) {
	status := "ok"
	if err != nil {
		status = "error"
	}
	m.operations.WithLabelValues(name, status).Observe(m.now().Sub(began).Seconds())
}

// observe notes how the checkpoint key of a claim stands; c is nil if it is not
// open.
func (m *metrics) observe(key types.NamespacedName, claim string, c *Checkpoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c == nil {
		delete(m.mu.open, key)
		return
	}
	s := m.mu.open[key]
	if s == nil || !s.opened.Equal(c.Opened) {
		s = &sample{claim: claim, opened: c.Opened}
		m.mu.open[key] = s
	}
	s.state = c.State
	if c.Measured {
		s.measured, s.saved, s.free = true, c.BackedUp, c.Free
		s.trend.add(m.now(), c.Free)
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{stateDesc, ageDesc, savedDesc, freeDesc, fullDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for key, s := range m.mu.open {
		gauge := func(d *prometheus.Desc, v float64, more ...string) {
			labels := append([]string{key.Namespace, key.Name, s.claim}, more...)
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
		}
		gauge(stateDesc, 1, string(s.state))
		if !s.opened.IsZero() {
			gauge(ageDesc, now.Sub(s.opened).Seconds())
		}
		if !s.measured {
			continue
		}
		gauge(savedDesc, float64(s.saved))
		gauge(freeDesc, float64(s.free))
		gauge(fullDesc, s.trend.full(now))
	}
}
