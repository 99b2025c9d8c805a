package bow_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/bowline-csi/bowline/driver/blockdev/memdev"
	"github.com/bowline-csi/bowline/driver/bow"
	"github.com/bowline-csi/bowline/driver/bow/restore"
	"github.com/bowline-csi/bowline/test/dmbow"
)

// TestOldTool: a tool that knows header version 1.0 only restores what the engine
// left; and where it stopped half-way, at any of its writes, our restore finishes.
func TestOldTool(t *testing.T) {
	perBlockSize(t, func(t *testing.T, bs int) {
		// The fixed seeds are known to fill log blocks; a random one need not.
		known := []uint64{1, 2, 3}
		for _, seed := range append(known, rand.Uint64()) {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				m := newModel(t, seed, bs, 400, 512)
				m.checkpoint(0.6)
				if m.engine.Stats().State != bow.Checkpoint {
					t.Skip("nothing is free with this seed")
				}
				for range 300 {
					m.undemanding()
				}
				if m.engine.Stats().LogSequence == 0 && bs == 512 && slices.Contains(known, seed) {
					t.Errorf("no log block became full")
				}
				image := m.image()
				run := func(writes int) (*memdev.Device, *dmbow.Tool, error) {
					c := memdev.New(m.dev.Size(), 512)
					if _, err := c.WriteAt(image, 0); err != nil {
						t.Fatal(err)
					}
					tool := &dmbow.Tool{Dev: c, MaxWrites: writes}
					return c, tool, tool.Restore()
				}
				read := func(c *memdev.Device) []byte {
					p := make([]byte, c.Size())
					if _, err := c.ReadAt(p, 0); err != nil {
						t.Fatal(err)
					}
					return p
				}
				c, tool, err := run(-1)
				if err != nil {
					m.fatal("old tool: %v", err)
				}
				m.wantKept(read(c), "old tool")
				for n := 0; n < tool.Writes; n += 1 + tool.Writes/40 {
					c, _, err := run(n)
					if !errors.Is(err, dmbow.ErrStopped) {
						m.fatal("old tool stopped after %d writes: %v", n, err)
					}
					if _, err := restore.Restore(t.Context(), c, restore.Options{}); err != nil {
						m.fatal("restore after %d writes of the old tool: %v", n, err)
					}
					m.wantKept(read(c), fmt.Sprintf("restore after %d writes of the old tool", n))
				}
			})
		}
	})
}
