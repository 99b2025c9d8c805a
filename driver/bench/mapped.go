package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/volume"
)

// mapped is an image attached by a `bowline device attach` of its own.
type mapped struct {
	engine.Volume
	image  string
	device string // the mapped block device

	cmd  *exec.Cmd
	said *bytes.Buffer // what the process wrote to its standard error
	conn io.Closer
	dir  string // for its socket

	detached bool
}

// attach attaches an image, with further options of `bowline device attach`. The process ends with detach, and otherwise as soon
// as this one is gone.
func (b *bench) attach(ctx context.Context, image string, options ...string) (_ *mapped, err error) {
	dir, err := os.MkdirTemp("", "bowline-bench-")
	if err != nil {
		return nil, err
	}
	m := &mapped{image: image, dir: dir, said: &bytes.Buffer{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("attaching %s: %w", image, err), os.RemoveAll(dir))
		}
	}()
	args := append([]string{"device", "--run-dir", dir, "attach", "--block-size", strconv.Itoa(blockSize)}, options...)
	m.cmd = exec.Command(b.Program, append(args, image)...)
	m.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	m.cmd.Stderr = m.said
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(m.cmd.Wait(), errors.New(strings.TrimSpace(m.said.String())))
	}
	m.device = strings.TrimSpace(line)
	if err := m.dial(ctx); err != nil {
		return nil, errors.Join(err, m.end())
	}
	return m, nil
}

// dial connects to the process. It begins to listen before it says which device
// it serves.
func (m *mapped) dial(ctx context.Context) error {
	sockets, err := filepath.Glob(filepath.Join(m.dir, "*.sock"))
	if err != nil {
		return err
	}
	if len(sockets) != 1 {
		return fmt.Errorf("%d sockets in %s instead of 1", len(sockets), m.dir)
	}
	if m.Client, m.conn, err = engine.Dial(sockets[0]); err != nil {
		return err
	}
	list, err := m.Client.List(ctx, &enginepb.ListRequest{})
	if err != nil {
		return err
	}
	if len(list.Volumes) != 1 {
		return fmt.Errorf("%d volumes are attached instead of 1", len(list.Volumes))
	}
	m.Name = list.Volumes[0].Name
	return nil
}

// detach takes the mapping away and ends the process. An open checkpoint stays
// on the image. Once that is done, doing it again does nothing.
func (m *mapped) detach() error {
	if m == nil || m.detached {
		return nil
	}
	m.detached = true
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := m.Client.Detach(ctx, &enginepb.DetachRequest{Name: m.Name})
	return errors.Join(err, m.conn.Close(), m.end())
}

// end waits for the process, which has been told to end if all went well.
func (m *mapped) end() error {
	killed := make(chan struct{})
	timers := []*time.Timer{
		time.AfterFunc(5*time.Second, func() { m.cmd.Process.Signal(unix.SIGTERM) }),
		time.AfterFunc(15*time.Second, func() { m.cmd.Process.Kill(); close(killed) }),
	}
	err := m.cmd.Wait()
	for _, t := range timers {
		t.Stop()
	}
	select {
	case <-killed:
		err = fmt.Errorf("it had to be killed: %w", err)
	default:
	}
	if err != nil {
		err = fmt.Errorf("the process that serves %s: %w: %s", m.image, err, strings.TrimSpace(m.said.String()))
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

// status is what the engine tells of the volume now.
func (m *mapped) status(ctx context.Context) (*enginepb.Volume, error) {
	return m.Client.Get(ctx, &enginepb.GetRequest{Name: m.Name})
}

func (m *mapped) commit(ctx context.Context) error {
	_, err := m.Client.Commit(ctx, &enginepb.CommitRequest{Name: m.Name})
	return err
}

// discard makes a part of the mapped device free, as `blkdiscard` does.
func (m *mapped) discard(at region) error {
	f, err := os.OpenFile(m.device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	arg := [2]uint64{uint64(at.offset), uint64(at.length)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		err = fmt.Errorf("discarding on %s: %w", m.device, errno)
	}
	return errors.Join(err, f.Close())
}

// fresh opens a checkpoint, after a commit if one is open, in which everything
// in free is free. The mapped device is used without a file system, and it is not
// written to in free but with a checkpoint open.
func (m *mapped) fresh(ctx context.Context, free region) error {
	if err := m.committed(ctx, free); err != nil {
		return err
	}
	return m.open(ctx)
}

// committed leads to state committed, in which everything in free is free, as for
// fresh.
//
// A discard is passed down only in that state, where it would punch a hole into the
// image; so it comes before the commit, which remembers what is free.
func (m *mapped) committed(ctx context.Context, free region) error {
	v, err := m.status(ctx)
	if err != nil || v.State == enginepb.State_COMMITTED {
		return err
	}
	if err := m.discard(free); err != nil {
		return err
	}
	if v.State == enginepb.State_TRIM {
		if err := m.open(ctx); err != nil {
			return err
		}
	}
	return m.commit(ctx)
}

// open opens a checkpoint of a device without a file system.
func (m *mapped) open(ctx context.Context) error {
	_, err := volume.Checkpoint(ctx, m, "")
	return err
}

var _ volume.Mapping = (*mapped)(nil)
