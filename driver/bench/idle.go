package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bowline-csi/bowline/driver/engine"
	"github.com/bowline-csi/bowline/driver/engine/enginepb"
)

// idleVolumes is the number of volumes in idle that share one engine with a first one.
const idleVolumes = 16

// idle measures what each further idle volume of 1 TiB costs in an engine that serves
// all of them, as on a node.
func (b *bench) idle(ctx context.Context) (err error) {
	b.progress("memory of %d idle volumes, %d times", idleVolumes, b.Rounds)
	for range b.Rounds {
		if err := b.measureIdle(ctx); err != nil {
			return fmt.Errorf("memory of idle volumes: %w", err)
		}
	}
	return nil
}

func (b *bench) measureIdle(ctx context.Context) (err error) {
	var undo closers
	defer func() { err = errors.Join(err, undo.close()) }()
	e, err := b.startEngine(ctx)
	if err != nil {
		return err
	}
	undo.add(e.end)
	var before int64
	for i := range 1 + idleVolumes {
		if i == 1 { // What an engine needs for any volume is there.
			if before, err = e.memory(ctx); err != nil {
				return err
			}
		}
		name, image := "bench-idle-"+strconv.Itoa(i), filepath.Join(b.images, fmt.Sprintf("idle-%d.img", i))
		if err := sparseImage(image, 1<<40); err != nil {
			return err
		}
		undo.add(func() error { return os.Remove(image) })
		// Not interrupted: it could be attached although we are told of an error.
		if _, err := e.client.Attach(context.WithoutCancel(ctx), &enginepb.AttachRequest{Name: name, Path: image}); err != nil {
			return err
		}
		undo.add(func() error {
			_, err := e.client.Detach(context.WithoutCancel(ctx), &enginepb.DetachRequest{Name: name})
			return err
		})
	}
	after, err := e.memory(ctx)
	if err != nil {
		return err
	}
	b.results.row(row{key: "memory-volume", work: "memory, each further idle volume of 1 TiB", unit: amount, goal: goalMemoryIdle}).
		add(max(float64(after-before)/idleVolumes, 1))
	return nil
}

// engineProcess is a `bowline engine`.
type engineProcess struct {
	cmd    *exec.Cmd
	said   *bytes.Buffer
	client enginepb.EngineClient
	undo   closers
}

func (b *bench) startEngine(ctx context.Context) (_ *engineProcess, err error) {
	dir, err := os.MkdirTemp("", "bowline-bench-")
	if err != nil {
		return nil, err
	}
	e := &engineProcess{said: &bytes.Buffer{}}
	e.undo.add(func() error { return os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("starting an engine: %w", err), e.undo.close())
		}
	}()
	socket := filepath.Join(dir, "engine.sock")
	e.cmd = exec.Command(b.Program, "engine", "--socket", socket, "--http-address", "")
	e.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	e.cmd.Stdout, e.cmd.Stderr = e.said, e.said
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	e.undo.add(func() error {
		err := errors.Join(e.cmd.Process.Signal(unix.SIGTERM), e.cmd.Wait())
		if err != nil {
			err = fmt.Errorf("ending the engine: %w: %s", err, strings.TrimSpace(e.said.String()))
		}
		return err
	})
	client, conn, err := engine.Dial(socket)
	if err != nil {
		return nil, err
	}
	e.undo.add(conn.Close)
	e.client = client
	for range 100 {
		if _, err = client.List(ctx, &enginepb.ListRequest{}); err == nil || ctx.Err() != nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return e, err
}

func (e *engineProcess) end() error { return e.undo.close() }

// memory is what the processes of the engine have that is not backed by files, bytes,
// once they have given back what they do not need.
func (e *engineProcess) memory(ctx context.Context) (int64, error) {
	if err := pause(ctx, 3*time.Second); err != nil {
		return 0, err
	}
	pids := []string{strconv.Itoa(e.cmd.Process.Pid)}
	// Any thread of the first process may have started the second one.
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%s/task/*/children", pids[0]))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
		pids = append(pids, strings.Fields(string(children))...)
	}
	if len(pids) < 2 {
		return 0, errors.New("the engine is one process only")
	}
	var sum int64
	for _, word := range pids {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return 0, err
		}
		for _, field := range []string{"RssAnon", "RssShmem"} {
			n, err := residentMemory(pid, field)
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return sum, nil
}
