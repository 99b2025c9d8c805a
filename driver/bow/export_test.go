package bow

// Types returns a letter for the type of each block, for small devices.
func (e *Engine) Types() string {
	letters := [numTypes]byte{
		Unchanged: 'u', Free: 'f', Spare: 's', Stale: 't', Changed: 'c', Written: 'w',
		Backup: 'b', Reserved: 'r', Sector0: '0', Sector0Current: '1',
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []byte
	for x := range e.mu.types.Extents(0, e.mu.types.Size()) {
		for range x.End - x.Start {
			out = append(out, letters[x.Value])
		}
	}
	return string(out)
}

// BackUpAlone makes e back up nothing but what is overwritten, for tests that count.
func (e *Engine) BackUpAlone() { e.neighbourhoods = nil }

// BackUpNeighbours undoes BackUpAlone.
func (e *Engine) BackUpNeighbours() { e.neighbourhoods = neighbourhoods[:] }
