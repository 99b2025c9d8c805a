package sanity_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %v, want %v: %v", got, want, err)
	}
}

// wantFile fails unless the file at path has this content.
func wantFile(t *testing.T, path, content string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("%s: %.40q, %v", path, b, err)
	}
}

// end ends the use of a volume; each step twice, as after a lost answer.
func (v *claim) end(t *testing.T, targets ...string) {
	t.Helper()
	for range 2 {
		for _, target := range targets {
			must(t, v.unpublish(t.Context(), target))
			if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after unpublishing, %s: %v", target, err)
			}
		}
		must(t, v.unstage(t.Context()))
	}
}

func TestPublishing(t *testing.T) {
	n := startNode(t)
	ctx, v := t.Context(), n.newClaim(t, n.client(t), "data", "ext4")
	must(t, v.create(ctx, 32<<20, false, ""))
	must(t, v.stage(ctx))
	readOnly := v.target + "-ro"
	for range 2 {
		must(t, v.publish(ctx, v.target, false))
		must(t, v.publish(ctx, readOnly, true))
	}
	must(t, os.WriteFile(filepath.Join(v.target, "f"), []byte("x"), 0o600))
	wantFile(t, filepath.Join(readOnly, "f"), "x")
	if err := os.WriteFile(filepath.Join(readOnly, "g"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("written through a read-only target: %v", err)
	}
	wantCode(t, v.unstage(ctx), codes.FailedPrecondition) // pods use it
	wantCode(t, v.remove(ctx), codes.FailedPrecondition)

	// A user keeps it busy: unpublishing must not say that it is done.
	f, err := os.Open(v.target)
	must(t, err)
	wantCode(t, v.unpublish(ctx, v.target), codes.FailedPrecondition)
	must(t, f.Close())

	// The only user, or none.
	v.cap.AccessMode.Mode = spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	wantCode(t, v.publish(ctx, v.target+"-other", false), codes.FailedPrecondition)
	v.end(t, v.target, readOnly, v.target+"-other")
	must(t, v.stage(ctx))
	must(t, v.publish(ctx, v.target, false))
	must(t, v.publish(ctx, v.target, false))
	wantFile(t, filepath.Join(v.target, "f"), "x")
	v.end(t, v.target)
	must(t, v.remove(ctx))
	must(t, v.remove(ctx))
	wantCode(t, v.stage(ctx), codes.NotFound)
}

// TestPlaces has volumes staged and published where something else is.
func TestPlaces(t *testing.T) {
	n := startNode(t)
	ctx, v := t.Context(), n.newClaim(t, n.client(t), "data", "ext4")
	must(t, v.create(ctx, 32<<20, false, ""))

	staging := v.staging
	v.staging = filepath.Join(v.scope, "file")
	must(t, os.WriteFile(v.staging, []byte("mine"), 0o600))
	wantCode(t, v.stage(ctx), codes.InvalidArgument)
	v.staging = filepath.Join(v.scope, "no", "such", "directory")
	wantCode(t, v.stage(ctx), codes.InvalidArgument)
	v.staging = staging

	must(t, v.stage(ctx))
	wantCode(t, v.publish(ctx, filepath.Join(v.scope, "file"), false), codes.InvalidArgument)
	wantFile(t, filepath.Join(v.scope, "file"), "mine")

	// A mount whose server is gone fails every request, stat included.
	must(t, os.Mkdir(v.target, 0o700))
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.Mount("corrupted", v.target, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse)))
	must(t, unix.Close(fuse))
	if _, err := os.Stat(v.target); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a mount without its server: %v", err)
	}
	must(t, v.publish(ctx, v.target, false))
	must(t, os.WriteFile(filepath.Join(v.target, "f"), []byte("x"), 0o600))
	v.end(t, v.target)
	must(t, v.remove(ctx))
}

func TestClone(t *testing.T) {
	n := startNode(t)
	c, ctx := n.client(t), t.Context()
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			source, clone := n.newClaim(t, c, "source-"+fsType, fsType), n.newClaim(t, c, "clone-"+fsType, fsType)
			size := int64(32 << 20)
			if fsType == "xfs" {
				size = 300 << 20
			}
			must(t, source.create(ctx, size, false, ""))
			must(t, source.stage(ctx))
			must(t, source.publish(ctx, source.target, false))
			must(t, os.WriteFile(filepath.Join(source.target, "f"), []byte("of the source"), 0o600))
			source.end(t, source.target)

			for range 2 {
				must(t, clone.create(ctx, size, false, source.id))
			}
			// Both are used at once.
			must(t, source.stage(ctx))
			must(t, clone.stage(ctx))
			must(t, clone.publish(ctx, clone.target, false))
			must(t, source.publish(ctx, source.target, false))
			wantFile(t, filepath.Join(clone.target, "f"), "of the source")
			must(t, os.WriteFile(filepath.Join(clone.target, "f"), []byte("of the clone"), 0o600))
			wantFile(t, filepath.Join(source.target, "f"), "of the source")
			source.end(t, source.target)
			must(t, source.remove(ctx))
			wantFile(t, filepath.Join(clone.target, "f"), "of the clone")
			clone.end(t, clone.target)
			must(t, clone.remove(ctx))
		})
	}
}

// TestExpansion expands volumes in use. That of ext4 needs more rights than some
// machines of developers have, and is left to package filesystem.
func TestExpansion(t *testing.T) {
	n := startNode(t)
	c, ctx := n.client(t), t.Context()
	const small, large = 320 << 20, 640 << 20
	for name, fsType := range map[string]string{"file-system": "xfs", "raw": ""} {
		v := n.newClaim(t, c, name, fsType)
		must(t, v.create(ctx, small, false, ""))
		must(t, v.stage(ctx))
		must(t, v.publish(ctx, v.target, false))
		total := func() int64 {
			t.Helper()
			r, err := c.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: v.id, VolumePath: v.target})
			must(t, err)
			return r.GetUsage()[0].GetTotal()
		}
		before := total()
		for range 2 {
			r, err := c.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{
				VolumeId: v.id, VolumePath: v.target, CapacityRange: &spec.CapacityRange{RequiredBytes: large}, VolumeCapability: v.cap,
			})
			if err != nil || r.GetCapacityBytes() != large {
				t.Errorf("%s: %v, %v", name, r, err)
			}
		}
		if after := total(); after-before < (large-small)*9/10 {
			t.Errorf("%s: %d bytes before, %d after", name, before, after)
		}
		_, err := c.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{
			VolumeId: v.id, VolumePath: v.target, CapacityRange: &spec.CapacityRange{RequiredBytes: 1 << 50},
		})
		wantCode(t, err, codes.ResourceExhausted)
		v.end(t, v.target)
		must(t, v.remove(ctx))
	}
}

// TestStatic uses an image that somebody else has made, and leaves it to them.
func TestStatic(t *testing.T) {
	n := startNode(t)
	ctx, v := t.Context(), n.newClaim(t, n.client(t), "static", "ext4")
	image := filepath.Join(n.dir, "an image")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 32<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	v.id, v.attributes = "my-image", map[string]string{"device": image}
	must(t, v.stage(ctx))
	must(t, v.publish(ctx, v.target, false))
	must(t, os.WriteFile(filepath.Join(v.target, "f"), []byte("x"), 0o600))
	if r, err := v.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: v.id, VolumePath: v.target}); err != nil || r.GetUsage()[0].GetTotal() == 0 {
		t.Errorf("%v, %v", r, err)
	}
	v.end(t, v.target)
	must(t, v.remove(ctx)) // it is none of the pool's
	if fi, err := os.Stat(image); err != nil || fi.Size() != 32<<20 {
		t.Errorf("%v, %v", fi, err)
	}
	for _, device := range []string{image + "-missing", "/dev/null", n.dir} {
		v.id, v.attributes = "other", map[string]string{"device": device}
		if err := v.stage(ctx); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", device, err)
		}
	}
	// What is remembered of a static volume outlives it, and harms nobody.
	must(t, os.RemoveAll(filepath.Join(n.dir, "volumes")))
}

// TestNeverOverContent: whatever is on a volume, no file system is made over it.
func TestNeverOverContent(t *testing.T) {
	n := startNode(t)
	c, ctx := n.client(t), t.Context()
	raw := n.newClaim(t, c, "raw", "")
	must(t, raw.create(ctx, 32<<20, false, ""))
	must(t, raw.stage(ctx))
	must(t, raw.publish(ctx, raw.target, false))
	content := bytes.Repeat([]byte("content of somebody "), 1000)[:16384]
	f, err := os.OpenFile(raw.target, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(content, 1<<20)
	must(t, errors.Join(err, f.Sync(), f.Close()))
	raw.end(t, raw.target)

	wrong := n.newClaim(t, c, "wrong", "ext4")
	wrong.id = raw.id
	if err := wrong.stage(ctx); err == nil {
		t.Error("a file system was made over the content of a raw volume")
	}
	must(t, wrong.unstage(ctx))
	must(t, raw.stage(ctx))
	must(t, raw.publish(ctx, raw.target, false))
	f, err = os.Open(raw.target)
	must(t, err)
	got := make([]byte, len(content))
	_, err = f.ReadAt(got, 1<<20)
	if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the content has changed, %v", err)
	}
	raw.end(t, raw.target)
	must(t, raw.remove(ctx))
}

func TestTooLarge(t *testing.T) {
	n := startNode(t)
	v := n.newClaim(t, n.client(t), "large", "ext4")
	wantCode(t, v.create(t.Context(), 1<<50, false, ""), codes.ResourceExhausted)
	wantCode(t, v.create(t.Context(), 1<<62, false, ""), codes.OutOfRange)
}
