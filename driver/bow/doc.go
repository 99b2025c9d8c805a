// Package bow is the backup-on-write engine: a blockdev.Device made of another
// one, whose content can be put back to an earlier instant, the checkpoint,
// without a second device and without reserved space.
//
// # The idea
//
// While a checkpoint is open, the first overwrite of a block that was in use at
// the checkpoint copies its old content into a block that was free then, and
// notes that in the log (package bowlog). The new data goes where it would have
// gone anyway. So the device is always in its current state, a commit has
// nothing to move, and a rollback (package restore) copies the old blocks back.
// Every block but block 0 is at its own place at all times: reads need no
// look-up and no lock.
//
// # States
//
//	Trim        It is being found out which blocks are free: discards are
//	            collected and not passed down, writes take blocks off again.
//	Checkpoint  The old content of every block in use at the checkpoint is kept.
//	Committed   Everything is passed through.
//
// A device starts in Trim. Checkpoint leads from Trim to Checkpoint, Commit to
// Committed, and StartTrim back to Trim, any number of times.
//
// # Free space
//
// A block is free if nobody will miss its content: it was discarded, or the file
// system says that it is free (MarkFree), and it was not written since. Whoever
// reports the file system's free space looks at it while the file system goes
// on; so StartTrim comes first, and from then on the engine remembers what is
// written and does not believe reports about it. A block that the file system
// allocated after it was reported is therefore free here only as long as it was
// not written, and then its content is of no interest. Being wrong the other way
// round, taking a free block for one in use, costs space and nothing else.
//
// # Order on disk
//
// For the first overwrite of a block in use:
//
//	copy of the old content, log block, second copy of the log block (shadow)
//	flush
//	the overwrite
//
// What of that a crash leaves before the flush has ended shows in the checksum of the
// copy, and the log block before it is still there (bowlog.Prove). Where that is not
// enough, because the log block changes more than that entries are added, or is full,
// the log block comes after a flush of the rest, and is flushed by itself.
//
// Overwrites that are ready at the same time share the log write and the flush
// (logWriter). When a request returns an error before the last line, nothing of it has
// been written.
//
// Where there is room, blocks that will likely be overwritten next are backed up
// together with those that are (neighbours.go).
//
// # After a crash
//
// Open carries on with an open checkpoint from what is on the device (resume). The
// log tells what has a backup; the free map, written when the checkpoint was
// opened, what was free then. Which of that the file system has written since
// nobody knows (Stale), except for a small reserve (Spare): before the file system
// writes there, a log block without it is durable.
//
// If only the process died, the memory that it shared with its successor tells that
// too, and TakeOver carries on as if nothing had happened (Remember).
//
// # Invariants
//
//   - The blocks to be put back (Changed) were in use at the checkpoint; the
//     blocks that hold copies (Backup) and live metadata were free then. The two
//     sets never meet, which is what makes the restore a set of independent
//     copies.
//   - A Backup block is never written, except as the new dest of a copy after it
//     was freed; a block that a log on disk names as a copy stays Backup until
//     the copy was moved and the log that says so is durable.
//   - In Checkpoint, block 0 is Sector0, exactly one block is Sector0Current, and
//     nowhere else is either. Outside of it, every block is Unchanged, Free or
//     Written.
//   - No block is Reserved when no request is under way.
//
// Check tells whether they hold.
package bow
