package daemon_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/blockdev/faultdev"
	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"golang.org/x/sys/unix"
)

// onDisk is a file system on a volume on a disk that can fail.
type onDisk struct {
	*mounted
	disk *disk
}

func mountOnDisk(t *testing.T, kind string) *onDisk {
	t.Helper()
	d := startDisk(t, 512<<20)
	return &onDisk{mounted: mountOn(t, kind, d.device), disk: d}
}

// kinds are the file systems of a test that makes a volume for each.
func kinds() []string {
	if testing.Short() {
		return []string{"ext4"}
	}
	return []string{"ext4", "xfs"}
}

// get is what the engine tells of the volume.
func (m *mounted) get() *enginepb.Volume {
	m.t.Helper()
	v, err := m.Get(m.t.Context(), &enginepb.GetRequest{Name: m.name()})
	if err != nil {
		m.t.Fatal(err)
	}
	return v
}

// rollBack rolls the checkpoint back and mounts the volume again.
func (m *mounted) rollBack() {
	m.t.Helper()
	if _, err := m.RequestRollback(m.t.Context(), &enginepb.RequestRollbackRequest{Name: m.name()}); err != nil {
		m.t.Fatal(err)
	}
	dir := m.dir
	m.remove()
	r, err := engine.Restore(m.t.Context(), m, m.name(), m.image, nil)
	if err != nil || r.Outcome != enginepb.RestoreResult_RESTORED {
		m.t.Fatalf("%v, %v", r, err)
	}
	m.attach()
	mustRun(m.t, "mount", m.device, dir)
	m.dir = dir
}

// remount mounts the file system anew, which it may need that has shut down.
func (m *mounted) remount() {
	m.t.Helper()
	if err := unix.Unmount(m.dir, 0); err != nil {
		m.t.Fatal(err)
	}
	mustRun(m.t, "mount", m.device, m.dir)
}

// noise is n bytes that are the same for the same seed.
func noise(seed uint64, n int) []byte {
	p := blockdev.Buffer(n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(p)
	return p
}

// direct opens a file past the page cache.
func direct(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// fileCells is the number of cells of the file in which sectors go bad. What is written is
// so far apart that it is not backed up together.
const fileCells = 4096

// place is where on the device the first cell of a file is, in bytes. The others
// follow it.
func place(t *testing.T, f *os.File) int64 {
	t.Helper()
	at := func(cell int32) int64 {
		const fibmap = 1
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&cell))); errno != 0 {
			t.Fatalf("where %s is: %v", f.Name(), errno)
		}
		return int64(cell)
	}
	first := at(0)
	for i := int32(1); i < fileCells; i++ {
		if at(i) != first+int64(i) {
			t.Fatalf("%s is in pieces", f.Name())
		}
	}
	return first * cell
}

// TestBadSectors: a sector that cannot be read or written fails the requests that
// need it, with EIO, and nothing else. Nothing is overwritten whose old content could
// not be kept.
func TestBadSectors(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			m := mountOnDisk(t, kind)
			// So that only what is done here is written meanwhile: times of files
			// are not.
			mustRun(t, "mount", "-o", "remount,lazytime", m.dir)
			before := noise(1, fileCells*cell)
			path := filepath.Join(m.dir, "file")
			f := direct(t, path)
			if _, err := f.WriteAt(before, 0); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Sync(), syncfs(m.dir)); err != nil {
				t.Fatal(err)
			}
			at := place(t, f)
			m.checkpoint()
			if err := syncfs(m.dir); err != nil {
				t.Fatal(err)
			}
			after := noise(2, fileCells*cell)
			want := bytes.Clone(before)
			write := func(i int) error {
				_, err := f.WriteAt(after[i*cell:(i+1)*cell], int64(i)*cell)
				if err == nil {
					copy(want[i*cell:], after[i*cell:(i+1)*cell])
				}
				return err
			}
			failures := uint64(0)
			span := func(kind faultdev.Kind, off, length int64) fault {
				return fault{Kinds: []faultdev.Kind{kind}, Errno: unix.EIO, Off: off, Length: length}
			}
			for i, c := range []struct {
				name    string
				faults  []fault
				torn    bool  // what is there meanwhile is undefined
				another error // what happens to a write elsewhere
			}{
				{"what is to be kept cannot be read", []fault{span(faultdev.Read, at, cell)}, false, nil},
				{"what is overwritten cannot be written", []fault{span(faultdev.Write, at+1024*cell, cell)}, true, nil},
				{"the copy cannot be written", []fault{
					span(faultdev.Write, cell, at-cell),
					span(faultdev.Write, at+fileCells*cell, m.disk.size-at-fileCells*cell),
				}, false, unix.EIO},
				{"the log cannot be written", []fault{span(faultdev.Write, 0, cell)}, false, unix.EIO},
			} {
				bad := 1024 * i
				m.disk.fail(c.faults...)
				for range 2 {
					wantErrno(t, c.name, write(bad), unix.EIO)
				}
				if err := write(bad + 512); !errors.Is(err, c.another) {
					t.Errorf("%s: a write elsewhere: %v", c.name, err)
				}
				v := m.get()
				if m.disk.heal() == 0 {
					t.Errorf("%s: the disk did not fail", c.name)
				}
				if v.State != enginepb.State_CHECKPOINT || v.Failures.GetCount() <= failures ||
					!strings.Contains(v.Failures.GetLast(), unix.EIO.Error()) || time.Since(v.Failures.GetAt().AsTime()) > time.Minute {
					t.Errorf("%s: %v", c.name, v)
				}
				failures = v.Failures.GetCount()
				got := blockdev.Buffer(len(want))
				if _, err := f.ReadAt(got, 0); err != nil {
					t.Errorf("%s: reading: %v", c.name, err)
				}
				if c.torn {
					copy(got[bad*cell:(bad+1)*cell], want[bad*cell:])
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: the content has changed", c.name)
				}
				for _, i := range []int{bad, bad + 512} {
					if err := write(i); err != nil {
						t.Errorf("%s: writing afterwards: %v", c.name, err)
					}
				}
				if v := m.get(); v.Open.GetUnsettled() || v.Failures.GetCount() != failures {
					t.Errorf("%s: afterwards: %v", c.name, v)
				}
			}

			m.disk.fail(fault{Kinds: []faultdev.Kind{faultdev.Flush}, Errno: unix.EIO})
			if _, err := f.WriteAt(want[200*cell:201*cell], 200*cell); err != nil && !errors.Is(err, unix.EIO) {
				t.Errorf("a write: %v", err)
			}
			wantErrno(t, "the flush fails", unix.Fdatasync(int(f.Fd())), unix.EIO)
			m.disk.heal()
			// It is told once for the flush of the user, and once for each that the
			// log needed and that may have lost what the user wrote.
			for i := 0; ; i++ {
				err := unix.Fdatasync(int(f.Fd()))
				if err == nil {
					break
				}
				if wantErrno(t, "flush afterwards", err, unix.EIO); i > 1 {
					t.Fatal("flushes fail on a good disk")
				}
			}
			if err := write(200); err != nil {
				t.Error(err)
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				t.Error(err)
			}
			m.remount()
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("what was written is not there: %v", err)
			}
			m.rollBack()
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, before) {
				t.Errorf("the content is not that of the checkpoint: %v", err)
			}
			m.remove()
			check(t, kind, m.image)
		})
	}
}

// syncfs makes everything durable that a file system has.
func syncfs(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// TestDiskFailsForAWhile: a disk fails every operation under load, and then no more.
// Whoever writes gets errors. What had been flushed is there, the same mapping goes
// on, and the checkpoint is whole.
func TestDiskFailsForAWhile(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) {
			m := mountOnDisk(t, kind)
			ledgers := []*ledger{
				{t: t, seed: 1, path: filepath.Join(m.dir, "a")},
				{t: t, seed: 2, path: filepath.Join(m.dir, "b")},
			}
			m.failUnder(ledgers)
			kept := m.kept(ledgers)
			m.checkpoint()
			for range 2 {
				m.failUnder(ledgers)
				if v := m.get(); v.State != enginepb.State_CHECKPOINT || v.Open.GetOutOfSpace() != 0 {
					t.Errorf("%v", v)
				}
			}
			if _, err := m.RequestRollback(t.Context(), &enginepb.RequestRollbackRequest{Name: m.name()}); err != nil {
				t.Fatal(err)
			}
			dir := m.dir
			m.remove()
			m.disk.fail(fault{Kinds: []faultdev.Kind{faultdev.Write}, Errno: unix.EIO})
			if r, err := engine.Restore(t.Context(), m, m.name(), m.image, nil); err == nil {
				t.Errorf("rolled back on a disk that fails: %v", r)
			}
			m.disk.heal()
			if r, err := engine.Restore(t.Context(), m, m.name(), m.image, nil); err != nil || r.Outcome != enginepb.RestoreResult_RESTORED {
				t.Fatalf("%v, %v", r, err)
			}
			m.attach()
			mustRun(t, "mount", m.device, dir)
			m.dir = dir
			for path, want := range kept {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s is not what it was at the checkpoint: %v", path, err)
				}
			}
			m.remove()
			check(t, kind, m.image)
		})
	}
}

// kept is the content of the files of ledgers, which is on the device now.
func (m *mounted) kept(ledgers []*ledger) map[string][]byte {
	m.t.Helper()
	kept := map[string][]byte{}
	for _, l := range ledgers {
		p, err := os.ReadFile(l.path)
		if err != nil {
			m.t.Fatal(err)
		}
		kept[l.path] = p
	}
	if err := syncfs(m.dir); err != nil {
		m.t.Fatal(err)
	}
	return kept
}

// failUnder lets the disk fail while ledgers are written, and again be good. Then
// they are verified and written once more.
func (m *onDisk) failUnder(ledgers []*ledger) {
	m.t.Helper()
	failed := make(chan error)
	end := time.Now().Add(20 * time.Second)
	for _, l := range ledgers {
		go func() { failed <- l.write(func() bool { return time.Now().After(end) }) }()
	}
	time.Sleep(300 * time.Millisecond)
	m.disk.fail(fault{Kinds: everything, Errno: unix.EIO})
	for range ledgers {
		// A file system that has shut down says so in words of its own.
		wantErrno(m.t, "writing while the disk fails", <-failed, unix.EIO, unix.EROFS, unix.EUCLEAN)
	}
	time.Sleep(100 * time.Millisecond)
	v := m.get()
	if hits := m.disk.heal(); hits == 0 || v.Failures.GetCount() == 0 {
		m.t.Errorf("%d operations failed, and the engine knows of %d", hits, v.Failures.GetCount())
	}
	m.remount()
	for _, l := range ledgers {
		l.verify()
		end := l.generation + 40
		if err := l.write(func() bool { return l.generation >= end }); err != nil {
			m.t.Errorf("writing when the disk is good again: %v", err)
		}
		l.verify()
	}
}

// TestKilledWhileDiskFails: a server that is killed while its disk cannot be read is
// replaced when it can be again. Whoever writes waits for that.
func TestKilledWhileDiskFails(t *testing.T) {
	m := mountOnDisk(t, "ext4")
	if !m.get().SurvivesRestart {
		t.Skip("this kernel cannot send requests again")
	}
	l := &ledger{t: t, seed: 1, path: filepath.Join(m.dir, "a")}
	stop := make(chan struct{})
	written := make(chan error)
	go func() {
		written <- l.write(func() bool {
			select {
			case <-stop:
				return true
			default:
				return t.Failed()
			}
		})
	}()
	time.Sleep(100 * time.Millisecond)
	m.disk.fail(fault{Kinds: []faultdev.Kind{faultdev.Read}, Errno: unix.EIO})
	healed := make(chan int)
	go func() {
		time.Sleep(1500 * time.Millisecond)
		healed <- m.disk.heal()
	}()
	m.kill(m.name())
	if <-healed == 0 {
		t.Error("the disk did not fail")
	}
	close(stop)
	if err := <-written; err != nil {
		t.Errorf("writing: %v", err)
	}
	l.verify()
}
