package restore

import (
	"fmt"
	"time"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/bow/bowlog"
)

// Report describes the log of a device.
type Report struct {
	DeviceSize   int64       `json:"deviceSize"` // bytes
	BlockSize    int         `json:"blockSize"`  // bytes
	Phase        string      `json:"phase"`      // open, opening or closing
	HalfRestored bool        `json:"halfRestored"`
	Sequence     uint32      `json:"sequence"`
	Sector0      uint64      `json:"sector0"` // sector of the live content of block 0
	Checkpoint   *Checkpoint `json:"checkpoint,omitempty"`
	LogBlocks    []LogBlock  `json:"logBlocks"` // newest first
	Totals       Totals      `json:"totals"`

	// Damage says where the log cannot be read any further, and why. Only the
	// log itself has been read; whether the copies are good is for Verify.
	Damage string `json:"damage,omitempty"`
}

// Checkpoint is what the header says if Bowline wrote it.
type Checkpoint struct {
	ID                string    `json:"id"`
	Opened            time.Time `json:"opened"`
	DeviceSize        int64     `json:"deviceSize"` // bytes, when it was opened
	RollbackRequested bool      `json:"rollbackRequested"`
	CommitWhenFull    bool      `json:"commitWhenFull"`
	Generation        uint64    `json:"generation"`
	Shadows           []uint64  `json:"shadows"` // sectors
}

// LogBlock is one block of the log.
type LogBlock struct {
	Sequence uint32  `json:"sequence"`
	Sector   uint64  `json:"sector"` // where it is now; 0 for the one in force
	Sector0  uint64  `json:"sector0"`
	Entries  []Entry `json:"entries"` // oldest first
}

// Entry is one entry of a log block.
type Entry struct {
	Source   uint64 `json:"source"` // sector
	Dest     uint64 `json:"dest"`   // sector
	Size     uint32 `json:"size"`   // bytes
	Checksum uint32 `json:"checksum"`
}

// Totals add up the log. If it is damaged, they stop where it does, and PutBack
// and Moved are 0.
type Totals struct {
	LogBlocks int   `json:"logBlocks"`
	Entries   int   `json:"entries"`
	Copied    int64 `json:"copied"`  // bytes of all copies, those of the log included
	PutBack   int64 `json:"putBack"` // bytes that restoring puts back, block 0 included
	Moved     int64 `json:"moved"`   // bytes copied to make way for the file system
}

// Inspect reads the log of dev and writes nothing. It gets as far as it can:
// for a log that is damaged, Report.Damage says where it ends. An error means
// that there is nothing to report: no log (bowlog.ErrNoLog), one that cannot be
// understood (bowlog.ErrUnsupported), or one whose first block is lost.
func Inspect(dev blockdev.Device) (*Report, error) {
	head, err := bowlog.Load(dev)
	if head == nil {
		return nil, fmt.Errorf("inspecting: %w", err)
	}
	if err == nil {
		var proven *bowlog.Block
		if proven, err = bowlog.Prove(dev, head); err == nil {
			head = proven
		}
	}
	r := newReport(dev, head)
	if err != nil {
		r.Damage = err.Error()
		return r, nil
	}
	if phaseOf(head) != bowlog.PhaseOpen {
		return r, nil
	}
	var last *bowlog.Block
	chain, err := bowlog.Walk(dev, head, func(s bowlog.Step) error {
		if s.Block != last {
			last = s.Block
			r.LogBlocks = append(r.LogBlocks, logBlock(s))
			r.Totals.LogBlocks++
		}
		r.Totals.Entries++
		r.Totals.Copied += int64(s.Entry.Size)
		return nil
	})
	if err != nil {
		r.Damage = err.Error()
		return r, nil
	}
	r.Totals.Moved = chain.Moved()
	r.Totals.PutBack = int64(head.BlockSize)
	for c := range chain.PutBack() {
		r.Totals.PutBack += c.Size
	}
	return r, nil
}

func newReport(dev blockdev.Device, head *bowlog.Block) *Report {
	r := &Report{
		DeviceSize:   dev.Size(),
		BlockSize:    head.BlockSize,
		Phase:        phaseOf(head).String(),
		HalfRestored: head.Partial,
		Sequence:     head.Sequence,
		Sector0:      head.Sector0,
		LogBlocks:    []LogBlock{},
	}
	if x := head.Ext; x != nil {
		r.Checkpoint = &Checkpoint{
			ID:                x.Checkpoint.String(),
			Opened:            x.Opened.UTC(),
			DeviceSize:        x.DeviceSize,
			RollbackRequested: x.RollbackRequested,
			CommitWhenFull:    x.CommitWhenFull,
			Generation:        x.Generation,
			Shadows:           []uint64{},
		}
		for _, s := range x.Shadows {
			if s != 0 {
				r.Checkpoint.Shadows = append(r.Checkpoint.Shadows, s)
			}
		}
	}
	return r
}

func logBlock(s bowlog.Step) LogBlock {
	b := LogBlock{Sequence: s.Block.Sequence, Sector: s.At, Sector0: s.Block.Sector0}
	for _, e := range s.Block.Entries {
		b.Entries = append(b.Entries, Entry(e))
	}
	return b
}
