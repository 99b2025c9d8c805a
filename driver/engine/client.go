package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Listen makes the unix socket at path, which only root can open. A socket that
// nobody answers at any more is replaced; a live one is an error.
func Listen(path string) (net.Listener, error) {
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("listening at %s: another process answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listening at %s: %w", path, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listening at %s: %w", path, err), l.Close())
	}
	return l, nil
}

// Dial returns a client of the engine that listens at the unix socket path. The
// connection is made with the first call.
func Dial(path string) (enginepb.EngineClient, io.Closer, error) {
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("connecting to the engine at %s: %w", path, err)
	}
	return enginepb.NewEngineClient(conn), conn, nil
}

// Volume is one attached volume of a remote engine, as package volume wants it.
type Volume struct {
	Client enginepb.EngineClient
	Name   string

	// ID is the UUID that Checkpoint gives to the checkpoint; "" lets the engine
	// choose one.
	ID string

	// CommitWhenFull makes Checkpoint open one that ends by itself, with a
	// commit, when there is no space left for backups.
	CommitWhenFull bool
}

// StartTrim begins to look for free space.
func (v Volume) StartTrim(ctx context.Context) error {
	_, err := v.Client.StartTrim(ctx, &enginepb.StartTrimRequest{Name: v.Name})
	return err
}

// StopTrim gives up what StartTrim began.
func (v Volume) StopTrim(ctx context.Context) error {
	_, err := v.Client.StopTrim(ctx, &enginepb.StopTrimRequest{Name: v.Name})
	return err
}

// MarkFree reports free space.
func (v Volume) MarkFree(ctx context.Context, extents []blockdev.Extent) error {
	req := &enginepb.MarkFreeRequest{Name: v.Name}
	for _, x := range extents {
		req.Extents = append(req.Extents, &enginepb.Extent{Offset: x.Offset, Length: x.Length})
	}
	_, err := v.Client.MarkFree(ctx, req)
	return err
}

// Checkpoint opens a checkpoint.
func (v Volume) Checkpoint(ctx context.Context) error {
	_, err := v.Client.Checkpoint(ctx, &enginepb.CheckpointRequest{Name: v.Name, Id: v.ID, CommitWhenFull: v.CommitWhenFull})
	return err
}

// Restore puts the volume name with the backing device path, which is not
// attached, back to its checkpoint. It calls progress, which may be nil, now and
// then, and returns what was done.
func Restore(ctx context.Context, c enginepb.EngineClient, name, path string, progress func(*enginepb.RestoreProgress)) (*enginepb.RestoreResult, error) {
	// Ends the call if the stream is not read to its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Restore(ctx, &enginepb.RestoreRequest{Name: name, Path: path})
	if err != nil {
		return nil, err
	}
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("restoring %s: the engine did not say how it ended", path)
		}
		if err != nil {
			return nil, err
		}
		if p.Result != nil {
			return p.Result, nil
		}
		if progress != nil {
			progress(p)
		}
	}
}
