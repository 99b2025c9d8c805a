package engine

import (
	"time"

	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/prometheus/client_golang/prometheus"
)

// gauge is a number that every attached volume has.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(*attachment, *bow.Stats) float64
	open bool // only while a checkpoint is open
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("bowline_engine_"+name, help, append([]string{"volume"}, labels...), nil)
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

var gauges = []gauge{
	{desc("since_seconds", "When this process began to serve the volume, in seconds since 1970."), prometheus.GaugeValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.since.UnixMilli()) / 1000 }, false},
	{desc("survives_restart", "1 if the engine may die without an I/O error."), prometheus.GaugeValue,
		func(m *attachment, _ *bow.Stats) float64 { return yes(m.survives) }, false},
	{desc("size_bytes", "Size of the volume."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.Size) }, false},
	{desc("in_flight", "Requests being worked on."), prometheus.GaugeValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.Export().InFlight) }, false},
	{desc("read_bytes_total", "Bytes read."), prometheus.CounterValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.Export().BytesRead) }, false},
	{desc("written_bytes_total", "Bytes written."), prometheus.CounterValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.Export().BytesWritten) }, false},
	{desc("errors_total", "Requests that failed."), prometheus.CounterValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.Export().Errors) }, false},
	{desc("device_errors_total", "Operations of the backing device that failed, those for backups and the log among them."), prometheus.CounterValue,
		func(m *attachment, _ *bow.Stats) float64 { return float64(m.Failures().Count) }, false},

	{desc("free_bytes", "Space that backups can use."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.Free) }, true},
	{desc("saved_bytes", "Old content that is kept."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.BackedUp) }, true},
	{desc("changed_bytes", "Written since the checkpoint."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.Changed) }, true},
	{desc("stale_bytes", "Formerly free, and not known to be so since the checkpoint was resumed."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.Stale) }, true},
	{desc("moved_bytes", "Backups that had to move because the file system wanted their place."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.Moved) }, true},
	{desc("age_seconds", "Time since the checkpoint was opened."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return time.Since(s.Opened).Seconds() }, true},
	{desc("log_sequence", "Log blocks that became full."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.LogSequence) }, true},
	{desc("log_writes", "Writes of the log."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.LogWrites) }, true},
	{desc("out_of_space", "Writes that failed for want of space for backups."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return float64(s.OutOfSpace) }, true},
	{desc("rollback_requested", "1 if the checkpoint is to be rolled back."), prometheus.GaugeValue,
		func(_ *attachment, s *bow.Stats) float64 { return yes(s.RollbackRequested) }, true},
}

var (
	stateDesc   = desc("state", "1 for the state of the volume: trim, checkpoint or committed.", "state")
	latencyDesc = desc("request_seconds", "Time that requests of the mapped device took, by kind and by state of the volume.", "op", "state")
)

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	ch <- stateDesc
	ch <- latencyDesc
	for _, g := range gauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector: the metrics of all attached volumes. It
// waits for no I/O.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, name := range s.names() {
		m := s.attached(name)
		if m == nil {
			continue
		}
		st := m.Stats()
		for _, state := range []bow.State{bow.Trim, bow.Checkpoint, bow.Committed} {
			ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, yes(state == st.State), name, state.String())
		}
		for _, g := range gauges {
			if !g.open || st.State == bow.Checkpoint {
				ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.of(m, &st), name)
			}
		}
		for _, l := range m.Latencies() {
			if l.Count == 0 {
				continue
			}
			buckets := make(map[float64]uint64, len(l.Buckets))
			for _, b := range l.Buckets {
				buckets[b.UpTo.Seconds()] = b.Count
			}
			ch <- prometheus.MustNewConstHistogram(latencyDesc, l.Count, l.Sum.Seconds(), buckets, name, l.Op, l.State.String())
		}
	}
}
