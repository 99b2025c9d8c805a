// Package export turns a blockdev.Device into a block device of the kernel, on
// which file systems can be made and mounted. How that is done is the business
// of the packages below it: package fuse works on every Linux.
//
// What every kind promises is checked by package exporttest:
//
//   - Reads, writes, flushes and discards of the kernel arrive at the Device as
//     ReadAt, WriteAt, Flush and Discard, at once and in parallel as far as the
//     kernel sends them so; the order of requests that overlap in time is
//     undefined.
//   - Blocks that the kernel wants to read as zeros never arrive as Discard.
//   - A request of the kernel is answered after the method of the Device
//     returned, and fails if it failed.
//   - Close leaves nothing behind, and a process that is killed leaves nothing
//     that hangs.
package export

import "errors"

var (
	// ErrBusy is returned when a block device would have to go that is mounted
	// or held open.
	ErrBusy = errors.New("the block device is in use")

	// ErrInvalid is returned for an export that cannot exist: a block size or
	// a name that is not possible.
	ErrInvalid = errors.New("invalid export")

	// ErrUnsupported is returned for a kind of export that this machine or this
	// process cannot have.
	ErrUnsupported = errors.New("not supported here")

	// ErrNotFound is returned when there is no export of that name.
	ErrNotFound = errors.New("no such export")
)

// Stats are counts since the export began, for metrics.
type Stats struct {
	InFlight int64 // requests taken from the kernel and not answered yet

	Reads       uint64
	Writes      uint64
	Flushes     uint64
	Discards    uint64
	WriteZeroes uint64
	Errors      uint64 // requests of the kinds above that failed

	BytesRead    uint64
	BytesWritten uint64
}
