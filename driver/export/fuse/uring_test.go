package fuse

import (
	"context"
	"errors"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev"
	"github.com/bowline-csi/bowline/driver/export"
	"github.com/bowline-csi/bowline/driver/export/exporttest"
)

// needUring skips the test where FUSE over io_uring cannot be had.
func needUring(t testing.TB) {
	t.Helper()
	u, err := newUring()
	if errors.Is(err, export.ErrUnsupported) {
		t.Skipf("FUSE over io_uring: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	u.free()
}

func TestSuiteUring(t *testing.T) {
	needUring(t)
	exporttest.Run(t, func(ctx context.Context, dev blockdev.Device, name string, blockSize int) (exporttest.Export, error) {
		return New(ctx, dev, Options{Name: name, BlockSize: blockSize, IOUring: true})
	})
}
