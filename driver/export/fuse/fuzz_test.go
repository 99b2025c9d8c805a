package fuse

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export/exporttest"
	"github.com/bowline-csi/bowline/driver/iomem"
	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// rawRequest is a request as it is read from /dev/fuse.
func rawRequest(op linuxabi.FuseOpcode, body ...uint64) []byte {
	b := make([]byte, inHeaderSize, 256)
	binary.NativeEndian.PutUint32(b[4:], uint32(op))
	binary.NativeEndian.PutUint64(b[8:], 42)
	binary.NativeEndian.PutUint64(b[16:], fileID)
	for _, v := range body {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// FuzzRequest gives a server anything for a request. It must not panic,
// and its answer must be one that the kernel takes.
func FuzzRequest(f *testing.F) {
	for op := range linuxabi.FuseOpcode(53) {
		f.Add(rawRequest(op))
		f.Add(rawRequest(op, 1, 4096, 512, 0, 0))
		f.Add(rawRequest(op, 1, 1<<63, 1<<20, 3, 0))
		f.Add(rawRequest(op, 1, 1<<62, 1<<63-1, 17, 0, 0, 0, 0))
	}
	f.Add([]byte{1, 2, 3})
	f.Add([]byte{})
	dev := exporttest.NewDevice(64<<10, 512)
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	m, err := newMessage(false)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		m.free()
		unix.Close(null)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, discards := range []int32{discardsProbed, discardsPlain, discardsAmbiguous} {
			srv := newServer(null, dev, "x", 4096)
			srv.discards.Store(discards)
			n := copy(m.in(), b)
			var r request
			if errno, ok := m.decode(n, &r); ok {
				srv.handle(m, &r, errno)
			}
			if srv.ragged.buf != nil {
				_ = iomem.Unmap(srv.ragged.buf)
			}
			if len(b) < inHeaderSize {
				continue
			}
			if r.unique != binary.NativeEndian.Uint64(b[8:]) {
				t.Errorf("answers %d", r.unique)
			}
			switch r.op {
			case linuxabi.FuseForget, linuxabi.FuseBatchForget, linuxabi.FuseInterrupt, linuxabi.FuseNotifyReply:
				continue // no reply
			}
			if h, _ := view[linuxabi.FuseOutHeader](m.out(0)); h.Error > 0 || h.Error <= -512 || h.Unique != r.unique {
				t.Errorf("answers %+v, which the kernel does not take", h)
			}
		}
	})
}
