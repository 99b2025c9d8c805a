package fuse

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/aio"
	"github.com/bowline-csi/bowline/driver/blockdev"
)

// maxJobs is the most requests that are worked on at once, and so the most that the
// device sees at once. The kernel queues the rest.
const maxJobs = 64

// job is a request that is worked on, with the memory for it. It belongs to one
// worker at a time, or to flight. The first one is for a server that has nothing to do;
// the memory of the others is pooled.
type job struct {
	*message
	request request
	number  int // in jobs.all

	// While flight has it.
	shortcut blockdev.Shortcut
	passed   aio.Request
}

// jobs are the jobs of a server.
type jobs struct {
	mu    sync.Mutex
	all   [maxJobs]*job // nil: not made; guarded by mu
	spare []*job        // of these, that nobody has; guarded by mu
}

// take returns a job that nobody has; made tells that there is one more now. It fails
// if there are as many as there may be, or if there is no memory.
func (p *jobs) take() (j *job, made bool, err error) {
	if j, made = p.reserve(); !made {
		if j == nil {
			err = fmt.Errorf("%d requests are worked on: %w", maxJobs, unix.EAGAIN)
		}
		return j, false, err
	}
	// Not under mu: memory may have to be waited for, and those who answer what that
	// depends on need mu.
	if j.message, err = newMessage(j.number != 0); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.all[j.number] = nil
		return nil, false, fmt.Errorf("memory for a request: %w", err)
	}
	return j, true, nil
}

// reserve returns a spare job, or a new one without memory, or nil.
func (p *jobs) reserve() (j *job, isNew bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.spare) - 1; last >= 0 {
		j, p.spare = p.spare[last], p.spare[:last]
		return j, false
	}
	i := slices.Index(p.all[:], nil)
	if i < 0 {
		return nil, false
	}
	p.all[i] = &job{number: i}
	return p.all[i], true
}

// put gives j back.
func (p *jobs) put(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare = append(p.spare, j)
}

// shrink gives the memory of those that nobody has back to the system, but that of the
// first one.
func (p *jobs) shrink() {
	p.releaseIf(func(j *job) bool { return j.number != 0 })
}

// release gives back the memory of all, which nobody has.
func (p *jobs) release() {
	p.releaseIf(func(*job) bool { return true })
}

func (p *jobs) releaseIf(unwanted func(*job) bool) {
	var gone []*job
	p.mu.Lock()
	p.spare = slices.DeleteFunc(p.spare, func(j *job) bool {
		if !unwanted(j) {
			return false
		}
		p.all[j.number] = nil
		gone = append(gone, j)
		return true
	})
	p.mu.Unlock()
	// Not under mu: it waits for who makes mappings, and that for memory perhaps.
	for _, j := range gone {
		j.free()
	}
}

// settle exchanges j for the one whose memory is not pooled, for a worker that will have
// nothing to do. j is put back, then or not.
func (p *jobs) settle(j *job) *job {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.spare {
		if s.number == 0 {
			p.spare[i] = j
			return s
		}
	}
	return j
}

// made is how many there are.
func (p *jobs) made() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, j := range p.all {
		if j != nil {
			n++
		}
	}
	return n
}
