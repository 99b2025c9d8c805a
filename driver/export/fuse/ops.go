package fuse

import (
	"errors"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// The file system has a directory and one file in it. These numbers must never
// change: a kernel that got them from one process shows them to its successor.
const (
	rootID     = linuxabi.FuseRootID
	fileID     = 2
	fileHandle = 1
)

// forever is how long the kernel may believe the name of the file. Attributes
// it must ask for each time: the size can change, and asking is how others see
// whether the server is alive (List).
const forever = math.MaxUint32

// What a punched hole means. The loop driver sends one both for a discard, of
// whose content nobody wants to know any more, and for a zeroing that may
// deallocate, after which the file system counts on zeros. See attach for how
// they are told apart.
const (
	// discardsProbed: not known yet; nobody but attach uses the device.
	discardsProbed = iota
	// discardsPlain: a punched hole is a discard.
	discardsPlain
	// discardsAmbiguous: a punched hole may be either, so zeros are written.
	discardsAmbiguous
)

// handle does what r asks for, which is in m, and answers it; or it answers errno, if
// that is not 0.
func (s *server) handle(m *message, r *request, errno unix.Errno) {
	length, reply := 0, true
	if errno == 0 {
		length, errno, reply = s.do(m.data(), r)
	}
	if reply {
		s.reply(m, r.unique, errno, length)
	}
}

// do does what r asks for, whose data is in p, and puts the body of the reply there,
// which has length bytes. reply is false for a request that has none.
func (s *server) do(p payload, r *request) (length int, errno unix.Errno, reply bool) {
	switch r.op {
	case linuxabi.FuseRead:
		length, errno = s.read(p, r)
	case linuxabi.FuseWrite:
		length, errno = s.write(p, r)
	case linuxabi.FuseFsync:
		s.counts.flushes.Add(1)
		errno = s.failed(s.dev.Flush())
	case linuxabi.FuseFallocate:
		errno = s.fallocate(r)
	case linuxabi.FuseForget, linuxabi.FuseBatchForget, linuxabi.FuseInterrupt, linuxabi.FuseNotifyReply:
		return 0, 0, false
	default:
		length, errno = s.handleMeta(p, r)
	}
	if errno != 0 {
		length = 0
	}
	return length, errno, true
}

// handleMeta handles what is not on the hot path.
func (s *server) handleMeta(p payload, r *request) (int, unix.Errno) {
	switch r.op {
	case linuxabi.FuseInit:
		return s.init(p, r)
	case linuxabi.FuseLookup:
		if r.node != rootID || string(r.name) != s.file {
			return 0, unix.ENOENT
		}
		out := body[linuxabi.FuseEntryOut](p)
		out.NodeID = fileID
		out.EntryValid = forever
		s.attr(&out.Attr, fileID)
		return int(unsafe.Sizeof(*out)), 0
	case linuxabi.FuseGetattr:
		if r.node != rootID && r.node != fileID {
			return 0, unix.ENOENT
		}
		out := body[linuxabi.FuseAttrOut](p)
		s.attr(&out.Attr, r.node)
		return int(unsafe.Sizeof(*out)), 0
	case linuxabi.FuseOpen:
		if r.node != fileID {
			return 0, unix.ENOENT
		}
		// Direct I/O also for who does not ask for it: no page cache between
		// the loop device and us. Writes in parallel, or the lock of the inode
		// would let only one through. No flush when a descriptor is closed: a
		// process that is killed would wait for an answer from itself.
		out := body[linuxabi.FuseOpenOut](p)
		out.FH = fileHandle
		out.OpenFlags = linuxabi.FuseOpenDirectIO | linuxabi.FuseOpenNoFlush | linuxabi.FuseOpenParallelDirectWrites
		return int(unsafe.Sizeof(*out)), 0
	case linuxabi.FuseStatfs:
		// The loop driver takes Bsize for the granularity of discards.
		out := body[linuxabi.FuseStatfsOut](p)
		out.Bsize = uint32(s.blockSize)
		out.Frsize = uint32(s.blockSize)
		out.Blocks = uint64(s.size()) / uint64(s.blockSize)
		out.Files = 1
		out.Namelen = maxName
		return int(unsafe.Sizeof(*out)), 0
	case linuxabi.FuseRelease, linuxabi.FuseDestroy:
		return 0, 0
	}
	// The kernel does not ask again for most of what is answered so, FuseFlush
	// among them.
	return 0, unix.ENOSYS
}

// init agrees on the protocol.
func (s *server) init(p payload, r *request) (int, unix.Errno) {
	if r.init.Major != linuxabi.FuseKernelVersion {
		return 0, unix.EPROTO
	}
	const flags = linuxabi.FuseAsyncDIO | linuxabi.FuseBigWrites | linuxabi.FuseMaxPages | linuxabi.FuseInitExt
	var flags2 uint32 = linuxabi.FuseHasResend2
	if s.uring != nil {
		// What is on the rings is lost with the process that has them.
		flags2 = linuxabi.FuseOverUring2
	}
	out := body[linuxabi.FuseInitOut](p)
	out.Major = linuxabi.FuseKernelVersion
	out.Minor = linuxabi.FuseKernelMinorVersion
	out.Flags = r.init.Flags & flags
	if out.Flags&linuxabi.FuseInitExt != 0 {
		out.Flags2 = r.init.Flags2 & flags2
	}
	if s.uring != nil && out.Flags2 != flags2 {
		return 0, unix.EPROTO
	}
	s.resends.Store(out.Flags2&linuxabi.FuseHasResend2 != 0)
	out.MaxBackground = maxBackground
	out.CongestionThreshold = maxBackground
	out.MaxWrite = maxIO
	out.MaxPages = uint16(len(p) / os.Getpagesize())
	out.TimeGran = 1
	return int(unsafe.Sizeof(*out)), 0
}

// maxBackground is how many asynchronous requests, which is what all reads and
// writes of a loop device with direct I/O are, the kernel has on the way at
// once. Its own default is 12.
const maxBackground = 256

// size is the size of the file: what of the device is whole blocks.
func (s *server) size() int64 { return s.dev.Size() &^ (int64(s.blockSize) - 1) }

func (s *server) attr(a *linuxabi.FuseAttr, node uint64) {
	a.Ino = node
	a.Blksize = uint32(s.blockSize)
	if node == rootID {
		a.Mode, a.Nlink = unix.S_IFDIR|0o500, 2
		return
	}
	a.Mode, a.Nlink = unix.S_IFREG|0o600, 1
	a.Size = uint64(s.size())
	a.Blocks = a.Size / blockdev.SectorSize
}

func (s *server) read(p payload, r *request) (int, unix.Errno) {
	s.counts.reads.Add(1)
	p = p[:r.length]
	var err error
	if s.aligned(r) {
		_, err = s.dev.ReadAt(p, r.off)
	} else {
		err = s.readRagged(p, r.off)
	}
	if errno := s.failed(err); errno != 0 {
		return 0, errno
	}
	s.counts.bytesRead.Add(uint64(r.length))
	return len(p), 0
}

// mayPass tells whether r is a read or a write that can be done as a shortcut, if the
// device allows it.
func (s *server) mayPass(r *request) bool {
	return (r.op == linuxabi.FuseRead || r.op == linuxabi.FuseWrite) &&
		r.length != 0 && s.aligned(r) && s.discards.Load() != discardsProbed
}

// shortcut is r, a read or a write, as a shortcut.
func (r *request) shortcut() blockdev.Shortcut {
	return blockdev.Shortcut{Write: r.op == linuxabi.FuseWrite, Offset: r.off, Length: r.length}
}

// passed counts r, a read or write that was done as a shortcut, and puts the body of
// the reply into p. It returns its length.
func (s *server) passed(p payload, r *request) (length int) {
	c, n := &s.counts, uint64(r.length)
	if r.op == linuxabi.FuseRead {
		c.reads.Add(1)
		c.bytesRead.Add(n)
		return int(r.length)
	}
	c.writes.Add(1)
	c.bytesWritten.Add(n)
	return writeReply(p, r)
}

// writeReply puts the body of the reply to a write into p. It returns its length.
func writeReply(p payload, r *request) (length int) {
	out := body[linuxabi.FuseWriteOut](p)
	out.Size = uint32(r.length)
	return int(unsafe.Sizeof(*out))
}

// write answers with all or an error, never with a part: the loop driver takes
// a part for the whole.
func (s *server) write(p payload, r *request) (int, unix.Errno) {
	data := p[:r.length]
	if s.discards.Load() == discardsProbed {
		if !s.isProbe(r.off, r.length) {
			return 0, unix.EIO
		}
	} else {
		s.counts.writes.Add(1)
		var err error
		if s.aligned(r) {
			_, err = s.dev.WriteAt(data, r.off)
		} else {
			err = s.writeRagged(data, r.off)
		}
		if errno := s.failed(err); errno != 0 {
			return 0, errno
		}
		s.counts.bytesWritten.Add(uint64(r.length))
	}
	return writeReply(p, r), 0
}

func (s *server) fallocate(r *request) unix.Errno {
	const (
		punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	)
	switch discards := s.discards.Load(); {
	case discards == discardsProbed:
		if r.mode == zeroRange && s.isProbe(r.off, r.length) {
			s.probed.Store(true)
			return unix.EOPNOTSUPP
		}
		return unix.EIO
	case r.mode == punchHole && discards == discardsPlain:
		s.counts.discards.Add(1)
		return s.failed(s.dev.Discard(r.off, r.length))
	case r.mode == punchHole, r.mode == zeroRange && discards == discardsAmbiguous:
		s.counts.zeroes.Add(1)
		return s.failed(s.dev.WriteZeroes(r.off, r.length))
	}
	return unix.EOPNOTSUPP
}

// failed counts err, if it is one, and is the errno for it.
func (s *server) failed(err error) unix.Errno {
	if err == nil {
		return 0
	}
	s.counts.errors.Add(1)
	return errnoOf(err)
}

// errnoOf is the errno that the kernel gets for an error of the device: the one
// that is wrapped in it, otherwise EIO.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case errors.Is(err, blockdev.ErrMisaligned), errors.Is(err, blockdev.ErrOutOfRange):
		return unix.EINVAL
	case !errors.As(err, &errno):
		return unix.EIO
	case errno == 0 || errno == unix.ENOSYS || errno >= 512:
		// The kernel would take ENOSYS for never, and of the others for
		// nonsense.
		return unix.EIO
	}
	return errno
}

// reply answers the request unique with errno or with the body of length bytes
// in m.
func (s *server) reply(m *message, unique uint64, errno unix.Errno, length int) {
	b := m.out(length)
	h := (*linuxabi.FuseOutHeader)(unsafe.Pointer(unsafe.SliceData(b)))
	*h = linuxabi.FuseOutHeader{Len: uint32(len(b)), Error: -int32(errno), Unique: unique}
	for {
		switch _, err := unix.Write(s.fd, b); err {
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		// ENOENT: who asked does not wait any more. ENODEV: the file system is
		// gone. There is nobody to tell.
		return
	}
}
