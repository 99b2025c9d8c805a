package fuse

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/export"
)

// State tells whether an export is served.
type State string

// States of an export.
const (
	// Serving: the server answers.
	Serving State = "serving"
	// Dead: the server is gone, and every request fails.
	Dead State = "dead"
	// Silent: there is a server, or somebody who keeps its connection for a
	// successor, but it did not answer in time.
	Silent State = "silent"
)

// Info describes an export of this machine, whichever process serves it.
type Info struct {
	Name  string
	Path  string // for example /dev/loop3
	State State
}

// List finds all exports by their loop devices, those that killed processes
// left behind among them, in the order of their numbers. Those that have not
// answered when ctx is done are reported as Silent.
func List(ctx context.Context) ([]Info, error) {
	found, err := find()
	if err != nil {
		return nil, err
	}
	return describe(ctx, found), nil
}

// Find finds the exports called name, as List does. It asks nobody about others,
// so it is as quick on a machine with many of them, or with one that is silent.
func Find(ctx context.Context, name string) ([]Info, error) {
	found, err := find()
	if err != nil {
		return nil, err
	}
	return describe(ctx, slices.DeleteFunc(found, func(f foundExport) bool { return f.name != name })), nil
}

func describe(ctx context.Context, found []foundExport) []Info {
	infos := make([]Info, len(found))
	var wg sync.WaitGroup
	for i, f := range found {
		wg.Go(func() {
			infos[i] = Info{Name: f.name, Path: f.loop.path(), State: f.loop.state(ctx)}
		})
	}
	wg.Wait()
	return infos
}

// Detach removes the loop devices of all exports called name, whoever serves
// them and whether or not they are served at all. It fails with
// export.ErrNotFound if there is none and with export.ErrBusy if one is in use
// until ctx is done. Nothing has changed then, but that one without a server
// goes by itself when it is not open any more.
func Detach(ctx context.Context, name string) error {
	found, err := find()
	if err != nil {
		return err
	}
	found = slices.DeleteFunc(found, func(f foundExport) bool { return f.name != name })
	if len(found) == 0 {
		return fmt.Errorf("detach export %s: %w", name, export.ErrNotFound)
	}
	for _, f := range found {
		if err := f.loop.detach(ctx, prefix+f.name); err != nil {
			return fmt.Errorf("detach export %s: %w", name, err)
		}
	}
	return nil
}

// RemoveDead removes the loop devices of the exports called name whose server is
// gone. It is no error if there is none, and export.ErrBusy if one is in use until
// ctx is done.
func RemoveDead(ctx context.Context, name string) error {
	found, err := find()
	if err != nil {
		return err
	}
	for _, f := range found {
		if f.name != name || f.loop.state(ctx) != Dead {
			continue
		}
		if err := f.loop.detach(ctx, prefix+f.name); err != nil {
			return fmt.Errorf("removing %s, whose server is gone: %w", f.loop.path(), err)
		}
	}
	return nil
}

type foundExport struct {
	loop loopDevice
	name string
}

// find lists the loop devices of exports by what the kernel shows of their
// files, which involves no server.
func find() ([]foundExport, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var found []foundExport
	for _, file := range files {
		name, ours, err := readName(file)
		if err != nil {
			return nil, err
		}
		if !ours {
			continue
		}
		dir := filepath.Base(filepath.Dir(filepath.Dir(file)))
		n, err := strconv.Atoi(strings.TrimPrefix(dir, "loop"))
		if err != nil {
			continue
		}
		found = append(found, foundExport{loop: loopDevice(n), name: name})
	}
	slices.SortFunc(found, func(a, b foundExport) int { return int(a.loop - b.loop) })
	return found, nil
}

// state asks the kernel for the status of the loop device, for which the loop
// driver asks the file system for the attributes of the file.
func (l loopDevice) state(ctx context.Context) State {
	answer := make(chan State, 1)
	go func() {
		err := aside(func() error {
			fd, err := unix.Open(l.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.IoctlLoopGetStatus64(fd)
			return err
		})
		if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
			answer <- Dead
		} else {
			answer <- Serving
		}
	}()
	select {
	case <-ctx.Done():
		return Silent
	case s := <-answer:
		return s
	}
}
