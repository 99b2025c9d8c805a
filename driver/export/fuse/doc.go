// Package fuse exports a blockdev.Device as a loop device of the kernel, over a
// file of which this process is the file system. It works on every Linux with
// FUSE and loop devices.
//
//	a file system, or another user, of /dev/loopN
//	the loop driver, with direct I/O
//	the only file of a FUSE file system that is mounted nowhere
//	workers of this process, each in a read of one /dev/fuse
//	blockdev.Device
//
// # What holds what
//
// The loop device holds the file, the file its file system, and the file system
// the connection to the server. The serving process holds nothing but /dev/fuse
// and the Device. So when the loop device is detached everything goes, and the
// workers find the connection closed; when the process is killed, /dev/fuse is
// closed with it, all requests fail, and what is left is a loop device that can
// be found (List) and detached (Detach). There is no mount point to be left
// behind, and the loop device is not open in the serving process, whose end
// would then wait for the writing of dirty pages that only it could do.
//
// # Asking oneself
//
// A process that waits for its own file system cannot be killed cleanly: see
// aside, on which everything runs that may wait so. A Device must not do I/O on
// an export of the same process, and neither should anything else in it.
//
// # Discards
//
// The loop driver uses the same request for a discard and for a zeroing that may
// deallocate. See attachLoop for how they are told apart; where they cannot be,
// both are zeroings (DiscardsAmbiguous). The block size of the loop device must
// not be changed with LOOP_SET_BLOCK_SIZE afterwards, for that would mix them up
// again.
//
// # Taking over
//
// The server has no state of its own: one node, one file handle, attributes that
// follow from the Device. All workers read from the same descriptor, not from
// clones of it (FUSE_DEV_IOC_CLONE), although that would save them a lock in the
// kernel: the requests that were read from a clone fail when it is closed, but
// those of the connection as a whole can be sent again to a process that still
// has its descriptor. The kernel is told at the beginning that the server
// understands requests that are sent again.
//
// So who holds a duplicate of the descriptor (Duplicate) keeps the export alive
// when its process dies: requests wait. A successor that has the descriptor, the
// Handover and the Device answers them (TakeOver), those that the dead process had
// taken and not answered as well. They may be done twice then, which changes
// nothing: what is written does not depend on what was there, and requests that
// overlap with one under way have no order. Nothing that the dead process began may
// still be going on, in the kernel, when its successor answers: TakeOver is called when
// the Device could be opened exclusively, and each request of the dead process holds
// its descriptor.
//
// # io_uring
//
// With Options.IOUring, requests come over io_uring (Linux 6.14): the kernel puts them
// into memory that was lent to it, and one system call hands in a few replies and takes
// all requests that there are. Reads and writes with which there is nothing else to do
// the same ring does on the file or device below (blockdev.Shortcut); the rest is for
// workers. The price is that there is no taking over: the entries are the process's,
// and the requests in them fail when it dies. What it leaves behind is a dead export
// like any other.
//
// The rings must not outlive the descriptors of the process, or the connection would
// not end with it; so their memory is not mapped from them (package iouring).
//
// # Speed
//
// All reads and writes of a loop device with direct I/O are asynchronous; each
// is one request up to 256 KiB. One that is alone, or with which there is more to do
// than to pass it on, a worker does inline: it costs two system calls and two changes of
// threads beyond the I/O of the Device.
// The others the kernel does meanwhile (flight), so that few threads take turns where
// there are many at once. For the same reason no more workers wait than are needed.
//
// A goroutine that has done a system call needs a processor of the Go scheduler
// to go on, and those that belong to calls that last are only taken away by a
// thread that looks now and then. Processes that serve exports should therefore
// have more of these than the machine has processors (GOMAXPROCS 16 instead of 2
// doubled the rate at a queue depth of 32).
package fuse
