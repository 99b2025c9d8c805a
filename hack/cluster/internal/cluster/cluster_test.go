package cluster

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newCluster(t *testing.T, checkout, state string) *Cluster {
	t.Helper()
	t.Setenv(CacheVariable, filepath.Join(t.TempDir(), "cache"))
	t.Setenv(StateVariable, state)
	c, err := New(checkout, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNames(t *testing.T) {
	odd := filepath.Join(t.TempDir(), "odd, name:")
	if err := os.Mkdir(odd, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(odd, link); err != nil {
		t.Fatal(err)
	}
	other, state := t.TempDir(), t.TempDir()
	first := newCluster(t, odd, state)
	if strings.ContainsAny(first.id, ", :/") {
		t.Errorf("the name %q is used in paths and mount options", first.id)
	}
	if same := newCluster(t, link, state); same.id != first.id {
		t.Errorf("one checkout has the names %q and %q", first.id, same.id)
	}
	if c := newCluster(t, other, state); c.id == first.id {
		t.Error("two checkouts have the same name")
	}
	if c := newCluster(t, odd, t.TempDir()); c.id == first.id {
		t.Error("clusters in two state directories have the same name")
	}
}

func TestNotRunning(t *testing.T) {
	c := newCluster(t, t.TempDir(), t.TempDir())
	ctx := t.Context()
	_, execErr := c.Exec(ctx, "node-1", "true")
	_, logsErr := c.LogFiles("node-1", "")
	for what, err := range map[string]error{
		"status":     c.Status(ctx, io.Discard),
		"kill-node":  c.KillNode("node-1"),
		"start-node": c.StartNode(ctx, "node-1"),
		"load-image": c.LoadImage(ctx, "file"),
		"exec":       execErr,
		"logs":       logsErr,
	} {
		if !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s without a cluster: %v", what, err)
		}
	}
}

func TestUpRefuses(t *testing.T) {
	c := newCluster(t, t.TempDir(), t.TempDir())
	for _, nodes := range []int{-1, 0, 10} {
		if err := c.Up(t.Context(), nodes); err == nil {
			t.Errorf("a cluster with %d nodes is accepted", nodes)
		}
	}
	err := checkSpace(filepath.Join(t.TempDir(), "made"), math.MaxUint64, CacheVariable)
	if err == nil || !strings.Contains(err.Error(), CacheVariable) {
		t.Errorf("too little space: %v", err)
	}
	if err := checkSpace(t.TempDir(), 1, CacheVariable); err != nil {
		t.Errorf("enough space: %v", err)
	}
}

func TestWait(t *testing.T) {
	failure := errors.New("not yet")
	calls := 0
	err := wait(t.Context(), time.Minute, func(context.Context) error {
		if calls++; calls < 3 {
			return failure
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("%d calls: %v", calls, err)
	}
	err = wait(t.Context(), 10*time.Millisecond, func(context.Context) error { return failure })
	if !errors.Is(err, failure) {
		t.Errorf("after the limit: %v", err)
	}
	err = wait(t.Context(), time.Minute, func(context.Context) error { return ErrNotRunning })
	if !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead cluster: %v", err)
	}
}
