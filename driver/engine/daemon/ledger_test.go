package daemon_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"golang.org/x/sys/unix"
)

// ledgerCells is how many cells a ledger has.
const ledgerCells = 512

// ledger is a file, or a device, that is written past the page cache, and what of
// that has to be there whatever happens.
type ledger struct {
	t    *testing.T
	path string
	seed uint64

	generation uint64
	written    [ledgerCells]uint64 // the last generation of each cell that was tried
	flushed    [ledgerCells]uint64 // what was there when a flush was acknowledged
}

// write writes random cells and flushes them until done tells that it is enough, or
// something fails.
func (l *ledger) write(done func() bool) (err error) {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	acknowledged := l.flushed // and what was acknowledged since
	rng := rand.New(rand.NewPCG(l.seed, l.generation))
	buf := blockdev.Buffer(16 * cell)
	for !done() {
		l.generation++
		at, n := rng.IntN(ledgerCells-16), 1+rng.IntN(16)
		stamp(buf[:n*cell], l.seed, at, l.generation)
		for i := range n {
			l.written[at+i] = l.generation
		}
		if _, err := f.WriteAt(buf[:n*cell], int64(at)*cell); err != nil {
			return err
		}
		copy(acknowledged[at:at+n], l.written[at:at+n])
		if l.generation%8 == 0 {
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return err
			}
			l.flushed = acknowledged
		}
	}
	return nil
}

// verify fails the test unless each cell has what was flushed, or what was written
// to it since.
func (l *ledger) verify() {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	all, want := blockdev.Buffer(ledgerCells*cell), make([]byte, cell)
	// A file may be shorter. What is not there reads as zeros.
	if _, err := f.ReadAt(all, 0); err != nil && !errors.Is(err, io.EOF) {
		l.t.Fatal(err)
	}
	for i := range ledgerCells {
		got := all[i*cell : (i+1)*cell]
		g := binary.LittleEndian.Uint64(got) >> 40
		if g == 0 && l.flushed[i] == 0 {
			continue // never written, or it never got there
		}
		stamp(want, l.seed, i, g)
		if g < l.flushed[i] || g > l.written[i] || !bytes.Equal(got, want) {
			l.t.Errorf("%s, cell %d: generation %d, flushed %d, written %d", l.path, i, g, l.flushed[i], l.written[i])
		}
	}
}
