package node

import (
	"math"
	"testing"
	"time"
)

func TestTrend(t *testing.T) {
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	type sample struct {
		after time.Duration
		free  int64
	}
	for _, test := range []struct {
		name    string
		samples []sample
		now     time.Duration
		want    float64
	}{
		{"nothing known", nil, 0, math.Inf(1)},
		{"one sample", []sample{{0, 1000}}, 0, math.Inf(1)},
		{"full", []sample{{0, 0}}, 0, 0},
		{"steady", []sample{{0, 1000}, {10 * time.Second, 900}, {20 * time.Second, 800}}, 20 * time.Second, 80},
		{"time passes", []sample{{0, 1000}, {10 * time.Second, 900}}, 40 * time.Second, 60},
		{"overdue", []sample{{0, 1000}, {10 * time.Second, 900}}, time.Hour, 0},
		{"constant", []sample{{0, 1000}, {time.Minute, 1000}}, time.Minute, math.Inf(1)},
		{"growing", []sample{{0, 1000}, {time.Minute, 2000}}, time.Minute, math.Inf(1)},
		{"samples at once are one", []sample{{0, 1000}, {time.Millisecond, 1}, {10 * time.Second, 900}}, 10 * time.Second, 90},
		{"clock went back", []sample{{time.Minute, 1000}, {0, 1}}, time.Minute, math.Inf(1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tr trend
			for _, s := range test.samples {
				tr.add(start.Add(s.after), s.free)
			}
			if got := tr.full(start.Add(test.now)); math.Abs(got-test.want) > 1e-6 {
				t.Errorf("full in %v s, want %v s", got, test.want)
			}
		})
	}
}

// TestTrendFollows says that a burst is not forgotten at once, but is in the end.
func TestTrendFollows(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var tr trend
	free := int64(1 << 30)
	for range 20 { // 1 MiB a second
		tr.add(now, free)
		now, free = now.Add(30*time.Second), free-30<<20
	}
	busy := tr.full(now)
	for range 4 {
		tr.add(now, free)
		now = now.Add(30 * time.Second)
	}
	if quiet := tr.full(now); math.IsInf(quiet, 0) || quiet < busy {
		t.Errorf("two quiet minutes after a burst: full in %v s, in the burst it was %v s", quiet, busy)
	}
	for range 400 {
		tr.add(now, free)
		now = now.Add(30 * time.Second)
	}
	if quiet := tr.full(now); quiet < 1e6 {
		t.Errorf("hours after a burst: full in %v s", quiet)
	}
}
