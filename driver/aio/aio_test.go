package aio

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/linuxabi"
)

func newContext(t *testing.T, requests int) *Context {
	t.Helper()
	c, err := New(requests)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("this kernel was built without asynchronous I/O")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFile writes a file and reads it, many pieces at once, while another goroutine
// waits for results.
func TestFile(t *testing.T) {
	const piece, n = 4096, 64
	mem, err := unix.Mmap(-1, 0, 2*n*piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	path := filepath.Join(t.TempDir(), "file")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c := newContext(t, n)
	transfer := func(op linuxabi.AIOOpcode, p []byte) {
		t.Helper()
		ended := make(chan map[uint64]int64)
		go func() {
			all := map[uint64]int64{}
			events := make([]Event, 5)
			for len(all) < n {
				some, err := c.Wait(events)
				if err != nil {
					t.Error(err)
					break
				}
				for _, e := range some {
					if _, twice := all[e.Data]; twice {
						t.Errorf("request %d ends twice", e.Data)
					}
					all[e.Data] = e.Res
				}
			}
			ended <- all
		}()
		for i := range n {
			err := c.Submit(&Request{
				Data: uint64(i), Opcode: op, FD: uint32(fd), Offset: int64(i) * piece,
				Buf: uint64(uintptr(unsafe.Pointer(&p[i*piece]))), Bytes: piece,
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for i, res := range <-ended {
			if res != piece {
				t.Errorf("request %d: %d", i, res)
			}
		}
	}
	out, in := mem[:n*piece], mem[n*piece:]
	for i := range out {
		out[i] = byte(i * i >> 5)
	}
	transfer(linuxabi.AIOWrite, out)
	transfer(linuxabi.AIORead, in)
	if !bytes.Equal(in, out) {
		t.Error("what was read is not what was written")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, out) {
		t.Errorf("the file has other content (%v)", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestErrors checks what a request gets that cannot be done.
func TestErrors(t *testing.T) {
	c := newContext(t, 1)
	if err := c.Submit(&Request{FD: 1 << 30}); !errors.Is(err, unix.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
	if err := c.Submit(&Request{Opcode: 99}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no opcode: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := New(0); err == nil {
		t.Error("a context for nothing")
	}
}

// TestPoll checks that a poll ends when there is something to read.
func TestPoll(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c := newContext(t, 1)
	if err := c.Submit(&Request{Data: 7, Opcode: linuxabi.AIOPoll, FD: uint32(fd), Buf: unix.POLLIN}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Wait(make([]Event, 4))
	if err != nil || len(got) != 1 || got[0].Data != 7 || got[0].Res&unix.POLLIN == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
