package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"time"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"github.com/bowline-csi/bowline/driver/filesystem"
	"golang.org/x/sys/unix"
)

// Each `bowline device attach` is an engine process for one volume. It listens
// at a socket in runDir that is named after the volume, and the volume after its
// backing device, so that nothing need be looked up to find it again.

const socketSuffix = ".sock"

// attachment is a volume attached by some process of this machine.
type attachment struct {
	client io.Closer
	engine.Volume
	state *enginepb.Volume
}

func (a *attachment) close() { a.client.Close() }

var notInNames = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// volumeName names the volume on the backing device at the absolute path real.
func volumeName(real string) string {
	sum := sha256.Sum256([]byte(real))
	base := notInNames.ReplaceAllString(filepath.Base(real), "-")
	return base[:min(len(base), 32)] + "-" + hex.EncodeToString(sum[:4])
}

// realPath returns the absolute path of a file without symbolic links.
func realPath(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// attachments returns all volumes attached by processes that use runDir. Sockets
// that nobody answers at, left by processes that were killed, are passed over.
func attachments(ctx context.Context, runDir string) ([]*attachment, error) {
	sockets, err := filepath.Glob(filepath.Join(runDir, "*"+socketSuffix))
	if err != nil {
		return nil, err
	}
	var list []*attachment
	for _, socket := range sockets {
		client, conn, err := engine.Dial(socket)
		if err != nil {
			return list, err
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		resp, err := client.List(ctx, &enginepb.ListRequest{})
		cancel()
		if err != nil || len(resp.Volumes) == 0 {
			conn.Close()
			continue
		}
		v := resp.Volumes[0]
		list = append(list, &attachment{client: conn, Volume: engine.Volume{Client: client, Name: v.Name}, state: v})
	}
	return list, nil
}

// find returns the volume that target means: its backing image or device, its
// mapped device, a mount point of that, or the name in `bowline device list`.
// The error wraps errNotAttached if there is none.
func find(ctx context.Context, runDir, target string) (*attachment, error) {
	list, err := attachments(ctx, runDir)
	if err != nil {
		return nil, err
	}
	var found *attachment
	for _, a := range list {
		if found == nil && a.means(target) {
			found = a
			continue
		}
		a.close()
	}
	if found == nil {
		if e, err := findDead(ctx, target); err != nil {
			return nil, err
		} else if e != nil {
			return nil, fmt.Errorf("%s: %w any more: the process that served %s has died; unmount it, then 'bowline device detach %s' removes it", target, errNotAttached, e.Path, target)
		}
		return nil, fmt.Errorf("%s: %w: no running 'bowline device attach' has this image, device or mount point", target, errNotAttached)
	}
	return found, nil
}

func (a *attachment) means(target string) bool {
	if target == a.Name {
		return true
	}
	if sameFile(target, a.state.Path) || sameFile(target, a.state.Device) {
		return true
	}
	device, err := filesystem.Device(target)
	return err == nil && sameFile(device, a.state.Device)
}

// sameFile tells whether two paths lead to the same file or the same device.
func sameFile(a, b string) bool {
	var x, y unix.Stat_t
	if unix.Stat(a, &x) != nil || unix.Stat(b, &y) != nil {
		return false
	}
	if x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK {
		return x.Rdev == y.Rdev
	}
	return x.Dev == y.Dev && x.Ino == y.Ino
}

// mountpoint returns a mount point of the volume, or "" if it is not mounted.
func (a *attachment) mountpoint() (string, error) {
	return filesystem.MountOf(a.state.Device)
}

// refuseAttached returns an error if path is the backing device of an attached
// volume, or the mapped device or a mount point of one: work on the bare device
// needs it detached. What a process that has died left of an earlier attachment is
// removed if it is not in use.
func refuseAttached(ctx context.Context, runDir, path string) error {
	a, err := find(ctx, runDir, path)
	if errors.Is(err, errNotAttached) {
		e, err := findDead(ctx, path)
		if err != nil || e == nil {
			return err
		}
		return removeDead(ctx, runDir, e)
	}
	if err != nil {
		return err
	}
	defer a.close()
	return stateError(fmt.Sprintf("%s is attached as %s: unmount it and run 'bowline device detach %s' first", path, a.state.Device, a.state.Path))
}

// stateError is something that is not possible as things stand.
type stateError string

func (e stateError) Error() string { return string(e) }
