package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"github.com/bowline-csi/bowline/driver/filesystem"
)

// A process that is killed leaves its mapped device behind, which fails every
// request. It cannot be served again; all that can be done is to unmount and
// remove it.

// deadPatience is how long to wait for others: for a server, of which it is not
// known yet whether it is dead, to answer, and for passing users of a device to
// close it.
const deadPatience = time.Second

// deadExports returns the mapped devices whose processes have died, of all run
// directories.
func deadExports(ctx context.Context) ([]fuse.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, deadPatience)
	defer cancel()
	all, err := fuse.List(ctx)
	if err != nil {
		return nil, err
	}
	var dead []fuse.Info
	for _, e := range all {
		if e.State == fuse.Dead {
			dead = append(dead, e)
		}
	}
	return dead, nil
}

// findDead returns the mapped device of a process that has died which target
// means, or nil: target is a backing image or device, a mapped device or where
// that is mounted, or a name.
func findDead(ctx context.Context, target string) (*fuse.Info, error) {
	dead, err := deadExports(ctx)
	if err != nil {
		return nil, err
	}
	name := target
	if real, err := realPath(target); err == nil {
		name = volumeName(real)
	}
	mounted, err := filesystem.Device(target)
	if err != nil {
		mounted = "" // not a mount point, which is one more thing that it may not be
	}
	for _, e := range dead {
		if e.Name == name || e.Name == target || sameFile(e.Path, target) || sameFile(e.Path, mounted) {
			return &e, nil
		}
	}
	return nil, nil
}

// removeDead removes the mapped device e of a process that has died, and its
// socket.
func removeDead(ctx context.Context, runDir string, e *fuse.Info) error {
	ctx, cancel := context.WithTimeout(ctx, deadPatience)
	defer cancel()
	err := fuse.Detach(ctx, e.Name)
	if errors.Is(err, export.ErrBusy) {
		return stateError(fmt.Sprintf("the process that served %s has died and %s is still in use: unmount it first", e.Path, e.Path))
	}
	if err != nil && !errors.Is(err, export.ErrNotFound) {
		return err
	}
	if err := os.Remove(filepath.Join(runDir, e.Name+socketSuffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
