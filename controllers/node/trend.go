package node

import (
	"math"
	"time"
)

// trendMemory is how far back a trend looks: what was before counts for less than
// a third.
const trendMemory = 10 * time.Minute

// A trend tells from how the free space shrank when there will be none. The zero
// value knows nothing.
type trend struct {
	at    time.Time
	free  int64
	rate  float64 // bytes a second that the free space shrinks; negative if it grows
	known bool    // rate is
}

// add notes how many bytes were free at now. Times before the last one are
// ignored.
func (t *trend) add(now time.Time, free int64) {
	if t.at.IsZero() {
		t.at, t.free = now, free
		return
	}
	seconds := now.Sub(t.at).Seconds()
	if seconds < 1 {
		return
	}
	rate := float64(t.free-free) / seconds
	if t.known {
		rate = t.rate + (rate-t.rate)*(1-math.Exp(-seconds/trendMemory.Seconds()))
	}
	t.at, t.free, t.rate, t.known = now, free, rate, true
}

// full returns the seconds from now until nothing is free if all goes on as it
// did, 0 if nothing is free, and +Inf if it does not shrink or that is not known.
func (t *trend) full(now time.Time) float64 {
	switch {
	case !t.at.IsZero() && t.free <= 0:
		return 0
	case !t.known || t.rate <= 0:
		return math.Inf(1)
	}
	return max(float64(t.free)/t.rate-now.Sub(t.at).Seconds(), 0)
}
