package fuse

import (
	"runtime"
	"time"
)

// yieldTime is how long a goroutine goes on from one system call to the next before it
// gives up its processor of the Go scheduler for a moment.
const yieldTime = 5 * time.Millisecond

// yielder is for a goroutine that does nothing but system calls, which are short. It
// never comes by the scheduler, whose monitor takes it for one that keeps a processor to
// itself: after 10 ms it takes the processor away and sends the thread a signal, and
// from then on does so again every 70 µs or less, as often as it looks (retake in
// runtime/proc.go, Go 1.26). The monitor sleeps longer if all have come by.
type yielder struct {
	last time.Time
}

// yield gives up the processor if that is due.
func (y *yielder) yield() {
	if now := time.Now(); now.Sub(y.last) >= yieldTime {
		y.last = now
		runtime.Gosched()
	}
}
