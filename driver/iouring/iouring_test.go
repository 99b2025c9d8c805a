package iouring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

// ringTest returns a ring of this test's thread.
func ringTest(t *testing.T, requests, results int) *Ring {
	t.Helper()
	r, err := New(requests, results)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := r.Enable(); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *Ring) add(t *testing.T, e linuxabi.UringSQE) {
	t.Helper()
	p, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	*p = e
}

// results waits for n results and returns them by their user data.
func (r *Ring) results(t *testing.T, n int) map[uint64]int32 {
	t.Helper()
	all := map[uint64]int32{}
	for len(all) < n {
		if err := r.Wait(); err != nil {
			t.Fatal(err)
		}
		for {
			e, ok := r.Result()
			if !ok {
				break
			}
			if _, twice := all[e.UserData]; twice {
				t.Errorf("two results of %d", e.UserData)
			}
			all[e.UserData] = e.Res
		}
	}
	return all
}

// TestMoreThanRoom checks that neither requests nor results are lost that there is
// no room for.
func TestMoreThanRoom(t *testing.T) {
	r := ringTest(t, 4, 4)
	for round := range 3 {
		for i := range uint64(100) {
			r.add(t, linuxabi.UringSQE{Opcode: linuxabi.UringNop, UserData: i})
		}
		if got := r.results(t, 100); len(got) != 100 {
			t.Errorf("round %d: %d results", round, len(got))
		}
	}
	if e, ok := r.Result(); ok {
		t.Errorf("a result of nothing: %+v", e)
	}
}

func TestFile(t *testing.T) {
	const size = 1 << 16
	mem, err := unix.Mmap(-1, 0, 2*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "file"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := ringTest(t, 8, 32)
	transfer := func(op linuxabi.UringOpcode, p []byte) {
		const piece = 4096
		for off := 0; off < len(p); off += piece {
			r.add(t, linuxabi.UringSQE{
				Opcode: op, FD: int32(f.Fd()), Off: uint64(off), UserData: uint64(off),
				Addr: uint64(uintptr(unsafe.Pointer(&p[off]))), Len: piece,
			})
		}
		for off, res := range r.results(t, len(p)/piece) {
			if res != piece {
				t.Errorf("opcode %d at %d: %d", op, off, res)
			}
		}
	}
	out, in := mem[:size], mem[size:]
	for i := range out {
		out[i] = byte(i * i >> 5)
	}
	transfer(linuxabi.UringWrite, out)
	transfer(linuxabi.UringRead, in)
	if !bytes.Equal(in, out) {
		t.Error("what was read is not what was written")
	}
	if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, out) {
		t.Errorf("the file has other content (%v)", err)
	}
}

// TestErrors checks that a request that is wrong fails alone.
func TestErrors(t *testing.T) {
	r := ringTest(t, 4, 8)
	r.add(t, linuxabi.UringSQE{Opcode: linuxabi.UringNop, UserData: 1})
	r.add(t, linuxabi.UringSQE{Opcode: linuxabi.UringRead, FD: -1, UserData: 2})
	r.add(t, linuxabi.UringSQE{Opcode: 255, UserData: 3})
	r.add(t, linuxabi.UringSQE{Opcode: linuxabi.UringNop, UserData: 4})
	got := r.results(t, 4)
	want := map[uint64]unix.Errno{1: 0, 2: unix.EBADF, 3: unix.EINVAL, 4: 0}
	for i, errno := range want {
		if got[i] != -int32(errno) {
			t.Errorf("request %d: %d, want %d", i, got[i], -int32(errno))
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, n := range [][2]int{{0, 1}, {8, 4}, {1 << 20, 1 << 20}, {1, 1 << 20}} {
		if r, err := New(n[0], n[1]); err == nil {
			r.Close()
			t.Errorf("a ring of %v", n)
		}
	}
}
