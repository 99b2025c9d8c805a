package mapping

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/bow"
)

// memory is what the engine keeps in mind for its successor (bow.Engine.Remember),
// in pages of a file without a name. They live as long as somebody holds the
// descriptor, and cost what was touched: 64 KiB for a gigabyte of a volume at most, and
// nothing where all is in use or all is free.
type memory struct {
	fd  int
	mem []byte
}

// growth is how many times as large a volume may become before the memory has no
// room for what was added.
const growth = 16

// newMemory returns memory for an engine of so many blocks.
func newMemory(blocks int64) (*memory, error) {
	fd, err := unix.MemfdCreate("bowline", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for a successor: %w", err)
	}
	if err := unix.Ftruncate(fd, bow.MemorySize(blocks*growth)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("memory for a successor: %w", err)
	}
	m, err := openMemory(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return m, err
}

// openMemory returns the memory whose descriptor is fd, which belongs to it unless
// there is an error.
func openMemory(fd int) (*memory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("memory of the predecessor: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("memory for a successor: %w", err)
	}
	return &memory{fd: fd, mem: mem}, nil
}

// close gives the memory back; m may be nil. Nobody may use the engine any more, not
// even look at it.
func (m *memory) close() {
	if m != nil {
		m.unmap()
		_ = unix.Close(m.fd)
	}
}

// unmap is close without the descriptor.
func (m *memory) unmap() { _ = unix.Munmap(m.mem) }
