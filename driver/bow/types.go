package bow

import "github.com/bowline-csi/bowline/driver/bow/rangemap"

// State is the state of an engine, numbered as dm-bow does.
type State int

const (
	// Trim collects what is free.
	Trim State = 0
	// Checkpoint keeps the old content of what is overwritten.
	Checkpoint State = 1
	// Committed passes everything through.
	Committed State = 2
)

func (s State) String() string {
	switch s {
	case Trim:
		return "trim"
	case Checkpoint:
		return "checkpoint"
	case Committed:
		return "committed"
	}
	return "unknown"
}

// Type is what the engine knows of a block.
type Type uint8

const (
	// Unchanged: in use, or not known to be free. In Checkpoint it has not
	// been written since, and a write backs it up.
	Unchanged Type = iota

	// Free: nobody will miss the content. A backup may go here.
	Free

	// Spare: Free, and the log on disk says so (its reserve). This is what
	// backups can use after a crash, when of other free blocks nobody knows
	// whether the file system has written them. Before the file system
	// writes here, the log must no longer say so.
	Spare

	// Stale: was free at the checkpoint, and may have been written before a
	// crash. Needs no backup, and takes none.
	Stale

	// Changed: was in use at the checkpoint and has a backup.
	Changed

	// Written: was free and has been written. In Trim it is a block that was
	// written since StartTrim, of which no report is believed any more.
	Written

	// Backup: was free and holds the copy of another block, an older log
	// block, or a shadow of the log. The file system believes that it is free;
	// when it writes there, the copy moves first.
	Backup

	// Reserved: was free and is being filled by a request under way; it
	// becomes Backup or Free. A write waits for that.
	Reserved

	// Sector0 is block 0 in Checkpoint. It holds the log.
	Sector0

	// Sector0Current: was free and holds the live content of block 0.
	Sector0Current

	numTypes
)

// Class makes Type a value of a range map, with a total for each type.
func (t Type) Class() rangemap.Class { return rangemap.Class(t) }

func (t Type) String() string {
	names := [numTypes]string{"unchanged", "free", "spare", "stale", "changed", "written", "backup", "reserved", "sector0", "sector0-current"}
	if t < numTypes {
		return names[t]
	}
	return "unknown"
}
