package restore

import "sync"

// Phase is what a restore is busy with.
type Phase string

const (
	PhaseVerify  Phase = "verify"  // reading and checking copies
	PhaseRestore Phase = "restore" // putting them back
)

// Progress says how far a phase has come.
type Progress struct {
	Phase       Phase
	Done, Total int64 // bytes
}

// meter adds up what several goroutines have done.
type meter struct {
	report func(Progress) // may be nil

	mu       sync.Mutex
	progress Progress // guarded by mu
}

func newMeter(phase Phase, total int64, report func(Progress)) *meter {
	m := &meter{report: report, progress: Progress{Phase: phase, Total: total}}
	m.add(0)
	return m
}

func (m *meter) add(n int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Done += n
	m.report(m.progress)
}
