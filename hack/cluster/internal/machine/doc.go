// Package machine runs machines that share nothing with the host but its
// kernel, its processors and a directory: each has a process tree, mounts, a
// network, a host name and a root file system of its own. Killing the first
// process of a machine is a power cut for it: everything that runs there dies
// at once, its memory file systems are gone, its disk stays.
//
// The host's side is Start, Kill and Command. Inside, the first process is the
// same executable, called with the arguments that Start is given; it calls
// Init, which mounts the root file system, waits for its network, starts the
// services and starts them again when they end.
//
// A machine's directory holds:
//
//	machine.json   the Spec
//	process.json   which process is its first one
//	upper, work    what it changed in its root file system
//	lib            /var/lib, on the host's file system instead of the overlay,
//	               since overlays and loop devices do not work on overlays
//	log            /var/log; the services' output is log/services/NAME.log
//	root           where the root file system is mounted, in the machine only
package machine
