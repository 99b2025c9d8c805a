package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/fuse"
	"github.com/bowline-csi/bowline/driver/mapping"
	"golang.org/x/sys/unix"
)

// Keeper holds for each volume what the next process needs to take it over when
// this one dies. It lives in another process.
type Keeper interface {
	// Keep holds note and duplicates of the descriptors fds for the volume name,
	// instead of what it held before.
	Keep(name string, note []byte, fds ...int) error

	// Drop lets go of what is held for the volume name, if anything.
	Drop(name string) error
}

// Kept is what a Keeper held for a volume when this process began.
type Kept struct {
	Name string
	Note []byte
	FDs  []int
}

// note is what a successor must know of a volume; see Kept.Note.
type note struct {
	Path          string        `json:"path"`
	BlockSize     int           `json:"blockSize"`
	KeepAllocated bool          `json:"keepAllocated"`
	Export        fuse.Handover `json:"export"`
}

// keep hands over to the keeper what a successor needs for m. It tells whether
// there can be a successor.
func (s *Server) keep(m *mapping.Mapping, o mapping.Options) (bool, error) {
	if s.Keeper == nil {
		return false, nil
	}
	h, ok, err := m.Handover()
	if err != nil || !ok {
		return false, err
	}
	defer h.Close()
	b, err := json.Marshal(note{Path: m.Path(), BlockSize: o.BlockSize, KeepAllocated: o.KeepAllocated, Export: h.Export})
	if err != nil {
		return false, err
	}
	if err := s.Keeper.Keep(o.Name, b, h.Conn, h.Memory); err != nil {
		return false, fmt.Errorf("handing %s to the keeper: %w", m.Path(), err)
	}
	return true, nil
}

// drop takes the volume name back from the keeper.
func (s *Server) drop(name string) error {
	if s.Keeper == nil {
		return nil
	}
	if err := s.Keeper.Drop(name); err != nil {
		return fmt.Errorf("taking volume %q back from the keeper: %w", name, err)
	}
	return nil
}

// takeOverPatience is how long it is tried to take over a volume, while its users
// wait. After that they get errors.
const takeOverPatience = 30 * time.Second

// TakeOver continues what a process that died served. It is for a new server, and
// owns the descriptors in all. It returns when everything is taken over or, for
// what fails, has been tried for a while; until then calls for a volume fail with
// UNAVAILABLE. The error names the volumes that are lost: their requests fail.
func (s *Server) TakeOver(ctx context.Context, all []Kept, log *slog.Logger) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, k := range all {
		v := s.enter(k.Name, true)
		v.takingOver.Store(true)
		wg.Go(func() {
			defer s.leave(k.Name, v)
			defer v.takingOver.Store(false)
			errs[i] = s.takeOver(ctx, k, v, log.With("volume", k.Name))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) takeOver(ctx context.Context, k Kept, v *volume, log *slog.Logger) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, takeOverPatience)
	defer cancel()
	var n note
	err := json.Unmarshal(k.Note, &n)
	if err == nil && len(k.FDs) != 2 {
		err = fmt.Errorf("%d descriptors, want 2", len(k.FDs))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("volume %q: what the keeper held: %w", k.Name, err), s.giveUp(k))
	}
	h := mapping.Handover{Export: n.Export, Conn: k.FDs[0], Memory: k.FDs[1]}
	o := mapping.Options{Name: k.Name, BlockSize: n.BlockSize, KeepAllocated: n.KeepAllocated}
	for {
		m, err := mapping.TakeOver(ctx, n.Path, o, h)
		if err == nil {
			v.mapping.Store(&attachment{Mapping: m, since: time.Now(), survives: true})
			log.Info("taken over", "path", n.Path, "device", m.Device(), "state", m.State(), "duration", time.Since(began))
			return nil
		}
		if errors.Is(err, export.ErrNotFound) {
			log.Info("the predecessor had detached it", "path", n.Path)
			return s.giveUp(k)
		}
		log.Error("taking over", "path", n.Path, "error", err)
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("volume %q: %w", k.Name, err), s.giveUp(k))
		case <-time.After(time.Second):
		}
	}
}

// giveUp lets go of a volume that cannot be taken over. If its mapped device is
// still there, its requests fail from now on.
func (s *Server) giveUp(k Kept) error {
	var errs []error
	for _, fd := range k.FDs {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(append(errs, s.drop(k.Name))...)
}
